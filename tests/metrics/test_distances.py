from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from aigc_ext.metrics import MetricError, Moments, frechet_distance, kernel_distance, precision_recall


def draw(count: int, dimensions: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    """Correlated, skewed and far from the origin."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, dimensions, generator=random) @ torch.randn(
        dimensions, dimensions, generator=random
    )
    return mixed.exp().clamp(max=50) + offset


def frechet_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    delta = x.mean(0) - y.mean(0)
    return delta @ delta + np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False) - 2 * root)


def test_frechet_distance_is_that_of_scipy() -> None:
    x, y = draw(300, 7, 0), draw(200, 7, 1, offset=0.5)
    expected = frechet_by_scipy(x.double().numpy(), y.double().numpy())
    assert expected > 1
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def exact(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    return Moments(11, mean.double(), covariance.double() * 10)


def test_frechet_distance_of_known_gaussians() -> None:
    a, b = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([9.0, 0.25, 1.0])
    mean = torch.tensor([3.0, 0.0, -4.0])
    # Commuting covariances: |m|^2 + sum (sqrt(a) - sqrt(b))^2, in any basis; one of them singular.
    basis = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    one, two = (basis @ s.double().diag() @ basis.T for s in (a, b))
    assert frechet_distance(exact(mean, one), exact(torch.zeros(3), two)) == pytest.approx(25 + 4 + 2.25 + 1)
    assert frechet_distance(exact(mean, one), exact(mean, one)) == pytest.approx(0, abs=1e-12)
    # Two lines at an angle t in the plane: C1 = uu', C2 = vv', tr (C1 C2)^(1/2) = |u.v| = cos t.
    u, v = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    lines = [exact(torch.zeros(2), torch.outer(w, w)) for w in (u, v)]
    assert frechet_distance(*lines) == pytest.approx(2 - 2 * 0.6, rel=1e-6)


def test_fewer_images_than_dimensions_are_no_trouble() -> None:
    x, y = draw(6, 40, 2), draw(5, 40, 3)
    distance = frechet_distance(Moments.of(x), Moments.of(y))
    assert distance == pytest.approx(frechet_distance(Moments.of(y), Moments.of(x)), rel=1e-6)
    assert 0 < distance < float("inf")


def test_moments_come_in_batches_of_any_size_and_order() -> None:
    x = draw(500, 5, 4, offset=1e4)  # E[x^2] - E[x]^2 of float32 would have no digit left
    whole = Moments.of(x)
    np.testing.assert_allclose(whole.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-10)
    parts = x[torch.randperm(500)].split([1, 2, 300, 197])
    merged = Moments.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Moments.of(part))
    assert merged.count == 500
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=0)
    assert frechet_distance(merged, whole) == pytest.approx(0, abs=1e-6)


def mmd2_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_is_that_of_two_loops() -> None:
    x, y = draw(13, 4, 5), draw(13, 4, 6, offset=0.1)
    expected = mmd2_by_loops(x.double().numpy(), y.double().numpy())
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(x[torch.randperm(13)], y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_by_subsets_is_unbiased_and_repeats() -> None:
    x, y = torch.randn(400, 3), torch.randn(300, 3) * 1.2 + 0.3
    whole = mmd2_by_loops(x[:150].double().numpy(), y[:150].double().numpy())
    first, again, other = (
        kernel_distance(x[:150], y[:150], subsets=300, subset_size=40, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first == pytest.approx(whole, rel=0.15)
    assert other == pytest.approx(whole, rel=0.15)
    assert abs(kernel_distance(x[:200], x[200:])) < 0.1 * kernel_distance(x, y)


def precision_by_loops(points: np.ndarray, centers: np.ndarray, k: int) -> float:
    def inside(point: np.ndarray) -> bool:
        for i, center in enumerate(centers):
            others = sorted(np.linalg.norm(c - center) for j, c in enumerate(centers) if j != i)
            if np.linalg.norm(point - center) <= others[k - 1]:
                return True
        return False

    return float(np.mean([inside(point) for point in points]))


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_loops(k: int) -> None:
    x, y = draw(40, 3, 7, offset=100.0), draw(40, 3, 8, offset=100.3)
    expected = precision_by_loops(y.numpy(), x.numpy(), k), precision_by_loops(x.numpy(), y.numpy(), k)
    assert 0 < expected[1] < expected[0] < 1 or 0 < expected[0] < expected[1] < 1
    order = torch.randperm(40)
    assert precision_recall(x, y, k=k) == precision_recall(x[order], y, k=k) == expected


def test_copies_of_one_image_are_precise_and_recall_nothing() -> None:
    x = draw(50, 20, 9, offset=30.0)
    assert precision_recall(x, x[:1].expand(50, -1)) == (1.0, 1 / 50)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 1e4) == (0.0, 0.0)
    # Balls of radius 0, up to the rounding of products of different shapes.
    few = draw(10, 333, 9, offset=30.0)
    assert precision_recall(few.repeat(5, 1), few.repeat_interleave(5, 0)[3:]) == (1.0, 1.0)


def test_distances_refuse_by_name() -> None:
    x = torch.randn(5, 3)
    with pytest.raises(MetricError, match="at least 2 images, but there is 1"):
        frechet_distance(Moments.of(x[:1]), Moments.of(x))
    with pytest.raises(MetricError, match="3 and 2 dimensions"):
        frechet_distance(Moments.of(x), Moments.of(x[:, :2]))
    with pytest.raises(MetricError, match="not finite"):
        Moments.of(x / 0)
    with pytest.raises(MetricError, match=r"shape \(3,\)"):
        Moments.of(x[0])
    with pytest.raises(MetricError, match="2 dimensions, but those before had 3"):
        Moments.of(x).merge(Moments.of(x[:, :2]))
    with pytest.raises(MetricError, match="would have 1 images"):
        kernel_distance(x, x[:1])
    with pytest.raises(MetricError, match=r"shapes \(5, 3\) and \(5, 2\)"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(MetricError, match=r"k is 3, but must be at least 1 and less than .* 3"):
        precision_recall(x, x[:3])
