"""A chain of linear layers with activations, as one op forward and one backward.

The networks of the reference GAN have layers of some 100 features, where a call costs as much as its
arithmetic. The products are PyTorch's; bias, activation, mask and bias gradient are one pass between them.
Forward, backward and double backward (R1 and its relatives) are native; what differentiates through weight
gradients, and the third order, is plain PyTorch.
Inside :func:`aigc_ext.no_weight_gradients` the backward computes no gradient of weights and biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, shape_of
from aigc_ext.ops._autograd import (
    eager,
    reference_gradients,
    register_autocast,
    register_kernel,
    register_list_autograd,
)
from aigc_ext.ops._mode import decomposed, weight_gradients
from aigc_ext.ops.activations import ACTIVATIONS, resolve_activation
from aigc_ext.ops.bias_act import mask_size
from aigc_ext.ops.linear_act import linear_act_ref

_fused_mlp = torch.ops.aigc.fused_mlp.default
_backward = torch.ops.aigc.fused_mlp_backward.default
_double_backward = torch.ops.aigc.fused_mlp_double_backward.default


def fused_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    acts: Sequence[str],
    alphas: Sequence[float | None] | None = None,
    gains: Sequence[float | None] | None = None,
) -> Tensor:
    """``x = gain * act(x @ w.T + b)`` for one layer after the other.

    Args:
        x: ``[..., in_features]``.
        weights: at most 62, ``[out_features, in_features]`` each, of x's dtype (under autocast all are cast,
            as for ``F.linear``); the in_features of each are the out_features of the one before.
        biases: ``[out_features]`` for each of them.
        acts: an activation for each of them, as for :func:`aigc_ext.ops.bias_act`.
        alphas, gains: as for :func:`aigc_ext.ops.bias_act`, one for each; None for the defaults.

    Returns:
        ``[..., out_features]`` of the last layer. Differentiable to every order in x, weights and biases.

    Raises:
        ValueError: no layer or too many; the lists differ in length; unknown act; alpha or gain not finite.
        TypeError: a tensor is no tensor, or a number no Python number.
        RuntimeError: shapes or dtypes do not fit together; dtype or device not supported.
    """
    names, alphas, gains = _layers(x, weights, biases, acts, alphas, gains)
    weights, biases = list(weights), list(biases)
    if decomposed():
        return fused_mlp_ref(x, weights, biases, acts, alphas, gains)
    save = torch.is_grad_enabled() and (
        x.requires_grad or any(t.requires_grad for t in weights) or any(t.requires_grad for t in biases)
    )
    call = _fused_mlp_eager if eager() else _fused_mlp
    y: Tensor = call(x, weights, biases, names, alphas, gains, save)[0]
    return y


def fused_mlp_ref(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    acts: Sequence[str],
    alphas: Sequence[float | None] | None = None,
    gains: Sequence[float | None] | None = None,
) -> Tensor:
    """:func:`fused_mlp` in plain PyTorch."""
    none = [None] * len(weights)
    for w, b, act, alpha, gain in zip(weights, biases, acts, alphas or none, gains or none, strict=True):
        x = linear_act_ref(x, w, b, act, alpha, gain)
    return x


def _layers(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    acts: Sequence[str],
    alphas: Sequence[float | None] | None,
    gains: Sequence[float | None] | None,
) -> tuple[str, list[float], list[float]]:
    """The activations as the native op takes them, after a look at everything but the shapes."""
    count = len(weights)
    if not 1 <= count <= 62:
        raise ValueError(f"fused_mlp: weights has {count} tensors, but must have 1 to 62")
    if isinstance(acts, str):
        raise ValueError(f"fused_mlp: acts is {acts!r}, but must be a sequence of {count} names")
    none = [None] * count
    alphas, gains = none if alphas is None else alphas, none if gains is None else gains
    for name, values in (("biases", biases), ("acts", acts), ("alphas", alphas), ("gains", gains)):
        if len(values) != count:
            raise ValueError(f"fused_mlp: {name} has {len(values)} entries, but weights has {count}")
    if not isinstance(x, Tensor):
        raise no_tensor("fused_mlp", x=x)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if not (isinstance(w, Tensor) and isinstance(b, Tensor)):
            raise no_tensor("fused_mlp", **{f"weights[{i}]": w, f"biases[{i}]": b})
    resolve = _resolve if torch.compiler.is_compiling() else _resolve_once  # Dynamo warns of the cache
    return resolve(tuple(acts), tuple(alphas), tuple(gains))


def _resolve(
    acts: tuple[str, ...], alphas: tuple[float | None, ...], gains: tuple[float | None, ...]
) -> tuple[str, list[float], list[float]]:
    resolved = [resolve_activation(*layer, None) for layer in zip(acts, alphas, gains, strict=True)]
    return ",".join(acts), [alpha for _, alpha, _ in resolved], [gain for _, _, gain in resolved]


_resolve_once = lru_cache(maxsize=256)(_resolve)


# ---- registration ------------------------------------------------------------------------------------------


def _check_shapes(op: str, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> None:
    check_fake(op, x=x)
    if x.dim() == 0:
        raise RuntimeError(f"{op}: x has shape [], but must be [..., in_features]")
    features = x.size(-1)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        check_fake(op, **{"x": x, f"weights[{i}]": w, f"biases[{i}]": b})
        if w.dim() != 2 or w.size(1) != features:
            before = f"weights[{i - 1}]" if i else f"an x of shape {shape_of(x)}"
            raise RuntimeError(
                f"{op}: weights[{i}] has shape {shape_of(w)}, but must be [out_features, {features}] "
                f"behind {before}"
            )
        features = w.size(0)
        if b.dim() != 1 or b.size(0) != features:
            raise RuntimeError(f"{op}: biases[{i}] has shape {shape_of(b)}, but must be [{features}]")


def _named(acts: str) -> list[str]:
    return acts.split(",")


@torch.library.register_fake("aigc::fused_mlp")
def _(x, weights, biases, acts, alphas, gains, save):  # type: ignore[no-untyped-def]
    _check_shapes("fused_mlp", x, weights, biases)
    rows = math.prod(x.shape[:-1])  # numel() would fix a batch size that export left open
    saved = []
    for i, (w, b, act) in enumerate(zip(weights, biases, _named(acts), strict=True)):
        h = x.new_empty(rows, w.size(0))
        if save and i + 1 < len(weights):
            saved.append(h)
        if save and ACTIVATIONS[act].piecewise_linear:
            late_bias = None if _bias_in_product(x) else b
            size = mask_size(h, late_bias, False, -1, act, None)
            saved.append(x.new_empty(size, dtype=torch.uint8))
        elif save:
            saved.append(torch.empty_like(h))
    return x.new_empty(*x.shape[:-1], weights[-1].size(0)), saved


def _bias_in_product(x: Tensor) -> bool:
    return x.dtype in (torch.float16, torch.bfloat16)


def _asked(tensors: list[Tensor], bits: int) -> list[Tensor]:
    return [t.new_empty(t.shape if bits >> i & 1 else 0) for i, t in enumerate(tensors)]


def _check_dy(op: str, dy: Tensor, x: Tensor, weights: list[Tensor]) -> None:
    check_fake(op, x=x, dy=dy)
    features = weights[-1].size(0)
    if dy.shape != (*x.shape[:-1], features):
        raise RuntimeError(
            f"{op}: dy has shape {shape_of(dy)}, but must be that of x, {shape_of(x)}, with a last dimension "
            f"of {features}"
        )


@torch.library.register_fake("aigc::fused_mlp_backward")
def _(dy, x, weights, biases, saved, acts, alphas, gains, need_x, need_w, need_b):  # type: ignore[no-untyped-def]
    op = "fused_mlp_backward"
    _check_shapes(op, x, weights, biases)
    _check_dy(op, dy, x, weights)
    dx = x.new_empty(x.shape if need_x else 0)
    return dx, _asked(weights, need_w), _asked(biases, need_b)


@torch.library.register_fake("aigc::fused_mlp_double_backward")
def _(u, dy, x, weights, biases, saved, acts, alphas, gains, need_x, need_w, need_b):  # type: ignore[no-untyped-def]
    op = "fused_mlp_double_backward"
    _check_shapes(op, x, weights, biases)
    _check_dy(op, dy, x, weights)
    check_fake(op, x=x, u=u)
    if u.shape != x.shape:
        raise RuntimeError(f"{op}: u has shape {shape_of(u)}, but x has shape {shape_of(x)}")
    grad_x = x.new_empty(x.shape if need_x else 0)
    return dy.new_empty(dy.shape), grad_x, _asked(weights, need_w), _asked(biases, need_b)


def _bits(needed: Sequence[bool]) -> int:
    return sum(need << i for i, need in enumerate(needed))


def _only_asked(tensors: list[Tensor], bits: int) -> list[Tensor | None]:
    return [t if bits >> i & 1 else None for i, t in enumerate(tensors)]


def _saved_lists(ctx: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """What a formula has saved: the single tensors, then weights, biases and the forward's ``saved``."""
    tensors, n = list(ctx.saved_tensors), ctx.layers
    last = len(tensors) - (2 * n - 1)
    return tensors[: last - 2 * n], tensors[last - 2 * n : last - n], tensors[last - n : last], tensors[last:]


class _FusedMLP(torch.autograd.Function):
    """Written out rather than left to `register_list_autograd`: at these sizes Python's time counts."""

    @staticmethod
    def forward(
        ctx: Any, kept: list[Tensor], arguments: tuple[Any, ...], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        n = len(parameters) // 2
        with torch._C._AutoDispatchBelowAutograd():
            y, saved = _fused_mlp(x, parameters[:n], parameters[n:], *arguments, True)
        kept += saved
        ctx.layers, ctx.arguments = n, arguments
        ctx.set_materialize_grads(False)
        # `saved` has no graph: the formulas differentiate through it themselves.
        ctx.save_for_backward(x, *parameters, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        n, needed = ctx.layers, ctx.needs_input_grad
        need_x, need_w, need_b = needed[2], 0, 0
        if weight_gradients():
            need_w, need_b = _bits(needed[3 : 3 + n]), _bits(needed[3 + n :])
        if dy is None or not (need_x or need_w or need_b):
            return (None,) * len(needed)
        x, *rest = ctx.saved_tensors
        call = _backward_eager if eager() else _backward
        dx, dw, db = call(
            dy, x, rest[:n], rest[n : 2 * n], rest[2 * n :], *ctx.arguments, need_x, need_w, need_b
        )
        return None, None, dx if need_x else None, *_only_asked(dw, need_w), *_only_asked(db, need_b)


def _fused_mlp_eager(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    acts: str,
    alphas: list[float],
    gains: list[float],
    save: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The op with its gradient: for eager calls, and what the dispatcher calls where autograd is on."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases)):
        if not save:
            raise RuntimeError("fused_mlp: a gradient needs save=True")
        kept: list[Tensor] = []
        return _FusedMLP.apply(kept, (acts, alphas, gains), x, *weights, *biases), kept
    with torch._C._AutoDispatchBelowAutograd():
        result: tuple[Tensor, list[Tensor]] = _fused_mlp(x, weights, biases, acts, alphas, gains, save)
    return result


def _setup_backward(ctx: Any, inputs: list[Any], outputs: tuple[Any, ...]) -> None:
    dy, x, weights, biases, saved, *ctx.arguments, ctx.has_dx, ctx.has_dw, ctx.has_db = inputs
    ctx.layers = len(weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, x, *weights, *biases, *saved)


def _backward_gradients(
    ctx: Any, needed: list[Any], g_dx: Tensor | None, g_dw: list[Tensor | None], g_db: list[Tensor | None]
) -> tuple[Any, ...]:
    (dy, x), weights, biases, saved = _saved_lists(ctx)
    none = [None] * ctx.layers
    rest = ([None] * len(saved), None, none, none, None, None, None)
    # An output that was not asked for is empty, and so is its gradient.
    g_dx = g_dx if ctx.has_dx else None
    g_dw, g_db = _only_asked(g_dw, ctx.has_dw), _only_asked(g_db, ctx.has_db)  # type: ignore[arg-type]
    if any(g is not None for g in (*g_dw, *g_db)):
        gradients = reference_gradients(
            lambda dy, x, *parameters: _reference_backward(ctx, dy, x, parameters),
            (dy, x, *weights, *biases),
            (needed[0], needed[1], *needed[2], *needed[3]),
            (g_dx, *g_dw, *g_db),
        )
        n = ctx.layers
        return gradients[0], gradients[1], gradients[2 : 2 + n], gradients[2 + n :], *rest
    if g_dx is None:
        return None, None, none, none, *rest
    need_x, need_w, need_b = needed[1], _bits(needed[2]), _bits(needed[3])
    call = _double_backward_eager if eager() else _double_backward
    grad_dy, grad_x, grad_w, grad_b = call(
        g_dx, dy, x, weights, biases, saved, *ctx.arguments, need_x, need_w, need_b
    )
    return (
        grad_dy if needed[0] else None,
        grad_x if need_x else None,
        _only_asked(grad_w, need_w),
        _only_asked(grad_b, need_b),
        *rest,
    )


def _reference_backward(ctx: Any, dy: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """dx, all dw and all db in plain PyTorch, differentiable."""
    acts, alphas, gains = ctx.arguments
    x, *parameters = (t if t.requires_grad else t.detach().requires_grad_() for t in (x, *parameters))
    y = fused_mlp_ref(x, parameters[: ctx.layers], parameters[ctx.layers :], _named(acts), alphas, gains)
    return torch.autograd.grad(y, (x, *parameters), dy, create_graph=True)


def _setup_double_backward(ctx: Any, inputs: list[Any], outputs: tuple[Any, ...]) -> None:
    u, dy, x, weights, biases, saved, *ctx.arguments, ctx.has_x, ctx.has_w, ctx.has_b = inputs
    ctx.layers = len(weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(u, dy, x, *weights, *biases, *saved)


def _double_backward_gradients(
    ctx: Any,
    needed: list[Any],
    g_dy: Tensor | None,
    g_x: Tensor | None,
    g_w: list[Tensor | None],
    g_b: list[Tensor | None],
) -> tuple[Any, ...]:
    (u, dy, x), weights, biases, saved = _saved_lists(ctx)
    n = ctx.layers

    def reference(u: Tensor, dy: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        dy, x, *parameters = (  # type: ignore[assignment]
            t if t.requires_grad else t.detach().requires_grad_() for t in (dy, x, *parameters)
        )
        dx = _reference_backward(ctx, dy, x, parameters)[0]
        inputs = (dy, x, *parameters)
        gradients = torch.autograd.grad(dx, inputs, u, create_graph=True, allow_unused=True)
        return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, gradients, strict=True))

    gradients = reference_gradients(
        reference,
        (u, dy, x, *weights, *biases),
        (*needed[:3], *needed[3], *needed[4]),
        (
            g_dy,
            g_x if ctx.has_x else None,
            *_only_asked(g_w, ctx.has_w),  # type: ignore[arg-type]
            *_only_asked(g_b, ctx.has_b),  # type: ignore[arg-type]
        ),
    )
    none = [None] * n
    rest = ([None] * len(saved), None, none, none, None, None, None)
    return *gradients[:3], gradients[3 : 3 + n], gradients[3 + n :], *rest


register_kernel(_fused_mlp, _fused_mlp_eager)
_backward_eager = register_list_autograd(_backward, _backward_gradients, _setup_backward)
_double_backward_eager = register_list_autograd(
    _double_backward, _double_backward_gradients, _setup_double_backward
)
register_autocast(_fused_mlp)
