"""R3GAN: residual networks without normalisation, for a relativistic loss with R1 and R2 in every step
(Huang, Gokaslan, Kuleshov, Tompkin 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline",
https://arxiv.org/abs/2501.05441).

Each resolution has a stage: a transition, which resamples bilinearly with the taps [1, 2, 1] and has a 1x1
convolution if the width changes, and residual blocks. A block is a 1x1 convolution to `expansion` times the
width, a grouped 3x3 and a 1x1 back; the first two have biases and leaky ReLU of slope 0.2. The discriminator
mirrors the generator. The coarsest images are those of `models.dcgan`.

The width of images whose longer side is r pixels is the largest that does not exceed `channel_base // r` or
`channel_max` and gives whole groups: `expansion` times it is a multiple of `group_size`, or smaller than it.
The defaults are the paper's: 768 up to 32 pixels, 384 at 64, 192 at 128, 96 at 256.

Instead of normalisation, the weights are initialised as in Fixup (Zhang, Dauphin, Ma 2019): the last
convolution of a block is zero, so each network starts as its shortcuts alone; the other m - 1 of its m
convolutions have He's scale times L^(-1 / (2m - 2)), for L blocks. All other layers preserve the variance.

The conditional forms are those of `models.mlp`: the generator concatenates an embedding of the label to z,
the discriminator adds a projection.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from aigc_ext.config import Count
from aigc_ext.models.checks import channels_at, check_input, check_labels, halvings_of
from aigc_ext.models.settings import (
    ClassCount,
    GeneratorConfig,
    ImageDiscriminatorConfig,
    ImageShape,
    LayerCount,
    Network,
    OutputAct,
    takes,
)
from aigc_ext.nn import Conv2d, Downsample2d, Linear, Upsample2d

_TAPS = (1, 2, 1)
_SLOPE = 0.2
_BRIGHTEST = 0.95  # of means, beyond which tanh has little slope


@dataclass(frozen=True)
class R3GANGeneratorConfig(GeneratorConfig):
    family: Literal["r3gan"] = field(default="r3gan", kw_only=True)
    image_shape: ImageShape = (3, 32, 32)
    z_dim: Count = 64
    """Length of the latent."""
    channel_base: Count = 24576
    """A layer whose longer side is r pixels has this number divided by r channels, rounded down to whole
    groups."""
    channel_max: Count = 768
    """The largest number of channels of a layer."""
    blocks: LayerCount = 2
    """Residual blocks at each resolution."""
    group_size: Count = 16
    """Channels per group of a block's 3x3 convolution; fewer if the block has fewer channels."""
    expansion: Count = 2
    """The factor by which a block multiplies the channels inside."""
    num_classes: ClassCount = 0
    output_act: OutputAct = None
    """The activation of the pixels; null: linear, as in the paper, but in a run tanh if much of the data is
    black or white."""

    def architecture(self) -> dict[str, Any]:
        return {"family": self.family, "z_dim": self.z_dim, **super().architecture()}  # their order on disk


@dataclass(frozen=True)
class R3GANDiscriminatorConfig(ImageDiscriminatorConfig):
    family: Literal["r3gan"] = field(default="r3gan", kw_only=True)
    image_shape: ImageShape = (3, 32, 32)
    channel_base: Count = 24576
    """A layer whose longer side is r pixels has this number divided by r channels, rounded down to whole
    groups."""
    channel_max: Count = 768
    """The largest number of channels of a layer."""
    blocks: LayerCount = 2
    """Residual blocks at each resolution."""
    group_size: Count = 16
    """Channels per group of a block's 3x3 convolution; fewer if the block has fewer channels."""
    expansion: Count = 2
    """The factor by which a block multiplies the channels inside."""
    num_classes: ClassCount = 0


class R3GANGenerator(Network):
    """Maps z to an image: a learned constant, whose channels are scaled by a linear function of z, then the
    stages, and a 1x1 convolution for the pixels.

    Its arguments are the fields of `R3GANGeneratorConfig`.

    Attributes:
        widths: the width of each stage, from coarsest to finest.

    Raises:
        ValueError: the sides cannot be halved, `channel_base` is less than the longer side, or no width gives
            whole groups.
    """

    value_range = (-1.0, 1.0)
    z_dim: int

    @takes(R3GANGeneratorConfig)
    def __init__(self, settings: R3GANGeneratorConfig) -> None:
        output_act = settings.output_act or "linear"
        super().__init__(dataclasses.replace(settings, output_act=output_act))
        image_shape, z_dim, num_classes = settings.image_shape, settings.z_dim, settings.num_classes
        widths = self.widths = _widths(settings)
        self.embedding = nn.Embedding(num_classes, z_dim) if num_classes else None
        self.linear = _initialised(Linear(2 * z_dim if num_classes else z_dim, widths[0], bias=False))
        self.basis = nn.Parameter(torch.randn(1, widths[0], *_coarsest(image_shape, widths)))
        stages = [_residuals(width, settings, len(widths)) for width in widths]
        layers = [stages[0]]
        for (coarse, fine), stage in zip(pairwise(widths), stages[1:], strict=True):
            layers += [*_change(coarse, fine), Upsample2d(_TAPS), stage]
        self.layers = nn.Sequential(*layers)
        self.head = _initialised(Conv2d(widths[-1], image_shape[0], 1, act=output_act))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Images, roughly in [-1, 1] (with tanh exactly).

        Args:
            z: latents (N, z_dim), in the dtype of the weights (under autocast, any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.

        Returns:
            (N, C, H, W), in the dtype of z (under autocast, in its dtype).

        Raises:
            ValueError: `z` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network.
        """
        check_input("z", z, (self.z_dim,), self.linear.weight)
        check_labels(c, z.shape[0], self.num_classes)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(c)], dim=1)
        scale = self.linear(z)
        # In autocast's dtype, since the residuals are added to it.
        images: Tensor = self.head(self.layers(self.basis.to(scale.dtype) * scale[:, :, None, None]))
        return images

    @torch.no_grad()
    def begin_at(self, means: Tensor) -> None:
        """Sets the bias of the last layer of a generator that has learned nothing yet to the data's mean of
        each channel, (C,), in [-1, 1].

        How bright images are is what a discriminator learns first. It drives a generator that begins with
        grey past the brightness of dark images to where tanh has no slope, and it may not come back.
        """
        bias = self.head.bias
        assert bias is not None
        bias.copy_(means.clamp(-_BRIGHTEST, _BRIGHTEST).atanh() if self.head.act == "tanh" else means)


class R3GANDiscriminator(Network):
    """Maps an image to a logit: a 1x1 convolution, the stages, a depthwise convolution as large as the
    coarsest images, and a linear layer. Its arguments are the fields of `R3GANDiscriminatorConfig`.

    Attributes:
        widths: the width of each stage, also from coarsest to finest.

    Raises:
        ValueError: as for `R3GANGenerator`.
    """

    grows_before: ClassVar[Mapping[str, int]] = {"layers": 0}

    @takes(R3GANDiscriminatorConfig)
    def __init__(self, settings: R3GANDiscriminatorConfig) -> None:
        super().__init__(settings)
        image_shape, num_classes = settings.image_shape, settings.num_classes
        widths = self.widths = _widths(settings)
        self.first = _initialised(Conv2d(image_shape[0], widths[-1], 1))
        stages = [_residuals(width, settings, len(widths)) for width in widths[::-1]]
        layers = [stages[0]]
        for (fine, coarse), stage in zip(pairwise(widths[::-1]), stages[1:], strict=True):
            layers += [Downsample2d(_TAPS), *_change(fine, coarse), stage]
        self.layers = nn.Sequential(*layers)
        size, width = _coarsest(image_shape, widths), widths[0]
        self.pool = _initialised(Conv2d(width, width, size, groups=width, bias=False))
        # No bias: a relativistic loss depends only on differences of logits.
        self.head = _initialised(nn.Linear(width, 1, bias=False))
        self.embedding = nn.Embedding(num_classes, width) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(width))

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits; positive means real.

        Args:
            images: (N, C, H, W), in the dtype of the weights (under autocast, any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.

        Returns:
            (N, 1), in the dtype of `images` (under autocast, in its dtype).

        Raises:
            ValueError: `images` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network.
        """
        check_input("images", images, self.image_shape, self.first.weight)
        check_labels(c, images.shape[0], self.num_classes)
        features = self.pool(self.layers(self.first(images))).flatten(1)
        logits: Tensor = self.head(features)
        if self.embedding is not None:
            logits = logits + (self.embedding(c) * features).sum(1, keepdim=True)
        return logits


_Settings = R3GANGeneratorConfig | R3GANDiscriminatorConfig


class _Residual(nn.Module):
    def __init__(self, width: int, group_size: int, expansion: int, scale: float) -> None:
        super().__init__()
        inner = width * expansion
        groups = max(1, inner // group_size)
        gain = scale * nn.init.calculate_gain("leaky_relu", _SLOPE)
        lrelu: dict[str, Any] = {"act": "lrelu", "alpha": _SLOPE, "gain": 1.0}
        self.conv1 = _initialised(Conv2d(width, inner, 1, **lrelu), gain)
        self.conv2 = _initialised(Conv2d(inner, inner, 3, padding=1, groups=groups, **lrelu), gain)
        self.conv3 = _initialised(Conv2d(inner, width, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return x + y


def _residuals(width: int, s: _Settings, stages: int) -> nn.Module:
    scale = (s.blocks * stages) ** (-1 / 4)  # three convolutions per block
    return nn.Sequential(*(_Residual(width, s.group_size, s.expansion, scale) for _ in range(s.blocks)))


def _change(inputs: int, outputs: int) -> list[nn.Module]:
    """A change of the width, at the coarser resolution, which has a quarter of the pixels."""
    return [] if inputs == outputs else [_initialised(Conv2d(inputs, outputs, 1, bias=False))]


_Layer = TypeVar("_Layer", bound="nn.Linear | nn.Conv2d")


def _initialised(layer: _Layer, gain: float = 1.0) -> _Layer:
    """Initialises with normal He weights and zero bias."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _widths(settings: _Settings) -> tuple[int, ...]:
    """The width of each stage, from coarsest to finest."""
    expansion, group_size = settings.expansion, settings.group_size
    widths = []
    for k in reversed(range(halvings_of(settings.image_shape) + 1)):
        most = channels_at(max(settings.image_shape[1:]) >> k, settings.channel_base, settings.channel_max)
        fitting = (
            width
            for width in range(most, 0, -1)
            if width * expansion <= group_size or width * expansion % group_size == 0
        )
        width = next(fitting, None)
        if width is None:
            raise ValueError(
                f"expansion is {expansion}, but {expansion} times a width from 1 to {most} must be a "
                f"multiple of group_size {group_size}, or less"
            )
        widths.append(width)
    return tuple(widths)


def _coarsest(image_shape: Sequence[int], widths: Sequence[int]) -> tuple[int, int]:
    halvings = len(widths) - 1
    return image_shape[1] >> halvings, image_shape[2] >> halvings
