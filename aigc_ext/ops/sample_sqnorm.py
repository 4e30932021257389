"""Per-sample sums of squares, for gradient penalties.

Every order of differentiation is a kernel: ``sample_dot`` and ``sample_scale``, below it, are each other's
derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, shape_of
from aigc_ext.ops._autograd import eager, empty_dense_like, register_autograd
from aigc_ext.ops._mode import decomposed

_sqnorm = torch.ops.aigc.sample_sqnorm.default
_dot = torch.ops.aigc.sample_dot.default
_scale = torch.ops.aigc.sample_scale.default


def sample_sqnorm(g: Tensor) -> Tensor:
    """The sum of squares of each sample, ``sum of g[n]**2``, in one pass.

    Args:
        g: ``[N, ...]``, contiguous or channels-last without a copy; float64, float32, float16 or bfloat16.

    Returns:
        ``[N]``, float64 for float64, else float32 (a half type could not hold the sums); the same bits for
        any number of threads. Differentiable to every order.

    Raises:
        TypeError: ``g`` is no tensor.
        RuntimeError: ``g`` has no dimensions; dtype or device not supported.
    """
    if not isinstance(g, Tensor):
        raise no_tensor("sample_sqnorm", g=g)
    if decomposed():
        return sample_sqnorm_ref(g)
    result: Tensor = (_sqnorm_eager if eager() else _sqnorm)(g)
    return result


def sample_sqnorm_ref(g: Tensor) -> Tensor:
    """:func:`sample_sqnorm` in plain PyTorch."""
    return g.reshape(g.size(0), g[:1].numel()).to(_sum_dtype(g)).square().sum(1)


# ---- registration ------------------------------------------------------------------------------------------


def _sum_dtype(a: Tensor) -> torch.dtype:
    return torch.float64 if a.dtype == torch.float64 else torch.float32


def _check_samples(op: str, x: Tensor) -> None:
    name = "g" if op == "sample_sqnorm" else "a"
    check_fake(op, **{name: x})
    if x.dim() == 0:
        raise RuntimeError(f"{op}: {name} has no dimensions, but must have shape [N, ...]")


@torch.library.register_fake("aigc::sample_sqnorm")
def _(g):  # type: ignore[no-untyped-def]
    _check_samples("sample_sqnorm", g)
    return g.new_empty(g.size(0), dtype=_sum_dtype(g))


@torch.library.register_fake("aigc::sample_dot")
def _(a, b):  # type: ignore[no-untyped-def]
    _check_samples("sample_dot", a)
    check_fake("sample_dot", a=a, b=b)
    if b.shape != a.shape:
        raise RuntimeError(f"sample_dot: b has shape {shape_of(b)}, but a has shape {shape_of(a)}")
    return a.new_empty(a.size(0), dtype=_sum_dtype(a))


@torch.library.register_fake("aigc::sample_scale")
def _(a, s):  # type: ignore[no-untyped-def]
    _check_samples("sample_scale", a)
    if s.shape != a.shape[:1] or s.dtype != _sum_dtype(a) or s.device != a.device:
        raise RuntimeError(
            f"sample_scale: s is {s.dtype} of shape {shape_of(s)} on {s.device}, but must be "
            f"{_sum_dtype(a)} of shape [{a.size(0)}] on {a.device}, the device of a"
        )
    return empty_dense_like(a)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sqnorm_gradient(ctx: Any, grad: Tensor) -> Tensor:
    (g,) = ctx.saved_tensors
    return _scale(g, 2 * grad)


def _dot_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    need_a, need_b = ctx.needs_input_grad
    return _scale(b, grad) if need_a else None, _scale(a, grad) if need_b else None


def _scale_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, s = ctx.saved_tensors
    need_a, need_s = ctx.needs_input_grad
    return _scale(grad, s) if need_a else None, _dot(grad, a) if need_s else None


_sqnorm_eager = register_autograd(_sqnorm, _sqnorm_gradient, _save)
register_autograd(_dot, _dot_gradients, _save)
register_autograd(_scale, _scale_gradients, _save)
