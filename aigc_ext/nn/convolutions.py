"""Modules for convolutions with activation, FIR resampling and style modulation.

Parameters and buffers have the names and shapes of common checkpoints: those of `torch.nn.Conv2d`, and
`weight`, `bias`, `noise_strength`, `resample_filter` of the layers of StyleGAN2 and StyleGAN3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext import ops
from aigc_ext.ops.activations import resolve_activation


class _Activated(nn.Module):
    """The options of an activation."""

    act: str
    alpha: float | None
    gain: float | None
    clamp: float | None

    def _set_activation(self, act: str, alpha: float | None, gain: float | None, clamp: float | None) -> None:
        resolve_activation(act, alpha, gain, clamp)  # raises here rather than in the first forward
        self.act, self.alpha, self.gain, self.clamp = act, alpha, gain, clamp

    def _activation(self) -> dict[str, Any]:
        return {"act": self.act, "alpha": self.alpha, "gain": self.gain, "clamp": self.clamp}

    def _activation_repr(self) -> str:
        options = {k: v for k, v in self._activation().items() if v is not None}
        return ", ".join(f"{k}={v!r}" for k, v in options.items())


class Conv2d(nn.Conv2d, _Activated):
    """`torch.nn.Conv2d` and an activation: `clamp(gain * act(conv2d(x, weight) + bias), -clamp, clamp)`.

    Parameters, their initialisation and the `state_dict` keys are those of `torch.nn.Conv2d`.

    Shapes: `[N, in_channels, H, W]` to `[N, out_channels, H', W']`, channels-last if the
    input or the weight is.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as in
            `torch.nn.Conv2d`; the padding must be given as numbers, and pads with zeros.
        act, alpha, gain, clamp: as in `Linear`.

    Raises:
        ValueError: an activation option is invalid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        act: str = "linear",
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            device=device,
            dtype=dtype,
        )
        self._set_activation(act, alpha, gain, clamp)

    def forward(self, input: Tensor) -> Tensor:
        geometry: Any = self.stride, self.padding, self.dilation, self.groups
        return ops.conv2d_act(input, self.weight, self.bias, *geometry, **self._activation())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._activation_repr()}"


class ConvTranspose2d(nn.ConvTranspose2d, _Activated):
    """`torch.nn.ConvTranspose2d` and an activation, like `Conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            device, dtype: as in `torch.nn.ConvTranspose2d`.
        act, alpha, gain, clamp: as in `Linear`.

    Raises:
        ValueError: an activation option is invalid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        act: str = "linear",
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            *(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                output_padding,
                groups,
                bias,
                dilation,
            ),
            device=device,
            dtype=dtype,
        )
        self._set_activation(act, alpha, gain, clamp)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = self._output_padding(
            *(input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)  # type: ignore[arg-type]
        )
        return ops.conv_transpose2d_act(
            *(input, self.weight, self.bias, self.stride, self.padding, output_padding),  # type: ignore[arg-type]
            groups=self.groups,
            dilation=self.dilation,
            **self._activation(),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._activation_repr()}"


class _Filtered(nn.Module):
    """A module with the buffer `resample_filter`."""

    resample_filter: Tensor

    def __init__(self, resample_filter: Tensor | Sequence[Any] | None, padding: int | Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("resample_filter", ops.setup_filter(resample_filter))
        self.padding = padding

    def extra_repr(self) -> str:
        return f"taps={list(self.resample_filter.shape)}, padding={self.padding}"


class Filter2d(_Filtered):
    """`ops.filter2d` with its own filter; keeps the size of `[N, C, H, W]` except for `padding`.

    Args:
        resample_filter: taps for `ops.setup_filter`; the buffer `resample_filter` holds them normalised.
        padding: as for `ops.filter2d`.
    """

    def __init__(
        self,
        resample_filter: Tensor | Sequence[Any] | None = (1, 3, 3, 1),
        padding: int | Sequence[int] = 0,
    ) -> None:
        super().__init__(resample_filter, padding)

    def forward(self, input: Tensor) -> Tensor:
        return ops.filter2d(input, self.resample_filter, self.padding)


class Upsample2d(_Filtered):
    """`ops.upsample2d` with its own filter: `[N, C, H, W]` to `[N, C, H * up, W * up]`, plus `padding`.

    Args:
        resample_filter: taps for `ops.setup_filter`; the buffer `resample_filter` holds them normalised.
        up, padding: as for `ops.upsample2d`.
    """

    def __init__(
        self,
        resample_filter: Tensor | Sequence[Any] | None = (1, 3, 3, 1),
        up: int | Sequence[int] = 2,
        padding: int | Sequence[int] = 0,
    ) -> None:
        super().__init__(resample_filter, padding)
        self.up = up

    def forward(self, input: Tensor) -> Tensor:
        return ops.upsample2d(input, self.resample_filter, self.up, self.padding)

    def extra_repr(self) -> str:
        return f"up={self.up}, {super().extra_repr()}"


class Downsample2d(_Filtered):
    """`ops.downsample2d` with its own filter: `[N, C, H, W]` to `[N, C, H / down, W / down]`, plus `padding`.

    Args:
        resample_filter: taps for `ops.setup_filter`; the buffer `resample_filter` holds them normalised.
        down, padding: as for `ops.downsample2d`.
    """

    def __init__(
        self,
        resample_filter: Tensor | Sequence[Any] | None = (1, 3, 3, 1),
        down: int | Sequence[int] = 2,
        padding: int | Sequence[int] = 0,
    ) -> None:
        super().__init__(resample_filter, padding)
        self.down = down

    def forward(self, input: Tensor) -> Tensor:
        return ops.downsample2d(input, self.resample_filter, self.down, self.padding)

    def extra_repr(self) -> str:
        return f"down={self.down}, {super().extra_repr()}"


class FilteredLReLU(nn.Module):
    """`ops.filtered_lrelu` with its own filters and bias.

    Args:
        num_channels: size of the bias, or None for no bias.
        up_filter, down_filter: taps, kept as the buffers `up_filter` and `down_filter`, or None.
        up, down, padding, gain, slope, clamp: as for `ops.filtered_lrelu`.
    """

    def __init__(
        self,
        num_channels: int | None = None,
        up_filter: Tensor | None = None,
        down_filter: Tensor | None = None,
        up: int = 1,
        down: int = 1,
        padding: int | Sequence[int] = 0,
        gain: float = 2**0.5,
        slope: float = 0.2,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("up_filter", up_filter)
        self.register_buffer("down_filter", down_filter)
        self.bias = None if num_channels is None else nn.Parameter(torch.zeros(num_channels))
        self.options: dict[str, Any] = {"up": up, "down": down, "padding": padding}
        self.options |= {"gain": gain, "slope": slope, "clamp": clamp}

    def forward(self, input: Tensor) -> Tensor:
        return ops.filtered_lrelu(input, self.up_filter, self.down_filter, self.bias, **self.options)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.options.items())


class FilteredSnake(nn.Module):
    """`ops.filtered_snake` with its own frequencies and filter: the activation of BigVGAN's vocoders.

    Shapes: `[N, num_channels, L]` to the same.

    The filter, `resample_filter`, is for both ways: a sinc that cuts off at half of the doubled band, in
    Kaiser's window for a transition of 0.6 of that band on either side, of sum 1. It follows from `taps`, so
    it is a buffer that is not in the `state_dict`.

    Args:
        num_channels: size of the parameter `alpha`, and of `beta`.
        beta: whether the sine's square is divided by a parameter of its own, not by `alpha`.
        log_scale: whether the parameters are the logarithms of the numbers.
        init: what both numbers start from; above 0 on a logarithmic scale.
        taps: of the filter, an even number, so that the output keeps the input's time; 12 is fastest.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument is not one of the allowed values.
    """

    alpha: nn.Parameter
    beta: nn.Parameter | None
    resample_filter: Tensor

    def __init__(
        self,
        num_channels: int,
        beta: bool = False,
        log_scale: bool = False,
        init: float = 1.0,
        taps: int = 12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_channels < 0:
            raise ValueError(f"num_channels is {num_channels}, but must be at least 0")
        if not math.isfinite(init) or init == 0 or (log_scale and init < 0):
            allowed = "above 0" if log_scale else "not 0"
            raise ValueError(f"init is {init}, but must be finite and {allowed}")
        if taps < 2 or taps % 2 != 0:
            raise ValueError(f"taps is {taps}, but must be even and at least 2")
        self.num_channels, self.log_scale, self.init, self.taps = num_channels, log_scale, init, taps
        start = math.log(init) if log_scale else init

        def parameter() -> nn.Parameter:
            return nn.Parameter(torch.full((num_channels,), start, device=device, dtype=dtype))

        self.alpha = parameter()
        self.register_parameter("beta", parameter() if beta else None)
        self.register_buffer("resample_filter", _half_band(taps).to(self.alpha), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        f = self.resample_filter
        return ops.filtered_snake(input, self.alpha, f, f, self.beta, self.log_scale)

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, beta={self.beta is not None}, log_scale={self.log_scale}, "
            f"init={self.init}, taps={self.taps}"
        )


def _half_band(taps: int) -> Tensor:
    """The sinc filter that keeps the lower half of a band, in Kaiser's window (Lee et al. 2023)."""
    cutoff, half_width = 0.5 / 2, 0.6 / 2  # in cycles per element at the doubled rate
    # Kaiser's estimate of the attenuation in decibels, for the taps of one of the two lanes
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation > 50:
        shape = 0.1102 * (attenuation - 8.7)
    else:
        shape = 0.5842 * max(attenuation - 21, 0) ** 0.4 + 0.07886 * max(attenuation - 21, 0)
    window = torch.kaiser_window(taps, periodic=False, beta=shape, dtype=torch.float64)
    time = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    f = window * torch.sinc(2 * cutoff * time)
    return f / f.sum()


class MinibatchStddev(nn.Module):
    """`ops.minibatch_stddev`: `[N, C, H, W]` to `[N, C + num_channels, H, W]`.

    Args:
        group_size, num_channels: as for `ops.minibatch_stddev`.
    """

    def __init__(self, group_size: int | None = 4, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, input: Tensor) -> Tensor:
        return ops.minibatch_stddev(input, self.group_size, self.num_channels)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"


class ModulatedConv2d(_Activated):
    """A style-modulated convolution with noise, bias and activation: StyleGAN2's synthesis layer without the
    affine layer that makes the styles.

    Shapes: `x [N, in_channels, H, W]`, styles `s [N, in_channels]`, `noise [N or 1, 1, H', W']` or None, to
    `[N, out_channels, H', W']`.

    Args:
        in_channels, out_channels, kernel_size: sizes of the weight, which is initialised from N(0, 1).
        up, down: resampling factors.
        resample_filter: taps for the resampling, kept as a buffer if a factor is not 1.
        demodulate: as for `ops.modulated_conv2d`.
        noise: whether there is a parameter `noise_strength`, a factor for the noise that starts at 0.
        bias: whether there is a bias, which starts at 0.
        act, alpha, gain, clamp: as in `Linear`.

    Raises:
        ValueError: an activation option is invalid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        up: int = 1,
        down: int = 1,
        resample_filter: Tensor | Sequence[Any] | None = (1, 3, 3, 1),
        demodulate: bool = True,
        noise: bool = True,
        bias: bool = True,
        act: str = "lrelu",
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self._set_activation(act, alpha, gain, clamp)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None
        resampled = up != 1 or down != 1
        self.register_buffer("resample_filter", ops.setup_filter(resample_filter) if resampled else None)
        self.up, self.down, self.demodulate = up, down, demodulate

    def forward(self, x: Tensor, s: Tensor, noise: Tensor | None = None) -> Tensor:
        return ops.modulated_conv2d(
            *(x, self.weight, s, self.bias, noise, None if noise is None else self.noise_strength),
            up=self.up,
            down=self.down,
            padding=self.weight.size(2) // 2,
            f=self.resample_filter,  # type: ignore[arg-type]
            demodulate=self.demodulate,
            flip_weight=self.up == 1,  # as in checkpoints: the transposed convolution's taps are reversed
            **self._activation(),
        )

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel, _ = self.weight.shape
        return (
            f"{in_channels}, {out_channels}, kernel_size={kernel}, up={self.up}, down={self.down}, "
            f"demodulate={self.demodulate}, {self._activation_repr()}"
        )
