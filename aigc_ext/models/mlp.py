"""The reference GAN: a generator and a discriminator of linear layers.

Class-conditional forms (`num_classes` > 0), chosen because they add no hyperparameter:
- the generator concatenates to z a learned embedding of the label, of the same length and with the same
  initial distribution N(0, 1) (Mirza and Osindero 2014, https://arxiv.org/abs/1411.1784, with an embedding
  instead of the one-hot vector);
- the discriminator adds to the logit the inner product of an embedding of the label and its last hidden
  features (projection discriminator, Miyato and Koyama 2018, https://arxiv.org/abs/1802.05637).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from aigc_ext.config import Count
from aigc_ext.models.checks import check_input, check_labels
from aigc_ext.models.settings import (
    ClassCount,
    GeneratorConfig,
    ImageDiscriminatorConfig,
    ImageShape,
    Network,
    Widths,
    takes,
)
from aigc_ext.nn import Linear
from aigc_ext.nn.layers import run_linears


@dataclass(frozen=True)
class MLPGeneratorConfig(GeneratorConfig):
    family: Literal["mlp"] = field(default="mlp", kw_only=True)
    image_shape: ImageShape = (1, 28, 28)
    z_dim: Count = 100
    """Length of the latent."""
    hidden: Widths = (256, 128, 64)
    """Widths of the hidden layers, from the latent to the image; at least one."""
    num_classes: ClassCount = 0


@dataclass(frozen=True)
class MLPDiscriminatorConfig(ImageDiscriminatorConfig):
    family: Literal["mlp"] = field(default="mlp", kw_only=True)
    image_shape: ImageShape = (1, 28, 28)
    hidden: Widths = (128, 64)
    """Widths of the hidden layers, from the image to the logit; at least one."""
    num_classes: ClassCount = 0


class MLPGenerator(Network):
    """Linear layers from z to an image. Its arguments are the fields of `MLPGeneratorConfig`.

    The hidden layers have a leaky ReLU (slope 0.2), the last of them tanh; the pixels have a sigmoid.
    """

    value_range = (0.0, 1.0)
    z_dim: int

    @takes(MLPGeneratorConfig)
    def __init__(self, settings: MLPGeneratorConfig) -> None:
        super().__init__(settings)
        z_dim, hidden, num_classes = settings.z_dim, settings.hidden, settings.num_classes
        self.embedding = nn.Embedding(num_classes, z_dim) if num_classes else None
        self.layers = nn.ModuleList(_hidden_layers(2 * z_dim if num_classes else z_dim, hidden))
        self.head = Linear(hidden[-1], math.prod(settings.image_shape), act="sigmoid", gain=1.0)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Images in [0, 1].

        Args:
            z: latents (N, z_dim), in the dtype of the weights (under autocast, any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.

        Returns:
            (N, C, H, W), in the dtype of z.

        Raises:
            ValueError: `z` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network.
        """
        check_input("z", z, (self.z_dim,), self.head.weight)
        check_labels(c, z.shape[0], self.num_classes)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(c)], dim=1)
        return run_linears([*self.layers, self.head], z).unflatten(1, self.image_shape)


class MLPDiscriminator(Network):
    """Linear layers from an image to a logit. Its arguments are the fields of `MLPDiscriminatorConfig`.

    The hidden layers have a leaky ReLU (slope 0.2), the last of them tanh.
    """

    @takes(MLPDiscriminatorConfig)
    def __init__(self, settings: MLPDiscriminatorConfig) -> None:
        super().__init__(settings)
        hidden, num_classes = settings.hidden, settings.num_classes
        self.layers = nn.ModuleList(_hidden_layers(math.prod(settings.image_shape), hidden))
        self.head = Linear(hidden[-1], 1)
        self.embedding = nn.Embedding(num_classes, hidden[-1]) if num_classes else None

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
        if self.embedding is None:
            return run_linears([*self.layers, self.head], images.flatten(1))
        features = run_linears([*self.layers], images.flatten(1))
        return self.head(features) + (self.embedding(c) * features).sum(dim=1, keepdim=True)


def _hidden_layers(in_features: int, hidden: Sequence[int]) -> list[Linear]:
    sizes = [in_features, *hidden]
    acts = ["lrelu"] * (len(hidden) - 1) + ["tanh"]
    return [Linear(*size, act=act, gain=1.0) for size, act in zip(pairwise(sizes), acts, strict=True)]
