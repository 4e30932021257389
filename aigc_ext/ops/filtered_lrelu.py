"""Leaky ReLU at a higher resolution, between two filters: the alias-free activation of StyleGAN3 (Karras et
al. 2021, "Alias-Free Generative Adversarial Networks", section 3.2).

One pass where the filters are one-dimensional: the upsampled image stays in cache, and two bits per pixel of
it are kept for the backward. With these bits the map is linear, and its transpose is of the same form; the
two are each other's derivatives to every order.

A composition of :func:`upfirdn2d` and :func:`bias_act`, whose derivatives are those ops' own, for what the
one pass cannot do (a filter of two dimensions, of more than 24 taps or with a gradient, a factor above 4) and
for what it is slower at: :func:`_fused` says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, promoted_dtype, shape_of
from aigc_ext.ops._autograd import eager, is_channels_last, register_autograd
from aigc_ext.ops._mode import decomposed, weight_gradients
from aigc_ext.ops.activations import resolve_activation
from aigc_ext.ops.bias_act import bias_act, bias_act_ref
from aigc_ext.ops.upfirdn2d import four_paddings, number_of_taps, upfirdn2d, upfirdn2d_ref

_filtered_lrelu = torch.ops.aigc.filtered_lrelu.default
_backward = torch.ops.aigc.filtered_lrelu_backward.default

_SQRT2 = 2**0.5
_MOST_FACTOR, _MOST_TAPS = 4, 24  # of the native op
_LEAST_TAPS = 8  # of both filters, where channels lie innermost


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
        x: ``[N, C, H, W]``, contiguous or channels-last.
        fu, fd: filters as for :func:`upfirdn2d`; None for no filter. ``up ** 2`` is multiplied with ``fu``,
            for the zeros that are inserted.
        b: ``[C]`` or None.
        up, down: factors, from 1 on, for both axes.
        padding: of the upsampled image, for both filters: an integer, ``[x, y]`` or ``[x0, x1, y0, y1]``.
        gain, slope: of the leaky ReLU.
        clamp: limit of its magnitude, at least 0, or None.
        flip_filter: correlate with both filters; by default they convolve.

    Returns:
        A tensor of x's dtype, channels-last if ``x`` is, else contiguous. Differentiable to every order in x,
        b and the filters.

    Raises:
        TypeError: a tensor is no tensor, or a number no number.
        ValueError: an option out of range.
        RuntimeError: shapes, dtypes or devices do not fit together.
    """
    _check(x, fu, fd, b, up, down)
    pads = four_paddings(padding, "filtered_lrelu")
    run = _one_pass if not decomposed() and _fused(x, fu, fd, up, down) else _composed
    return run(x, fu, fd, b, up, down, pads, gain, slope, clamp, flip_filter)


def _fused(x: Tensor, fu: Tensor | None, fd: Tensor | None, up: int, down: int) -> bool:
    """Can the native op do it, and is it the faster way?

    Slower on the CPU (4x64x64x64 in float32; forward, then forward + backward, as parts of the composition's
    speed): with a factor of 1 (0.7 to 1.0, 0.6 to 0.8), as the image between is then no larger than x or y;
    with 4 + 4 taps on channels-last images, which it reads and writes a channel at a time (0.8, 0.6).
    """
    filters = [f for f in (fu, fd) if f is not None]
    taps = [f.numel() for f in filters]
    if min(up, down) == 1 or max(up, down) > _MOST_FACTOR or max(taps, default=1) > _MOST_TAPS:
        return False
    if any(f.dim() != 1 for f in filters):
        return False
    if torch.is_grad_enabled() and any(f.requires_grad for f in filters):
        return False
    return not is_channels_last(x) or (len(taps) == 2 and min(taps) >= _LEAST_TAPS)


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
    fu, fd = (_as_filter(f, x) for f in (fu, fd))
    b = None if b is None else b.to(x.dtype)
    save = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    numbers = (up, down, *pads, gain, slope, clamp, bool(flip_filter))
    return _call(x, b, fu, fd, None, *numbers, save)


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
    if b is not None and not identity:
        x, b = bias_act(x, b.to(x.dtype)), None
    if not identity:
        x = upfirdn2d(x, fu, up=up, padding=pads, flip_filter=flip_filter, gain=up**2)
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


def _filter_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _as_filter(f: Tensor | None, x: Tensor) -> Tensor | None:
    return f.to(_filter_dtype(x)) if f is not None and f.is_floating_point() else f


def _call(*arguments: Any) -> Tensor:
    y: Tensor = (_filtered_lrelu_eager if eager() else _filtered_lrelu)(*arguments)[0]
    return y


# ---- registration ------------------------------------------------------------------------------------------
# The numbers of the native ops: up, down, x0, x1, y0, y1, gain, slope, clamp, flip_filter.


def _sizes(op: str, height: int, width: int, taps: tuple[int, int], numbers: Sequence[Any]) -> Any:
    """Height and width of the upsampled image and of the result."""
    up, down, x0, x1, y0, y1 = numbers[:6]

    def size(axis: str, size: int, before: int, after: int) -> tuple[int, int]:
        padded = size * up + before + after
        if padded < taps[0] + taps[1] - 1:
            raise RuntimeError(
                f"{op}: along {axis}, size {size} times up {up} with padding [{before}, {after}] is "
                f"{padded}, but the filters have {taps[0]} and {taps[1]} taps and need "
                f"{taps[0] + taps[1] - 1}"
            )
        between = padded - taps[0] + 1
        return between, (between - taps[1]) // down + 1

    (between_y, out_y), (between_x, out_x) = size("y", height, y0, y1), size("x", width, x0, x1)
    return between_y, between_x, out_y, out_x


def _mask_size(planes: int, height: int, width: int, numbers: Sequence[Any]) -> int:
    """Bytes of the mask of an upsampled image, as csrc/filtered_lrelu/filtered_lrelu.h lays it out."""
    phases = math.lcm(numbers[0], numbers[1])
    run = ((width + phases - 1) // phases + 15) // 16 * 2
    return planes * height * phases * run * (1 if numbers[8] is None else 2)


def _empty(like: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    n, c = like.shape[:2]
    if channels_last:
        return like.new_empty([n, height, width, c]).movedim(-1, 1)
    return like.new_empty([n, c, height, width])


def _check_fake_filters(op: str, x: Tensor, fu: Tensor | None, fd: Tensor | None) -> tuple[int, int]:
    for name, f in (("fu", fu), ("fd", fd)):
        if f is not None and (f.dim() != 1 or f.dtype != _filter_dtype(x) or f.device != x.device):
            raise RuntimeError(
                f"{op}: {name} is {f.dtype} of shape {shape_of(f)} on {f.device}, but must be "
                f"{_filter_dtype(x)} of one dimension on {x.device} for images of {x.dtype}"
            )
    return number_of_taps(op, fu)[0], number_of_taps(op, fd)[0]


@torch.library.register_fake("aigc::filtered_lrelu")
def _(x, b, fu, fd, mask, *numbers):  # type: ignore[no-untyped-def]
    op = "filtered_lrelu"
    check_fake(op, x=x, b=b)
    taps = _check_fake_filters(op, x, fu, fd)
    between_y, between_x, height, width = _sizes(op, x.size(2), x.size(3), taps, numbers)
    saves = numbers[-1] and mask is None
    size = _mask_size(x.size(0) * x.size(1), between_y, between_x, numbers) if saves else 0
    return _empty(x, height, width, is_channels_last(x)), x.new_empty(size, dtype=torch.uint8)


@torch.library.register_fake("aigc::filtered_lrelu_backward")
def _(dy, mask, fu, fd, height, width, *rest):  # type: ignore[no-untyped-def]
    op = "filtered_lrelu_backward"
    promoted_dtype(op, dy=dy)
    *numbers, channels_last, need_b = rest
    _sizes(op, height, width, _check_fake_filters(op, dy, fu, fd), numbers)
    return _empty(dy, height, width, channels_last), dy.new_empty(dy.size(1) if need_b else 0)


def _no_filter_gradient(ctx: Any, op: str, first: int) -> None:
    if any(ctx.needs_input_grad[first : first + 2]):
        raise RuntimeError(
            f"{op}: the native op has no gradient of the filters; aigc_ext.ops.filtered_lrelu has, by others"
        )


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, fu, fd, given_mask, *ctx.numbers, save = inputs
    if not (save or given_mask is not None):
        raise RuntimeError("filtered_lrelu: a gradient needs save=True")
    ctx.size, ctx.channels_last = x.shape[2:], is_channels_last(x)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1] if given_mask is None else given_mask, fu, fd)


def _forward_gradients(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    _no_filter_gradient(ctx, "filtered_lrelu", 2)
    mask, fu, fd = ctx.saved_tensors
    need_x, need_b = ctx.needs_input_grad[:2]
    need_b = need_b and weight_gradients()
    dx = db = None
    if dy is not None and (need_x or need_b):
        call = _backward_eager if eager() else _backward
        dx, db = call(dy, mask, fu, fd, *ctx.size, *ctx.numbers, ctx.channels_last, need_b)
    return dx if need_x else None, db if need_b else None, *(None,) * 14


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, mask, fu, fd, _, _, *ctx.numbers, _, ctx.has_db = inputs
    ctx.image = output[0].shape
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(mask, fu, fd)


def _backward_gradients(ctx: Any, u: Tensor | None, u_b: Tensor | None) -> tuple[Tensor | None, ...]:
    _no_filter_gradient(ctx, "filtered_lrelu_backward", 2)
    mask, fu, fd = ctx.saved_tensors
    nothing = (None,) * 17
    if not ctx.has_db:  # an output that was not asked for is empty, and so is its cotangent
        u_b = None
    if u is None and u_b is not None:
        u = u_b.new_zeros(ctx.image)
    if u is None or not ctx.needs_input_grad[0]:
        return None, *nothing
    return _call(u, u_b, fu, fd, mask, *ctx.numbers, False), *nothing


_filtered_lrelu_eager = register_autograd(_filtered_lrelu, _forward_gradients, _setup_forward)
_backward_eager = register_autograd(_backward, _backward_gradients, _setup_backward)
