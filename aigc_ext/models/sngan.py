"""SNGAN: residual networks with spectral normalisation in the discriminator (Miyato, Kataoka, Koyama, Yoshida
2018, https://arxiv.org/abs/1802.05957, tables 3 to 6).

The coarsest images are those of `models.dcgan`. Spectral normalisation is PyTorch's, with one power iteration
per forward pass. The conditional forms are those of `models.mlp`: the generator concatenates an embedding of
the label to z, the discriminator adds a projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from aigc_ext import ops
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
from aigc_ext.nn import BatchNormAct2d, Conv2d, Linear


@dataclass(frozen=True)
class SNGANGeneratorConfig(GeneratorConfig):
    family: Literal["sngan"] = field(default="sngan", kw_only=True)
    image_shape: ImageShape = (3, 32, 32)
    z_dim: Count = 128
    """Length of the latent."""
    channels: Count = 256
    """Channels of all hidden images."""
    num_classes: ClassCount = 0


@dataclass(frozen=True)
class SNGANDiscriminatorConfig(ImageDiscriminatorConfig):
    family: Literal["sngan"] = field(default="sngan", kw_only=True)
    image_shape: ImageShape = (3, 32, 32)
    channels: Count = 128
    """Channels of all hidden images."""
    num_classes: ClassCount = 0


class SNGANGenerator(Network):
    """Maps z to an image: a linear layer, residual blocks that double the sides, batch norm and ReLU before
    every convolution, and tanh for the pixels.

    Its arguments are the fields of `SNGANGeneratorConfig`; it raises ValueError if the sides cannot be
    halved.
    """

    value_range = (-1.0, 1.0)
    z_dim: int

    @takes(SNGANGeneratorConfig)
    def __init__(self, settings: SNGANGeneratorConfig) -> None:
        super().__init__(settings)
        image_shape, z_dim, channels = settings.image_shape, settings.z_dim, settings.channels
        num_classes, halvings = settings.num_classes, halvings_of(image_shape)
        self.embedding = nn.Embedding(num_classes, z_dim) if num_classes else None
        self._coarsest = (channels, image_shape[1] >> halvings, image_shape[2] >> halvings)
        inputs = 2 * z_dim if num_classes else z_dim
        self.linear = _initialised(Linear(inputs, math.prod(self._coarsest)))
        self.blocks = nn.Sequential(*(_UpBlock(channels) for _ in range(halvings)))
        self.norm = BatchNormAct2d(channels, act="relu", gain=1.0)
        self.head = _initialised(Conv2d(channels, image_shape[0], 3, padding=1, act="tanh"))

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
        check_input("z", z, (self.z_dim,), self.linear.weight)
        check_labels(c, z.shape[0], self.num_classes)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(c)], dim=1)
        coarse = self.linear(z).unflatten(1, self._coarsest)
        images: Tensor = self.head(self.norm(self.blocks(coarse)))
        return images


class SNGANDiscriminator(Network):
    """Maps an image to a logit: residual blocks that halve the sides and two more that do not, ReLU, and a
    linear layer on the sums over the image.

    Its arguments are the fields of `SNGANDiscriminatorConfig`; it raises ValueError if the sides cannot be
    halved.
    """

    grows_before: ClassVar[Mapping[str, int]] = {"blocks": 1}

    @takes(SNGANDiscriminatorConfig)
    def __init__(self, settings: SNGANDiscriminatorConfig) -> None:
        super().__init__(settings)
        image_shape, channels, num_classes = settings.image_shape, settings.channels, settings.num_classes
        # The paper halves 32x32 images twice, to 8x8.
        halvings = max(1, halvings_of(image_shape) - 1)
        blocks = [_DownBlock(image_shape[0], channels, down=True, first=True)]
        blocks += [_DownBlock(channels, channels, down=i < halvings - 1) for i in range(halvings + 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = spectral_norm(_initialised(nn.Linear(channels, 1)))
        self.embedding = (
            spectral_norm(_initialised(nn.Embedding(num_classes, channels))) if num_classes else None
        )

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
        # Pass the bias: each access to a normalised weight would run an iteration of the power method.
        check_input("images", images, self.image_shape, self.get_parameter("head.bias"))
        check_labels(c, images.shape[0], self.num_classes)
        features = _relu(self.blocks(images)).sum((2, 3))
        logits: Tensor = self.head(features)
        if self.embedding is not None:
            logits = logits + (self.embedding(c) * features).sum(1, keepdim=True)
        return logits


class _UpBlock(nn.Module):
    """Batch norm, ReLU, nearest-neighbour upsampling and convolution; batch norm, ReLU and convolution. The
    shortcut is a 1x1 convolution, which gives the same result before the upsampling as after it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = BatchNormAct2d(channels, act="relu", gain=1.0)
        self.conv1 = _initialised(Conv2d(channels, channels, 3, padding=1, bias=False), math.sqrt(2))
        self.norm2 = BatchNormAct2d(channels, act="relu", gain=1.0)
        self.conv2 = _initialised(Conv2d(channels, channels, 3, padding=1), math.sqrt(2))
        self.shortcut = _initialised(Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.norm2(self.conv1(_twice(self.norm1(x)))))
        return y + _twice(self.shortcut(x))


class _DownBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution and 2x2 average pooling. The shortcut is a 1x1 convolution, which
    gives the same result after the pooling as before it. The first block has no ReLU before its first
    convolution."""

    def __init__(self, inputs: int, channels: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        conv1 = Conv2d(inputs, channels, 3, padding=1, act="relu", gain=1.0)
        self.conv1 = spectral_norm(_initialised(conv1, math.sqrt(2)))
        self.conv2 = spectral_norm(_initialised(Conv2d(channels, channels, 3, padding=1), math.sqrt(2)))
        has_shortcut = down or inputs != channels
        self.shortcut = spectral_norm(_initialised(Conv2d(inputs, channels, 1))) if has_shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x if self.first else _relu(x)))
        if self.down:
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        return y + (x if self.shortcut is None else self.shortcut(x))


def _relu(x: Tensor) -> Tensor:
    return ops.bias_act(x, act="relu", gain=1.0)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


_Layer = TypeVar("_Layer", bound="nn.Linear | nn.Conv2d | nn.Embedding")


def _initialised(layer: _Layer, gain: float = 1.0) -> _Layer:
    """Initialises with Glorot weights and zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain)
    bias = getattr(layer, "bias", None)
    if bias is not None:
        nn.init.zeros_(bias)
    return layer
