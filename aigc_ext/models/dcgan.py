"""DCGAN: transposed convolutions with batch norm against strided ones (Radford, Metz, Chintala 2016,
https://arxiv.org/abs/1511.06434).

The coarsest images are as small as halving allows, but at least 4 pixels high and wide: 4x4 for a power of
two, 7x7 for 28x28. The generator's first layer, from z to these, and the discriminator's last, from these to
the logit, are convolutions as large as they. The conditional forms are those of `models.mlp`: the generator
concatenates an embedding of the label to z, the discriminator adds a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext.models.checks import check_input, check_labels, check_positive, halvings_of
from aigc_ext.nn import BatchNormAct2d, Conv2d, ConvTranspose2d


class DCGANGenerator(nn.Module):
    """From z to an image: every layer but the first doubles the sides; ReLU, and tanh for the pixels.

    Args:
        image_shape: (C, H, W) of the images; H and W even and at least 8.
        z_dim: length of the latent vector, which is drawn from N(0, 1).
        channels: of the finest hidden images; twice as many for each halving of the sides.
        num_classes: number of labels, 0 for an unconditional generator.

    Raises:
        ValueError: a size is not positive (`num_classes`: is negative), or the sides cannot be halved.
    """

    value_range = (-1.0, 1.0)

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 64, 64),
        z_dim: int = 100,
        channels: int = 64,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        halvings = halvings_of(image_shape, num_classes)
        check_positive(channels=channels, z_dim=z_dim)
        self.image_shape, self.z_dim, self.num_classes = tuple(image_shape), z_dim, num_classes
        self.channels = channels
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

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `models.build_generator` makes the same architecture."""
        return {
            "family": "dcgan",
            "image_shape": list(self.image_shape),
            "z_dim": self.z_dim,
            "channels": self.channels,
            "num_classes": self.num_classes,
        }

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Images in [-1, 1].

        Args:
            z: latents (N, z_dim), in the dtype of the weights (under autocast in any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None exactly if `num_classes` is 0.

        Returns:
            (N, C, H, W), in the dtype of z.

        Raises:
            ValueError: `z` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given in vain.
        """
        check_input("z", z, (self.z_dim,), self.get_parameter("layers.0.weight"))
        check_labels(c, z.shape[0], self.num_classes)
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(c)], dim=1)
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class DCGANDiscriminator(nn.Module):
    """From an image to a logit: every layer but the last halves the sides; leaky ReLU of slope 0.2, and batch
    norm in all hidden layers but the first.

    Args:
        image_shape: (C, H, W) of the images; H and W even and at least 8.
        channels: of the first hidden layer; twice as many for each further halving of the sides.
        num_classes: number of labels, 0 for an unconditional discriminator.

    Raises:
        ValueError: a size is not positive (`num_classes`: is negative), or the sides cannot be halved.
    """

    def __init__(
        self, image_shape: Sequence[int] = (3, 64, 64), channels: int = 64, num_classes: int = 0
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        halvings = halvings_of(image_shape, num_classes)
        self.image_shape, self.channels, self.num_classes = tuple(image_shape), channels, num_classes
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

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `models.build_discriminator` makes the same architecture."""
        return {
            "family": "dcgan",
            "image_shape": list(self.image_shape),
            "channels": self.channels,
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
        features = self.layers(images)
        logits: Tensor = self.head(features).flatten(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(c) * features.mean((2, 3))).sum(1, keepdim=True)
        return logits


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) for the filters and N(1, 0.02) for the scales, as in the paper."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
