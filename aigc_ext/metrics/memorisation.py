"""Are generated images copies of training images?

In the spirit of Meehan, Chaudhuri, Dasgupta, "A Non-Parametric Test to Detect Data-Copying in Generative
Models" (2020, arXiv:2004.05675): a generated image that is new lies about as far from the nearest training
image as training images lie from each other; a copy lies nearer. How near training images lie to each other
is taken from the data, so that there is no threshold to set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aigc_ext.metrics.errors import MetricError
from aigc_ext.metrics.manifold import squared_distances

_ROWS = 1024
_RARE = 0.01


@dataclass(frozen=True)
class Memorisation:
    """The result of `memorisation`.

    Attributes:
        share: fraction of the generated images that are nearer to a training image than 99 % of the training
            images are to another one. About 0.01 for new images like the data's, 1 for copies.
        threshold: the distance below which an image counts.
        distances: float64 (M,), of each generated image to its nearest training image.
        nearest: int64 (M,), which one that is.
    """

    share: float
    threshold: float
    distances: Tensor
    nearest: Tensor


def memorisation(real: Tensor, fake: Tensor) -> Memorisation:
    """Compares features of generated images, (M, D), with those of all training images, (N, D).

    Training images that are in the data twice say nothing about the distance between different ones, and are
    counted once.

    Raises:
        MetricError: dimensions differ, there is no generated image, or there are fewer than 2 different
            training images.
    """
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1] or not len(fake):
        raise MetricError(f"features have shapes {tuple(real.shape)} and {tuple(fake.shape)}")
    # Centred, since squares of large means would cost small distances precision.
    center = real.to(torch.float64).mean(dim=0)
    real, fake = real - center, fake - center
    between_reals, _ = _nearest(real, real, apart=True)
    between_reals = between_reals[between_reals < torch.inf]
    if not len(between_reals):
        raise MetricError(f"memorised needs at least 2 different real images, but all {len(real)} are alike")
    threshold = between_reals.quantile(_RARE).item()
    distances, nearest = _nearest(fake, real)
    return Memorisation((distances < threshold).double().mean().item(), threshold, distances, nearest)


def _nearest(points: Tensor, others: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
    """Distances of points to the nearest of others, and which; with `apart` to the nearest that differs,
    infinite if none does."""
    distances, indices = [], []
    for part in points.split(_ROWS):
        squared = squared_distances(part, others)
        if apart:
            squared = squared.where(squared > 0, torch.inf)
        least = squared.min(dim=1)
        distances.append(least.values.sqrt())
        indices.append(least.indices)
    return torch.cat(distances), torch.cat(indices)
