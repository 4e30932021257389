"""A linear layer with its bias and activation: ``bias_act(x @ w.T, b)``.

The matrix products are PyTorch's, whose rounding depends on the number of threads; bias, activation, mask and
bias gradient are one pass over the result.

Inside :func:`aigc_ext.no_weight_gradients` the backward computes no gradient of ``w`` and ``b``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._apart import is_apart, linears_apart
from aigc_ext.ops._arguments import check_same_kind, no_tensor, shape_of
from aigc_ext.ops._gradients import with_zeros
from aigc_ext.ops._layout import HALF
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native
from aigc_ext.ops.activations import ACTIVATIONS, check_activation, has_corners, resolve_activation
from aigc_ext.ops.bias_act import bias_act_backward, bias_act_ref, mask_size


def linear_act(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """``clamp(gain * act(x @ w.T + b))``.

    Args:
        x: ``[..., in_features]``; float64, float32, float16 or bfloat16.
        w: ``[out_features, in_features]``, of x's dtype (under autocast all are cast, as for ``F.linear``).
        b: ``[out_features]`` or None.
        act, alpha, gain, clamp: as for :func:`aigc_ext.ops.bias_act`.

    Returns:
        ``[..., out_features]``. Differentiable to every order in x, w and b.

    Raises:
        ValueError: unknown ``act``; ``alpha`` or ``gain`` not finite; ``clamp`` negative or NaN.
        TypeError: an argument is not a tensor, or not a Python number, where one is required.
        RuntimeError: shapes or dtypes do not match; dtype or device not supported.
    """
    y: Tensor
    activation, alpha, gain = resolve_activation(act, alpha, gain, clamp)
    if not (isinstance(x, Tensor) and isinstance(w, Tensor) and (b is None or isinstance(b, Tensor))):
        raise no_tensor("linear_act", optional=("b",), x=x, w=w, b=b)
    if decomposed():
        return linear_act_ref(x, w, b, act, alpha, gain, clamp)
    if is_apart(x):
        y = linears_apart(x, [w], [b], activation.name, [alpha], [gain])
        return y if clamp is None else y.clamp(-clamp, clamp)
    save = torch.is_grad_enabled() and (
        x.requires_grad or w.requires_grad or (b is not None and b.requires_grad)
    )
    y = _linear_act(x, w, b, activation.name, alpha, gain, clamp, save)[0]
    return y


def linear_act_ref(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`linear_act` in plain PyTorch."""
    return bias_act_ref(F.linear(x, w, b), None, -1, act, alpha, gain, clamp)


# ---- native ops --------------------------------------------------------------------------------------------


def _fake(  # type: ignore[no-untyped-def]
    x, w, b, act, alpha, gain, clamp, save
) -> tuple[Tensor, Tensor, Tensor]:
    check_same_kind("linear_act", x=x)
    check_activation("linear_act", act, alpha, gain, clamp)
    check_same_kind("linear_act", x=x, w=w)
    if w.dim() != 2:
        raise RuntimeError(f"linear_act: w has shape {shape_of(w)}, but must be [out_features, in_features]")
    if x.dim() == 0 or x.size(-1) != w.size(1):
        raise RuntimeError(
            f"linear_act: x has shape {shape_of(x)}, but its last dimension must be {w.size(1)}, "
            f"the in_features of w {shape_of(w)}"
        )
    check_same_kind("linear_act", x=x, b=b)
    if b is not None and (b.dim() != 1 or b.size(0) != w.size(0)):
        raise RuntimeError(f"linear_act: b has shape {shape_of(b)}, but must be [{w.size(0)}]")
    y = x.new_empty(*x.shape[:-1], w.size(0))
    piecewise_linear = ACTIVATIONS[act].piecewise_linear
    product = torch.empty_like(y) if save and not piecewise_linear else x.new_empty(0)
    size = mask_size(y, b, False, -1, act, clamp) if save and piecewise_linear else 0
    return y, product, x.new_empty(size, dtype=torch.uint8)


def _kept(x, w, b, act, alpha, gain, clamp, save, out) -> tuple[Tensor | None]:  # type: ignore[no-untyped-def]
    if not save and not (act == "linear" and clamp is None):
        raise RuntimeError(f"linear_act: a gradient through act {act!r} with clamp {clamp} needs save=True")
    return (None if ACTIVATIONS[act].piecewise_linear else out[1],)


def _gradients(
    a: Any, needs: Any, dy: Tensor | None, d_product: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    bias_in_product = a.x.dtype in HALF  # as in the forward
    b = None if bias_in_product else a.b
    sum_b = needs.b and b is not None
    dz = dx = dw = db = None
    if dy is not None:
        inputs = (dy, a.product, b, None, None, a.mask, dy.dim() - 1, *a.plain[:4])
        dz, db, _ = bias_act_backward(*inputs, False, sum_b, False)
    if d_product is not None and a.product is not None:
        # A second derivative enters through the saved pre-activation.
        dz = d_product if dz is None else dz + d_product
    if dz is not None:
        if bias_in_product and has_corners(a.act):
            dz = with_zeros(dz, a.b)
        if needs.x:
            dx = dz.matmul(a.w)
        if needs.w:
            rows = math.prod(a.x.shape[:-1])  # not -1, which is ambiguous for empty tensors
            dw = dz.reshape(rows, a.w.size(0)).t().mm(a.x.reshape(rows, a.w.size(1)))
        if needs.b and bias_in_product:
            db = dz.sum_to_size(dz.size(-1))
    return dx, dw, db if needs.b else None


_linear_act = native(
    "linear_act",
    fake=_fake,
    gradients=_gradients,
    weights=("w", "b"),
    save=("x", "w", "b", "mask"),
    keep=("product",),
    kept=_kept,
    constants=("mask",),
    autocast=True,
)

OPS = [Op(linear_act, linear_act_ref, {"x": (4, 8), "w": (6, 8), "b": (6,), "act": "lrelu"})]
