"""A chain of linear layers with activations, as one op forward and one backward.

The reference GAN's layers have about 100 features, where the call overhead is as large as the arithmetic. The
matrix products are PyTorch's; bias, activation, mask and bias gradient are one pass between them. Forward,
backward and double backward (R1 and similar penalties) are native; derivatives through weight gradients, and
the third order, are plain PyTorch.

Inside :func:`aigc_ext.no_weight_gradients` the backward computes no gradient of weights and biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._apart import is_apart, linears_apart
from aigc_ext.ops._arguments import check_same_kind, check_same_shape, dtype_name, no_tensor, shape_of
from aigc_ext.ops._gradients import leaf, reference_gradients
from aigc_ext.ops._layout import HALF
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native
from aigc_ext.ops.activations import ACTIVATIONS, activation_names, check_activation, resolve_activation
from aigc_ext.ops.bias_act import mask_size
from aigc_ext.ops.linear_act import linear_act_ref

_MOST_LAYERS = 62  # of the native op


def fused_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    acts: Sequence[str],
    alphas: Sequence[float | None] | None = None,
    gains: Sequence[float | None] | None = None,
) -> Tensor:
    """``x = gain * act(x @ w.T + b)``, one layer after the other.

    Args:
        x: ``[..., in_features]``; float64, float32, float16 or bfloat16.
        weights: 1 to 62 tensors ``[out_features, in_features]`` of x's dtype (under autocast all are cast,
            as for ``F.linear``); the in_features of each are the out_features of the one before.
        biases: ``[out_features]`` for each layer.
        acts: an activation for each layer, as for :func:`aigc_ext.ops.bias_act`.
        alphas, gains: as for :func:`aigc_ext.ops.bias_act`, one for each layer; None for the defaults.

    Returns:
        ``[..., out_features]`` of the last layer. Differentiable to every order in x, weights and biases.

    Raises:
        ValueError: no layers or too many; the lists differ in length; unknown act; alpha or gain not finite.
        TypeError: an argument is not a tensor, or not a Python number, where one is required.
        RuntimeError: shapes or dtypes do not match; dtype or device not supported.
    """
    names, alphas, gains = _layers(x, weights, biases, acts, alphas, gains)
    weights, biases = list(weights), list(biases)
    if decomposed():
        return fused_mlp_ref(x, weights, biases, acts, alphas, gains)
    if is_apart(x):
        return linears_apart(x, weights, biases, names, alphas, gains)
    save = torch.is_grad_enabled() and (
        x.requires_grad or any(t.requires_grad for t in weights) or any(t.requires_grad for t in biases)
    )
    y: Tensor = _fused_mlp(x, weights, biases, names, alphas, gains, save)[0]
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
    """Checks everything except the shapes; returns the activations in the native op's form."""
    count = len(weights)
    if not 1 <= count <= _MOST_LAYERS:
        raise ValueError(f"fused_mlp: weights has {count} tensors, but must have 1 to {_MOST_LAYERS}")
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
    resolve = _resolve if torch.compiler.is_compiling() else _resolve_once  # Dynamo warns about the cache
    return resolve(tuple(acts), tuple(alphas), tuple(gains))


def _resolve(
    acts: tuple[str, ...], alphas: tuple[float | None, ...], gains: tuple[float | None, ...]
) -> tuple[str, list[float], list[float]]:
    resolved = [resolve_activation(*layer, None) for layer in zip(acts, alphas, gains, strict=True)]
    return ",".join(acts), [alpha for _, alpha, _ in resolved], [gain for _, _, gain in resolved]


_resolve_once = lru_cache(maxsize=256)(_resolve)


# ---- native ops --------------------------------------------------------------------------------------------


def _check_layers(  # type: ignore[no-untyped-def]
    op: str, x: Tensor, weights: list[Tensor], biases: list[Tensor], acts: str, alphas, gains
) -> None:
    count, names = len(weights), activation_names(acts)
    if not 1 <= count <= _MOST_LAYERS:
        raise RuntimeError(f"{op}: weights has {count} tensors, but must have 1 to {_MOST_LAYERS}")
    if not len(biases) == len(alphas) == len(gains) == count:
        raise RuntimeError(
            f"{op}: {count} weights, but {len(biases)} biases, {len(alphas)} alphas and {len(gains)} gains"
        )
    if x.dim() == 0:
        raise RuntimeError(f"{op}: x has shape [], but must be [..., in_features]")
    check_same_kind(op, x=x)
    features = x.size(-1)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if i >= len(names):
            raise RuntimeError(f"{op}: acts has {i} names, but there are {count} weights")
        check_activation(op, names[i], alphas[i], gains[i], None)
        check_same_kind(op, **{"x": x, f"weights[{i}]": w, f"biases[{i}]": b})
        if w.dim() != 2 or w.size(1) != features:
            before = f"weights[{i - 1}]" if i else f"an x of shape {shape_of(x)}"
            raise RuntimeError(
                f"{op}: weights[{i}] has shape {shape_of(w)}, but must be [out_features, {features}] "
                f"behind {before}"
            )
        features = w.size(0)
        if b.dim() != 1 or b.size(0) != features:
            raise RuntimeError(f"{op}: biases[{i}] has shape {shape_of(b)}, but must be [{features}]")
    if len(names) > count:
        raise RuntimeError(f"{op}: acts has more names than there are weights, which are {count}")


def _check_dy(op: str, dy: Tensor, x: Tensor, weights: list[Tensor]) -> None:
    check_same_kind(op, x=x, dy=dy)
    features = weights[-1].size(0)
    if dy.shape != (*x.shape[:-1], features):
        raise RuntimeError(
            f"{op}: dy has shape {shape_of(dy)}, but must be that of x, {shape_of(x)}, with a last dimension "
            f"of {features}"
        )


def _check_saved(op: str, saved: list[Tensor], x: Tensor, weights: list[Tensor], acts: str) -> None:
    if len(saved) != 2 * len(weights) - 1:
        raise RuntimeError(
            f"{op}: saved has {len(saved)} tensors, but must have {2 * len(weights) - 1}, as fused_mlp(..., "
            "save=True) returned them"
        )
    rows = math.prod(x.shape[:-1])
    for i, (w, act) in enumerate(zip(weights, activation_names(acts), strict=True)):
        result = x.dtype, [rows, w.size(0)]
        mask = torch.uint8, [0 if act == "linear" else (rows * w.size(0) + 7) // 8]
        state = mask if ACTIVATIONS[act].piecewise_linear else result
        for k, (dtype, size) in enumerate([result, state] if i + 1 < len(weights) else [state]):
            t = saved[2 * i + k]
            if t.dtype != dtype or list(t.shape) != size or not t.is_contiguous():
                raise RuntimeError(
                    f"{op}: saved[{2 * i + k}] is {dtype_name(t.dtype)} of shape {shape_of(t)}, but must be "
                    f"{dtype_name(dtype)} of shape {size}, as fused_mlp(..., save=True) returned it"
                )


def _fake(  # type: ignore[no-untyped-def]
    x, weights, biases, acts, alphas, gains, save
) -> tuple[Tensor, list[Tensor]]:
    _check_layers("fused_mlp", x, weights, biases, acts, alphas, gains)
    rows = math.prod(x.shape[:-1])  # numel() would fix a batch size that export keeps dynamic
    saved = []
    for i, (w, b, act) in enumerate(zip(weights, biases, activation_names(acts), strict=True)):
        h = x.new_empty(rows, w.size(0))
        if save and i + 1 < len(weights):
            saved.append(h)
        if save and ACTIVATIONS[act].piecewise_linear:
            late_bias = None if x.dtype in HALF else b
            size = mask_size(h, late_bias, False, -1, act, None)
            saved.append(x.new_empty(size, dtype=torch.uint8))
        elif save:
            saved.append(torch.empty_like(h))
    return x.new_empty(*x.shape[:-1], weights[-1].size(0)), saved


def _asked(tensors: list[Tensor], bits: int) -> list[Tensor]:
    return [t.new_empty(t.shape if bits >> i & 1 else 0) for i, t in enumerate(tensors)]


def _fake_backward(  # type: ignore[no-untyped-def]
    dy, x, weights, biases, saved, acts, alphas, gains, need_x, need_w, need_b
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    op = "fused_mlp_backward"
    _check_layers(op, x, weights, biases, acts, alphas, gains)
    _check_saved(op, saved, x, weights, acts)
    _check_dy(op, dy, x, weights)
    return x.new_empty(x.shape if need_x else 0), _asked(weights, need_w), _asked(biases, need_b)


def _fake_double_backward(  # type: ignore[no-untyped-def]
    u, dy, x, weights, biases, saved, acts, alphas, gains, need_x, need_w, need_b
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    op = "fused_mlp_double_backward"
    _check_layers(op, x, weights, biases, acts, alphas, gains)
    _check_saved(op, saved, x, weights, acts)
    _check_dy(op, dy, x, weights)
    check_same_kind(op, x=x, u=u)
    check_same_shape(op, x=x, u=u)
    grad_x = x.new_empty(x.shape if need_x else 0)
    return dy.new_empty(dy.shape), grad_x, _asked(weights, need_w), _asked(biases, need_b)


def _bits(needed: Sequence[bool]) -> int:
    return sum(need << i for i, need in enumerate(needed))


def _only_asked(tensors: Sequence[Tensor | None], bits: int) -> list[Tensor | None]:
    return [t if bits >> i & 1 else None for i, t in enumerate(tensors)]


def _kept(x, weights, biases, acts, alphas, gains, save, out) -> tuple[()]:  # type: ignore[no-untyped-def]
    if not save:
        raise RuntimeError("fused_mlp: a gradient needs save=True")
    return ()


def _gradients(a: Any, needs: Any, dy: Tensor) -> Sequence[Any]:
    need_w, need_b = _bits(needs.weights), _bits(needs.biases)
    if not (needs.x or need_w or need_b):
        return None, None, None
    layers = (a.x, a.weights, a.biases, a.saved, a.acts, a.alphas, a.gains)
    dx, dw, db = _backward(dy, *layers, needs.x, need_w, need_b)
    return dx, _only_asked(dw, need_w), _only_asked(db, need_b)


def _backward_gradients(
    a: Any, needs: Any, g_dx: Tensor | None, g_dw: list[Tensor | None], g_db: list[Tensor | None]
) -> Sequence[Any]:
    # An output that was not asked for is empty, and so is its cotangent.
    g_dx = g_dx if a.need_x else None
    g_dw, g_db = _only_asked(g_dw, a.need_w), _only_asked(g_db, a.need_b)
    if any(g is not None for g in (*g_dw, *g_db)):
        return reference_gradients(
            lambda dy, x, weights, biases: _backward_ref(dy, x, weights, biases, *a.plain[:3]),
            *((a.dy, a.x, a.weights, a.biases), needs, (g_dx, g_dw, g_db)),
        )
    if g_dx is None:
        return (None,) * 4
    need_w, need_b = _bits(needs.weights), _bits(needs.biases)
    # Behind the last layer that is not linear, dx does not depend on the biases, without one not on x either.
    names = activation_names(a.acts)
    while names and names[-1] == "linear":
        names.pop()
    need_b &= (1 << len(names)) - 1
    layers = (a.x, a.weights, a.biases, a.saved, a.acts, a.alphas, a.gains)
    need_x = needs.x and len(names) > 0
    grad_dy, grad_x, grad_w, grad_b = _double_backward(g_dx, a.dy, *layers, need_x, need_w, need_b)
    return grad_dy, grad_x if need_x else None, _only_asked(grad_w, need_w), _only_asked(grad_b, need_b)


def _backward_ref(  # type: ignore[no-untyped-def]
    dy, x, weights, biases, acts, alphas, gains
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """dx, all dw and all db."""
    x, weights, biases = leaf(x), [leaf(w) for w in weights], [leaf(b) for b in biases]
    y = fused_mlp_ref(x, weights, biases, activation_names(acts), alphas, gains)
    dx, *rest = torch.autograd.grad(y, (x, *weights, *biases), dy, create_graph=True)
    return dx, rest[: len(weights)], rest[len(weights) :]


def _double_backward_ref(  # type: ignore[no-untyped-def]
    u, dy, x, weights, biases, saved, acts, alphas, gains, need_x, need_w, need_b
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    dy, x, weights, biases = leaf(dy), leaf(x), [leaf(w) for w in weights], [leaf(b) for b in biases]
    dx, _, _ = _backward_ref(dy, x, weights, biases, acts, alphas, gains)
    inputs = (dy, x, *weights, *biases)
    gradients = torch.autograd.grad(dx, inputs, u, create_graph=True, allow_unused=True)
    grad_dy, grad_x, *rest = (
        torch.zeros_like(t) if g is None else g for t, g in zip(inputs, gradients, strict=True)
    )
    n, empty = len(weights), x.new_empty(0)
    grad_w, grad_b = (
        [empty if g is None else g for g in _only_asked(part, bits)]
        for part, bits in ((rest[:n], need_w), (rest[n:], need_b))
    )
    return grad_dy, grad_x if need_x else empty, grad_w, grad_b


_double_backward = native(
    "fused_mlp_double_backward",
    fake=_fake_double_backward,
    reference=_double_backward_ref,
    wrt=("u", "dy", "x", "weights", "biases"),
)
_backward = native(
    "fused_mlp_backward",
    fake=_fake_backward,
    gradients=_backward_gradients,
    wrt=("dy", "x", "weights", "biases"),
)
_fused_mlp = native(
    "fused_mlp",
    fake=_fake,
    gradients=_gradients,
    weights=("weights", "biases"),
    save=("x", "weights", "biases", "saved"),  # `saved` has no graph; the formulas account for it
    kept=_kept,
    constants=("saved",),
    autocast=True,
)

OPS = [
    Op(
        fused_mlp,
        fused_mlp_ref,
        {
            "x": (4, 8),
            "weights": [(8, 8), (8, 8), (3, 8)],
            "biases": [(8,), (8,), (3,)],
            "acts": ["lrelu", "tanh", "linear"],
        },
    )
]
