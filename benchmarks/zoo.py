"""Networks of published GANs, in plain PyTorch, for `fuse_`: each written from its paper's description, in
the ways in which people write them (a Sequential; a forward that calls its layers; functional activations;
ModuleList; norms as hooks and as parametrizations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

Made = tuple[nn.Module, list[Tensor]]


# ---- pix2pix (Isola et al., 2017) and CycleGAN (Zhu et al., 2017) ---------------------------------------


class UNetLevel(nn.Module):
    """Down, the level below, up; the input is concatenated. The activations come before the convolutions."""

    def __init__(
        self, outer: int, inner: int, below: nn.Module | None, first: bool = False, image: int = 3
    ) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.Conv2d(image if first else outer, inner, 4, 2, 1, bias=first)]
        if not first:
            down.insert(0, nn.LeakyReLU(0.2))
        up: list[nn.Module] = [nn.ReLU()]
        if below is None:
            up += [nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=False), nn.BatchNorm2d(outer)]
        else:
            down += [nn.BatchNorm2d(inner), below]
            out = image if first else outer
            up += [nn.ConvTranspose2d(2 * inner, out, 4, 2, 1, bias=first)]
            up += [nn.Tanh()] if first else [nn.BatchNorm2d(outer)]
        self.model, self.first = nn.Sequential(*down, *up), first

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.first else torch.cat([x, self.model(x)], 1)


def unet(width: int, depth: int) -> nn.Module:
    level = None
    for i in reversed(range(1, depth)):
        level = UNetLevel(min(width << (i - 1), 8 * width), min(width << i, 8 * width), level)
    return UNetLevel(width, width, level, first=True)


class ResnetBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU(True)),
            *(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def resnet_generator(width: int, blocks: int) -> nn.Module:
    layers: list[nn.Module] = [
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, width, 7),
        nn.InstanceNorm2d(width),
        nn.ReLU(True),
    ]
    for i in (1, 2):
        layers += [
            nn.Conv2d(width * i, width * i * 2, 3, 2, 1),
            nn.InstanceNorm2d(width * i * 2),
            nn.ReLU(True),
        ]
    layers += [ResnetBlock(4 * width) for _ in range(blocks)]
    for i in (4, 2):
        layers += [nn.ConvTranspose2d(width * i, width * i // 2, 3, 2, 1, 1)]
        layers += [nn.InstanceNorm2d(width * i // 2), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())


def patchgan(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    channels = width
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(channels, 2 * channels, 4, stride, 1, bias=False), nn.BatchNorm2d(2 * channels)]
        layers += [nn.LeakyReLU(0.2, True)]
        channels *= 2
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))


# ---- DCGAN (Radford et al., 2016) -----------------------------------------------------------------------


def dcgan_generator(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.ConvTranspose2d(100, 8 * width, 4, 1, 0, bias=False)]
    for i in (8, 4, 2):
        layers += [nn.BatchNorm2d(i * width), nn.ReLU(True)]
        layers += [nn.ConvTranspose2d(i * width, i * width // 2, 4, 2, 1, bias=False)]
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(width),
        nn.ReLU(True),
        nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def dcgan_discriminator(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for i in (1, 2, 4):
        layers += [nn.Conv2d(i * width, 2 * i * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * i * width)]
        layers += [nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 0, bias=False))


# ---- SNGAN (Miyato et al., 2018): hook-based spectral norm, activations called in forward ---------------


class SNDiscriminator(nn.Module):
    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        plan = [
            (3, 1, 3, 1),
            (1, 1, 4, 2),
            (1, 2, 3, 1),
            (2, 2, 4, 2),
            (2, 4, 3, 1),
            (4, 4, 4, 2),
            (4, 8, 3, 1),
        ]
        self.convs = nn.ModuleList()
        for i, (source, target, kernel, stride) in enumerate(plan):
            channels = source if i == 0 else source * width
            self.convs.append(spectral_norm(nn.Conv2d(channels, target * width, kernel, stride, 1)))
        self.fc = spectral_norm(nn.Linear(8 * width * (size // 8) ** 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
        return self.fc(x.flatten(1))


# ---- BigGAN (Brock et al., 2019): conditional batch norm, parametrized spectral norm --------------------


class ConditionalBatchNorm(nn.Module):
    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width, affine=False)
        self.gain = parametrizations.spectral_norm(nn.Linear(condition, width, bias=False))
        self.bias = parametrizations.spectral_norm(nn.Linear(condition, width, bias=False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bn(x) * (1 + self.gain(y))[:, :, None, None] + self.bias(y)[:, :, None, None]


class BigGANBlock(nn.Module):
    def __init__(self, source: int, target: int, condition: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = ConditionalBatchNorm(source, condition), ConditionalBatchNorm(target, condition)
        self.conv1 = parametrizations.spectral_norm(nn.Conv2d(source, target, 3, padding=1))
        self.conv2 = parametrizations.spectral_norm(nn.Conv2d(target, target, 3, padding=1))
        self.conv_sc = parametrizations.spectral_norm(nn.Conv2d(source, target, 1))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.interpolate(self.activation(self.bn1(x, y)), scale_factor=2)
        h = self.conv2(self.activation(self.bn2(self.conv1(h), y)))
        return h + self.conv_sc(F.interpolate(x, scale_factor=2))


class BigGANGenerator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = parametrizations.spectral_norm(nn.Linear(20, 16 * 8 * width))
        self.blocks = nn.ModuleList(
            BigGANBlock(a * width, b * width, 148) for a, b in ((8, 8), (8, 4), (4, 2), (2, 1))
        )
        self.output = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.linear(z).view(len(z), 8 * self.width, 4, 4)
        for block in self.blocks:
            h = block(h, y)
        return torch.tanh(self.output(h))


class SNResNetBlock(nn.Module):
    """The same without a condition: SNGAN's generator on CIFAR."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.bn1(x)), scale_factor=2))
        return self.conv2(F.relu(self.bn2(h))) + F.interpolate(x, scale_factor=2)


class SNResNetGenerator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 16 * width)
        self.blocks = nn.Sequential(*(SNResNetBlock(width) for _ in range(3)))
        self.bn, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.blocks(self.linear(z).view(len(z), -1, 4, 4))
        return torch.tanh(self.conv(F.relu(self.bn(h))))


# ---- ESRGAN (Wang et al., 2018) -------------------------------------------------------------------------


class DenseBlock(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(4)
        )
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, padding=1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


class RRDB(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    def __init__(self, width: int, growth: int, blocks: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up, self.conv_hr = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        feat = self.lrelu(self.conv_up(F.interpolate(feat, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(feat)))


# ---- HiFi-GAN (Kong et al., 2020): one-dimensional, hook-based weight norm ------------------------------


class MRFBlock(nn.Module):
    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1, self.convs2 = nn.ModuleList(), nn.ModuleList()
        for d in dilations:
            self.convs1.append(
                weight_norm(nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel - 1) // 2))
            )
            self.convs2.append(weight_norm(nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2)))

    def forward(self, x: Tensor) -> Tensor:
        for c1, c2 in zip(self.convs1, self.convs2, strict=True):
            xt = c1(F.leaky_relu(x, 0.1))
            x = c2(F.leaky_relu(xt, 0.1)) + x
        return x


class HiFiGANGenerator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_pre = weight_norm(nn.Conv1d(80, width, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (rate, kernel) in enumerate(((8, 16), (8, 16), (2, 4), (2, 4))):
            source, target = width >> i, width >> (i + 1)
            self.ups.append(
                weight_norm(nn.ConvTranspose1d(source, target, kernel, rate, padding=(kernel - rate) // 2))
            )
            self.resblocks.extend(MRFBlock(target, k, (1, 3, 5)) for k in (3, 7))
        self.conv_post = weight_norm(nn.Conv1d(width >> 4, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = (self.resblocks[2 * i](x) + self.resblocks[2 * i + 1](x)) / 2
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


# ---- VQGAN's decoder (Esser et al., 2021) ---------------------------------------------------------------


class VQBlock(nn.Module):
    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, source, eps=1e-6), nn.GroupNorm(8, target, eps=1e-6)
        self.conv1 = nn.Conv2d(source, target, 3, padding=1)
        self.conv2 = nn.Conv2d(target, target, 3, padding=1)
        self.shortcut = nn.Conv2d(source, target, 1) if source != target else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = self.conv1(h * torch.sigmoid(h))
        h = self.norm2(h)
        return self.shortcut(x) + self.conv2(h * torch.sigmoid(h))


class VQDecoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(64, 4 * width, 3, padding=1)
        self.mid = VQBlock(4 * width, 4 * width)
        self.up = nn.ModuleList()
        for source, target in ((4, 4), (4, 2), (2, 1)):
            level = nn.Module()
            level.block = VQBlock(source * width, target * width)
            level.upsample = nn.Conv2d(target * width, target * width, 3, padding=1)
            self.up.append(level)
        self.norm_out, self.conv_out = nn.GroupNorm(8, width, eps=1e-6), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in self.up:
            block: Any = level.block
            upsample: Any = level.upsample
            h = upsample(F.interpolate(block(h), scale_factor=2.0, mode="nearest"))
        h = self.norm_out(h)
        return self.conv_out(h * torch.sigmoid(h))


# ---- lightweight GAN (Liu et al., 2021) -----------------------------------------------------------------


class SkipExcitation(nn.Module):
    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(4), nn.Conv2d(source, target, 4, bias=False), nn.SiLU()),
            *(nn.Conv2d(target, target, 1, bias=False), nn.Sigmoid()),
        )

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        return large * self.main(small)


def up_block(source: int, target: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        parametrizations.spectral_norm(nn.Conv2d(source, 2 * target, 3, 1, 1, bias=False)),
        nn.BatchNorm2d(2 * target),
        nn.GLU(dim=1),
    )


class LightweightGenerator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.init = nn.Sequential(
            nn.ConvTranspose2d(256, 16 * width, 4, 1, 0, bias=False),
            nn.BatchNorm2d(16 * width),
            nn.GLU(dim=1),
        )
        self.up = nn.ModuleList(up_block(a * width, b * width) for a, b in ((8, 8), (8, 4), (4, 2), (2, 1)))
        self.excite = SkipExcitation(8 * width, width)
        self.out = nn.Conv2d(width, 3, 3, 1, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        first = h = self.init(z[:, :, None, None])
        for up in self.up:
            h = up(h)
        return torch.tanh(self.out(self.excite(first, h)))


# ---- the networks and what they get ---------------------------------------------------------------------


def _image(n: int, channels: int, size: int) -> list[Tensor]:
    return [torch.randn(n, channels, size, size)]


NETWORKS: dict[str, Callable[[bool], Made]] = {
    "pix2pix U-Net G": lambda s: (unet(4, 3), _image(1, 3, 16)) if s else (unet(64, 7), _image(1, 3, 128)),
    "CycleGAN ResNet G": lambda s: (
        (resnet_generator(2, 1), _image(1, 3, 16)) if s else (resnet_generator(64, 6), _image(1, 3, 64))
    ),
    "PatchGAN D": lambda s: (patchgan(4), _image(1, 6, 32)) if s else (patchgan(64), _image(1, 6, 128)),
    "PatchGAN D, small": lambda s: (patchgan(4), _image(1, 6, 32)) if s else (patchgan(16), _image(4, 6, 64)),
    "DCGAN G": lambda s: (
        (dcgan_generator(2), _image(2, 100, 1)) if s else (dcgan_generator(64), _image(16, 100, 1))
    ),
    "DCGAN D": lambda s: (
        (dcgan_discriminator(2), _image(2, 3, 64)) if s else (dcgan_discriminator(64), _image(16, 3, 64))
    ),
    "SNGAN D": lambda s: (
        (SNDiscriminator(4, 16), _image(2, 3, 16)) if s else (SNDiscriminator(64, 32), _image(8, 3, 32))
    ),
    "SNGAN ResNet G": lambda s: (
        (SNResNetGenerator(4), [torch.randn(2, 128)])
        if s
        else (SNResNetGenerator(128), [torch.randn(8, 128)])
    ),
    "ESRGAN RRDB G": lambda s: (
        (RRDBNet(4, 2, 1), _image(1, 3, 8)) if s else (RRDBNet(64, 32, 2), _image(1, 3, 48))
    ),
    "HiFi-GAN G": lambda s: (
        (HiFiGANGenerator(16), [torch.randn(1, 80, 4)])
        if s
        else (HiFiGANGenerator(128), [torch.randn(1, 80, 16)])
    ),
    "VQGAN decoder": lambda s: (VQDecoder(8), _image(1, 64, 4)) if s else (VQDecoder(64), _image(1, 64, 8)),
    "BigGAN G": lambda s: (
        (BigGANGenerator(4), [torch.randn(2, 20), torch.randn(2, 148)])
        if s
        else (BigGANGenerator(32), [torch.randn(8, 20), torch.randn(8, 148)])
    ),
    "lightweight GAN G": lambda s: (
        (LightweightGenerator(2), [torch.randn(2, 256)])
        if s
        else (LightweightGenerator(32), [torch.randn(4, 256)])
    ),
}


def make(name: str, small: bool = False) -> Made:
    """The network in training mode, and its inputs; both are tiny if `small`, for tests."""
    torch.manual_seed(0)
    return NETWORKS[name](small)
