"""A convolution with resampling by a FIR filter built in: the strided layers of StyleGAN's networks.

Composed of :func:`upfirdn2d` and :func:`conv2d_act`, which commute; their order and the convolution's
resolution are chosen so that no computed pixel is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._arguments import no_tensor, shape_of
from aigc_ext.ops._op import Op
from aigc_ext.ops.conv2d_act import conv2d_act, conv_transpose2d_act
from aigc_ext.ops.upfirdn2d import centring, four_paddings, number_of_taps, upfirdn2d, upfirdn2d_ref


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Upsamples images with ``f``, convolves them with ``w``, and downsamples them with ``f``.

    Args:
        x: ``[N, in_channels, H, W]``.
        w: ``[out_channels, in_channels / groups, kH, kW]``, of x's dtype.
        f: the filter of both resamplings, as :func:`setup_filter` makes it; None for no filter.
        up, down: factors, from 1 on, for both axes.
        padding: of the upsampled image: an integer, ``[x, y]`` or ``[x0, x1, y0, y1]``. The padding that the
            filters need is added, so that with ``kernel // 2`` only the factors change the size.
        groups: as in ``conv2d``.
        flip_weight: correlate with ``w``, as ``conv2d`` does; False convolves.
        flip_filter: correlate with ``f``; by default it convolves, as :func:`upfirdn2d`.

    Returns:
        ``[N, out_channels, ...]``. Differentiable to every order in x, w and f.

    Raises:
        TypeError: an argument is not a tensor, or not an integer, where one is required.
        ValueError: a factor or a padding out of range.
        RuntimeError: shapes or dtypes do not match.
    """
    x0, x1, y0, y1, taps = _arguments(x, w, f, up, down, padding)
    pads = _with_filters(x0, x1, y0, y1, taps, up, down)
    if not flip_weight and (w.size(2) > 1 or w.size(3) > 1):
        w = w.flip([2, 3])
    kernel_y, kernel_x = w.shape[2:]
    if up == 1 and down > 1 and kernel_x == kernel_y == 1:  # fewer pixels for the convolution
        x = upfirdn2d(x, f, down=down, padding=pads, flip_filter=flip_filter)
        return conv2d_act(x, w, groups=groups)
    if up > 1 and down == 1 and kernel_x == kernel_y == 1:  # fewer pixels for the convolution
        y = conv2d_act(x, w, groups=groups)
        return upfirdn2d(y, f, up=up, padding=pads, flip_filter=flip_filter, gain=up**2)
    if up == 1 and down > 1:  # compute only the pixels that are kept
        x = upfirdn2d(x, f, padding=pads, flip_filter=flip_filter)
        return conv2d_act(x, w, stride=down, groups=groups)
    if up > 1:  # convolve only the pixels of x, not the zeros between them
        p0, p1, p2, p3 = pads
        w = w.flip([2, 3]) if kernel_x > 1 or kernel_y > 1 else w  # the transpose flips it back
        w = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        # A transposed convolution pads by kernel - 1 and inserts no zeros after the last pixel.
        p0, p1, p2, p3 = p0 - kernel_x + 1, p1 - kernel_x + up, p2 - kernel_y + 1, p3 - kernel_y + up
        crop_x, crop_y = max(min(-p0, -p1), 0), max(min(-p2, -p3), 0)
        y = conv_transpose2d_act(x, w, stride=up, padding=[crop_y, crop_x], groups=groups)
        pads = p0 + crop_x, p1 + crop_x, p2 + crop_y, p3 + crop_y
        y = upfirdn2d(y, f, padding=pads, flip_filter=flip_filter, gain=up**2)
        return y if down == 1 else upfirdn2d(y, f, down=down, flip_filter=flip_filter)
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        return conv2d_act(x, w, padding=[y0, x0], groups=groups)
    return conv2d_act(F.pad(x, [x0, x1, y0, y1]), w, groups=groups)


def conv2d_resample_ref(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """:func:`conv2d_resample` in plain PyTorch: upsampling, convolution, downsampling."""
    x0, x1, y0, y1, taps = _arguments(x, w, f, up, down, padding)
    pads = _with_filters(x0, x1, y0, y1, taps, up, down)
    x = upfirdn2d_ref(x, f if up > 1 else None, up=up, padding=pads, flip_filter=flip_filter, gain=up**2)
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return upfirdn2d_ref(x, f if down > 1 else None, down=down, flip_filter=flip_filter)


def _arguments(
    x: Tensor, w: Tensor, f: Tensor | None, up: int, down: int, padding: int | Sequence[int]
) -> tuple[int, int, int, int, tuple[int, int]]:
    op = "conv2d_resample"
    if not (isinstance(x, Tensor) and isinstance(w, Tensor) and (f is None or isinstance(f, Tensor))):
        raise no_tensor(op, optional=("f",), x=x, w=w, f=f)
    if w.dim() != 4:
        raise RuntimeError(f"{op}: w has shape {shape_of(w)}, but must be [out, in / groups, kH, kW]")
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or isinstance(factor, bool):
            raise TypeError(f"{op}: {name} is {factor!r} ({type(factor).__name__}), but must be an integer")
        if factor < 1:
            raise ValueError(f"{op}: {name} is {factor}, but must be at least 1")
    return *four_paddings(padding, op), number_of_taps(op, f)


def _with_filters(
    x0: int, x1: int, y0: int, y1: int, taps: tuple[int, int], up: int, down: int
) -> tuple[int, int, int, int]:
    """The padding plus what the filters need so that the image does not shift."""
    for factors in ((up, 1), (1, down)):
        if factors != (1, 1):
            (x_before, x_after), (y_before, y_after) = (centring(n, *factors) for n in taps)
            x0, x1, y0, y1 = x0 + x_before, x1 + x_after, y0 + y_before, y1 + y_after
    return x0, x1, y0, y1


OPS = [
    Op(
        conv2d_resample,
        conv2d_resample_ref,
        {"x": (2, 3, 6, 6), "w": (4, 3, 3, 3), "f": (4, 4), "up": 2, "padding": 1},
    )
]
