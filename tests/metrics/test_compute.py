from __future__ import annotations

import logging
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigc_ext._cache import Cache, default_cache_dir
from aigc_ext.data import TensorImages
from aigc_ext.metrics import (
    InceptionFeatures,
    MetricError,
    MetricSet,
    Moments,
    RandomFeatures,
    SampleClassifier,
    classifier,
    compute_metrics,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from aigc_ext.metrics.classifier import shuffled
from aigc_ext.sampling import Sampler
from tests.metrics.test_classifier import make_bars

SHAPE = (3, 8, 10)


class Mean:
    """The means of the halves of each channel, as features; counts its images."""

    def __init__(self, name: str | None = "mean") -> None:
        self.seen = 0
        if name is not None:
            self.name = name

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.float().unflatten(3, (2, -1)).mean(dim=(2, 4)).flatten(1)


@pytest.fixture(scope="module")
def bars() -> TensorImages:
    return TensorImages("bars", *make_bars(400, seed=1, shape=SHAPE))


@pytest.fixture
def colours() -> TensorImages:
    """Without labels."""
    return TensorImages("colours", torch.randint(256, (70, *SHAPE), dtype=torch.uint8))


class Painter(nn.Module):
    """A generator with classes, whose images are noise around a level of their class."""

    z_dim = 5
    value_range = (0.0, 1.0)

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.seen: list[int] = []
        self.layer = nn.Linear(5, 3 * 8 * 10)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        images = self.layer(z).sigmoid().unflatten(1, SHAPE)
        return images if classes is None else images * ((1 + classes) / 4)[:, None, None, None]


def test_figures_are_those_of_the_functions(colours, tmp_path) -> None:
    fakes = torch.randint(250, (50, *SHAPE), dtype=torch.uint8)
    measure = Mean()
    figures = compute_metrics(
        ["pr", "fd", "kid"], fakes, colours, num_images=100, extractor=measure, cache_dir=tmp_path
    )
    reals = measure(colours.read(range(70))[0])
    assert list(figures) == ["precision", "recall", "fd", "kid"]
    assert figures["fd"] == pytest.approx(frechet_distance(Moments.of(reals), Moments.of(measure(fakes))))
    kept = measure(colours.read(shuffled(70, 0))[0])
    assert figures["kid"] == pytest.approx(kernel_distance(kept, measure(fakes)))
    assert (figures["precision"], figures["recall"]) == precision_recall(kept, measure(fakes))
    assert 0 < figures["recall"] < 1
    assert compute_metrics(
        ["fd"], TensorImages("fakes", fakes), colours, extractor=measure, cache_dir=tmp_path
    )["fd"] == pytest.approx(figures["fd"])


def test_real_data_is_measured_once_and_a_damaged_cache_is_refused(colours, tmp_path, caplog) -> None:
    measure = Mean()
    options = {"num_images": 20, "extractor": measure, "cache_dir": tmp_path / "new"}
    metrics = MetricSet(["fd", "kid"], colours, **options)
    assert measure.seen == 70 + 20
    expected = metrics(Sampler(Painter()))
    assert measure.seen == 70 + 20 + 20
    assert MetricSet(["fd", "kid"], colours, **options)(Sampler(Painter())).keys() == expected.keys()
    assert measure.seen == 70 + 20 + 20 + 20
    assert caplog.records == []

    files = sorted((tmp_path / "new").iterdir())
    assert [path.suffix for path in files] == [".safetensors"] * 2
    for path in files:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1  # one bit of a number: safetensors itself would not notice
        path.write_bytes(data)
    MetricSet(["fd"], colours, **options)
    files[0].write_bytes(b"short")
    with caplog.at_level(logging.WARNING):
        MetricSet(["kid"], colours, **options)
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"cache file {path} is damaged" for path in reversed(files)
    ]
    assert "SHA-256" in caplog.records[0].getMessage()
    measure.seen = 0
    MetricSet(["fd", "kid"], colours, **options)
    assert measure.seen == 0

    for changed in ({"extractor": Mean("other")}, {"seed": 1}, {"extractor": Mean(None)}):
        MetricSet(["fd"], colours, **{**options, **changed})
    assert len(list((tmp_path / "new").iterdir())) == 4  # the one without a name is not kept
    other = TensorImages("colours", colours.read(range(70))[0] // 2)
    measure.seen = 0
    MetricSet(["fd"], other, **options)
    assert measure.seen == 70


def test_a_cache_that_cannot_be_written_is_done_without(colours, tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("")
    first, second = (
        compute_metrics(["fd"], colours, colours, extractor=Mean(), cache_dir=tmp_path / "file") for _ in "ab"
    )
    assert first == second
    assert "cannot be written" in caplog.text


def test_the_default_cache_is_the_users(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().directory == default_cache_dir() == tmp_path / "aigc_ext"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "aigc_ext"


def test_a_sampler_is_asked_for_the_images_of_known_seeds(colours, tmp_path) -> None:
    sampler = Sampler(Painter())
    for seed in (0, 3):
        metrics = MetricSet(["fd"], colours, num_images=300, seed=seed, extractor=Mean(), cache_dir=tmp_path)
        state = torch.get_rng_state()
        figures = metrics(sampler)
        assert torch.equal(torch.get_rng_state(), state)
        seeds = range(seed << 32, (seed << 32) + 300)
        images = torch.from_numpy(sampler.sample(seeds)).permute(0, 3, 1, 2)
        assert figures == metrics(images) == metrics(sampler)


def test_classes_are_drawn_as_they_are_in_the_data(bars, tmp_path) -> None:
    few = TensorImages("few", bars.read(range(40))[0], (torch.arange(40) >= 30).long() * 2)
    metrics = MetricSet(["fd"], few, num_images=80, extractor=Mean(), cache_dir=tmp_path)
    sampler = Sampler(Painter(3))
    counts = torch.tensor(metrics._classes(sampler)).bincount()
    assert counts.tolist() == [60, 0, 20]
    images = sampler.sample(range(80), metrics._classes(sampler))
    assert metrics(sampler) == metrics(torch.from_numpy(images).permute(0, 3, 1, 2))
    with pytest.raises(MetricError, match="the generator has 4 classes, but few has 3"):
        metrics(Sampler(Painter(4)))


def test_a_classifier_of_the_labels_is_the_extractor(bars, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("aigc_ext.metrics.classifier._STEPS", 120)
    names = ["fd", "kid", "pr", "coverage"]
    options = {"num_images": 200, "cache_dir": tmp_path}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    metrics = MetricSet(names, bars, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    same = metrics(make_bars(200, seed=2, shape=SHAPE)[0])
    images, labels = make_bars(400, seed=3, shape=SHAPE)
    lacking = metrics(images[labels < 2][:200])
    noise = metrics(torch.randint(256, (200, *SHAPE), dtype=torch.uint8))
    assert same["fd"] * 3 < lacking["fd"] < noise["fd"]
    assert abs(same["kid"]) * 3 < lacking["kid"] < noise["kid"]
    assert same["precision"] > 0.7 > 0.1 > noise["precision"]
    assert same["recall"] > 0.7 > lacking["recall"] > noise["recall"]
    assert (same["classes_found"], lacking["classes_found"]) == (4.0, 2.0)
    assert same["confident"] > 0.8 > noise["confident"]
    assert all(type(value) is float for value in same.values())
    # The weights come from the cache, and are those of a new training whatever the number of threads.
    again = MetricSet(names, bars, **options)
    first, second = metrics._classifier, again._classifier
    assert first is not None
    assert second is not None
    assert second.name == first.name
    assert second.accuracy == first.accuracy
    assert again(images) == metrics(images)
    assert SampleClassifier.for_dataset(bars, seed=1).name != first.name


def test_a_classifier_is_its_datasets(monkeypatch) -> None:
    monkeypatch.setattr("aigc_ext.metrics.classifier._STEPS", 5)
    images, labels = make_bars(60, seed=4, shape=SHAPE)
    gaps = TensorImages("gaps", images, labels * 3)  # classes 1, 2, 4, ... have no images
    threads: list[int] = []
    fit = classifier._fit

    def counting_fit(*arguments):
        threads.append(torch.get_num_threads())
        return fit(*arguments)

    monkeypatch.setattr(classifier, "_fit", counting_fit)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # sums of another number of parts round otherwise
    try:
        first, again = (SampleClassifier.for_dataset(gaps) for _ in "ab")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1]
    assert first.num_classes == 4
    assert first.name == again.name
    assert torch.equal(first(images), again(images))
    assert first(images).shape == (60, 64)
    other = TensorImages("gaps", images.flip(2), labels * 3)
    assert SampleClassifier.for_dataset(other).name != first.name


def test_random_features_need_no_labels(colours, tmp_path) -> None:
    features = RandomFeatures(3)
    images, _ = colours.read(range(70))
    assert features(images).shape == (70, 256)
    assert torch.equal(features(images[3:5]), RandomFeatures(3)(images)[3:5])
    assert not torch.equal(features(images), RandomFeatures(3, seed=1)(images))
    assert features(torch.zeros(2, 3, 100, 300, dtype=torch.uint8)).shape == (2, 256)
    options = {"extractor": "random", "cache_dir": tmp_path}
    near, far = (
        compute_metrics(["fd"], fakes, colours, **options)["fd"]
        for fakes in (torch.randint(256, images.shape, dtype=torch.uint8), images // 2)
    )
    assert near * 2 < far


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["fd"], {}, "colours has no labels to train a classifier on: give an extractor"),
        (["coverage"], {"extractor": "random"}, "colours has no labels"),
        (["fid"], {}, "fid needs the path of Inception's weights"),
        (["fid"], {"fid_weights": "none.pth"}, "fid weights none.pth: there is no such file, and nothing is"),
        (["is"], {}, "metric is 'is', but must be one of fd, kid, pr, fid, coverage"),
        ("fd", {}, "metrics is 'fd', but must be a list of names"),
        ([], {}, "metrics is empty"),
        (["fd", "fd"], {}, "metrics names one twice"),
        (["fd"], {"num_images": 1}, "num_images is 1, but must be at least 2"),
        (["fd"], {"seed": 2**31}, f"seed is {2**31}, but must be from 0 to {2**31 - 1}"),
        (
            ["fd"],
            {"extractor": "vgg"},
            "extractor is 'vgg', but must be 'classifier', 'random' or a function",
        ),
        (["fd"], {"extractor": lambda x: x.float()}, r"extractor function returned \(70, 3, 8, 10\) for 70"),
        (["fd"], {"extractor": lambda x: x[:, 0, 0]}, "no finite floating-point numbers"),
        (["fd"], {"extractor": lambda x: x[:, 0, 0] / 0}, "no finite floating-point numbers"),
    ],
)
def test_refuses_by_name(colours, tmp_path, names, options, message) -> None:
    with pytest.raises(MetricError, match=message):
        MetricSet(names, colours, cache_dir=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_other_images_are_refused(colours, bars, tmp_path) -> None:
    metrics = MetricSet(["fd"], colours, extractor=Mean(), cache_dir=tmp_path)
    with pytest.raises(MetricError, match=r"have shape \(3, 10, 8\), but those of colours have \(3, 8, 10\)"):
        metrics(torch.zeros(4, 3, 10, 8, dtype=torch.uint8))
    single = TensorImages("single", bars.read(range(9))[0], torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1]))
    with pytest.raises(MetricError, match="single cannot be trained: labels has 1 images of class 1"):
        MetricSet(["fd"], single, cache_dir=tmp_path)


class TinyInception(nn.Module):
    """Stands in for torch-fidelity's network, with its arguments: the weights are loaded in its way."""

    def __init__(self, name, features_list, feature_extractor_weights_path) -> None:
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        self.layer = nn.Linear(3, 4)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        return (self.layer(x.float().mean(dim=(2, 3))),)


def test_fid_reads_tensors_only_and_measures_through_torch_fidelity(monkeypatch, tmp_path) -> None:
    weights = tmp_path / "inception.pth"
    layer = nn.Linear(3, 4)
    torch.save({"layer.weight": layer.weight.data, "layer.bias": layer.bias.data}, weights)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(
        MetricError, match=r"fid needs the package torch-fidelity: pip install 'aigc_ext\[fid"
    ):
        InceptionFeatures(weights)
    package, module = (
        ModuleType(name) for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3")
    )
    vars(module).update(FeatureExtractorInceptionV3=TinyInception)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)

    grey = TensorImages("grey", torch.randint(256, (40, 1, 6, 6), dtype=torch.uint8))
    fakes = torch.randint(128, (30, 1, 6, 6), dtype=torch.uint8)
    figures = compute_metrics(["fid"], fakes, grey, fid_weights=weights, cache_dir=tmp_path / "cache")
    expected = [
        Moments.of(layer(x.expand(-1, 3, -1, -1).float().mean(dim=(2, 3))).detach())
        for x in (fakes, grey.read(range(40))[0])
    ]
    assert figures == {"fid": pytest.approx(frechet_distance(*expected), rel=1e-5)}

    with pytest.raises(MetricError, match="1 or 3 channels, but the images have 4"):
        InceptionFeatures(weights)(torch.zeros(1, 4, 6, 6, dtype=torch.uint8))
    torch.save({"layer.weight": layer.weight.data}, weights)
    with pytest.raises(MetricError, match=r"are not those of the network: .*layer\.bias"):
        InceptionFeatures(weights)
    torch.save(layer.weight.data, weights)
    with pytest.raises(MetricError, match="are not those of the network"):
        InceptionFeatures(weights)
    torch.save({"layer": layer}, weights)  # a pickle that would run code
    with pytest.raises(MetricError, match="cannot be read as a file of tensors"):
        InceptionFeatures(weights)
    weights.write_bytes(np.arange(99).tobytes())
    with pytest.raises(MetricError, match="cannot be read as a file of tensors"):
        InceptionFeatures(weights)
