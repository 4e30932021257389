"""The kernel distance (KID) between two sets of features.

Bińkowski et al., "Demystifying MMD GANs" (2018): the squared maximum mean discrepancy with the kernel
(x.y / D + 1)^3, by its unbiased estimator. Unlike the Fréchet distance, its expectation does not depend on
the number of images, and it can be slightly below 0 for equal distributions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aigc_ext.metrics.errors import MetricError


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> float:
    """The mean of the estimate over random subsets, computed in float64.

    Args:
        real, fake: features (N, D) and (M, D).
        subsets: number of pairs of subsets; one if the subsets are the whole sets.
        subset_size: vectors per subset, without repetition; at most N and M.
        seed: determines the subsets.

    Raises:
        MetricError: dimensions differ, there are fewer than 2 vectors, or an argument is out of range.
    """
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise MetricError(f"features have shapes {tuple(real.shape)} and {tuple(fake.shape)}")
    if subsets < 1:
        raise MetricError(f"subsets is {subsets}, but must be at least 1")
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise MetricError(f"a subset would have {size} images, but needs at least 2")
    if size == len(real) == len(fake):
        return _mmd2(real.to(torch.float64), fake.to(torch.float64))
    random = np.random.PCG64(np.random.SeedSequence(seed))
    total = 0.0
    for _ in range(subsets):
        chosen = [features[_choose(random, len(features), size)].double() for features in (real, fake)]
        total += _mmd2(*chosen)
    return total / subsets


def _choose(random: np.random.PCG64, count: int, size: int) -> Tensor:
    # NumPy guarantees the raw bits for all versions, but not the functions based on them.
    return torch.from_numpy(np.argsort(random.random_raw(count), kind="stable")[:size])


def _mmd2(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate for float64 vectors, which excludes the kernel of a vector with itself."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
