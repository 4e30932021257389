"""The networks of `aigc_ext.models`, without labels, in plain PyTorch as a good user writes them: what
`aigc_ext.bench.step` compares ours with.

`plain` makes one from ours, with its weights. Its parameters and buffers have the same order and shapes, but
not always the same names. Where there is a choice it is the faster one: filters are separable and skip the
pixels that are not kept, activations are in place where nothing else needs their input, and StyleGAN's
activations have no clamp, which no value in float32 or bfloat16 comes near.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from aigc_ext import models

FILTER, TENT = (1 / 8, 3 / 8, 3 / 8, 1 / 8), (1 / 4, 1 / 2, 1 / 4)
W_AVG_HALF_LIFE, MAGNITUDE_HALF_LIFE = 5000, 20000  # images


def plain(ours: nn.Module) -> nn.Module:
    """The plain network that computes the same as `ours`, a network of `aigc_ext.models`, with its dtype,
    device, weights and buffers."""
    network = PLAIN[type(ours)](ours).to(next(ours.parameters()))
    states = [value for name, value in ours.state_dict().items() if not name.endswith("resample_filter")]
    network.load_state_dict(dict(zip(network.state_dict(), states, strict=True)))
    return network.train(ours.training)


def halvings_of(image_shape: Sequence[int]) -> int:
    """How often both sides can be halved and have at least 4 pixels."""
    height, width = image_shape[1:]
    count = 0
    while height % 2 == width % 2 == 0 and min(height, width) >= 8:
        height, width, count = height // 2, width // 2, count + 1
    return count


# ---- MLP ---------------------------------------------------------------------------------------------------


def mlp_layers(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for pair in pairwise(sizes):
        layers += [nn.Linear(*pair), nn.LeakyReLU(0.2, inplace=True)]
    return [*layers[:-1], nn.Tanh()]


def mlp_generator(ours: Any) -> nn.Module:
    widths = [ours.z_dim, *(layer.weight.shape[0] for layer in ours.layers)]
    head = nn.Linear(widths[-1], math.prod(ours.image_shape))
    return nn.Sequential(*mlp_layers(widths), head, nn.Sigmoid(), nn.Unflatten(1, ours.image_shape))


def mlp_discriminator(ours: Any) -> nn.Module:
    widths = [math.prod(ours.image_shape), *(layer.weight.shape[0] for layer in ours.layers)]
    return nn.Sequential(nn.Flatten(), *mlp_layers(widths), nn.Linear(widths[-1], 1))


# ---- DCGAN -------------------------------------------------------------------------------------------------


def dcgan_generator(ours: Any) -> nn.Module:
    colours, height, width = ours.image_shape
    halvings = halvings_of(ours.image_shape)
    channels = ours.channels << (halvings - 1)
    coarsest = height >> halvings, width >> halvings
    layers: list[nn.Module] = [
        nn.Unflatten(1, (ours.z_dim, 1, 1)),
        *(nn.ConvTranspose2d(ours.z_dim, channels, coarsest, bias=False), nn.BatchNorm2d(channels)),
        nn.ReLU(inplace=True),
    ]
    for _ in range(halvings - 1):
        layers += [
            nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
            *(nn.BatchNorm2d(channels // 2), nn.ReLU(inplace=True)),
        ]
        channels //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, colours, 4, stride=2, padding=1), nn.Tanh())


def dcgan_discriminator(ours: Any) -> nn.Module:
    colours, height, width = ours.image_shape
    halvings, channels = halvings_of(ours.image_shape), ours.channels
    layers: list[nn.Module] = [
        *(nn.Conv2d(colours, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True))
    ]
    for _ in range(halvings - 1):
        layers += [
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
            *(nn.BatchNorm2d(2 * channels), nn.LeakyReLU(0.2, inplace=True)),
        ]
        channels *= 2
    head = nn.Conv2d(channels, 1, (height >> halvings, width >> halvings))
    return nn.Sequential(*layers, head, nn.Flatten())


# ---- SNGAN -------------------------------------------------------------------------------------------------


class UpBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(F.relu(self.norm1(x), inplace=True), scale_factor=2, mode="nearest")
        y = self.conv2(F.relu(self.norm2(self.conv1(y)), inplace=True))
        return y + F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest")


class SNGANGenerator(nn.Module):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        halvings, channels = halvings_of(ours.image_shape), ours.channels
        self.coarsest = channels, *(side >> halvings for side in ours.image_shape[1:])
        self.linear = nn.Linear(ours.z_dim, math.prod(self.coarsest))
        self.blocks = nn.Sequential(*(UpBlock(channels) for _ in range(halvings)))
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Conv2d(channels, ours.image_shape[0], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.blocks(self.linear(z).unflatten(1, self.coarsest))
        return torch.tanh(self.head(F.relu(self.norm(x), inplace=True)))


class SNDownBlock(nn.Module):
    def __init__(self, inputs: int, channels: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = spectral_norm(nn.Conv2d(inputs, channels, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = spectral_norm(nn.Conv2d(inputs, channels, 1)) if down or inputs != channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x)), inplace=True))
        if self.down:
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        return y + (x if self.shortcut is None else self.shortcut(x))


class SNGANDiscriminator(nn.Module):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        colours, channels = ours.image_shape[0], ours.channels
        halvings = max(1, halvings_of(ours.image_shape) - 1)
        self.blocks = nn.Sequential(
            SNDownBlock(colours, channels, down=True, first=True),
            *(SNDownBlock(channels, channels, down=k < halvings - 1) for k in range(halvings + 1)),
        )
        self.head = spectral_norm(nn.Linear(channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.blocks(images)).sum((2, 3)))


# ---- resampling --------------------------------------------------------------------------------------------


def resample(
    x: Tensor, taps: Tensor, up: int = 1, down: int = 1, padding: Sequence[int] = (0, 0, 0, 0)
) -> Tensor:
    """Inserts zeros, pads by `padding` (left, right, top, bottom), filters with the symmetric `taps` times
    `up`, and keeps every `down`-th pixel: one axis after the other."""
    channels = x.shape[1]
    if up > 1:
        taps = taps * up
    for axis, (before, after) in ((3, padding[:2]), (2, padding[2:])):
        if up > 1:
            x = F.pad(x.unsqueeze(axis + 1), [0] * (2 * (3 - axis)) + [0, up - 1]).flatten(axis, axis + 1)
        symmetric = before == after >= 0
        if not symmetric:
            x = F.pad(x, [before, after] if axis == 3 else [0, 0, before, after])
        row = axis == 3
        kernel = (taps if row else taps[:, None]).expand(channels, 1, *((1, -1) if row else (-1, 1)))
        stride, pad = ((1, down), (0, before)) if row else ((down, 1), (before, 0))
        x = F.conv2d(x, kernel, stride=stride, padding=pad if symmetric else 0, groups=channels)
    return x


class Resample(nn.Module):
    """`resample` with a filter of its own."""

    taps: Tensor

    def __init__(
        self, taps: Iterable[float], up: int = 1, down: int = 1, padding: Sequence[int] = (0, 0, 0, 0)
    ) -> None:
        super().__init__()
        self.register_buffer("taps", torch.tensor(tuple(taps)), persistent=False)
        self.up, self.down, self.padding = up, down, padding

    def forward(self, x: Tensor) -> Tensor:
        return resample(x, self.taps, self.up, self.down, self.padding)


# ---- R3GAN -------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, width: int, group_size: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.conv1 = nn.Conv2d(width, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=max(1, inner // group_size))
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv1(x), 0.2, inplace=True)
        return x + self.conv3(F.leaky_relu(self.conv2(y), 0.2, inplace=True))


def residuals(ours: Any, width: int) -> nn.Module:
    return nn.Sequential(*(Residual(width, ours.group_size, ours.expansion) for _ in range(ours.blocks)))


def change(inputs: int, outputs: int) -> list[nn.Module]:
    return [] if inputs == outputs else [nn.Conv2d(inputs, outputs, 1, bias=False)]


class R3GANGenerator(nn.Module):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        widths = ours.widths
        self.basis = nn.Parameter(torch.empty(ours.basis.shape))
        self.linear = nn.Linear(ours.z_dim, widths[0], bias=False)
        layers = [residuals(ours, widths[0])]
        for coarse, fine in pairwise(widths):
            up = Resample(TENT, up=2, padding=(2, 0, 2, 0))
            layers += [*change(coarse, fine), up, residuals(ours, fine)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], ours.image_shape[0], 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.layers(self.basis * self.linear(z)[:, :, None, None]))


class R3GANDiscriminator(nn.Module):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        widths = ours.widths[::-1]
        self.first = nn.Conv2d(ours.image_shape[0], widths[0], 1)
        layers = [residuals(ours, widths[0])]
        for fine, coarse in pairwise(widths):
            down = Resample(TENT, down=2, padding=(1, 0, 1, 0))
            layers += [down, *change(fine, coarse), residuals(ours, coarse)]
        self.layers = nn.Sequential(*layers)
        coarsest = ours.pool.weight.shape[2:]
        self.pool = nn.Conv2d(widths[-1], widths[-1], coarsest, groups=widths[-1], bias=False)
        self.head = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.layers(self.first(images))).flatten(1))


# ---- StyleGAN ----------------------------------------------------------------------------------------------


class EqualizedLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int, lrelu: bool = False, rate: float = 1.0) -> None:
        super().__init__()
        self.lrelu, self.rate = lrelu, rate
        self.weight, self.bias = (
            nn.Parameter(torch.empty(outputs, inputs)),
            nn.Parameter(torch.empty(outputs)),
        )

    @classmethod
    def like(cls, ours: Any, lrelu: bool = False) -> EqualizedLinear:
        outputs, inputs = ours.weight.shape
        return cls(inputs, outputs, lrelu)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.rate == 1 else self.bias * self.rate
        y = F.linear(x, self.weight * (self.rate / math.sqrt(self.weight.shape[1])), bias)
        return F.leaky_relu(y, 0.2, inplace=True) * math.sqrt(2) if self.lrelu else y


class EqualizedConv2d(nn.Module):
    """`gain` includes the leaky ReLU's sqrt(2)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        down: bool = False,
        lrelu: bool = True,
        gain: float = math.sqrt(2),
    ) -> None:
        super().__init__()
        self.lrelu, self.gain = lrelu, gain
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs)) if lrelu else None
        self.stride, self.padding, self.filter = 1, kernel // 2, None
        if down and kernel == 1:
            self.filter = Resample(FILTER, down=2, padding=(1, 1, 1, 1))
        elif down:
            self.filter = Resample(FILTER, padding=[kernel // 2 + 1] * 4)
            self.stride, self.padding = 2, 0

    @classmethod
    def like(cls, ours: Any, **options: Any) -> EqualizedConv2d:
        outputs, inputs, kernel, _ = ours.weight.shape
        return cls(inputs, outputs, kernel, **options)

    def forward(self, x: Tensor) -> Tensor:
        if self.filter is not None:
            x = self.filter(x)
        weight = self.weight * (1 / math.sqrt(self.weight[0].numel()))
        y = F.conv2d(x, weight, self.bias, self.stride, self.padding)
        if self.lrelu:
            y = F.leaky_relu(y, 0.2, inplace=True)
        return y if self.gain == 1 else y * self.gain


class Mapping(nn.Module):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        widths = [ours.z_dim, *[ours.w_dim] * ours.mapping_layers]
        self.layers = nn.Sequential(
            *(EqualizedLinear(*pair, lrelu=True, rate=0.01) for pair in pairwise(widths))
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())


def modulated(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    up: bool = False,
    demodulate: bool = True,
    gain: Tensor | None = None,
    grouped: bool = True,
) -> Tensor:
    """A convolution with a weight for each sample, as one with a group per sample, or (not `grouped`) with
    images scaled before and after it. With `up`, it is transposed, without padding."""
    n, channels, height, width = x.shape
    padding, stride = (0, 2) if up else (weight.shape[2] // 2, 1)
    convolve: Callable[..., Tensor] = F.conv_transpose2d if up else F.conv2d
    if grouped:
        own = weight * styles[:, None, :, None, None]
        if demodulate:
            own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        if gain is not None:
            own = own * gain
        if up:
            own = own.transpose(1, 2)
        x = x.reshape(1, n * channels, height, width)
        y = convolve(x, own.flatten(0, 1), stride=stride, padding=padding, groups=n)
        return y.unflatten(1, (n, -1)).squeeze(0)
    factor = (styles.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt() if demodulate else None
    scaled = x * (styles if gain is None else styles * gain)[:, :, None, None]
    y = convolve(scaled, weight.transpose(0, 1) if up else weight, stride=stride, padding=padding)
    return y if factor is None else y * factor[:, :, None, None]


class ModulatedConv2d(nn.Module):
    """Of StyleGAN2, with noise and leaky ReLU except for RGB."""

    grouped = False

    def __init__(self, inputs: int, outputs: int, kernel: int, up: bool = False, rgb: bool = False) -> None:
        super().__init__()
        self.rgb, self.up = rgb, up
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.noise_strength = None if rgb else nn.Parameter(torch.empty(()))
        # The gain of 4 makes up for the zeros that a transposed convolution inserts.
        self.filter = Resample([2 * tap for tap in FILTER], padding=(1, 1, 1, 1)) if up else None

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        y = modulated(x, self.weight, styles, self.up, demodulate=not self.rgb, grouped=self.grouped)
        if self.filter is not None:
            y = self.filter(y)
        bias = self.bias[:, None, None]
        if self.noise_strength is None:
            return y + bias
        noise = torch.randn(y.shape[0], 1, *y.shape[2:], dtype=y.dtype, device=y.device)
        return F.leaky_relu(y + noise * self.noise_strength + bias, 0.2, inplace=True) * math.sqrt(2)


class StyledConv(nn.Module):
    noise: Tensor

    def __init__(self, ours: Any) -> None:
        super().__init__()
        weight, up = ours.conv.weight, ours.conv.up == 2
        self.register_buffer("noise", torch.empty(ours.noise.shape))  # for inference
        self.affine = EqualizedLinear.like(ours.affine)
        self.conv = ModulatedConv2d(weight.shape[1], weight.shape[0], weight.shape[2], up)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv(x, self.affine(w))


class ToRGB(nn.Module):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        colours, channels = ours.conv.weight.shape[:2]
        self.affine = EqualizedLinear.like(ours.affine)
        self.conv = ModulatedConv2d(channels, colours, 1, rgb=True)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv(x, self.affine(w) * (1 / math.sqrt(x.shape[1])))


class StyleGenerator(nn.Module):
    """z to w to images; `w_avg`, for truncation, follows w in `forward`."""

    mapping_network: Mapping
    w_avg: Tensor

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.num_ws = ours.num_ws
        self.register_buffer("w_avg", torch.zeros(ours.w_dim))

    def mapping(self, z: Tensor, c: None = None) -> Tensor:
        w: Tensor = self.mapping_network(z)
        return w[:, None].expand(-1, self.num_ws, -1)

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(z)
        with torch.no_grad():
            self.w_avg.lerp_(w[:, 0].mean(0).to(self.w_avg.dtype), 1 - 0.5 ** (len(z) / W_AVG_HALF_LIFE))
        return self.synthesis(w)

    def synthesis(self, w: Tensor) -> Tensor:
        raise NotImplementedError


class StyleGAN2Generator(StyleGenerator):
    def __init__(self, ours: Any) -> None:
        super().__init__(ours)
        self.constant = nn.Parameter(torch.empty(ours.constant.shape))
        self.mapping_network = Mapping(ours)
        self.layers = nn.ModuleList(map(StyledConv, ours.layers))
        self.to_rgb = nn.ModuleList(map(ToRGB, ours.to_rgb))
        self.upsample = Resample(FILTER, up=2, padding=(2, 1, 2, 1))

    def synthesis(self, w: Tensor) -> Tensor:
        x = self.constant.expand(len(w), -1, -1, -1)
        x = self.layers[0](x, w[:, 0])
        image: Tensor = self.to_rgb[0](x, w[:, 1])
        for k in range(1, len(self.to_rgb)):
            x = self.layers[2 * k - 1](x, w[:, 2 * k - 1])
            x = self.layers[2 * k](x, w[:, 2 * k])
            image = self.upsample(image) + self.to_rgb[k](x, w[:, 2 * k + 1])
        return image


class DownBlock(nn.Module):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.conv1 = EqualizedConv2d.like(ours.conv1)
        self.conv2 = EqualizedConv2d.like(ours.conv2, down=True, gain=1.0)
        self.skip = EqualizedConv2d.like(ours.skip, down=True, lrelu=False, gain=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + self.skip(x)


class StyleGAN2Discriminator(nn.Module):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.group_size = ours.group_size
        self.from_rgb = EqualizedConv2d.like(ours.from_rgb)
        self.blocks = nn.Sequential(*map(DownBlock, ours.blocks))
        self.conv = EqualizedConv2d.like(ours.conv)
        self.linear = EqualizedLinear.like(ours.linear, lrelu=True)
        self.head = EqualizedLinear.like(ours.head)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.from_rgb(images))
        groups = x.unflatten(0, (-1, self.group_size))
        deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        deviation = deviation.repeat_interleave(self.group_size)[:, None, None, None]
        x = self.conv(torch.cat([x, deviation.expand(-1, 1, *x.shape[2:])], 1))
        return self.head(self.linear(x.flatten(1)))


class FourierFeatures(nn.Module):
    frequencies: Tensor
    phases: Tensor
    transform: Tensor
    grid: Tensor

    def __init__(self, ours: Any) -> None:
        super().__init__()
        signal = ours.signal
        channels, self.size = signal.channels, (signal.height, signal.width)
        self.limit, self.cutoff = signal.rate / 2, signal.cutoff
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.register_buffer("frequencies", torch.empty(channels, 2))
        self.register_buffer("phases", torch.empty(channels))
        self.register_buffer("transform", torch.empty(3, 3))
        y, x = ((torch.arange(side) - (side - 1) / 2) / signal.rate for side in self.size)
        grid = torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))])
        self.register_buffer("grid", grid, persistent=False)  # x and y of each pixel
        self.affine = EqualizedLinear.like(ours.affine)

    def forward(self, w: Tensor) -> Tensor:
        cosine, sine, x, y = self.affine(w).unbind(1)
        length = torch.hypot(cosine, sine)
        cosine, sine = cosine / length, sine / length
        turn = torch.stack([cosine, -sine, sine, cosine], 1).unflatten(1, (2, 2))
        turned = self.frequencies @ turn
        phases = torch.stack([x, y], 1) @ self.frequencies.t() + self.phases + turned @ self.transform[:2, 2]
        turned = turned @ self.transform[:2, :2]
        fade = ((self.limit - turned.norm(dim=2)) / (self.limit - self.cutoff)).clamp(0, 1)
        waves = (2 * math.pi * (turned @ self.grid + phases[:, :, None])).sin() * fade[:, :, None]
        weight = self.weight * math.sqrt(2 / len(self.weight))
        return (weight @ waves).unflatten(2, self.size)


class AliasFreeLayer(nn.Module):
    """Of StyleGAN3; without filters it is the RGB layer."""

    grouped = False
    magnitude: Tensor
    up_filter: Tensor
    down_filter: Tensor

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.rgb = not hasattr(ours, "up_filter")
        self.weight = nn.Parameter(torch.empty(ours.weight.shape))
        self.bias = nn.Parameter(torch.empty(ours.bias.shape))
        self.register_buffer("magnitude", torch.ones(()))
        if not self.rgb:
            self.up, self.down, self.padding = ours.up, ours.down, ours.padding
            self.register_buffer("up_filter", torch.empty(ours.up_filter.shape))
            self.register_buffer("down_filter", torch.empty(ours.down_filter.shape))
        self.affine = EqualizedLinear.like(ours.affine)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        gain = self.magnitude.rsqrt()
        with torch.no_grad():
            square = x.to(self.magnitude.dtype).square().mean()
            self.magnitude.lerp_(square, 1 - 0.5 ** (len(x) / MAGNITUDE_HALF_LIFE))
        weight: Tensor = self.weight
        styles: Tensor = self.affine(w)
        if self.rgb:
            styles = styles * (1 / math.sqrt(x.shape[1]))
        else:
            weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
            styles = styles * styles.square().mean(1, keepdim=True).rsqrt()
        x = modulated(x, weight, styles, demodulate=not self.rgb, gain=gain, grouped=self.grouped)
        x = x + self.bias[:, None, None]
        if self.rgb:
            return x
        x = resample(x, self.up_filter, up=self.up, padding=self.padding)
        x = F.leaky_relu(x, 0.2, inplace=True) * math.sqrt(2)
        return resample(x, self.down_filter, down=self.down)


class StyleGAN3Generator(StyleGenerator):
    def __init__(self, ours: Any) -> None:
        super().__init__(ours)
        self.output_scale = ours.output_scale
        self.mapping_network = Mapping(ours)
        self.input = FourierFeatures(ours.input)
        self.layers = nn.ModuleList(map(AliasFreeLayer, ours.layers))
        self.to_rgb = AliasFreeLayer(ours.to_rgb)

    def synthesis(self, w: Tensor) -> Tensor:
        x = self.input(w[:, 0])
        for k, layer in enumerate(self.layers, start=1):
            x = layer(x, w[:, k])
        return self.to_rgb(x, w[:, -1]) * self.output_scale


PLAIN: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    models.MLPGenerator: mlp_generator,
    models.MLPDiscriminator: mlp_discriminator,
    models.DCGANGenerator: dcgan_generator,
    models.DCGANDiscriminator: dcgan_discriminator,
    models.SNGANGenerator: SNGANGenerator,
    models.SNGANDiscriminator: SNGANDiscriminator,
    models.R3GANGenerator: R3GANGenerator,
    models.R3GANDiscriminator: R3GANDiscriminator,
    models.StyleGAN2Generator: StyleGAN2Generator,
    models.StyleGAN2Discriminator: StyleGAN2Discriminator,
    models.StyleGAN3Generator: StyleGAN3Generator,
}
