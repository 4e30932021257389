"""DCGAN: a generator of transposed convolutions and a discriminator of strided ones, with batch norm
(Radford, Metz, Chintala 2016, https://arxiv.org/abs/1511.06434).

The coarsest images are as small as halving allows, but at least 4 pixels high and wide: 4x4 for a power of
two, 7x7 for 28x28. The generator's first layer, from z to these, and the discriminator's last, from these to
the logit, are convolutions with a kernel of that size. The conditional forms are those of `models.mlp`: the
generator concatenates an embedding of the label to z, the discriminator adds a projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from aigc_ext.config import Count
from aigc_ext.models.checks import check_input, check_labels, halvings_of
from aigc_ext.models.settings import (
    ClassCount,
    GeneratorConfig,
    ImageDiscriminatorConfig,
    ImageShape,
    Network,
    takes,
)
from aigc_ext.nn import BatchNormAct2d, Conv2d, ConvTranspose2d


@dataclass(frozen=True)
class DCGANGeneratorConfig(GeneratorConfig):
    family: Literal["dcgan"] = field(default="dcgan", kw_only=True)
    image_shape: ImageShape = (3, 64, 64)
    z_dim: Count = 100
    """Length of the latent."""
    channels: Count = 64
    """Channels of the finest hidden images; twice as many for each halving of the sides."""
    num_classes: ClassCount = 0


@dataclass(frozen=True)
class DCGANDiscriminatorConfig(ImageDiscriminatorConfig):
    family: Literal["dcgan"] = field(default="dcgan", kw_only=True)
    image_shape: ImageShape = (3, 64, 64)
    channels: Count = 64
    """Channels of the first hidden layer; twice as many for each further halving of the sides."""
    num_classes: ClassCount = 0


class DCGANGenerator(Network):
    """Maps z to an image: every layer but the first doubles the sides; ReLU, and tanh for the pixels.

    Its arguments are the fields of `DCGANGeneratorConfig`; it raises ValueError if the sides cannot be
    halved.
    """

    grows_before: ClassVar[Mapping[str, int]] = {"layers": 1}
    value_range = (-1.0, 1.0)
    z_dim: int

    @takes(DCGANGeneratorConfig)
    def __init__(self, settings: DCGANGeneratorConfig) -> None:
        super().__init__(settings)
        image_shape, z_dim, channels = settings.image_shape, settings.z_dim, settings.channels
        num_classes, halvings = settings.num_classes, halvings_of(image_shape)
        self.embedding = nn.Embedding(num_classes, z_dim) if num_classes else None
        coarsest = (image_shape[1] >> halvings, image_shape[2] >> halvings)
        width = channels << (halvings - 1)
        layers: list[nn.Module] = [
            ConvTranspose2d(2 * z_dim if num_classes else z_dim, width, coarsest, bias=False),
            BatchNormAct2d(width, act="relu", gain=1.0),
        ]
        for _ in range(halvings - 1):
            layers += [
                ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False),
                BatchNormAct2d(width // 2, act="relu", gain=1.0),
            ]
            width //= 2
        layers.append(ConvTranspose2d(width, image_shape[0], 4, stride=2, padding=1, act="tanh"))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Images in [-1, 1].

        Args:
            z: latents (N, z_dim), in the dtype of the weights (under autocast, any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.

        Returns:
            (N, C, H, W), in the dtype of z.

        Raises:
            ValueError: `z` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network.
        """
        check_input("z", z, (self.z_dim,), self.get_parameter("layers.0.weight"))
        check_labels(c, z.shape[0], self.num_classes)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(c)], dim=1)
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class DCGANDiscriminator(Network):
    """Maps an image to a logit: every layer but the last halves the sides; leaky ReLU of slope 0.2, and batch
    norm in all hidden layers but the first.

    Its arguments are the fields of `DCGANDiscriminatorConfig`; it raises ValueError if the sides cannot be
    halved.
    """

    @takes(DCGANDiscriminatorConfig)
    def __init__(self, settings: DCGANDiscriminatorConfig) -> None:
        super().__init__(settings)
        image_shape, channels, num_classes = settings.image_shape, settings.channels, settings.num_classes
        halvings = halvings_of(image_shape)
        layers: list[nn.Module] = [
            Conv2d(image_shape[0], channels, 4, stride=2, padding=1, act="lrelu", gain=1.0)
        ]
        width = channels
        for _ in range(halvings - 1):
            layers += [
                Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
                BatchNormAct2d(2 * width, act="lrelu", gain=1.0),
            ]
            width *= 2
        self.layers = nn.Sequential(*layers)
        self.head = Conv2d(width, 1, (image_shape[1] >> halvings, image_shape[2] >> halvings))
        self.embedding = nn.Embedding(num_classes, width) if num_classes else None
        self.apply(_initialise)

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits; positive means real.

        Args:
            images: (N, C, H, W), in the dtype of the weights (under autocast, any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.

        Returns:
            (N, 1), in the dtype of `images`.

        Raises:
            ValueError: `images` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network.
        """
        check_input("images", images, self.image_shape, self.head.weight)
        check_labels(c, images.shape[0], self.num_classes)
        features = self.layers(images)
        logits: Tensor = self.head(features).flatten(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(c) * features.mean((2, 3))).sum(1, keepdim=True)
        return logits


def _initialise(module: nn.Module) -> None:
    """Initialises the filters from N(0, 0.02) and the scales from N(1, 0.02), as in the paper."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
