"""Convolution with 3x3 filters and stride 1, by Winograd's minimal filtering on the CPU.

The op, its transpose and the gradient of the filters are the partial derivatives of one trilinear form, so
the derivatives of each are the other two, to every order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._arguments import check_same_kind, no_tensor, shape_of
from aigc_ext.ops._layout import new_like_images
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native

_HAS_KERNEL = torch._C._dispatch_has_kernel_for_dispatch_key("aigc::conv3x3", "CPU")


def conv3x3(x: Tensor, w: Tensor, padding: int = 1) -> Tensor:
    """``torch.nn.functional.conv2d(x, w, padding=padding)`` for 3x3 filters.

    On the CPU it uses Winograd's F(2x2, 3x3): 16 products instead of 36 for every 2x2 outputs (Lavin and Gray
    2016, "Fast Algorithms for Convolutional Neural Networks"), which is faster than ``conv2d`` with many
    channels (``benchmarks/conv3x3.py``). On other devices it is ``conv2d`` itself. A NaN or an infinity may
    spread one pixel further than the 3x3 neighbourhood.

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
        TypeError: ``x`` or ``w`` is not a tensor.
        RuntimeError: shapes, dtypes or devices do not match; padding out of range.
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
    y: Tensor = _conv3x3(x, w, b, pad_y, pad_x, transposed)
    return y


def has_conv3x3(x: Tensor) -> bool:
    """Is there a kernel for x's device?"""
    return _HAS_KERNEL and x.device.type == "cpu"


# ---- native ops --------------------------------------------------------------------------------------------


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
    return new_like_images(x, [x.size(0), channels, height, width])


def _fake(  # type: ignore[no-untyped-def]
    x, w, b, pad_y, pad_x, transposed
) -> Tensor:
    check_same_kind("conv3x3", x=x, w=w)
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
    check_same_kind("conv3x3", x=x, b=b)
    if b is not None and (b.dim() != 1 or b.size(0) != out_channels):
        raise RuntimeError(f"conv3x3: b has shape {shape_of(b)}, but must be [{out_channels}]")
    return y


def _fake_weight_gradient(dy: Tensor, x: Tensor, pad_y: int, pad_x: int) -> Tensor:
    op = "conv3x3_weight_gradient"
    check_same_kind(op, x=x, dy=dy)
    out_channels = dy.size(1) if dy.dim() > 1 else 0
    y = _new_images(op, x, out_channels, pad_y, pad_x)
    if out_channels < 1 or dy.shape != y.shape:
        raise RuntimeError(
            f"{op}: dy has shape {shape_of(dy)}, but must be [{x.size(0)}, out_channels, {y.size(2)}, "
            f"{y.size(3)}]"
        )
    return x.new_empty(out_channels, x.size(1), 3, 3)


def _gradients(a, needs, dy) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    back = 2 - a.pad_y, 2 - a.pad_x
    dw = None
    if needs.w:
        dw = _weight_gradient(a.x, dy, *back) if a.transposed else _weight_gradient(dy, a.x, a.pad_y, a.pad_x)
    return (
        conv3x3_padded(dy, a.w, None, *back, not a.transposed) if needs.x else None,
        dw,
        dy.sum((0, 2, 3)) if needs.b else None,
    )


_weight_gradient = native(
    "conv3x3_weight_gradient",
    fake=_fake_weight_gradient,
    gradients=lambda a, needs, g: (
        conv3x3_padded(a.x, g, None, a.pad_y, a.pad_x, False) if needs.dy else None,
        conv3x3_padded(a.dy, g, None, 2 - a.pad_y, 2 - a.pad_x, True) if needs.x else None,
    ),
    cuda=False,
)
_conv3x3 = native(
    "conv3x3",
    fake=_fake,
    gradients=_gradients,
    weights=("w", "b"),
    save=("x", "w"),
    autocast=True,
    cuda=False,
)

OPS = [Op(conv3x3, conv3x3_ref, {"x": (2, 4, 6, 6), "w": (5, 4, 3, 3)})]
