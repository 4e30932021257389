"""Leaky ReLU at a higher resolution, between two filters: the alias-free activation of StyleGAN3 (Karras et
al. 2021, "Alias-Free Generative Adversarial Networks", section 3.2).

With one-dimensional filters it is one pass: the upsampled image stays in cache, and two bits per pixel of it
are saved for the backward. Given these bits the map is linear, and its transpose has the same form; each is
the other's derivative, to every order.

It is a composition of :func:`upfirdn2d` and :func:`bias_act`, with their derivatives, where the one pass is
not possible (a two-dimensional filter, one of more than 24 taps or with a gradient, a factor above 4) or is
slower: see :func:`_route`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import (
    check_finite,
    check_same_kind,
    dtype_name,
    no_tensor,
    promoted_dtype,
    shape_of,
    size_product,
    size_sum,
)
from aigc_ext.ops._gradients import before_corners, with_zeros
from aigc_ext.ops._layout import is_channels_last, new_in_format, wide_dtype
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native
from aigc_ext.ops._route import Route, take
from aigc_ext.ops.activations import resolve_activation
from aigc_ext.ops.bias_act import bias_act, bias_act_ref
from aigc_ext.ops.upfirdn2d import (
    check_padding,
    filter_for,
    four_paddings,
    number_of_taps,
    upfirdn2d,
    upfirdn2d_ref,
)

_SQRT2 = 2**0.5
_MOST_FACTOR, _MOST_TAPS = 4, 24  # of the native op
_LEAST_TAPS = 8  # of both filters, for channels-last images


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = _SQRT2,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """``x + b``, upsampled with ``fu``, ``clamp(gain * lrelu(.))``, downsampled with ``fd``.

    A side of W becomes ``(W * up + x0 + x1 - (taps_u - 1) - (taps_d - 1) + down - 1) // down``.

    Args:
        x: ``[N, C, H, W]``, contiguous or channels-last; float64, float32, float16 or bfloat16.
        fu, fd: filters as for :func:`upfirdn2d`; None for no filter. ``fu`` is multiplied by ``up ** 2``, to
            make up for the inserted zeros.
        b: ``[C]`` or None.
        up, down: factors, at least 1, for both axes.
        padding: of the upsampled image, for both filters: an integer, ``[x, y]`` or ``[x0, x1, y0, y1]``.
        gain, slope: of the leaky ReLU.
        clamp: limit of its magnitude, at least 0, or None.
        flip_filter: correlate with both filters; by default they convolve.

    Returns:
        A tensor of x's dtype, channels-last if ``x`` is, else contiguous. Differentiable to every order in x,
        b and the filters.

    Raises:
        TypeError: an argument is not a tensor, or not a number, where one is required.
        ValueError: an option out of range.
        RuntimeError: shapes, dtypes or devices do not match.
    """
    _check(x, fu, fd, b, up, down)
    pads = four_paddings(padding, "filtered_lrelu")
    one_pass = not decomposed() and take("filtered_lrelu", _route(x, fu, fd, up, down)) == "one pass"
    run = _one_pass if one_pass else _composed
    return run(x, fu, fd, b, up, down, pads, gain, slope, clamp, flip_filter)


def _route(x: Tensor, fu: Tensor | None, fd: Tensor | None, up: int, down: int) -> Route:
    """One pass or a composition: does the native op support it, and is it faster?

    On the CPU one pass is slower in two cases (speed relative to the composition for 4x64x64x64 in float32,
    forward, then forward + backward): with a factor of 1 (0.7 to 1.0, 0.6 to 0.8), where the intermediate
    image is no larger than x or y; and with 4 + 4 taps on channels-last images, which it reads and writes one
    channel at a time (0.8, 0.6).
    """
    filters = [f for f in (fu, fd) if f is not None]
    taps = [f.numel() for f in filters]
    if min(up, down) == 1:
        return Route("composition", "with a factor of 1 the image between is no larger than x or y")
    if (
        max(up, down) > _MOST_FACTOR
        or max(taps, default=1) > _MOST_TAPS
        or any(f.dim() != 1 for f in filters)
    ):
        return Route("composition", "one pass takes factors to 4 and filters of one dimension, to 24 taps")
    if torch.is_grad_enabled() and any(f.requires_grad for f in filters):
        return Route("composition", "one pass has no gradient of the filters")
    if is_channels_last(x) and (len(taps) < 2 or min(taps) < _LEAST_TAPS):
        return Route("composition", "channels-last images pay from 8 taps on: they are read by channel")
    return Route("one pass", "the image between stays in cache")


def _one_pass(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None,
    up: int,
    down: int,
    pads: tuple[int, int, int, int],
    gain: float,
    slope: float,
    clamp: float | None,
    flip_filter: bool,
) -> Tensor:
    _, slope, gain = resolve_activation("lrelu", slope, gain, clamp)
    fu, fd = filter_for(fu, x), filter_for(fd, x)
    b = None if b is None else b.to(x.dtype)
    save = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    numbers = (up, down, *pads, gain, slope, clamp, bool(flip_filter))
    y: Tensor = _filtered_lrelu(x, b, fu, fd, None, *numbers, save)[0]
    return y


def _composed(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None,
    up: int,
    down: int,
    pads: tuple[int, int, int, int],
    gain: float,
    slope: float,
    clamp: float | None,
    flip_filter: bool,
) -> Tensor:
    act = {"act": "lrelu", "alpha": slope, "gain": gain, "clamp": clamp}
    identity = fu is None and up == 1 and not any(pads)
    if not identity:
        x = x if b is None else bias_act(x, b.to(x.dtype))
        x = upfirdn2d(x, fu, up=up, padding=pads, flip_filter=flip_filter, gain=up**2)
        x, b = before_corners(x, b), None
    x = bias_act(x, None if b is None else b.to(x.dtype), **act)  # type: ignore[arg-type]
    if fd is None and down == 1:
        return x
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter)


def filtered_lrelu_ref(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = _SQRT2,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """:func:`filtered_lrelu` in plain PyTorch."""
    x = bias_act_ref(x, None if b is None else b.to(x.dtype))
    x = upfirdn2d_ref(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2)
    x = bias_act_ref(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d_ref(x, fd, down=down, flip_filter=flip_filter)


def _check(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, up: int, down: int) -> None:
    op = "filtered_lrelu"
    for name, tensor in {"x": x, "fu": fu, "fd": fd, "b": b}.items():
        if not (isinstance(tensor, Tensor) or (tensor is None and name != "x")):
            raise no_tensor(op, optional=() if name == "x" else (name,), **{name: tensor})
    if x.dim() != 4:
        raise RuntimeError(f"{op}: x has shape {shape_of(x)}, but must be [N, C, H, W]")
    for f in (fu, fd):
        number_of_taps(op, f)
    if b is not None and (b.dim() != 1 or b.size(0) != x.size(1)):
        raise RuntimeError(f"{op}: b has shape {shape_of(b)}, but must be [{x.size(1)}]")
    for name, factor in {"up": up, "down": down}.items():
        if not isinstance(factor, int) or isinstance(factor, bool):
            raise TypeError(f"{op}: {name} is {factor!r} ({type(factor).__name__}), but must be an integer")
        if factor < 1:
            raise ValueError(f"{op}: {name} is {factor}, but must be at least 1")


# ---- native ops --------------------------------------------------------------------------------------------
# The numbers of the native ops: up, down, x0, x1, y0, y1, gain, slope, clamp, flip_filter.


def _sizes(
    op: str, like: Tensor, height: int, width: int, taps: tuple[int, int], numbers: Sequence[Any]
) -> Any:
    """Height and width of the upsampled image and of the result."""
    up, down, x0, x1, y0, y1, gain, slope, clamp = numbers[:9]
    for name, factor in (("up", up), ("down", down)):
        if not 1 <= factor <= _MOST_FACTOR:
            raise RuntimeError(f"{op}: {name} is {factor}, but must be from 1 to {_MOST_FACTOR}")
    check_finite(op, gain=gain, slope=slope)
    if clamp is not None and not clamp >= 0:
        raise RuntimeError(f"{op}: clamp is {clamp:g}, but must be None or at least 0")
    planes = size_product(op, like.size(0), like.size(1))

    def size(axis: str, size: int, before: int, after: int) -> tuple[int, int]:
        check_padding(op, axis, before, after)
        padded = size_sum(op, size_product(op, size, up), before, after)
        if padded < taps[0] + taps[1] - 1:
            raise RuntimeError(
                f"{op}: along {axis}, size {size} times up {up} with padding [{before}, {after}] is "
                f"{padded}, but the filters have {taps[0]} and {taps[1]} taps and need "
                f"{taps[0] + taps[1] - 1}"
            )
        between = padded - taps[0] + 1
        return between, (between - taps[1]) // down + 1

    (between_x, out_x), (between_y, out_y) = size("x", width, x0, x1), size("y", height, y0, y1)
    size_product(op, planes, between_y, size_sum(op, between_x, 256))  # of the mask, and more
    return between_y, between_x, out_y, out_x


def _mask_size(planes: int, height: int, width: int, numbers: Sequence[Any]) -> int:
    """Bytes of the mask of an upsampled image, as csrc/filtered_lrelu/filtered_lrelu.h lays it out."""
    phases = math.lcm(numbers[0], numbers[1])
    run = ((width + phases - 1) // phases + 15) // 16 * 2
    return planes * height * phases * run * (1 if numbers[8] is None else 2)


def _check_filters(op: str, x: Tensor, fu: Tensor | None, fd: Tensor | None) -> tuple[int, int]:
    for name, f in (("fu", fu), ("fd", fd)):
        if f is None:
            continue
        if f.dim() != 1 or not 1 <= f.numel() <= _MOST_TAPS:
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(f)}, but must have one dimension of 1 to {_MOST_TAPS} taps"
            )
        if f.dtype != wide_dtype(x):
            raise RuntimeError(
                f"{op}: {name} is {dtype_name(f.dtype)}, but must be {dtype_name(wide_dtype(x))} for images "
                f"of {dtype_name(x.dtype)}"
            )
    return number_of_taps(op, fu)[0], number_of_taps(op, fd)[0]


def _check_mask(op: str, mask: Tensor, size: int) -> None:
    if mask.dtype != torch.uint8 or not mask.is_contiguous() or mask.numel() != size:
        raise RuntimeError(
            f"{op}: mask is {dtype_name(mask.dtype)} of shape {shape_of(mask)}, but must be the one that "
            f"filtered_lrelu(..., save=True) returned for these sizes: uint8 of shape [{size}]"
        )


def _fake(x, b, fu, fd, mask, *numbers) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    op = "filtered_lrelu"
    if x.dim() != 4 or min(x.shape[2:]) < 1:
        raise RuntimeError(
            f"{op}: x has shape {shape_of(x)}, but must be [N, C, H, W] with at least one row and column"
        )
    check_same_kind(op, x=x)
    taps = _check_filters(op, x, fu, fd)
    between_y, between_x, height, width = _sizes(op, x, x.size(2), x.size(3), taps, numbers)
    check_same_kind(op, x=x, b=b)
    if b is not None and (b.dim() != 1 or b.size(0) != x.size(1)):
        raise RuntimeError(
            f"{op}: b has shape {shape_of(b)}, but must be [{x.size(1)}] for an x of shape {shape_of(x)}"
        )
    size = _mask_size(x.size(0) * x.size(1), between_y, between_x, numbers)
    if mask is not None:
        _check_mask(op, mask, size)
    saves = numbers[-1] and mask is None
    size_product(op, *x.shape[:2], height, width)
    y = new_in_format(x, [*x.shape[:2], height, width], is_channels_last(x))
    return y, x.new_empty(size if saves else 0, dtype=torch.uint8)


def _fake_backward(  # type: ignore[no-untyped-def]
    dy, mask, fu, fd, height, width, *rest
) -> tuple[Tensor, Tensor]:
    op = "filtered_lrelu_backward"
    *numbers, channels_last, need_b = rest
    if dy.dim() != 4:
        raise RuntimeError(f"{op}: dy has shape {shape_of(dy)}, but must be [N, C, H, W]")
    if height < 1 or width < 1:
        raise RuntimeError(
            f"{op}: the height is {height} and the width is {width}, but both must be at least 1"
        )
    promoted_dtype(op, dy=dy)
    taps = _check_filters(op, dy, fu, fd)
    between_y, between_x, *out = _sizes(op, dy, height, width, taps, numbers)
    if list(dy.shape[2:]) != out:
        raise RuntimeError(
            f"{op}: dy has shape {shape_of(dy)}, but must be {[*dy.shape[:2], *out]} for images of {height} "
            f"x {width}"
        )
    _check_mask(op, mask, _mask_size(dy.size(0) * dy.size(1), between_y, between_x, numbers))
    size_product(op, *dy.shape[:2], height, width)
    dx = new_in_format(dy, [*dy.shape[:2], height, width], channels_last)
    return dx, dy.new_empty(dy.size(1) if need_b else 0)


def _kept(x, b, fu, fd, mask, *numbers) -> tuple[Tensor, Any, bool]:  # type: ignore[no-untyped-def]
    *_, save, (_, new_mask) = numbers
    if not (save or mask is not None):
        raise RuntimeError("filtered_lrelu: a gradient needs save=True")
    return new_mask if mask is None else mask, x.shape[2:], is_channels_last(x)


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
    dx, db = _backward(dy, a.mask, a.fu, a.fd, *a.size, *a.plain[:-1], a.channels_last, needs.b)
    return with_zeros(dx, a.b), db if needs.b else None


def _backward_gradients(a: Any, needs: Any, u: Tensor | None, u_b: Tensor | None) -> tuple[Tensor | None]:
    u_b = u_b if a.need_b else None  # an output that was not asked for is empty, and so is its cotangent
    if u is None and u_b is not None:
        u = u_b.new_zeros(a.image)
    if u is None:
        return (None,)
    return (_filtered_lrelu(u, u_b, a.fu, a.fd, a.mask, *a.plain[2:-2], False)[0],)


_backward = native(
    "filtered_lrelu_backward",
    fake=_fake_backward,
    gradients=_backward_gradients,
    wrt=("dy",),
    save=("mask", "fu", "fd"),
    keep=("image",),
    kept=lambda *values: (values[-1][0].shape,),
)
_filtered_lrelu = native(
    "filtered_lrelu",
    fake=_fake,
    gradients=_gradients,
    wrt=("x", "b"),
    weights=("b",),
    save=("b", "fu", "fd"),
    keep=("mask", "size", "channels_last"),
    kept=_kept,
    constants=("mask",),
)

OPS = [
    Op(
        filtered_lrelu,
        filtered_lrelu_ref,
        {"x": (2, 3, 8, 8), "fu": (12,), "fd": (12,), "b": (3,), "up": 2, "down": 2, "padding": 11},
    )
]
