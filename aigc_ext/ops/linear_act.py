"""A linear layer with its bias and activation: ``bias_act(x @ w.T, b)``.

The matrix products are PyTorch's, whose bits depend on the number of threads; bias, activation, mask and bias
gradient are one pass over the result.
Inside :func:`aigc_ext.no_weight_gradients` the backward computes no gradient of ``w`` and ``b``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, shape_of
from aigc_ext.ops._autograd import eager, register_autocast, register_autograd
from aigc_ext.ops._mode import decomposed, weight_gradients
from aigc_ext.ops.activations import ACTIVATIONS, resolve_activation
from aigc_ext.ops.bias_act import bias_act_backward, bias_act_ref, mask_size

_linear_act = torch.ops.aigc.linear_act.default


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
        x: ``[..., in_features]``.
        w: ``[out_features, in_features]``, of x's dtype (under autocast all are cast, as for ``F.linear``).
        b: ``[out_features]`` or None.
        act, alpha, gain, clamp: as for :func:`aigc_ext.ops.bias_act`.

    Returns:
        ``[..., out_features]``. Differentiable to every order in x, w and b.

    Raises:
        ValueError: unknown ``act``; ``alpha`` or ``gain`` not finite; ``clamp`` negative or NaN.
        TypeError: a tensor is no tensor, or a number no Python number.
        RuntimeError: shapes or dtypes do not fit together; dtype or device not supported.
    """
    activation, alpha, gain = resolve_activation(act, alpha, gain, clamp)
    if not (isinstance(x, Tensor) and isinstance(w, Tensor) and (b is None or isinstance(b, Tensor))):
        raise no_tensor("linear_act", optional=("b",), x=x, w=w, b=b)
    if decomposed():
        return linear_act_ref(x, w, b, act, alpha, gain, clamp)
    save = torch.is_grad_enabled() and (
        x.requires_grad or w.requires_grad or (b is not None and b.requires_grad)
    )
    call = _linear_act_eager if eager() else _linear_act
    y: Tensor = call(x, w, b, activation.name, alpha, gain, clamp, save)[0]
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


# ---- registration ------------------------------------------------------------------------------------------


@torch.library.register_fake("aigc::linear_act")
def _(x, w, b, act, alpha, gain, clamp, save):  # type: ignore[no-untyped-def]
    check_fake("linear_act", x=x, w=w, b=b)
    if w.dim() != 2:
        raise RuntimeError(f"linear_act: w has shape {shape_of(w)}, but must be [out_features, in_features]")
    if x.dim() == 0 or x.size(-1) != w.size(1):
        raise RuntimeError(
            f"linear_act: x has shape {shape_of(x)}, but its last dimension must be {w.size(1)}, "
            f"the in_features of w {shape_of(w)}"
        )
    if b is not None and (b.dim() != 1 or b.size(0) != w.size(0)):
        raise RuntimeError(f"linear_act: b has shape {shape_of(b)}, but must be [{w.size(0)}]")
    y = x.new_empty(*x.shape[:-1], w.size(0))
    piecewise_linear = ACTIVATIONS[act].piecewise_linear
    product = torch.empty_like(y) if save and not piecewise_linear else x.new_empty(0)
    size = mask_size(y, b, False, -1, act, clamp) if save and piecewise_linear else 0
    return y, product, x.new_empty(size, dtype=torch.uint8)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, b, *ctx.arguments, save = inputs
    _, product, mask = output
    act, _, _, clamp = ctx.arguments
    if not save and not (act == "linear" and clamp is None):
        raise RuntimeError(f"linear_act: a gradient through act {act!r} with clamp {clamp} needs save=True")
    ctx.smooth = not ACTIVATIONS[act].piecewise_linear
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w, b, product if ctx.smooth else None, mask)


def _gradients(ctx: Any, dy: Tensor | None, d_product: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, w, b, product, mask = ctx.saved_tensors
    need_x, need_w, need_b = ctx.needs_input_grad[:3]
    if not weight_gradients():
        need_w = need_b = False
    bias_in_product = x.dtype in (torch.float16, torch.bfloat16)  # as the forward had it
    if bias_in_product:
        b = None
    sum_b = need_b and b is not None
    dz: Tensor | None = None
    dx = dw = db = None
    if dy is not None:
        act, alpha, gain, clamp = ctx.arguments
        dz, db = bias_act_backward(
            dy, product, b, None, None, mask, dy.dim() - 1, act, alpha, gain, clamp, False, sum_b, False
        )[:2]
    if d_product is not None and ctx.smooth:  # a second derivative arrives at the saved pre-activation
        dz = d_product if dz is None else dz + d_product
    if dz is not None:
        if need_x:
            dx = dz.matmul(w)
        if need_w:
            rows = math.prod(x.shape[:-1])  # not -1: undetermined for empty tensors
            dw = dz.reshape(rows, w.size(0)).t().mm(x.reshape(rows, w.size(1)))
        if need_b and bias_in_product:
            db = dz.sum_to_size(dz.size(-1))
    return dx, dw, db if need_b else None, *(None,) * 5


_linear_act_eager = register_autograd(_linear_act, _gradients, _setup)

register_autocast(_linear_act)
