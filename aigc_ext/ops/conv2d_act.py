"""A convolution with its bias and activation, and the same for the transposed convolution.

The convolution is PyTorch's or, on the CPU, :func:`aigc_ext.ops.conv3x3` where that was measured to be faster
(``benchmarks/conv3x3.py``). Bias, activation, mask and bias gradient are one pass over the result, in place
if the activation is piecewise linear. Inside :func:`aigc_ext.no_weight_gradients` the backward computes no
gradient of ``w`` and ``b``, which PyTorch's own convolution would compute and throw away.

A convolution, the gradient of its images and that of its filters are the partial derivatives of one trilinear
form, so the derivatives of each are the other two, to every order. PyTorch computes both gradients by
``aten::convolution_backward``: its transposed convolution, the same sums as the gradient of the images, takes
1.2 to 4 times as long on the CPU where it doesn't go to oneDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._apart import convolution_apart, is_apart
from aigc_ext.ops._arguments import check_same_kind, no_tensor, shape_of, size_product
from aigc_ext.ops._gradients import before_corners, with_zeros
from aigc_ext.ops._layout import HALF, is_channels_last, new_in_format, new_like_images
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, cast_by_autocast, native
from aigc_ext.ops._route import Route, take
from aigc_ext.ops.activations import ACTIVATIONS, check_activation, has_corners, resolve_activation
from aigc_ext.ops.bias_act import bias_act, bias_act_backward, bias_act_ref, mask_size
from aigc_ext.ops.conv3x3 import conv3x3_padded, has_conv3x3

_Pair = int | Sequence[int]
# stride, padding, dilation, output_padding, groups, transposed
_Geometry = tuple[list[int], list[int], list[int], list[int], int, bool]
_LARGE = 1 << 30  # products of sizes below need no check
_SURELY_RIGHT = 16  # pixels: see _dtype_route
_AS_IT_IS, _OTHERS = "convolution", ("conv3x3", "float32")  # see _kernel
_NOT_3X3 = Route("convolution", "conv3x3 is for 3x3 filters, stride 1 and padding to 2")
_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
_ONEDNN = torch.backends.mkldnn.is_available()  # else PyTorch has none of its ops
_FAST_HALF = {
    torch.bfloat16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


def conv2d_act(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """``clamp(gain * act(conv2d(x, w) + b), -clamp, clamp)``.

    Args:
        x: ``[N, in_channels, H, W]``, contiguous or channels-last; float64, float32, float16 or bfloat16.
        w: ``[out_channels, in_channels / groups, kH, kW]``, of x's dtype (under autocast all are cast, as for
            ``F.conv2d``).
        b: ``[out_channels]`` or None.
        stride, padding, dilation: an integer, or ``[y, x]``.
        groups: as in ``F.conv2d``.
        act, alpha, gain, clamp: as for :func:`aigc_ext.ops.bias_act`.

    Returns:
        ``[N, out_channels, ...]``, channels-last if ``x`` or ``w`` is, else contiguous. Differentiable to
        every order in x, w and b.

    Raises:
        ValueError: unknown ``act``; ``alpha`` or ``gain`` not finite; ``clamp`` negative or NaN.
        TypeError: an argument is not a tensor, integer or Python number where one is required.
        RuntimeError: shapes, dtypes or sizes do not match.
    """
    resolve_activation(act, alpha, gain, clamp)
    if not (isinstance(x, Tensor) and isinstance(w, Tensor) and (b is None or isinstance(b, Tensor))):
        raise no_tensor("conv2d_act", optional=("b",), x=x, w=w, b=b)
    if decomposed():
        return conv2d_act_ref(x, w, b, stride, padding, dilation, groups, act, alpha, gain, clamp)
    op = "conv2d_act"
    sizes = _pair(op, "stride", stride), _pair(op, "padding", padding), _pair(op, "dilation", dilation)
    return _convolve_and_act(op, x, w, b, (*sizes, [0, 0], groups, False), act, alpha, gain, clamp)


def conv2d_act_ref(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`conv2d_act` in plain PyTorch."""
    y = F.conv2d(x, w, b, stride, padding, dilation, groups)
    return bias_act_ref(y, None, 1, act, alpha, gain, clamp)


def conv_transpose2d_act(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: _Pair = 1,
    padding: _Pair = 0,
    output_padding: _Pair = 0,
    groups: int = 1,
    dilation: _Pair = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """``clamp(gain * act(conv_transpose2d(x, w) + b), -clamp, clamp)``.

    Args:
        x: ``[N, in_channels, H, W]``, contiguous or channels-last.
        w: ``[in_channels, out_channels / groups, kH, kW]``, of x's dtype.
        output_padding: as in ``F.conv_transpose2d``: less than stride or dilation.

    Everything else is as for :func:`conv2d_act`.
    """
    resolve_activation(act, alpha, gain, clamp)
    op = "conv_transpose2d_act"
    if not (isinstance(x, Tensor) and isinstance(w, Tensor) and (b is None or isinstance(b, Tensor))):
        raise no_tensor(op, optional=("b",), x=x, w=w, b=b)
    if decomposed():
        return conv_transpose2d_act_ref(
            x, w, b, stride, padding, output_padding, groups, dilation, act, alpha, gain, clamp
        )
    sizes = _pair(op, "stride", stride), _pair(op, "padding", padding), _pair(op, "dilation", dilation)
    geometry = (*sizes, _pair(op, "output_padding", output_padding), groups, True)
    return _convolve_and_act(op, x, w, b, geometry, act, alpha, gain, clamp)


def conv_transpose2d_act_ref(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: _Pair = 1,
    padding: _Pair = 0,
    output_padding: _Pair = 0,
    groups: int = 1,
    dilation: _Pair = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`conv_transpose2d_act` in plain PyTorch."""
    y = F.conv_transpose2d(x, w, b, stride, padding, output_padding, groups, dilation)
    return bias_act_ref(y, None, 1, act, alpha, gain, clamp)


def convolve(op: str, x: Tensor, w: Tensor, b: Tensor | None, geometry: _Geometry) -> Tensor:
    """The convolution with only its bias, for ``op``, in the form that suits device, dtype and shape."""
    if torch._C._is_any_autocast_enabled():
        x, w, b = cast_by_autocast([x, w, b])
    return _convolve(op, x, w, b, geometry)


def _convolve(
    op: str, x: Tensor, w: Tensor, b: Tensor | None, geometry: _Geometry, kernel: str | None = None
) -> Tensor:
    """The same for tensors that autocast has cast; ``kernel`` is that of ``_kernel``, if it was asked."""
    if is_apart(x):
        return _convolve_apart(op, x, w, b, geometry)
    kernel = kernel or _kernel(op, x, w, b, geometry)
    if kernel == "conv3x3":
        return _winograd(x, w, b, geometry)
    y: Tensor
    if kernel == "float32":
        wide = _convolution(x.float(), w.float(), b if b is None else b.float(), *geometry)
        y = wide.to(x.dtype)
        return y
    y = _convolution(x, w, b, *geometry)
    return y


def _kernel(op: str, x: Tensor, w: Tensor, b: Tensor | None, geometry: _Geometry) -> str:
    """conv3x3; or ``convolution``, in float32 or as it is."""
    kernel = _AS_IT_IS
    for route in _routes(op, x, w, b, geometry):
        kernel = take(op, route)
    return kernel if kernel in _OTHERS else _AS_IT_IS


def _routes(op: str, x: Tensor, w: Tensor, b: Tensor | None, geometry: _Geometry) -> list[Route]:
    """The choices in turn; the last one decides."""
    routes = [_route(x, w, geometry)] if x.dim() == w.dim() == 4 else []
    if x.dtype in HALF and not (routes and routes[0].kernel == "conv3x3"):
        size = _check(op, x, w, b, geometry)
        routes.append(_dtype_route(x, w.shape[2:], size, geometry))
    return routes


def is_pytorchs(x: Tensor, w: Tensor, geometry: _Geometry) -> bool:
    """Would this convolution be PyTorch's, in x's dtype or in that to which autocast casts?"""
    if torch.is_autocast_enabled(x.device.type):
        return _FAST_HALF.get(torch.get_autocast_dtype(x.device.type), True)
    return all(route.kernel not in _OTHERS for route in _routes("conv2d_act", x, w, None, geometry))


def _winograd(x: Tensor, w: Tensor, b: Tensor | None, geometry: _Geometry) -> Tensor:
    padding, transposed = geometry[1], geometry[-1]
    if transposed:
        padding = [2 - padding[0], 2 - padding[1]]
    if is_channels_last(w):
        x = x.contiguous(memory_format=torch.channels_last)
    return conv3x3_padded(x, w, b, padding[0], padding[1], transposed)


def _convolve_apart(op: str, x: Tensor, w: Tensor, b: Tensor | None, geometry: _Geometry) -> Tensor:
    """The same for each image as if it were alone. PyTorch would choose between oneDNN and its own
    convolution by the number of images; here it is always oneDNN."""
    _check(op, x, w, b, geometry)
    kernel = take(op, _route(x[:1], w, geometry))
    stride, padding, dilation, output_padding, groups, transposed = geometry
    mkldnn = _ONEDNN and torch.backends.mkldnn.enabled
    channels_last = is_channels_last(x) or is_channels_last(w)

    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if kernel == "conv3x3":
            return _winograd(x, w, b, geometry)
        y: Tensor
        if not mkldnn:
            y = _convolution(x, w, b, *geometry)
            return y
        if transposed:
            sizes = padding, output_padding, stride, dilation
            y = torch.ops.mkldnn._convolution_transpose_pointwise.default(
                x, w, b, *sizes, groups, "none", [], ""
            )
        else:
            y = torch.ops.aten.mkldnn_convolution.default(x, w, b, padding, stride, dilation, groups)
        return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    sizes = tuple(stride), tuple(padding), tuple(dilation), tuple(output_padding)
    return convolution_apart(run, (kernel, mkldnn, *sizes, groups, transposed), x, w, b)


def _route(x: Tensor, w: Tensor, geometry: _Geometry) -> Route:
    """Winograd's convolution or PyTorch's.

    Measured on one core, forward and backward together: where Winograd's is chosen, it is about as fast or
    faster. With AVX-512, PyTorch's is better than with AVX2, and ours is slower on short rows, whose tiles do
    not fill a vector.
    """
    stride, padding, dilation, output_padding, groups, _ = geometry
    if not (w.size(2) == w.size(3) == 3 and groups == 1 and stride == [1, 1] and max(padding) <= 2):
        return _NOT_3X3
    if not (dilation == [1, 1] and output_padding == [0, 0]):
        return _NOT_3X3
    if not has_conv3x3(x):
        return Route("convolution", "conv3x3 has no kernel for this device")
    if widened(x):
        return Route("conv3x3", "PyTorch is slow in half types on this CPU")
    if x.dtype in HALF:
        return Route("convolution", "this CPU has instructions for products in half types")
    channels, pixels = min(w.size(0), w.size(1)), x.size(2) * x.size(3)
    if channels < 32 or _known(x.size(0) * pixels < 512):
        return Route("convolution", "conv3x3 pays from 32 channels and 512 pixels on")
    if not _AVX512:
        return Route("conv3x3", "there are 32 channels and 512 pixels")
    # The transformed filters of 512 channels, 16 MB, are read from beyond the caches.
    if _known(x.size(0) * pixels < (2 if channels < 512 else 8) * channels):
        return Route("convolution", "there are few pixels for the filters that conv3x3 transforms first")
    if is_channels_last(x):
        if _known(pixels < 64):
            return Route("convolution", "with AVX-512, conv3x3 pays from 64 pixels of an image on")
    elif _known(x.size(3) < 16) or _known(channels * x.size(3) < 1024):
        return Route("convolution", "with AVX-512, conv3x3 pays from rows of 16 on, and many channels")
    return Route("conv3x3", "there are channels, pixels and rows enough for it with AVX-512")


def _known(condition: bool | torch.SymBool) -> bool:
    """False for a condition on a size that ``torch.export`` leaves open, such as that of the batch: a
    decision on it would fix it."""
    if isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    return condition


def _convolve_and_act(
    op: str,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    geometry: _Geometry,
    act: str,
    alpha: float | None,
    gain: float | None,
    clamp: float | None,
) -> Tensor:
    if torch._C._is_any_autocast_enabled():
        x, w, b = cast_by_autocast([x, w, b])
    if act == "linear" and gain in (None, 1) and clamp is None:
        return _convolve(op, x, w, b, geometry)
    kernel = None if is_apart(x) else _kernel(op, x, w, b, geometry)
    if kernel == _AS_IT_IS:
        activation, alpha, gain = resolve_activation(act, alpha, gain, clamp)
        save = torch.is_grad_enabled() and (
            x.requires_grad or w.requires_grad or (b is not None and b.requires_grad)
        )
        y: Tensor = _convolution_act(x, w, b, *geometry, activation.name, alpha, gain, clamp, save)[0]
        return y
    if x.dtype in HALF:
        # Storing the product in a half type rounds it; with the bias included, at least its sign is right.
        y = _convolve(op, x, w, b, geometry, kernel)
        if has_corners(act):
            y = before_corners(y, b)
        return bias_act(y, None, 1, act, alpha, gain, clamp)
    return bias_act(_convolve(op, x, w, None, geometry, kernel), b, 1, act, alpha, gain, clamp)


def _pair(op: str, name: str, value: _Pair) -> list[int]:
    if type(value) is int:
        return [value, value]
    numbers = [value, value] if isinstance(value, (int, torch.SymInt)) else list(value)
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2 or not all(isinstance(n, (int, torch.SymInt)) for n in numbers):
        raise TypeError(f"{op}: {name} is {value!r}, but must be an integer or two: [y, x]")
    return numbers


def _output_size(
    op: str,
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    transposed: bool,
) -> list[int]:
    if x.dim() != 4 or min(x.shape[1:]) < 1:
        raise RuntimeError(
            f"{op}: x has shape {shape_of(x)}, but must be [N, C, H, W] with C, H and W of at least 1"
        )
    if w.dim() != 4 or min(w.shape) < 1:
        order = "[in, out / groups, kH, kW]" if transposed else "[out, in / groups, kH, kW]"
        raise RuntimeError(f"{op}: w has shape {shape_of(w)}, but must be {order}, each at least 1")
    if groups < 1 or w.size(0) % groups != 0:
        raise RuntimeError(f"{op}: groups is {groups}, but must divide {w.size(0)}, the first size of w")
    in_channels = w.size(0) if transposed else w.size(1) * groups
    if x.size(1) != in_channels:
        raise RuntimeError(
            f"{op}: x has shape {shape_of(x)}, but must have {in_channels} channels for a w of shape "
            f"{shape_of(w)} and groups {groups}"
        )
    if any(len(pair) != 2 for pair in (stride, padding, dilation, output_padding)):
        raise RuntimeError(f"{op}: stride, padding, dilation and output_padding must be [y, x]")
    sizes = []
    for d, axis in enumerate(("y", "x")):
        if max(stride[d], padding[d], dilation[d]) > _LARGE:
            _check_fits(op, x.size(2 + d), w.size(2 + d), stride[d], padding[d], dilation[d], transposed)
        if stride[d] < 1 or dilation[d] < 1 or padding[d] < 0:
            raise RuntimeError(
                f"{op}: along {axis}, stride is {stride[d]}, dilation {dilation[d]}, padding {padding[d]}, "
                "but they must be at least 1, 1 and 0"
            )
        reach = dilation[d] * (w.size(2 + d) - 1)
        if transposed:
            if not 0 <= output_padding[d] < max(stride[d], dilation[d]):
                raise RuntimeError(
                    f"{op}: output_padding along {axis} is {output_padding[d]}, but must be from 0 to "
                    f"{max(stride[d], dilation[d]) - 1}, less than stride or dilation"
                )
            size = (x.size(2 + d) - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d] + 1
        elif output_padding[d] != 0:
            raise RuntimeError(
                f"{op}: output_padding along {axis} is {output_padding[d]}, but only a transposed "
                "convolution has one"
            )
        else:
            size = (x.size(2 + d) + 2 * padding[d] - reach - 1) // stride[d] + 1
        if size < 1:
            raise RuntimeError(
                f"{op}: x has shape {shape_of(x)}, but along {axis} nothing is left by a filter of "
                f"{w.size(2 + d)} with dilation {dilation[d]} and padding {padding[d]}"
            )
        sizes.append(size)
    return [x.size(0), w.size(1) * groups if transposed else w.size(0), *sizes]


def _check_fits(
    op: str, size: int, taps: int, stride: int, padding: int, dilation: int, transposed: bool
) -> None:
    size_product(op, dilation, taps - 1)
    size_product(op, 2, padding)
    if transposed:
        size_product(op, size - 1, stride)


# ---- native ops --------------------------------------------------------------------------------------------


def widened(x: Tensor) -> bool:
    """Is x of a half type that the CPU has no instructions for? There PyTorch's convolution takes 200 times
    as long as in float32."""
    return x.dtype in HALF and x.device.type == "cpu" and not _FAST_HALF[x.dtype]


def _dtype_route(x: Tensor, kernel: Sequence[int], size: Sequence[int], geometry: Sequence[Any]) -> Route:
    """The dtype in which a convolution of x (or its transpose), with results of ``size``, is computed.

    A half type becomes float32 where PyTorch is slow in it, and bfloat16 also where PyTorch is wrong: the
    oneDNN of torch 2.13 reads beyond the memory of narrow images. On CPUs with AVX512_BF16, weight gradients
    of images one pixel wide, padded and with stride 2, are NaN or arbitrary, and a dilation of 3 can crash
    the process; on CPUs with AMX, results of images of 1 to 3 pixels are wrong too. On both, results were
    right for large images and for square ones with the strides and paddings that networks use.
    """
    if widened(x):
        return Route("float32", "PyTorch is slow in half types on this CPU")
    if x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return Route("its own dtype", "PyTorch has a kernel for it")
    stride, padding, dilation = geometry[:3]
    if stride[0] == stride[1] <= 2 and dilation[0] == dilation[1] == 1:
        taps = kernel[0]
        usual = taps == kernel[1] and taps in (1, 3, 4, 5, 7) and padding[0] == padding[1] == (taps - 1) // 2
        square = x.size(2) == x.size(3) and size[2] == size[3]
        large = min(*x.shape[2:], *size[2:]) >= _SURELY_RIGHT
        if large or (usual and square and max(x.size(2), size[2]) > 1):
            return Route("bfloat16", "oneDNN is right for such images")
    return Route("float32", "oneDNN cannot be relied on for such images in bfloat16")


def _fake(x: Tensor, w: Tensor, b: Tensor | None, *geometry: Any) -> Tensor:
    size = _check("convolution", x, w, b, geometry)
    size_product("convolution", *size)
    return new_in_format(x, size, is_channels_last(x) or is_channels_last(w))


def _fake_act(  # type: ignore[no-untyped-def]
    x, w, b, stride, padding, dilation, output_padding, groups, transposed, act, alpha, gain, clamp, save
) -> tuple[Tensor, Tensor, Tensor]:
    op = "convolution_act"
    check_same_kind(op, x=x)
    check_activation(op, act, alpha, gain, clamp)
    size = _check(op, x, w, b, (stride, padding, dilation, output_padding, groups, transposed))
    size_product(op, *size)
    y = new_in_format(x, size, is_channels_last(x) or is_channels_last(w))
    piecewise_linear = ACTIVATIONS[act].piecewise_linear
    product = torch.empty_like(y) if save and not piecewise_linear else x.new_empty(0)
    added = None if x.dtype in HALF else b
    bits = mask_size(y, added, False, 1, act, clamp) if save and piecewise_linear else 0
    return y, product, x.new_empty(bits, dtype=torch.uint8)


def _kept(*arguments: Any) -> tuple[Tensor | None, bool]:
    *_, act, _alpha, _gain, clamp, save, out = arguments
    if not save and not (act == "linear" and clamp is None):
        raise RuntimeError(
            f"convolution_act: a gradient through act {act!r} with clamp {clamp} needs save=True"
        )
    return None if ACTIVATIONS[act].piecewise_linear else out[1], not out[0].is_contiguous()


def _fake_backward(dy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *geometry, need_x, need_w = rest
    op = "convolution_backward"
    size = _check(op, x, w, None, geometry)
    size_product(op, *size)
    check_same_kind(op, x=x, dy=dy)
    if list(dy.shape) != size:
        raise RuntimeError(f"{op}: dy has shape {shape_of(dy)}, but must be {size}")
    dx = new_like_images(x, x.shape) if need_x else x.new_empty(0)
    return dx, new_like_images(w, w.shape) if need_w else w.new_empty(0)


def _check(op: str, x: Tensor, w: Tensor, b: Tensor | None, geometry: Sequence[Any]) -> list[int]:
    size = _output_size(op, x, w, *geometry)
    check_same_kind(op, x=x, w=w, b=b)
    if b is not None and (b.dim() != 1 or b.size(0) != size[1]):
        raise RuntimeError(f"{op}: b has shape {shape_of(b)}, but must be [{size[1]}]")
    return size


def _second_gradients(
    a: Any, needs: Any, g_dx: Tensor | None, g_dw: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    geometry = a.plain[:-2]
    # What was not computed is empty, and a traced graph has a gradient for it too.
    g_dx, g_dw = g_dx if a.need_x else None, g_dw if a.need_w else None
    g_dy = g_x = g_w = None
    if needs.dy:
        parts = [
            _convolution(x, w, None, *geometry)
            for x, w in ((g_dx, a.w), (a.x, g_dw))
            if x is not None and w is not None
        ]
        g_dy = sum(parts[1:], start=parts[0]) if parts else None
    if needs.x and g_dw is not None:
        g_x, _ = _backward(a.dy, a.x, g_dw, *geometry, True, False)
    if needs.w and g_dx is not None:
        _, g_w = _backward(a.dy, g_dx, a.w, *geometry, False, True)
    return g_dy, g_x, g_w


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = dw = None
    if needs.x or needs.w:
        dx, dw = _backward(dy, a.x, a.w, *a.plain, needs.x, needs.w)
    return (
        dx if needs.x else None,
        dw if needs.w else None,
        dy.sum((0, 2, 3)) if needs.b else None,
    )


def _act_gradients(
    a: Any, needs: Any, dy: Tensor | None, d_product: Tensor | None
) -> tuple[Tensor | None, ...]:
    *geometry, act, alpha, gain, clamp, _ = a.plain
    bias_in_product = a.x.dtype in HALF  # as in the forward
    b = None if bias_in_product else a.b
    sum_b = needs.b and b is not None
    dz = dx = dw = db = None
    if dy is not None:
        inputs = (dy, a.product, b, None, None, a.mask, 1, act, alpha, gain, clamp, a.channels_last)
        dz, db, _ = bias_act_backward(*inputs, sum_b, False)
    if d_product is not None and a.product is not None:
        # A second derivative enters through the saved pre-activation.
        dz = d_product if dz is None else dz + d_product
    if dz is not None:
        if bias_in_product and has_corners(a.act):
            dz = with_zeros(dz, a.b)
        if needs.x or needs.w:
            dx, dw = _backward(dz, a.x, a.w, *geometry, needs.x, needs.w)
        if needs.b and bias_in_product:
            db = dz.sum((0, 2, 3))
    return dx if needs.x else None, dw if needs.w else None, db if needs.b else None


_backward: Callable[..., tuple[Tensor, Tensor]] = native(
    "convolution_backward",
    fake=_fake_backward,
    gradients=_second_gradients,
    weights=("w",),
)
_convolution: Callable[..., Tensor] = native(
    "convolution",
    fake=_fake,
    gradients=_gradients,
    weights=("w", "b"),
    save=("x", "w"),
)

_convolution_act: Callable[..., tuple[Tensor, Tensor, Tensor]] = native(
    "convolution_act",
    fake=_fake_act,
    gradients=_act_gradients,
    weights=("w", "b"),
    save=("x", "w", "b", "mask"),
    keep=("product", "channels_last"),
    kept=_kept,
    constants=("mask",),
)

OPS = [
    Op(
        conv2d_act,
        conv2d_act_ref,
        {"x": (2, 3, 6, 6), "w": (4, 3, 3, 3), "b": (4,), "padding": 1, "act": "lrelu"},
    ),
    Op(
        conv_transpose2d_act,
        conv_transpose2d_act_ref,
        {"x": (2, 3, 6, 6), "w": (3, 4, 4, 4), "b": (4,), "stride": 2, "padding": 1, "act": "lrelu"},
    ),
]
