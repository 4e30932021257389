"""Samples that do not depend, to the last bit, on what else is in their batch.

A matrix product or a convolution sums in an order that may depend on the number of rows or images, and so may
the choice between two kernels. Inside :func:`samples_apart`:

- products are ``linear_rows``, a native op that computes every row by the same code;
- what chooses between kernels or forms does so as for one sample;
- a convolution, whose order of sums is oneDNN's affair, takes a whole batch only where a trial with random
  numbers gave every sample the bits that it has alone, in all elements, for this shape and number of threads.
  The order does not depend on the numbers, and two orders round most random sums differently, so the trial
  does not miss a difference. Where it finds one, the convolution runs on one image at a time.

Everything else that our networks consist of computes each element, or each sample, by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_same_kind, shape_of
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import NATIVES, native
from aigc_ext.ops.activations import activation_names, check_activation

Convolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Geometry = tuple[object, ...]  # all that `run` depends on, besides its arguments


class _State(threading.local):
    """Per thread: a run that trains in another one must keep its bits."""

    depth = 0


_state = _State()


@contextmanager
def samples_apart() -> Iterator[None]:
    """Inside, our ops compute a sample of a batch as they compute it alone, bit for bit (with the same number
    of threads). Forward only, float32 on the CPU: anything else is computed as outside, and so is what is
    compiled. It holds for the calling thread, and may be nested."""
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1


def can_be_apart(x: Tensor) -> bool:
    """Would :func:`samples_apart` hold here, for tensors of x's dtype and device?"""
    return _holds_for(x) and not (decomposed() or torch.is_autocast_enabled("cpu"))


def is_apart(x: Tensor) -> bool:
    """Is this inside :func:`samples_apart`, and does it hold for x?"""
    if torch.compiler.is_compiling():  # Dynamo cannot guard on a thread's state
        return False
    return _state.depth > 0 and not torch.is_grad_enabled() and _holds_for(x)


def _holds_for(x: Tensor) -> bool:
    return _HAS_KERNEL and x.dtype == torch.float32 and x.is_cpu


def product_apart(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w.T`` of matrices."""
    return linears_apart(x, [w], [None], "linear", [0.0], [1.0])


def linears_apart(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    acts: str,
    alphas: Sequence[float],
    gains: Sequence[float],
) -> Tensor:
    """A chain of linear layers, as the native ``fused_mlp`` takes them, for x of any rank."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.size(-1))
    given = [w.new_zeros(w.size(0)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    y: Tensor = _linear_rows(rows, list(weights), given, acts, list(alphas), list(gains))
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], y.size(1))


def convolution_apart(run: Convolution, geometry: Geometry, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """``run(x, w, b)``, on the whole batch or on one image at a time."""
    n = x.size(0)
    if n <= 1 or _gives_the_same(run, geometry, x, w, b is not None):
        return run(x, w, b)
    return torch.cat([run(alone(x, i), w, b) for i in range(n)])


def alone(x: Tensor, i: int) -> Tensor:
    """Sample i as a batch of its own, which like any new tensor begins at a multiple of 64 bytes, since that
    may matter too."""
    one = x[i : i + 1]
    return one.clone() if one.data_ptr() % 64 else one


def _gives_the_same(run: Convolution, geometry: Geometry, x: Tensor, w: Tensor, bias: bool) -> bool:
    key = (geometry, tuple(x.shape), x.stride(), tuple(w.shape), w.stride(), bias, torch.get_num_threads())
    known = _TRIALS.get(key)
    if known is None:
        known = _TRIALS[key] = _try_out(run, x, w, bias)
    return known


_TRIALS: dict[tuple[object, ...], bool] = {}


def _try_out(run: Convolution, x: Tensor, w: Tensor, bias: bool) -> bool:
    rng = torch.Generator().manual_seed(0)
    x, w = torch.empty_like(x).normal_(generator=rng), torch.empty_like(w).normal_(generator=rng)
    b = torch.zeros(run(x[:1], w, None).size(1)).normal_(generator=rng) if bias else None
    together = run(x, w, b)
    return all(torch.equal(run(alone(x, i), w, b)[0], together[i]) for i in range(x.size(0)))


# ---- native op ---------------------------------------------------------------------------------------------


def _fake(  # type: ignore[no-untyped-def]
    x, weights, biases, acts, alphas, gains
) -> Tensor:
    op, count, names = "linear_rows", len(weights), activation_names(acts)
    if not (count >= 1 and len(biases) == len(alphas) == len(gains) == count):
        raise RuntimeError(
            f"{op}: there are {count} weights, {len(biases)} biases, {len(alphas)} alphas and {len(gains)} "
            "gains, but there must be one of each for every layer"
        )
    check_same_kind(op, x=x)
    if x.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(f"{op}: x must be of dtype float32 or float64")
    if x.dim() != 2:
        raise RuntimeError(f"{op}: x has shape {shape_of(x)}, but must be [rows, in_features]")
    features = x.size(1)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        check_same_kind(op, **{"x": x, f"weights[{i}]": w})
        check_same_kind(op, **{"x": x, f"biases[{i}]": b})
        if w.dim() != 2 or w.size(1) != features:
            raise RuntimeError(
                f"{op}: weights[{i}] has shape {shape_of(w)}, but must be [out_features, {features}]"
            )
        features = w.size(0)
        if b.dim() != 1 or b.size(0) != features:
            raise RuntimeError(f"{op}: biases[{i}] has shape {shape_of(b)}, but must be [{features}]")
        if i >= len(names):
            raise RuntimeError(f"{op}: acts has {i} names, but there are {count} weights")
        check_activation(op, names[i], alphas[i], gains[i], None)
    return x.new_empty(x.size(0), features)


_linear_rows = native("linear_rows", fake=_fake, cuda=False)
_HAS_KERNEL = NATIVES["linear_rows"].overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU)
