"""Convolution with 3x3 filters, stride 1, by Winograd's minimal filtering on the CPU.

The op, its transpose and the gradient of the filters are the three sides of one trilinear form, so that each
one's derivatives are the other two, to every order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, shape_of
from aigc_ext.ops._autograd import eager, is_channels_last, register_autocast, register_autograd
from aigc_ext.ops._mode import decomposed, weight_gradients

_conv3x3 = torch.ops.aigc.conv3x3.default
_weight_gradient = torch.ops.aigc.conv3x3_weight_gradient.default
_HAS_KERNEL = torch._C._dispatch_has_kernel_for_dispatch_key("aigc::conv3x3", "CPU")


def conv3x3(x: Tensor, w: Tensor, padding: int = 1) -> Tensor:
    """``torch.nn.functional.conv2d(x, w, padding=padding)`` for 3x3 filters.

    On the CPU by Winograd's F(2x2, 3x3): 16 products instead of 36 for every 2x2 outputs (Lavin and Gray
    2016, "Fast Algorithms for Convolutional Neural Networks"). On other devices it is ``conv2d`` itself. With
    many channels it is faster than that on the CPU (``benchmarks/conv3x3.py``). A NaN or an infinity may
    reach one pixel further than the 3x3 neighbours.

    Args:
        x: ``[N, in_channels, H, W]``, contiguous or channels-last without a copy. N may be 0.
        w: ``[out_channels, in_channels, 3, 3]``, of x's dtype (under autocast both are cast, as for
            ``conv2d``). Half types are computed in float32.
        padding: zeros around the images: 0, 1 or 2.

    Returns:
        ``[N, out_channels, H + 2 * padding - 2, W + 2 * padding - 2]``, channels-last if ``x`` is, else
        contiguous. Differentiable to every order in x and w; inside :func:`aigc_ext.no_weight_gradients` the
        backward computes no gradient of ``w``.

    Raises:
        TypeError: ``x`` or ``w`` is no tensor.
        RuntimeError: shapes, dtypes, devices or the padding do not fit.
    """
    if not (isinstance(x, Tensor) and isinstance(w, Tensor)):
        raise no_tensor("conv3x3", x=x, w=w)
    if decomposed() or not has_conv3x3(x):
        return conv3x3_ref(x, w, padding)
    return conv3x3_padded(x, w, None, padding, padding, False)


def conv3x3_ref(x: Tensor, w: Tensor, padding: int = 1) -> Tensor:
    """:func:`conv3x3` in plain PyTorch."""
    return F.conv2d(x, w, padding=padding)


def conv3x3_padded(
    x: Tensor, w: Tensor, b: Tensor | None, pad_y: int, pad_x: int, transposed: bool
) -> Tensor:
    """The op itself, with a bias; ``transposed`` is the transpose of the one with padding ``2 - pad``."""
    y: Tensor = (_conv3x3_eager if eager() else _conv3x3)(x, w, b, pad_y, pad_x, transposed)
    return y


def has_conv3x3(x: Tensor) -> bool:
    """Is there a kernel for x's device?"""
    return _HAS_KERNEL and x.device.type == "cpu"


# ---- registration ------------------------------------------------------------------------------------------


def _new_images(op: str, x: Tensor, channels: int, pad_y: int, pad_x: int) -> Tensor:
    if x.dim() != 4 or min(x.shape[1:]) < 1:
        raise RuntimeError(
            f"{op}: x has shape {shape_of(x)}, but must be [N, C, H, W] with C, H and W of at least 1"
        )
    for pad in (pad_y, pad_x):
        if not 0 <= pad <= 2:
            raise RuntimeError(f"{op}: padding is {pad}, but must be 0, 1 or 2")
    height, width = x.size(2) + 2 * pad_y - 2, x.size(3) + 2 * pad_x - 2
    if height < 1 or width < 1:
        raise RuntimeError(
            f"{op}: x has shape {shape_of(x)}, but with padding [{pad_y}, {pad_x}] must be at least 3 high "
            "and 3 wide"
        )
    if is_channels_last(x):
        return x.new_empty([x.size(0), height, width, channels]).permute(0, 3, 1, 2)
    return x.new_empty([x.size(0), channels, height, width])


@torch.library.register_fake("aigc::conv3x3")
def _(x, w, b, pad_y, pad_x, transposed):  # type: ignore[no-untyped-def]
    check_fake("conv3x3", x=x, w=w, b=b)
    if w.dim() != 4 or min(w.shape[:2]) < 1 or tuple(w.shape[2:]) != (3, 3):
        raise RuntimeError(
            f"conv3x3: w has shape {shape_of(w)}, but must be [out_channels, in_channels, 3, 3]"
        )
    out_channels, in_channels = (w.size(1), w.size(0)) if transposed else (w.size(0), w.size(1))
    y = _new_images("conv3x3", x, out_channels, pad_y, pad_x)
    if x.size(1) != in_channels:
        raise RuntimeError(
            f"conv3x3: x has shape {shape_of(x)}, but must have {in_channels} channels for a w of shape "
            f"{shape_of(w)}"
        )
    if b is not None and (b.dim() != 1 or b.size(0) != out_channels):
        raise RuntimeError(f"conv3x3: b has shape {shape_of(b)}, but must be [{out_channels}]")
    return y


@torch.library.register_fake("aigc::conv3x3_weight_gradient")
def _(dy, x, pad_y, pad_x):  # type: ignore[no-untyped-def]
    op = "conv3x3_weight_gradient"
    check_fake(op, x=x, dy=dy)
    out_channels = dy.size(1) if dy.dim() > 1 else 0
    y = _new_images(op, x, out_channels, pad_y, pad_x)
    if out_channels < 1 or dy.shape != y.shape:
        raise RuntimeError(
            f"{op}: dy has shape {shape_of(dy)}, but must be [{x.size(0)}, out_channels, {y.size(2)}, "
            f"{y.size(3)}]"
        )
    return x.new_empty(out_channels, x.size(1), 3, 3)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, *ctx.arguments = inputs
    ctx.save_for_backward(x, w)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w = ctx.saved_tensors
    pad_y, pad_x, transposed = ctx.arguments
    back_y, back_x = 2 - pad_y, 2 - pad_x
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        dx = conv3x3_padded(dy, w, None, back_y, back_x, not transposed)
    if ctx.needs_input_grad[1] and weight_gradients():
        gradient = _weight_gradient_eager if eager() else _weight_gradient
        dw = gradient(x, dy, back_y, back_x) if transposed else gradient(dy, x, pad_y, pad_x)
    if ctx.needs_input_grad[2] and weight_gradients():
        db = dy.sum((0, 2, 3))
    return dx, dw, db, None, None, None


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, x, *ctx.arguments = inputs
    ctx.save_for_backward(dy, x)


def _weight_gradient_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    dy, x = ctx.saved_tensors
    pad_y, pad_x = ctx.arguments
    need_dy, need_x = ctx.needs_input_grad[:2]
    return (
        conv3x3_padded(x, g, None, pad_y, pad_x, False) if need_dy else None,
        conv3x3_padded(dy, g, None, 2 - pad_y, 2 - pad_x, True) if need_x else None,
        None,
        None,
    )


_conv3x3_eager = register_autograd(_conv3x3, _gradients, _save)
_weight_gradient_eager = register_autograd(_weight_gradient, _weight_gradient_gradients, _save_gradient)

register_autocast(_conv3x3)
