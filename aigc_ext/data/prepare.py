"""Files that are decoded once into a cache: images of any size made into one shape, and very many files.

A cache entry is two files in the user's cache directory: `images-KEY.bin` with the pixels (N x C x H x W,
uint8) and `images-KEY.json`, written last, with what was left out. The key is a hash of the files' contents
and of how they are fitted, so that it does not matter where they are, and a changed file is not overlooked.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext._cache import default_cache_dir
from aigc_ext.data import image_file
from aigc_ext.data.dataset import (
    BadFile,
    DatasetError,
    ImageDataset,
    Report,
    TensorImages,
    UnreadFile,
)
from aigc_ext.data.files import FileImages, OnBad, Selection, map_files, raise_faults
from aigc_ext.data.fit import as_image, fit, fitted_size, with_channels

_FORMAT = "aigc_ext images 1"
_MOST_WORKERS = 8
_CACHED_FROM = 10_000  # files of one shape; fewer are decoded in a second or two
_log = logging.getLogger(__name__)


class Preparation(NamedTuple):
    """How images are fitted; see `convert.convert_dataset`."""

    resolution: tuple[int, int]
    transform: str | None = None
    enlarge: bool = False

    def __str__(self) -> str:
        width, height = self.resolution
        words = (f"{width}x{height}", self.transform, "enlarged" if self.enlarge else None)
        return " ".join(filter(None, words))


class PreparedImages(FileImages):
    """Images that are decoded and fitted each time they are read; the other arguments are those of
    `FileImages`."""

    def __init__(self, preparation: Preparation, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.preparation = preparation

    def _made_of(
        self, names: list[str], labels: Tensor | None, bad_files: Sequence[BadFile]
    ) -> PreparedImages:
        shape = self.image_shape
        return PreparedImages(self.preparation, self._files, names, shape, labels, bad_files, self._on_bad)

    def _decode(self, data: bytes) -> Tensor:
        image = as_image(image_file.decode(io.BytesIO(data), self._files.white))
        fitted = fit(with_channels(image, self.image_shape[0]), *self.preparation)
        return torch.from_numpy(np.array(fitted)).reshape(*self.image_shape[1:], -1).permute(2, 0, 1)

    def _content(self) -> Iterator[bytes]:
        for digest in super()._content():
            yield digest + f" {self.preparation}".encode()


def open_images(
    selection: Selection, memory_limit: int, on_bad: OnBad, report: Report | None = None
) -> ImageDataset:
    """Makes a dataset of images of one shape, as described in `open_dataset`."""
    files, images = selection.files, list(selection.shapes)
    shape = selection.shapes[images[0]]
    dataset = FileImages(files, images, shape, selection.classes(images), selection.bad, on_bad)
    dataset.report = report
    size = len(images) * math.prod(shape)
    if size > memory_limit:
        _log.info(
            "%s: %d bytes of pixels exceed memory_limit=%d: files are read as needed",
            *(files.source, size, memory_limit),
        )
        return dataset
    if len(images) >= _CACHED_FROM:
        return open_cached(dataset, selection, memory_limit, on_bad, report)
    return dataset.load()


def open_prepared(
    selection: Selection,
    preparation: Preparation,
    memory_limit: int,
    on_bad: OnBad,
    report: Report | None = None,
) -> ImageDataset:
    """Makes a dataset of images of any shape, as described in `open_dataset`."""
    files, images = selection.files, list(selection.shapes)
    channels = {shape[0] for shape in selection.shapes.values()}
    width, height = fitted_size(preparation.resolution, preparation.transform)
    shape = (channels.pop() if len(channels) == 1 else 3, height, width)
    everything = PreparedImages(
        *(preparation, files, images, shape, selection.classes(images), selection.bad, on_bad)
    )
    everything.report = report
    return open_cached(everything, selection, memory_limit, on_bad, report)


def open_cached(
    everything: FileImages,
    selection: Selection,
    memory_limit: int,
    on_bad: OnBad,
    report: Report | None = None,
) -> ImageDataset:
    """The dataset of all selected images, with their pixels from the cache, where they are put if they are
    not there yet."""
    files, images = selection.files, list(selection.shapes)
    size = len(images) * math.prod(everything.image_shape)
    try:
        entry, lasting = _Entry.of(everything), True
        if not entry.is_there(everything):
            _log.info("%s: %d images are decoded once, into %s", files.source, len(images), entry.pixels)
            lasting = entry.write(everything, report)
        left_out, pixels = entry.read(everything, memory_limit)
        if not lasting:
            entry.facts.unlink()
    except OSError as error:
        _log.warning(
            "%s: the cache of images in %s cannot be used (%s): they are decoded in every run",
            *(files.source, default_cache_dir(), error.strerror),
        )
        return everything.load() if size <= memory_limit else everything
    if left_out and on_bad == "raise":
        raise_faults(files, left_out)
    bad_files, left_out_names = [*selection.bad, *left_out], {file.name for file in left_out}
    names = [name for name in images if name not in left_out_names]
    if not names:
        raise DatasetError(f"{files.source}: none of its images is good:", bad_files)
    labels = selection.classes(names)
    identity = everything.part(names, labels, bad_files).identity()
    return TensorImages(files.name, pixels, labels, bad_files=bad_files, identity=identity)


class _Entry(NamedTuple):
    pixels: Path
    facts: Path

    @classmethod
    def of(cls, dataset: FileImages) -> _Entry:
        identity = dataset.identity()
        key = hashlib.sha256(f"{_FORMAT} {dataset.image_shape} {identity.digests}".encode()).hexdigest()[:32]
        folder = default_cache_dir() / "data"
        return cls(folder / f"images-{key}.bin", folder / f"images-{key}.json")

    def is_there(self, dataset: FileImages) -> bool:
        if not (self.facts.is_file() and self.pixels.is_file()):
            return False
        try:
            images, _ = self._facts(dataset)
        except ValueError as error:
            _log.warning("cache file %s is damaged (%s) and made anew", self.facts, error)
            return False
        return self.pixels.stat().st_size == images * math.prod(dataset.image_shape)

    def write(self, dataset: FileImages, report: Report | None) -> bool:
        """Returns whether this is what the files are: the system failed to read none of them."""
        names = dataset.names
        self.pixels.parent.mkdir(parents=True, exist_ok=True)
        temporary = _files.temporary_path(self.pixels)
        bad: list[BadFile] = []
        good = 0
        with _files.removed_if_it_fails(temporary):
            with _files.named(self.pixels), temporary.open("wb") as file:
                decoded = map_files(
                    dataset.decode_file, names, bad, _workers(), _progress_of("preparing", report)
                )
                for _, image in decoded:
                    file.write(image.numpy().tobytes())
                    good += 1
                file.flush()
                os.fsync(file.fileno())  # after a crash the size alone would not tell
            os.replace(temporary, self.pixels)
        # By position: the same contents may have other names the next time.
        places = {name: place for place, name in enumerate(names)}
        facts = {"images": good, "bad": [[places[file.name], file.reason] for file in bad]}
        _files.replace_file(self.facts, json.dumps(facts).encode(), durable=False)
        return not any(isinstance(file, UnreadFile) for file in bad)

    def read(self, dataset: FileImages, memory_limit: int) -> tuple[list[BadFile], Tensor]:
        images, bad = self._facts(dataset)
        shape = (images, *dataset.image_shape)
        if images == 0:
            return bad, torch.empty(shape, dtype=torch.uint8)
        # "c" (copy on write) never changes the file; PyTorch has no read-only tensors.
        pixels = torch.from_numpy(np.memmap(self.pixels, np.uint8, "c", shape=shape))
        return bad, pixels.clone() if pixels.numel() <= memory_limit else pixels

    def _facts(self, dataset: FileImages) -> tuple[int, list[BadFile]]:
        """The number of images, and the files that are not among them; ValueError if it is something else."""
        found = _files.parse_json(self.facts.read_bytes())
        try:
            bad = [BadFile(dataset.names[place], str(reason)) for place, reason in found["bad"]]
            images = found["images"]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if type(images) is not int or images != len(dataset.names) - len(bad):
            raise ValueError(f"it is of {images} images and {len(bad)} bad files")
        return images, bad


def _workers() -> int:
    return min(_MOST_WORKERS, os.cpu_count() or 1)


def _progress_of(what: str, report: Report | None) -> Callable[[int, int], object] | None:
    return None if report is None else lambda done, total: report(what, done, total)
