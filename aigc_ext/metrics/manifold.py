"""Improved precision and recall.

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019): a set's
manifold is the union of the balls around its vectors that reach to their k-th nearest neighbours. Precision
is the fraction of generated images on the manifold of the real ones, recall the reverse. Radii shrink with
the number of images, so both sets must have the same number, and only results at the same number are
comparable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_ext.metrics.errors import MetricError

NEIGHBOURS = 3
"""The default k, as in the paper."""
_ROWS = 1024
# float32 features of one image differ by about 1e-7 of their magnitude from batch to batch. Vectors that
# close are treated as equal; otherwise rounding would decide whether duplicates lie in each other's balls.
_SAME = 1e-12


def precision_recall(real: Tensor, fake: Tensor, *, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Precision and recall, in [0, 1], of features (N, D) and (M, D). Of the larger set, only the first
    vectors are used, as many as the smaller one has.

    Raises:
        MetricError: dimensions differ, or there are not more than k vectors.
    """
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise MetricError(f"features have shapes {tuple(real.shape)} and {tuple(fake.shape)}")
    count = min(len(real), len(fake))
    if k < 1 or count <= k:
        raise MetricError(f"k is {k}, but must be at least 1 and less than the number of images, {count}")
    # Centred, since squares of large means would cost small distances precision.
    center = real.to(torch.float64).mean(dim=0)
    real, fake = real[:count] - center, fake[:count] - center
    real_radii, fake_radii = _squared_radii(real, k), _squared_radii(fake, k)
    recalled = torch.zeros(count, dtype=torch.bool)
    precise = 0
    for part, radii in zip(fake.split(_ROWS), fake_radii.split(_ROWS), strict=True):
        distances = squared_distances(part, real)
        precise += int((distances <= real_radii).any(dim=1).sum())
        recalled |= (distances <= radii[:, None]).any(dim=0)
    return precise / count, int(recalled.sum()) / count


def _squared_radii(points: Tensor, k: int) -> Tensor:
    """The squared radii of the balls around the points, (N,)."""
    # k + 1, since the nearest point is the point itself.
    parts = (squared_distances(part, points) for part in points.split(_ROWS))
    return torch.cat([distances.topk(k + 1, dim=1, largest=False).values[:, k] for distances in parts])


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Between all rows of centred features (N, D) and (M, D): (N, M); 0 where only rounding differs."""
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    distances = squares - 2 * (a @ b.T)
    return torch.where(distances <= _SAME * squares, 0.0, distances)
