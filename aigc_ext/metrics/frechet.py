"""The Fréchet distance between two sets of features, from accumulated moments.

Each set is modelled as a Gaussian (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
Local Nash Equilibrium", 2017):

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)).

C1 C2 is not symmetric, but has the same eigenvalues as A^T C2 A for any A with A A^T = C1. The latter is
symmetric and positive semidefinite, so the trace is the sum of the roots of its eigenvalues from `eigvalsh`.
All numbers are real, also for the singular covariances of fewer images than dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_ext.metrics.errors import MetricError


class Moments:
    """Count, mean and covariance of vectors that come in batches, in float64.

    Batches are merged according to Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances" (1979), without differences of large sums, so the result equals that of one
    batch up to rounding.

    Attributes:
        count: number of vectors so far.
        mean: float64, (D,).
        scatter: float64, (D, D), the sum of the outer products of the deviations from the mean.
    """

    def __init__(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        self.count = count
        self.mean = mean
        self.scatter = scatter

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.count} vectors of {len(self.mean)}>"

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of vectors (N, D), N at least 1; raises MetricError if one is not finite."""
        if features.dim() != 2 or not len(features):
            raise MetricError(f"features have shape {tuple(features.shape)}, but must be (N, D) with N >= 1")
        if not features.isfinite().all():
            raise MetricError("features hold a value that is not finite")
        values = features.to(torch.float64)
        mean = values.mean(dim=0)
        values = values - mean
        return cls(len(values), mean, values.T @ values)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        if self.mean.shape != other.mean.shape:
            raise MetricError(
                f"features have {len(other.mean)} dimensions, but those before had {len(self.mean)}"
            )
        count = self.count + other.count
        delta = other.mean - self.mean
        between = torch.outer(delta, delta) * (self.count * other.count / count)
        return Moments(
            count, self.mean + delta * (other.count / count), self.scatter + other.scatter + between
        )

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, float64 (D, D); raises MetricError for fewer than 2 vectors."""
        if self.count < 2:
            raise MetricError(f"a covariance needs at least 2 images, but there is {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """The squared Fréchet (Wasserstein-2) distance between the two Gaussians; 0 for equal ones, up to
    rounding.

    Raises:
        MetricError: the sets have different dimensions, or fewer than 2 vectors.
    """
    if first.mean.shape != second.mean.shape:
        raise MetricError(f"features have {len(first.mean)} and {len(second.mean)} dimensions")
    one, two = first.covariance, second.covariance
    values, vectors = torch.linalg.eigh(one)
    factor = vectors * values.clamp(min=0).sqrt()
    product = factor.T @ two @ factor
    roots = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt()
    delta = first.mean - second.mean
    return max(0.0, float(delta @ delta + one.trace() + two.trace() - 2 * roots.sum()))
