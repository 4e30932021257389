"""Upsampling, FIR filtering and downsampling of images in one pass, as in the generators and discriminators
of StyleGAN (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", and 2021,
"Alias-Free Generative Adversarial Networks").

The map is linear in x, and its transpose is the same op with other arguments; it is also linear in a
two-dimensional filter. So two kernels, upfirdn2d and the filter's gradient, provide the derivatives of every
order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
from aigc_ext.ops._layout import new_like_images, wide_dtype
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native

_MOST_FACTOR, _MOST_PADDING = 1 << 16, 1 << 40  # of the native op
_SEPARABLE_TAPS = 8  # with at least this many, setup_filter keeps a filter one-dimensional


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Pads, upsamples, filters and downsamples a batch of images.

    For each channel: ``up - 1`` zeros are inserted after every pixel; the result is padded with zeros, or
    cropped; it is convolved with ``f``; every ``down``-th pixel, starting with the first, is kept and
    multiplied by ``gain``. A side of W becomes ``(W * up + x0 + x1 - taps + down) // down``.

    Args:
        x: ``[N, C, H, W]``, contiguous or channels-last without a copy; float64, float32, float16 or
            bfloat16 (half types are computed in float32). N and C may be 0, H and W not.
        f: the filter: ``[taps]``, used along both axes, or ``[taps_y, taps_x]``, or None for no filter. Any
            floating-point dtype; the computation is in float32, or in float64 if ``x`` is.
            :func:`setup_filter` makes one.
        up, down: an integer, at least 1, or ``[x, y]``.
        padding: of the upsampled image: an integer, ``[x, y]`` or ``[x0, x1, y0, y1]`` (before, after).
            Negative numbers crop.
        flip_filter: correlate; by default the filter is reversed, as in a convolution.
        gain: a finite factor.

    Returns:
        A new tensor of x's dtype (under autocast too), channels-last if ``x`` is, else contiguous.
        Differentiable to every order in ``x`` and ``f``.

    Raises:
        TypeError: ``x`` or ``f`` is not a tensor, or a factor, padding or gain is not a number.
        ValueError: a factor, a padding or the gain out of range or of the wrong length.
        RuntimeError: ``x`` or ``f`` has a wrong shape, dtype or device, or the padded image is smaller than
            the filter.
    """
    if not (isinstance(x, Tensor) and (f is None or isinstance(f, Tensor))):
        raise no_tensor("upfirdn2d", optional=("f",), x=x, f=f)
    if decomposed():
        return _depthwise(x, f, up, down, padding, flip_filter, gain)
    factors = *_factors("up", up), *_factors("down", down)
    return _call(x, f, *factors, *four_paddings(padding), bool(flip_filter), _gain(gain))


def upfirdn2d_ref(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """:func:`upfirdn2d` in plain PyTorch."""
    (up_x, up_y), (down_x, down_y) = _factors("up", up), _factors("down", down)
    x0, x1, y0, y1 = four_paddings(padding)
    gain = _gain(gain)
    _output_size("upfirdn2d", x, *number_of_taps("upfirdn2d", f), up_x, up_y, down_x, down_y, x0, x1, y0, y1)
    n, c, h, w = x.shape
    z = F.pad(x.reshape(n * c, h, 1, w, 1), [0, up_x - 1, 0, 0, 0, up_y - 1])
    z = z.reshape(n * c, 1, h * up_y, w * up_x)
    z = F.pad(z, [max(x0, 0), max(x1, 0), max(y0, 0), max(y1, 0)])
    z = z[:, :, max(-y0, 0) : z.size(2) - max(-y1, 0), max(-x0, 0) : z.size(3) - max(-x1, 0)]
    if f is not None:
        f = f.to(x.dtype)
        f = f if flip_filter else f.flip(list(range(f.dim())))
        for kernel in (f[None, :], f[:, None]) if f.dim() == 1 else (f,):
            z = F.conv2d(z, kernel[None, None])
    z = z[:, :, ::down_y, ::down_x] * gain
    return z.reshape(n, c, z.size(2), z.size(3))


def _depthwise(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int],
    down: int | Sequence[int],
    padding: int | Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """:func:`upfirdn2d` in plain PyTorch, by convolutions with one group per channel.

    The reference treats x as N * C images of one channel: that is slower in eager PyTorch, far slower in
    onnxruntime (which pads one channel to 16), and fills a trace with arithmetic on a dynamic N.
    """
    channels = x.size(1) if x.dim() == 4 else 0
    if f is None or channels == 0:
        return upfirdn2d_ref(x, f, up, down, padding, flip_filter, gain)
    (up_x, up_y), (down_x, down_y) = _factors("up", up), _factors("down", down)
    pads = x0, x1, y0, y1 = four_paddings(padding)
    gain = _gain(gain)
    _output_size("upfirdn2d", x, *number_of_taps("upfirdn2d", f), up_x, up_y, down_x, down_y, *pads)
    if max(up_x, up_y) > 1:
        x = F.pad(x[:, :, :, None, :, None], [0, up_x - 1, 0, 0, 0, up_y - 1]).flatten(4).flatten(2, 3)
    x = F.pad(x, [max(pad, 0) for pad in pads])
    if min(pads) < 0:
        x = x[:, :, max(-y0, 0) : x.size(2) - max(-y1, 0), max(-x0, 0) : x.size(3) - max(-x1, 0)]
    f = f.to(x.dtype)
    f = f if flip_filter else f.flip(list(range(f.dim())))
    if f.dim() == 2:
        return F.conv2d(x, (f * gain).expand(channels, 1, -1, -1), stride=(down_y, down_x), groups=channels)
    x = F.conv2d(x, f.expand(channels, 1, 1, -1), stride=(1, down_x), groups=channels)
    column = (f * gain)[:, None].expand(channels, 1, -1, -1)
    return F.conv2d(x, column, stride=(down_y, 1), groups=channels)


def setup_filter(
    f: Tensor | Sequence[Any] | float | None,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """A float32 filter for :func:`upfirdn2d` and the functions made from it.

    Args:
        f: its taps: a number, ``[taps]``, ``[taps_y, taps_x]`` (a tensor or nested lists), or None for ``1``.
        device: the filter's device; by default that of ``f``.
        normalize: divide it by its sum, so that it keeps the brightness of an image.
        flip_filter: reverse it.
        gain: the factor for images. The filter is multiplied by ``gain ** (dimensions / 2)``, because a
            one-dimensional filter is applied twice.
        separable: keep ``[taps]`` as it is; otherwise it becomes the outer product with itself. By default
            True for 8 taps or more.

    Raises:
        ValueError: ``f`` has no taps or more than two dimensions; has two and ``separable`` is True; has a
            sum of 0 and ``normalize`` is True.
    """
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32, device=device)
    if taps.dim() == 0:
        taps = taps[None]
    if taps.dim() > 2 or taps.numel() == 0:
        raise ValueError(
            f"setup_filter: f has shape {shape_of(taps)}, but must have one or two dimensions and taps"
        )
    if separable is None:
        separable = taps.dim() == 1 and taps.numel() >= _SEPARABLE_TAPS
    if separable and taps.dim() == 2:
        raise ValueError(f"setup_filter: f has shape {shape_of(taps)}, but a separable one has one dimension")
    if taps.dim() == 1 and not separable:
        taps = taps[:, None] * taps
    if normalize:
        total = taps.sum()
        if not taps.is_meta and total == 0:  # a meta tensor has no values
            raise ValueError("setup_filter: normalize is True, but the sum of f is 0")
        taps = taps / total
    if flip_filter:
        taps = taps.flip(list(range(taps.dim())))
    return taps * _gain(gain, "setup_filter") ** (taps.dim() / 2)


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Filters images and keeps their size, except for ``padding``, which is added to what the filter needs.

    Arguments, result and errors are those of :func:`upfirdn2d`.
    """
    return upfirdn2d(x, f, **_resampling("filter2d", f, 1, 1, padding, gain), flip_filter=flip_filter)


def filter2d_ref(
    x: Tensor,
    f: Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """:func:`filter2d` in plain PyTorch."""
    return upfirdn2d_ref(x, f, **_resampling("filter2d", f, 1, 1, padding, gain), flip_filter=flip_filter)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Makes images ``up`` times as large, and larger still by ``padding``.

    A filter with sum 1 keeps the brightness: the gain is multiplied by ``up`` for each axis, to make up for
    the inserted zeros. Arguments, result and errors are those of :func:`upfirdn2d`.
    """
    return upfirdn2d(x, f, **_resampling("upsample2d", f, up, 1, padding, gain), flip_filter=flip_filter)


def upsample2d_ref(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """:func:`upsample2d` in plain PyTorch."""
    return upfirdn2d_ref(x, f, **_resampling("upsample2d", f, up, 1, padding, gain), flip_filter=flip_filter)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Reduces images by a factor of ``down``; ``padding`` is added before.

    Arguments, result and errors are those of :func:`upfirdn2d`.
    """
    return upfirdn2d(x, f, **_resampling("downsample2d", f, 1, down, padding, gain), flip_filter=flip_filter)


def downsample2d_ref(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """:func:`downsample2d` in plain PyTorch."""
    return upfirdn2d_ref(
        x, f, **_resampling("downsample2d", f, 1, down, padding, gain), flip_filter=flip_filter
    )


# ---- arguments ---------------------------------------------------------------------------------------------


def centring(taps: int, up: int, down: int) -> tuple[int, int]:
    """The padding before and after with which resampling by ``up`` or ``down`` does not shift the image; one
    of the factors is 1."""
    if down > 1:
        return (taps - down + 1) // 2, (taps - down) // 2
    return (taps + up - 1) // 2, (taps - up) // 2


def _resampling(
    op: str,
    f: Tensor | None,
    up: int | Sequence[int],
    down: int | Sequence[int],
    padding: int | Sequence[int],
    gain: float,
) -> dict[str, Any]:
    """The arguments of :func:`upfirdn2d` that keep the image's position and brightness."""
    (up_x, up_y), (down_x, down_y) = _factors("up", up, op), _factors("down", down, op)
    taps_x, taps_y = number_of_taps(op, f)
    around = *centring(taps_x, up_x, down_x), *centring(taps_y, up_y, down_y)
    pads = [p + more for p, more in zip(four_paddings(padding, op), around, strict=True)]
    gain = _gain(gain, op) * up_x * up_y
    return {"up": [up_x, up_y], "down": [down_x, down_y], "padding": pads, "gain": gain}


def _integers(op: str, name: str, value: int | Sequence[int], lengths: tuple[int, ...]) -> list[int]:
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return [value]
    allowed = f"an integer or a list of {' or '.join(map(str, lengths))} integers"
    if not isinstance(value, (list, tuple, torch.Size)):
        raise TypeError(f"{op}: {name} is {value!r} ({type(value).__name__}), but must be {allowed}")
    for item in value:
        if not isinstance(item, (int, torch.SymInt)) or isinstance(item, bool):
            raise TypeError(f"{op}: {name} is {value!r}, but must be {allowed}")
    if len(value) not in lengths:
        raise ValueError(f"{op}: {name} is {value!r}, but must be {allowed}")
    return list(value)


def _factors(name: str, value: int | Sequence[int], op: str = "upfirdn2d") -> tuple[int, int]:
    """The factors along x and y."""
    numbers = _integers(op, name, value, (2,))
    for number in numbers:
        if not 1 <= number <= _MOST_FACTOR:
            raise ValueError(f"{op}: {name} is {value!r}, but must be from 1 to {_MOST_FACTOR}")
    return numbers[0], numbers[-1]


def four_paddings(value: int | Sequence[int], op: str = "upfirdn2d") -> tuple[int, int, int, int]:
    """x0, x1, y0, y1."""
    numbers = _integers(op, "padding", value, (2, 4))
    if len(numbers) == 4:
        return numbers[0], numbers[1], numbers[2], numbers[3]
    return numbers[0], numbers[0], numbers[-1], numbers[-1]


def _gain(value: float, op: str = "upfirdn2d") -> float:
    try:
        number = math.nan if isinstance(value, (str, Tensor)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    kind = ValueError if isinstance(value, (int, float)) else TypeError
    raise kind(f"{op}: gain is {value!r}, but must be a finite number")


def number_of_taps(op: str, f: Tensor | None) -> tuple[int, int]:
    """The numbers of taps along x and y."""
    if f is None:
        return 1, 1
    if not isinstance(f, Tensor):
        raise no_tensor(op, optional=("f",), f=f)
    if not 1 <= f.dim() <= 2 or f.numel() == 0:
        raise RuntimeError(
            f"{op}: f has shape {shape_of(f)}, but must have one or two dimensions and at least one tap"
        )
    return f.size(-1), f.size(0)


def check_padding(op: str, axis: str, before: int, after: int) -> None:
    for pad in (before, after):
        if not -_MOST_PADDING <= pad <= _MOST_PADDING:
            raise RuntimeError(
                f"{op}: padding along {axis} is {pad}, but must be from {-_MOST_PADDING} to {_MOST_PADDING}"
            )


# The arguments of the native op after its tensors: up_x, up_y, down_x, down_y, x0, x1, y0, y1, flip, gain.


def _output_size(
    op: str, x: Tensor, taps_x: int, taps_y: int, *numbers: int, gain: float = 1.0
) -> tuple[int, int]:
    """Height and width."""
    up_x, up_y, down_x, down_y, x0, x1, y0, y1 = numbers
    promoted_dtype(op, x=x)
    if x.dim() != 4 or x.size(2) == 0 or x.size(3) == 0:
        raise RuntimeError(
            f"{op}: x has shape {shape_of(x)}, but must be [N, C, H, W] with at least one row and column"
        )

    check_finite(op, gain=gain)

    def size(axis: str, size: int, taps: int, up: int, down: int, before: int, after: int) -> int:
        for name, factor in (("up", up), ("down", down)):
            if not 1 <= factor <= _MOST_FACTOR:
                raise RuntimeError(
                    f"{op}: {name} along {axis} is {factor}, but must be from 1 to {_MOST_FACTOR}"
                )
        check_padding(op, axis, before, after)
        padded = size_sum(op, size_product(op, size, up), before, after)
        if padded < taps:
            raise RuntimeError(
                f"{op}: along {axis}, size {size} times up {up} with padding [{before}, {after}] is "
                f"{padded}, but the filter has {taps} taps and needs as many"
            )
        return (padded - taps) // down + 1

    width = size("x", x.size(3), taps_x, up_x, down_x, x0, x1)
    return size("y", x.size(2), taps_y, up_y, down_y, y0, y1), width


def _transposed(size: Sequence[int], out: Tensor, taps: tuple[int, int], arguments: Sequence[Any]) -> Any:
    """The arguments of the transposed map: from images of out's size to those of ``size``."""
    height, width = size
    up_x, up_y, down_x, down_y, x0, _, y0, _, flip_filter, gain = arguments
    taps_x, taps_y = taps
    return (
        *(down_x, down_y, up_x, up_y),
        *(taps_x - 1 - x0, width * up_x - out.size(3) * down_x + x0 - up_x + 1),
        *(taps_y - 1 - y0, height * up_y - out.size(2) * down_y + y0 - up_y + 1),
        not flip_filter,
        gain,
    )


def filter_for(f: Tensor | None, x: Tensor) -> Tensor | None:
    """The filter in the dtype that native ops require for images ``x``."""
    return f.to(wide_dtype(x)) if f is not None and f.is_floating_point() else f


def _call(x: Tensor, f: Tensor | None, *arguments: Any) -> Tensor:
    y: Tensor = _upfirdn2d(x, filter_for(f, x), *arguments)
    return y


# ---- native ops --------------------------------------------------------------------------------------------


def _fake(x: Tensor, f: Tensor | None, *arguments: Any) -> Tensor:
    taps = number_of_taps("upfirdn2d", f)
    if f is not None and f.dtype != wide_dtype(x):
        raise RuntimeError(
            f"upfirdn2d: f is {dtype_name(f.dtype)}, but must be {dtype_name(wide_dtype(x))} for an x of "
            f"{dtype_name(x.dtype)}"
        )
    height, width = _output_size("upfirdn2d", x, *taps, *arguments[:8], gain=arguments[-1])
    size_product("upfirdn2d", *x.shape[:2], height, width)
    return new_like_images(x, [*x.shape[:2], height, width])


def _fake_filter_gradient(dy: Tensor, x: Tensor, taps_x: int, taps_y: int, *arguments: Any) -> Tensor:
    op = "upfirdn2d_filter_gradient"
    if taps_x < 1 or taps_y < 1:
        raise RuntimeError(
            f"{op}: the filter's shape is [{taps_y}, {taps_x}], but it must have at least one tap"
        )
    height, width = _output_size(op, x, taps_x, taps_y, *arguments[:8], gain=arguments[-1])
    check_same_kind(op, x=x, dy=dy)
    if dy.shape != (*x.shape[:2], height, width):
        raise RuntimeError(
            f"{op}: dy has shape {shape_of(dy)}, but must be {[*x.shape[:2], height, width]} for an x of "
            f"shape {shape_of(x)}"
        )
    size_product(op, taps_y, taps_x)
    return x.new_empty([taps_y, taps_x], dtype=wide_dtype(x))


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    taps = number_of_taps("upfirdn2d", a.f)
    dx = df = None
    if needs.x:
        dx = _call(dy, a.f, *_transposed(a.size, dy, taps, a.plain))
    if needs.f:
        df = _filter_gradient(dy, a.x, *taps, *a.plain)
        if a.f.dim() == 1:  # it was applied twice, as an outer product with itself
            df = ((df + df.t()) * a.f).sum(1)
    return dx, df


def _filter_gradient_gradients(a: Any, needs: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None]:
    taps_x, taps_y, *numbers = a.plain
    return (
        _call(a.x, u, *numbers) if needs.dy else None,
        _call(a.dy, u, *_transposed(a.x.shape[2:], a.dy, (taps_x, taps_y), numbers)) if needs.x else None,
    )


_filter_gradient = native(
    "upfirdn2d_filter_gradient", fake=_fake_filter_gradient, gradients=_filter_gradient_gradients
)
_upfirdn2d = native(
    "upfirdn2d",
    fake=_fake,
    gradients=_gradients,
    weights=("f",),
    save=("f",),
    keep=("x", "size"),
    kept=lambda x, f, *_: (x if f is not None and f.requires_grad else None, x.shape[2:]),
)

_IMAGES = {"x": (2, 3, 8, 8), "f": (4, 4)}
OPS = [
    Op(upfirdn2d, upfirdn2d_ref, {**_IMAGES, "up": 2, "padding": [2, 1]}),
    Op(filter2d, filter2d_ref, _IMAGES),
    Op(upsample2d, upsample2d_ref, _IMAGES),
    Op(downsample2d, downsample2d_ref, _IMAGES),
]
ALSO = (setup_filter,)
