"""Metrics by name: the real data is processed once, generated images at every snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from aigc_ext import _names
from aigc_ext._cache import Cache
from aigc_ext._device import usable_device
from aigc_ext._progress import tracked
from aigc_ext.data import ImageDataset, TensorImages, as_dataset
from aigc_ext.metrics.classifier import SampleClassifier, shuffled
from aigc_ext.metrics.errors import MetricError
from aigc_ext.metrics.extractors import FeatureExtractor, InceptionFeatures, RandomFeatures, extract
from aigc_ext.metrics.frechet import Moments, frechet_distance
from aigc_ext.metrics.kernel import kernel_distance
from aigc_ext.metrics.manifold import NEIGHBOURS, precision_recall
from aigc_ext.metrics.memorisation import Memorisation, memorisation

METRICS = _names.METRICS
"""The names that `MetricSet` accepts."""

MAX_REALS = 50_000
"""Largest number of real images for a Fréchet distance."""

_CHUNK = 16  # the sampler's: whole chunks cost least per image
_BATCH_BYTES = 1 << 26


class ImageSource(Protocol):
    """The interface of `sampling.Sampler` that the metrics need."""

    num_classes: int

    def sample(self, seeds: Sequence[int], classes: Sequence[int] | None = None, /) -> np.ndarray: ...


class MetricSet:
    """Compares generated images with a dataset's, and can be called repeatedly.

    Names and their results:

    - `fd` -> `fd`: Fréchet distance to all real images (at most 50,000) in the extractor's features; lower is
      better, 0 at best. It falls with the number of generated images, so compare only at the same number.
    - `kid` -> `kid`: kernel distance in the same features; lower is better, about 0 at best.
    - `pr` -> `precision`, `recall`, in the same features, in [0, 1]; higher is better. Precision means little
      if recall is about 0: images without content can lie in the large balls of a few unusual real ones.
    - `fid` -> `fid`: like `fd`, in the features of Inception.
    - `coverage` -> `classes_found`, `confident`: see `ClassCoverage`; higher is better.
    - `memorised` -> `memorised`: share of the generated images that lie nearer to a real one (of at most
      50,000) than 99 % of the real ones lie to each other, in the extractor's features; see `Memorisation`.
      About 0.01 for new images, 1 for copies.

    Distances in the features of a classifier or of random weights can compare snapshots and runs on the same
    data, but not published FIDs. The results for the real images are computed now, or read from the cache.

    The seed determines which images are generated (the sampler's seeds from `seed * 2**32` on), their classes
    (drawn from the dataset's labels), the classifier, and which real images are used if not all are. The same
    arguments give the same results on one machine, up to rounding with other numbers of threads. PyTorch's
    global random state is neither read nor changed.

    Args:
        names: a selection of `METRICS`.
        dataset: the real images, in any form that `aigc_ext.data.as_dataset` takes.
        num_images: number of images to generate.
        seed: from 0 to 2**31 - 1.
        extractor: for fd, kid, pr and memorised: "classifier" (a small one, trained on the data's labels in a
            few seconds), "random" (`RandomFeatures`; weaker, but needs no labels) or any `FeatureExtractor`.
        fid_weights: the file with Inception's weights; only for `fid`. See `InceptionFeatures`.
        cache_dir: for the classifier and the results for real data; by default `default_cache_dir()`.
        device: where the named extractors run.

    Attributes:
        memorisation: of the last call, if `memorised` is measured; `nearest` are positions in the dataset.

    Raises:
        MetricError: an unknown name, a number out of range, missing labels that a metric needs, or something
            missing for `fid`.
    """

    def __init__(
        self,
        names: Sequence[str],
        dataset: ImageDataset | Any,
        *,
        num_images: int = 5000,
        seed: int = 0,
        extractor: Literal["classifier", "random"] | FeatureExtractor = "classifier",
        fid_weights: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        dataset = as_dataset(dataset)
        self.names = _check_names(names)
        if num_images < 2:
            raise MetricError(f"num_images is {num_images}, but must be at least 2")
        if not 0 <= seed < 2**31:
            raise MetricError(f"seed is {seed}, but must be from 0 to {2**31 - 1}")
        if "pr" in self.names and min(num_images, len(dataset)) <= NEIGHBOURS:
            raise MetricError(
                f"pr needs more than {NEIGHBOURS} images, real and generated, but has {len(dataset)} of "
                f"{dataset.name} and {num_images}"
            )
        self.dataset = dataset
        self.num_images = num_images
        self.memorisation: Memorisation | None = None
        self.seed = seed
        device = usable_device(device)
        cache = Cache(None if cache_dir is None else os.fspath(cache_dir))
        self._inception: _Reals | None = None
        if "fid" in self.names:
            if fid_weights is None:
                raise MetricError("fid needs the path of Inception's weights: give fid_weights")
            # First, so that a wrong path is found at once.
            inception = InceptionFeatures(fid_weights, device)
            self._inception = _Reals(inception, dataset, self, cache, moments=True, features=0)
        in_features = {"fd", "kid", "pr", "memorised"} & set(self.names)
        self._classifier: SampleClassifier | None = None
        if "coverage" in self.names or (in_features and extractor == "classifier"):
            self._classifier = SampleClassifier.for_dataset(dataset, seed, cache, device)
        self._reals: _Reals | None = None
        if in_features:
            chosen = self._choose_extractor(extractor, device)
            self._reals = _Reals(
                chosen,
                dataset,
                self,
                cache,
                moments="fd" in in_features,
                features=MAX_REALS
                if "memorised" in in_features
                else num_images
                if in_features - {"fd"}
                else 0,
            )

    def _choose_extractor(
        self, extractor: Literal["classifier", "random"] | FeatureExtractor, device: torch.device
    ) -> FeatureExtractor:
        if extractor == "classifier":
            assert self._classifier is not None
            return self._classifier
        if extractor == "random":
            return RandomFeatures(self.dataset.image_shape[0], device=device)
        if not callable(extractor):
            raise MetricError(
                f"extractor is {extractor!r}, but must be 'classifier', 'random' or a function of images"
            )
        return extractor

    def __repr__(self) -> str:
        names = ",".join(self.names)
        return f"<{type(self).__name__} {names}: {self.num_images} images against {self.dataset!r}>"

    def __call__(self, generated: ImageSource | ImageDataset | Tensor) -> dict[str, float]:
        """The results for `num_images` generated images, in the order of the names.

        Args:
            generated: a `sampling.Sampler`, or existing images: a dataset or uint8 (N, C, H, W), of which the
                first `num_images` are used, or all if there are fewer.

        Raises:
            MetricError: the images' shape is not the dataset's, there are too few, or the generator's classes
                differ from the data's.
        """
        spaces: dict[str, _Accumulator] = {}
        if self._reals is not None:
            spaces["features"] = self._reals.accumulator()
        if self._inception is not None:
            spaces["inception"] = self._inception.accumulator()
        answers: list[Tensor] = []
        count = min(self.num_images, len(generated)) if isinstance(generated, Sized) else self.num_images
        for images in tracked("generated images", self._batches(generated), count):
            for space in spaces.values():
                space.add(images)
            if "coverage" in self.names:
                assert self._classifier is not None
                answers.append(self._classifier.probabilities(images))

        figures: dict[str, float] = {}
        for name in self.names:
            if name == "fd":
                assert self._reals is not None
                figures["fd"] = frechet_distance(self._reals.moments(), spaces["features"].moments())
            elif name == "fid":
                assert self._inception is not None
                figures["fid"] = frechet_distance(self._inception.moments(), spaces["inception"].moments())
            elif name == "coverage":
                assert self._classifier is not None
                coverage = self._classifier.coverage_of(torch.cat(answers))
                figures["classes_found"] = float(coverage.num_classes_found)
                figures["confident"] = coverage.confident_fraction
            elif name == "memorised":
                assert self._reals is not None
                copies = memorisation(self._reals.features(), spaces["features"].features())
                self.memorisation = replace(copies, nearest=self._reals.position(copies.nearest))
                figures["memorised"] = copies.share
            else:
                assert self._reals is not None
                real, fake = self._reals.features()[: self.num_images], spaces["features"].features()
                if name == "kid":
                    figures["kid"] = kernel_distance(real, fake, seed=self.seed)
                else:
                    figures["precision"], figures["recall"] = precision_recall(real, fake)
        return figures

    def nearest_pairs(self, generated: ImageSource | ImageDataset | Tensor, count: int = 16) -> np.ndarray:
        """The generated images that are nearest to real ones, each followed by that real one, the nearest
        pair first: uint8 (2 * count, H, W, C).

        Args:
            generated: what the set, with `memorised` among its metrics, was last called with.
        """
        if self.memorisation is None:
            raise MetricError(
                "nearest_pairs needs the metric memorised, and a call with the generated images"
            )
        order = self.memorisation.distances.argsort(stable=True)[:count]
        if isinstance(generated, (Tensor, ImageDataset)):
            fakes = _as_images(generated).read(order)[0]
        else:
            classes = self._classes(generated)
            seeds = [(self.seed << 32) + int(i) for i in order]
            made = generated.sample(seeds, None if classes is None else [classes[int(i)] for i in order])
            fakes = torch.from_numpy(made).permute(0, 3, 1, 2)
        reals = self.dataset.read(self.memorisation.nearest[order])[0]
        return torch.stack([fakes, reals], dim=1).flatten(0, 1).permute(0, 2, 3, 1).numpy()

    def _batches(self, generated: ImageSource | ImageDataset | Tensor) -> Iterator[Tensor]:
        if isinstance(generated, Tensor):
            generated = _as_images(generated)
        if isinstance(generated, ImageDataset):
            count = min(self.num_images, len(generated))
        else:
            count = self.num_images
            classes = self._classes(generated)
            first = self.seed << 32
        step = batch_size(self.dataset.image_shape)
        for start in range(0, count, step):
            stop = min(start + step, count)
            if isinstance(generated, ImageDataset):
                images = generated.read(range(start, stop))[0]
            else:
                seeds = range(first + start, first + stop)
                made = generated.sample(seeds, None if classes is None else classes[start:stop])
                images = torch.from_numpy(made).permute(0, 3, 1, 2).contiguous()
            if tuple(images.shape[1:]) != self.dataset.image_shape:
                raise MetricError(
                    f"the generated images have shape {tuple(images.shape[1:])}, "
                    f"but those of {self.dataset.name} have {self.dataset.image_shape}"
                )
            yield images

    def _classes(self, source: ImageSource) -> list[int] | None:
        """A class for each image, with the data's class frequencies."""
        if not source.num_classes:
            return None
        if source.num_classes != self.dataset.num_classes:
            raise MetricError(
                f"the generator has {source.num_classes} classes, "
                f"but {self.dataset.name} has {self.dataset.num_classes}"
            )
        order = shuffled(len(self.dataset), self.seed)
        labels = self.dataset.labels[order]
        return labels[torch.arange(self.num_images) % len(labels)].tolist()


def compute_metrics(
    names: Sequence[str],
    generated: ImageSource | ImageDataset | Tensor,
    dataset: ImageDataset | Any,
    *,
    num_images: int = 5000,
    seed: int = 0,
    extractor: Literal["classifier", "random"] | FeatureExtractor = "classifier",
    fid_weights: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The results of a `MetricSet` for `generated`; see there for arguments, results and errors."""
    return MetricSet(
        names,
        dataset,
        num_images=num_images,
        seed=seed,
        extractor=extractor,
        fid_weights=fid_weights,
        cache_dir=cache_dir,
        device=device,
    )(generated)


def named_extractor(
    name: Literal["classifier", "random"],
    dataset: ImageDataset,
    *,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> FeatureExtractor:
    """The extractor that a `MetricSet` of this dataset has under a name; the arguments and MetricError are
    the same."""
    if name == "random":
        return RandomFeatures(dataset.image_shape[0], device=device)
    cache = Cache(None if cache_dir is None else os.fspath(cache_dir))
    return SampleClassifier.for_dataset(dataset, seed, cache, usable_device(device))


def batch_size(image_shape: tuple[int, int, int]) -> int:
    """Images per batch: whole chunks of the sampler, about 64 MiB and at most 256 images."""
    channels, height, width = image_shape
    return max(1, min(16, _BATCH_BYTES // (channels * height * width * _CHUNK))) * _CHUNK


class _Accumulator:
    """Takes batches of images and keeps their features or the moments of these, as requested."""

    def __init__(self, extractor: FeatureExtractor, *, moments: bool, features: int) -> None:
        """`features`: the number of images, from the first, whose features to keep."""
        self._extractor = extractor
        self._wants_moments = moments
        self._room = features
        self._moments: Moments | None = None
        self._features: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        features = extract(self._extractor, images)
        if self._wants_moments:
            new = Moments.of(features)
            self._moments = new if self._moments is None else self._moments.merge(new)
        if self._room > 0:
            self._features.append(features[: self._room])
            self._room -= len(features)

    def moments(self) -> Moments:
        assert self._moments is not None
        return self._moments

    def features(self) -> Tensor:
        return torch.cat(self._features)


class _Reals:
    """The results for the real images in one feature space."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        dataset: ImageDataset,
        owner: MetricSet,
        cache: Cache,
        *,
        moments: bool,
        features: int,
    ) -> None:
        """`features`: the number of real images, from the first, whose features to keep."""
        self._extractor = extractor
        self._dataset = dataset
        self._order = shuffled(len(dataset), owner.seed)
        self._kept = owner.num_images if features else 0
        self._wants_moments = moments
        wanted = {}
        if moments:
            wanted["moments"] = MAX_REALS
        if features:
            wanted["features"] = features
        self._tensors = {
            kind: self._measure(kind, min(count, len(dataset)), owner.seed, cache)
            for kind, count in wanted.items()
        }

    def _measure(self, kind: str, count: int, seed: int, cache: Cache) -> dict[str, Tensor]:
        def compute() -> dict[str, Tensor]:
            accumulator = _Accumulator(
                self._extractor,
                moments=kind == "moments",
                features=count if kind == "features" else 0,
            )
            parts = self._order[:count].split(batch_size(self._dataset.image_shape))
            for indices in tracked("real images", parts, count):
                accumulator.add(self._dataset.read(indices)[0])
            if kind == "features":
                return {"features": accumulator.features()}
            moments = accumulator.moments()
            return {"mean": moments.mean, "scatter": moments.scatter}

        name = getattr(self._extractor, "name", None)
        if name is None:
            return compute()
        key = {"dataset": self._dataset.content_hash(), "extractor": name, "count": count, "seed": seed}
        return cache.get(kind, cast("dict[str, str | int]", key), compute)

    def moments(self) -> Moments:
        tensors = self._tensors["moments"]
        return Moments(min(MAX_REALS, len(self._dataset)), tensors["mean"], tensors["scatter"])

    def features(self) -> Tensor:
        return self._tensors["features"]["features"]

    def position(self, rows: Tensor) -> Tensor:
        """Of rows of `features`, in the dataset."""
        return self._order[rows]

    def accumulator(self) -> _Accumulator:
        """An accumulator for the generated images."""
        return _Accumulator(self._extractor, moments=self._wants_moments, features=self._kept)


def _as_images(generated: ImageDataset | Tensor) -> ImageDataset:
    return generated if isinstance(generated, ImageDataset) else TensorImages("images", generated.cpu())


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise MetricError(f"metrics is {names!r}, but must be a list of names, such as [{names!r}]")
    for name in names:
        if name not in METRICS:
            raise MetricError(f"metric is {name!r}, but must be one of {', '.join(METRICS)}")
    if not names:
        raise MetricError(f"metrics is empty, but must name at least one of {', '.join(METRICS)}")
    if len(set(names)) != len(names):
        raise MetricError(f"metrics names one twice: {', '.join(names)}")
    return tuple(names)
