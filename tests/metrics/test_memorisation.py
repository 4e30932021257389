from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from aigc_ext.data import TensorImages
from aigc_ext.metrics import MetricError, MetricSet, memorisation
from tests.metrics.test_compute import SHAPE, Mean


def distances_between(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("count", [2, 300, 1500])  # beyond one block of rows
def test_it_is_the_share_below_a_quantile_of_the_distances_between_reals(count: int) -> None:
    real, fake = torch.randn(count, 5) + 100, torch.randn(40, 5) + 100
    fake[:7] = real[torch.arange(7) % count] + 1e-3
    between = distances_between(real, real).fill_diagonal_(torch.inf).min(dim=1).values
    least = distances_between(fake, real).min(dim=1)
    result = memorisation(real, fake)
    assert result.threshold == pytest.approx(between.quantile(0.01).item(), rel=1e-6)
    assert result.share == (least.values < between.quantile(0.01)).double().mean()
    torch.testing.assert_close(result.distances, least.values, rtol=1e-4, atol=1e-6)
    assert result.nearest.tolist() == least.indices.tolist()
    assert result.share >= 7 / 40


def test_new_images_are_not_copies_and_copies_are() -> None:
    real, new = torch.randn(2000, 4), torch.randn(1000, 4)
    assert memorisation(real, new).share < 0.03
    assert memorisation(real, real[::2]).share == 1
    assert memorisation(real, real[::2]).distances.max() == 0


def test_images_that_the_data_has_twice_do_not_hide_copies() -> None:
    real = torch.randn(500, 4)
    assert memorisation(torch.cat([real, real]), real[:50]).share == 1


def test_what_cannot_be_compared() -> None:
    with pytest.raises(MetricError, match="at least 2 different real images, but all 5 are alike"):
        memorisation(torch.ones(5, 3), torch.rand(2, 3))
    with pytest.raises(MetricError, match=r"features have shapes \(5, 3\) and \(2, 4\)"):
        memorisation(torch.rand(5, 3), torch.rand(2, 4))
    with pytest.raises(MetricError, match=r"features have shapes \(5, 3\) and \(0, 3\)"):
        memorisation(torch.rand(5, 3), torch.rand(0, 3))


def test_a_metric_set_names_the_real_images(tmp_path) -> None:
    """All of them are searched, not only as many as are generated; kid and pr stay what they are alone."""
    images = torch.randint(256, (70, *SHAPE), dtype=torch.uint8)
    data = TensorImages("colours", images)
    fakes = torch.cat([images[50:60], torch.randint(250, (10, *SHAPE), dtype=torch.uint8)])
    options = {"num_images": 20, "extractor": Mean(None), "cache_dir": tmp_path}
    alone = MetricSet(["kid", "pr"], data, **options)(fakes)
    measure = MetricSet(["kid", "memorised", "pr"], data, **options)
    with pytest.raises(MetricError, match="a call with the generated images"):
        measure.nearest_pairs(fakes)
    figures = measure(fakes)
    assert figures["memorised"] >= 0.5
    assert {name: figures[name] for name in alone} == alone
    assert measure.memorisation is not None
    assert measure.memorisation.nearest[:10].tolist() == list(range(50, 60))
    pairs = measure.nearest_pairs(fakes, 10)
    assert pairs.shape == (20, *SHAPE[1:], SHAPE[0])
    assert np.array_equal(pairs[::2], pairs[1::2])
    assert np.array_equal(pairs[0], images[50].permute(1, 2, 0))
