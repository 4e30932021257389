"""The reference GAN: a generator and a discriminator of linear layers.

Class-conditional forms (`num_classes` > 0), chosen because they add no hyperparameter:
- the generator concatenates a learned embedding of the label, as long as z and with the same initial
  distribution N(0, 1), to z (Mirza and Osindero 2014, https://arxiv.org/abs/1411.1784, with an embedding in
  place of the one-hot vector);
- the discriminator adds the inner product of an embedding of the label and its last hidden features to the
  logit (projection discriminator, Miyato and Koyama 2018, https://arxiv.org/abs/1802.05637).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext.models.checks import check_images, check_input, check_labels
from aigc_ext.nn import Linear
from aigc_ext.nn.layers import run_linears


class MLPGenerator(nn.Module):
    """Linear layers from z to an image.

    The hidden layers have a leaky ReLU (slope 0.2), the last of them tanh; sigmoid makes the pixels.

    Args:
        image_shape: (C, H, W) of the images.
        z_dim: length of the latent vector, which is drawn from N(0, 1).
        hidden: widths of the hidden layers, from z to the image; at least one.
        num_classes: number of labels, 0 for an unconditional generator.

    Raises:
        ValueError: a size is not positive (`num_classes`: is negative).
    """

    value_range = (0.0, 1.0)

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        z_dim: int = 100,
        hidden: Sequence[int] = (256, 128, 64),
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        check_images(image_shape, num_classes)
        _check_hidden(hidden)
        if z_dim < 1:
            raise ValueError(f"z_dim is {z_dim}, but must be at least 1")
        self.image_shape, self.z_dim, self.num_classes = tuple(image_shape), z_dim, num_classes
        self.hidden = tuple(hidden)
        self.embedding = nn.Embedding(num_classes, z_dim) if num_classes else None
        self.layers = nn.ModuleList(_hidden_layers(2 * z_dim if num_classes else z_dim, hidden))
        self.head = Linear(hidden[-1], math.prod(image_shape), act="sigmoid", gain=1.0)

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `models.build_generator` makes the same architecture."""
        return {
            "family": "mlp",
            "image_shape": list(self.image_shape),
            "z_dim": self.z_dim,
            "hidden": list(self.hidden),
            "num_classes": self.num_classes,
        }

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Images in [0, 1].

        Args:
            z: latents (N, z_dim), in the dtype of the weights (under autocast in any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None exactly if `num_classes` is 0.

        Returns:
            (N, C, H, W), in the dtype of z.

        Raises:
            ValueError: `z` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given in vain.
        """
        check_input("z", z, (self.z_dim,), self.head.weight)
        check_labels(c, z.shape[0], self.num_classes)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(c)], dim=1)
        return run_linears([*self.layers, self.head], z).unflatten(1, self.image_shape)


class MLPDiscriminator(nn.Module):
    """Linear layers from an image to a logit.

    The hidden layers have a leaky ReLU (slope 0.2), the last of them tanh.

    Args:
        image_shape: (C, H, W) of the images.
        hidden: widths of the hidden layers, from the image to the logit; at least one.
        num_classes: number of labels, 0 for an unconditional discriminator.

    Raises:
        ValueError: a size is not positive (`num_classes`: is negative).
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        hidden: Sequence[int] = (128, 64),
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        check_images(image_shape, num_classes)
        _check_hidden(hidden)
        self.image_shape, self.num_classes = tuple(image_shape), num_classes
        self.hidden = tuple(hidden)
        self.layers = nn.ModuleList(_hidden_layers(math.prod(image_shape), hidden))
        self.head = Linear(hidden[-1], 1)
        self.embedding = nn.Embedding(num_classes, hidden[-1]) if num_classes else None

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `models.build_discriminator` makes the same architecture."""
        return {
            "family": "mlp",
            "image_shape": list(self.image_shape),
            "hidden": list(self.hidden),
            "num_classes": self.num_classes,
        }

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits, positive for real.

        Args:
            images: (N, C, H, W), in the dtype of the weights (under autocast in any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None exactly if `num_classes` is 0.

        Returns:
            (N, 1), in the dtype of `images`.

        Raises:
            ValueError: `images` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given in vain.
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


def _check_hidden(hidden: Sequence[int]) -> None:
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden is {tuple(hidden)}, but must be at least one width, each at least 1")
