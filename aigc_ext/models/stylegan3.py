"""StyleGAN3: an alias-free generator (Karras, Aittala, Laine, Härkönen, Hellsten, Lehtinen, Aila 2021,
https://arxiv.org/abs/2106.12423). Its discriminator is StyleGAN2's.

Lengths are in units of the image's longer side, so an image with s pixels on that side has the sampling rate
s. Each layer has a cutoff frequency, above which its signal should have no content, and a stopband frequency,
above which its filters suppress everything. Both grow geometrically up to the last `num_critical` layers,
whose cutoff is the image's own limit, s / 2. A layer's sampling rate is s divided by the largest power of two
for which the rate is at least twice the stopband. Its nonlinearity runs at twice the larger of the rates
before and after it, between two low-pass filters for the signals before and after it. The images of all but
the last two layers have a margin, which keeps border effects out of the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from aigc_ext import ops
from aigc_ext.config import Count, Range
from aigc_ext.models.checks import channels_at
from aigc_ext.models.settings import (
    ClassCount,
    GeneratorConfig,
    ImageShape,
    LayerCount,
    OutputAct,
    OutsideRun,
    takes,
)
from aigc_ext.models.style import (
    CLAMP,
    EqualizedLinear,
    StyleGenerator,
    compute_dtype,
    follow,
    in_format_of,
)
from aigc_ext.ops._apart import is_apart

_TAPS = 6  # filter taps per sample of the lower rate
_MAGNITUDE_HALF_LIFE = 20000  # images: a factor of 0.9989 for a batch of 32


@dataclass(frozen=True)
class StyleGAN3GeneratorConfig(GeneratorConfig):
    family: Literal["stylegan3"] = field(default="stylegan3", kw_only=True)
    image_shape: ImageShape = (3, 256, 256)
    variant: Literal["t", "r"] = "t"
    """`t` has 3x3 convolutions and is equivariant to translation; `r` has 1x1 convolutions and radially
    symmetric filters after the nonlinearity, and is equivariant to rotation too. In the paper `r` has twice
    as many channels (`channel_base` 65536, `channel_max` 1024)."""
    z_dim: Count = 512
    """Length of the latent z."""
    w_dim: Count = 512
    """Length of w."""
    mapping_layers: LayerCount = 2
    """Layers from z to w."""
    channel_base: Count = 32768
    """A layer with cutoff f has this number divided by 2f channels; for the finest layers 2f is the image's
    longer side."""
    channel_max: Count = 512
    """The largest number of channels of a layer."""
    num_layers: LayerCount = 14
    """Number of layers, not counting the RGB layer. Small images need fewer: 6 for 32x32."""
    num_critical: OutsideRun[LayerCount] = 2
    """Number of layers, at the end, whose cutoff is half the longer side."""
    first_cutoff: OutsideRun[float] = 2.0
    """Cutoff of the Fourier features."""
    first_stopband: OutsideRun[float] = 2**2.1
    """Stopband of the Fourier features."""
    last_stopband_rel: OutsideRun[float] = 2**0.3
    """The last stopband divided by the last cutoff."""
    margin_size: OutsideRun[Annotated[int, Range(ge=0)]] = 10
    """Margin in pixels on each side of all images but the last two."""
    output_scale: OutsideRun[float] = 0.25
    """Factor of the RGB image."""
    num_classes: ClassCount = 0
    output_act: OutputAct = None
    """The activation of the RGB image; null: linear, as in the paper, but in a run tanh if much of the data
    is black or white."""


class StyleGAN3Generator(StyleGenerator):
    """Maps z, by w, to an image: Fourier features, translated and rotated according to w; style-modulated
    convolutions, each with a leaky ReLU at a higher sampling rate; and an RGB layer.

    Its arguments are the fields of `StyleGAN3GeneratorConfig`.

    Attributes:
        input.transform: a 3x3 matrix, initially the identity, that maps pixel positions `(x, y, 1)` to those
            of the untransformed image; the origin is the centre, x points right and y down. The identity with
            t / s as `transform[0, 2]` shifts the image by t pixels to the left.
        num_ws: one w for the input and for each layer, including RGB.
        w_avg: running mean of w, for truncation.

    Raises:
        ValueError: `num_layers` is not above `num_critical`, the frequencies do not rise, or `channel_base`
            is less than the longer side.
    """

    output_scale: float

    @takes(StyleGAN3GeneratorConfig)
    def __init__(self, settings: StyleGAN3GeneratorConfig) -> None:
        super().__init__(settings, settings.num_layers + 2)
        image_shape, w_dim, variant = settings.image_shape, settings.w_dim, settings.variant
        num_layers, num_critical = settings.num_layers, settings.num_critical
        channel_base, channel_max = settings.channel_base, settings.channel_max
        first_cutoff, first_stopband = settings.first_cutoff, settings.first_stopband
        last_stopband_rel, side = settings.last_stopband_rel, max(image_shape[1:])
        if num_layers <= num_critical:
            raise ValueError(f"num_layers is {num_layers}, but must be above num_critical, {num_critical}")
        if not 0 < first_cutoff < first_stopband or first_cutoff >= side / 2 or last_stopband_rel <= 1:
            raise ValueError(
                f"first_cutoff is {first_cutoff}, first_stopband {first_stopband} and last_stopband_rel "
                f"{last_stopband_rel}, but must be 0 < first_cutoff < first_stopband, first_cutoff < "
                f"{side / 2} (half the longer side), and 1 < last_stopband_rel"
            )
        channels_at(side, channel_base, channel_max)  # at least one channel
        signals = []
        for i in range(num_layers):
            rise = min(i / (num_layers - num_critical), 1.0)
            cutoff = first_cutoff * (side / 2 / first_cutoff) ** rise
            stopband = first_stopband * (side / 2 * last_stopband_rel / first_stopband) ** rise
            halvings = max(math.floor(math.log2(side / (2 * stopband))), 0)
            margin = settings.margin_size if i < num_layers - 1 else 0
            signals.append(
                _Signal(
                    channels=round(min(channel_base / (2 * cutoff), channel_max)),
                    height=math.ceil(image_shape[1] / 2**halvings) + 2 * margin,
                    width=math.ceil(image_shape[2] / 2**halvings) + 2 * margin,
                    rate=side / 2**halvings,
                    cutoff=cutoff,
                    transition=2 * (max(side / 2**halvings / 2, stopband) - cutoff),
                    radial=variant == "r" and i < num_layers - num_critical,
                )
            )
        self.input = _FourierFeatures(signals[0], w_dim)
        kernel_size = 3 if variant == "t" else 1
        self.layers = nn.ModuleList(
            _Layer(before, after, w_dim, kernel_size) for before, after in pairwise([signals[0], *signals])
        )
        self.to_rgb = _ToRGB(signals[-1].channels, image_shape[0], w_dim)

    def synthesis(self, w: Tensor, noise_mode: str = "random") -> Tensor:
        """Images from styles, roughly in [-1, 1].

        Activations have autocast's dtype (without autocast the weights'). The weights are divided by a
        running magnitude of each layer's input. In training mode it follows the batch's magnitude, for later
        calls.

        Args:
            w: (N, num_ws, w_dim), as `mapping` returns it.
            noise_mode: accepted for compatibility with StyleGAN2; there is no noise here.

        Returns:
            (N, C, H, W), in the dtype of the weights.

        Raises:
            ValueError: `w` has the wrong shape or dtype; `noise_mode` is not one of the three.
        """
        self._check_styles(w, noise_mode)
        weight = self.to_rgb.weight
        dtype = compute_dtype(weight)
        with torch.autocast(w.device.type, enabled=False):
            w = w.to(weight.dtype)
            x = in_format_of(self.get_parameter("layers.0.weight"), self.input(w[:, 0]).to(dtype))
            for i, layer in enumerate(self.layers, start=1):
                x = layer(x, w[:, i])
            return self._limited(self.to_rgb(x, w[:, -1]).to(weight.dtype) * self.output_scale)


@dataclass(frozen=True, kw_only=True)
class _Signal:
    """The images between two layers; see the module's docstring. `transition` is the width of the band from
    the passband to the stopband."""

    channels: int
    height: int
    width: int
    rate: float
    cutoff: float
    transition: float
    radial: bool

    def positions(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The positions of rows and columns."""
        rows = torch.arange(self.height, dtype=dtype, device=device)
        columns = torch.arange(self.width, dtype=dtype, device=device)
        return (rows - (self.height - 1) / 2) / self.rate, (columns - (self.width - 1) / 2) / self.rate


class _FourierFeatures(nn.Module):
    """Sines of random frequencies below the cutoff, rotated and shifted by w and the user, and mixed."""

    transform: Tensor
    frequencies: Tensor
    phases: Tensor

    def __init__(self, signal: _Signal, w_dim: int) -> None:
        super().__init__()
        self.signal = signal
        channels = signal.channels
        angles = 2 * math.pi * torch.rand(channels)
        radii = signal.cutoff * torch.rand(channels).sqrt()  # uniform in the disk
        self.register_buffer("frequencies", torch.stack([radii * angles.cos(), radii * angles.sin()], 1))
        self.register_buffer("phases", torch.rand(channels))
        self.register_buffer("transform", torch.eye(3))
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = EqualizedLinear(w_dim, 4)
        with torch.no_grad():  # initially no rotation and no shift
            self.affine.weight.zero_()
            self.affine.bias[0] = 1

    def forward(self, w: Tensor) -> Tensor:
        wide = torch.promote_types(w.dtype, torch.float32)
        motion = self.affine(w).to(wide)
        if is_apart(w):  # PyTorch's products and sines of a batch may round differently
            features = torch.cat([self._features(one.clone()) for one in motion.split(1)])
        else:
            features = self._features(motion)
        weight = self.weight.to(wide) * (1 / math.sqrt(self.weight.shape[1]))
        return ops.conv2d_act(features, weight[:, :, None, None])

    def _features(self, motion: Tensor) -> Tensor:
        """The waves, turned and shifted by `motion` (N, 4)."""
        wide = motion.dtype
        frequencies, user = self.frequencies.to(wide), self.transform.to(wide)
        cosine, sine, x, y = motion.unbind(1)
        length = (cosine.square() + sine.square()).sqrt()  # ONNX has no hypot
        cosine, sine = cosine / length, sine / length
        turn = torch.stack([cosine, -sine, sine, cosine], 1).unflatten(1, (2, 2))
        # frequencies . (turn @ user @ position + shift), with the matrices applied to the frequencies
        phases = torch.stack([x, y], 1) @ frequencies.t() + self.phases.to(wide)
        frequencies = frequencies @ turn @ user[:2, :2]
        phases = phases + (self.frequencies.to(wide) @ turn) @ user[:2, 2]
        # Frequencies that the user's matrix raises fade out towards the limit of the sampling rate.
        limit, band = self.signal.rate / 2, self.signal.cutoff
        size = torch.linalg.vector_norm(frequencies, dim=2)
        fade = ((limit - size) / (limit - band)).clamp(0, 1)
        rows, columns = self.signal.positions(wide, motion.device)
        turns = (
            frequencies[:, :, 1, None, None] * rows[:, None]
            + frequencies[:, :, 0, None, None] * columns
            + phases[:, :, None, None]
        )
        features: Tensor = (2 * math.pi * turns).sin() * (math.sqrt(2) * fade)[:, :, None, None]
        return features


class _Layer(nn.Module):
    """An affine layer from w to styles, a convolution modulated by them, bias, and the filtered leaky
    ReLU."""

    up_filter: Tensor
    down_filter: Tensor
    magnitude: Tensor

    def __init__(self, before: _Signal, after: _Signal, w_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, before.channels, bias=1.0)
        # Demodulation makes the scale of the weight irrelevant, so it needs no learning-rate factor.
        self.weight = nn.Parameter(torch.randn(after.channels, before.channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(after.channels))
        self.register_buffer("magnitude", torch.ones(()))
        rate = 2 * max(before.rate, after.rate)
        self.up, self.down = round(rate / before.rate), round(rate / after.rate)
        taps_u, taps_d = _TAPS * self.up, _TAPS * self.down
        self.register_buffer("up_filter", lowpass(taps_u, before.cutoff, before.transition, rate))
        self.register_buffer(
            "down_filter", lowpass(taps_d, after.cutoff, after.transition, rate, radial=after.radial)
        )
        self.padding = [
            *_padding(before.width, after.width, self.up, self.down, taps_u + taps_d),
            *_padding(before.height, after.height, self.up, self.down, taps_u + taps_d),
        ]

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        gain = self.magnitude.rsqrt()
        if self.training:
            _follow_magnitude(self.magnitude, x)
        x = ops.modulated_conv2d(
            *(x, self.weight, self.affine(w)),
            padding=self.weight.shape[2] // 2,
            normalize=True,
            input_gain=gain,
        )
        return ops.filtered_lrelu(
            *(x, self.up_filter, self.down_filter, self.bias, self.up, self.down, self.padding),
            clamp=CLAMP,
        )


class _ToRGB(nn.Module):
    """An affine layer from w to styles, and a 1x1 convolution modulated by them, without demodulation."""

    magnitude: Tensor

    def __init__(self, in_channels: int, colours: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(colours, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(colours))
        self.register_buffer("magnitude", torch.ones(()))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        gain = self.magnitude.rsqrt()
        if self.training:
            _follow_magnitude(self.magnitude, x)
        styles = self.affine(w) * (1 / math.sqrt(x.shape[1]))
        return ops.modulated_conv2d(
            x, self.weight, styles, self.bias, demodulate=False, input_gain=gain, clamp=CLAMP
        )


def _follow_magnitude(magnitude: Tensor, x: Tensor) -> None:
    if x.shape[0]:
        wide = torch.promote_types(x.dtype, torch.float32)
        square = x.detach().to(wide).square().mean()
        follow(magnitude, square, x.shape[0], _MAGNITUDE_HALF_LIFE)


def lowpass(taps: int, cutoff: float, transition: float, rate: float, radial: bool = False) -> Tensor:
    """A low-pass filter with sum 1: the ideal filter, truncated by a Kaiser window.

    Args:
        taps: its length.
        cutoff: its cutoff frequency, in the middle of the transition band.
        transition: width of the transition band, from passband to stopband, from which the window is chosen
            (Kaiser 1974, "Nonrecursive digital filter design using the I0-sinh window function").
        rate: the sampling rate.
        radial: a two-dimensional filter that passes a disk of frequencies, with the window along the radius.

    Returns:
        [taps], or [taps, taps] for a radial filter, float32.
    """
    attenuation = 2.285 * (taps - 1) * 2 * math.pi * transition / rate + 7.95  # dB
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    half = (taps - 1) / 2
    r = (torch.arange(taps, dtype=torch.float64) - half).abs()
    if radial:
        r = (r.square() + r[:, None].square()).sqrt()
        angle = (2 * math.pi * cutoff / rate * r).clamp(min=1e-9)  # at the centre the limit, 1/2
        ideal = torch.special.bessel_j1(angle) / angle
    else:
        ideal = torch.sinc(2 * cutoff / rate * r)
    window = torch.special.i0(beta * (1 - (r / half).square()).clamp(min=0).sqrt())
    f = torch.where(r <= half, ideal * window, 0)
    return (f / f.sum()).float()


def _padding(before: int, after: int, up: int, down: int, taps: int) -> tuple[int, int]:
    """Padding for `ops.filtered_lrelu` from `before` to `after` pixels with the same centre."""
    first = (down * (after - 1) - up * (before - 1) + taps - 2) // 2
    return first, down * (after - 1) - up * before + taps - 1 - first
