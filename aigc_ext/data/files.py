"""Datasets of image files, and folders and zips of images with labels in StyleGAN's `dataset.json`."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO, Literal, NamedTuple, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from aigc_ext.data import image_file
from aigc_ext.data.dataset import (
    BadFile,
    DatasetError,
    ImageDataset,
    Report,
    TensorImages,
    UnreadFile,
    describe_numbers,
    format_shape,
    renumber,
)
from aigc_ext.data.index import FileIndex, Stamp

_log = logging.getLogger(__name__)

WRONG_SHAPE = "its shape is"  # the beginning of such a reason
NO_IMAGE = f"there is no image in it ({image_file.FORMATS})"


# Images that Pillow does not read, or not without risk.
_FOREIGN = frozenset(
    (
        *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".tga", ".exr", ".hdr"),
        *(".raw", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".pdf"),
    )
)

OnBad = Literal["raise", "skip"]

Progress = Callable[[int, int], object]
"""Called with the number of finished images and the total."""
_T = TypeVar("_T")

# The limit keeps a missing disk from causing an endless search.
_MOST_REPLACED = 100
# The process has run out of a resource, which says nothing about the file.
_NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class FileKind(NamedTuple):
    """Which files of a source are its items.

    Attributes:
        item: what one of them is called.
        suffixes: of their names.
        looks_like: do the first `head` bytes of a file under another name belong to one?
        none: the complaint that there are none.
        beside: names of files that go with them.
    """

    item: str
    suffixes: frozenset[str]
    looks_like: Callable[[bytes], bool]
    head: int
    none: str
    beside: tuple[str, ...]

    def named(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self.suffixes


LABELS_FILE = "dataset.json"
IMAGES = FileKind(
    "image", image_file.SUFFIXES, image_file.looks_like_image, image_file.HEAD, NO_IMAGE, (LABELS_FILE,)
)


class ImageFiles(ABC):
    """Encoded images, or other items, with names, wherever they are stored.

    Attributes:
        source: the source as the user named it, for messages.
        name: short name for people and run directories.
        index: what is known of them from an earlier start.
        passed_over: how many other files there are, by suffix.
        why_unlabelled: the reason for which `labels` found none, once it has been called.
        white: the value of white in 16-bit images; see `image_file.decode`.
        images: their names, in the order of the dataset, which is the same on every machine.
        bad: files that can't be part of a dataset whatever their contents; images of these names are left
            out.
    """

    def __init__(self, source: str, name: str, origin: str) -> None:
        self.source = source
        self.name = name
        self.index = FileIndex(origin)
        self.passed_over: Counter[str] = Counter()
        self.why_unlabelled: str | None = None
        self.white: int | None = None
        self.images: list[str] = []
        self.bad: list[BadFile] = []

    @abstractmethod
    def size(self, name: str) -> int: ...

    @abstractmethod
    def open(self, name: str) -> BinaryIO: ...

    def stamp(self, name: str) -> Stamp | None:
        """Changes whenever the file changes, and is read without opening it; None if there is no such
        thing."""
        return None

    def class_folders(self) -> tuple[dict[str, int] | None, list[BadFile], list[str]]:
        raise DatasetError(f"{self.source}: class folders can only be those of a folder or zip")

    @abstractmethod
    def labels(self) -> tuple[dict[str, int] | None, list[BadFile]]:
        """The class of each image, None if there are no labels; and errors, under the images' names."""

    def read(self, name: str) -> bytes:
        check_size(self, name)
        with self.open(name) as file:
            return file.read()


class FileImages(ImageDataset):
    """Images that are decoded each time they are read.

    Args:
        images: the names of the images in the dataset.
        labels: int64 (N,), or None.
        bad_files: the files that were left out.
        on_bad: how to treat a file that turns out to be damaged when it is decoded; see `open_dataset`.
    """

    def __init__(
        self,
        files: ImageFiles,
        images: list[str],
        image_shape: tuple[int, int, int],
        labels: Tensor | None,
        bad_files: Sequence[BadFile] = (),
        on_bad: OnBad = "raise",
    ) -> None:
        super().__init__(files.name, len(images), image_shape, labels)
        self._files = files
        self._names = images
        self._bad_files = tuple(bad_files)
        self._on_bad = on_bad
        self._damaged: dict[int, BadFile] = {}  # found while reading
        self._digests: dict[str, bytes] = {}  # known so far

    @property
    def bad_files(self) -> tuple[BadFile, ...]:
        return (*self._bad_files, *(bad for _, bad in sorted(self._damaged.copy().items())))

    def load(self) -> TensorImages:
        """Decodes all images into memory, and leaves out the damaged ones if `on_bad` is "skip".

        Raises:
            DatasetError: some files can't be decoded (it lists all of them), or none can.
        """
        images = torch.empty((len(self), *self.image_shape), dtype=torch.uint8)
        good: list[int] = []
        bad: list[BadFile] = []
        for i, name in enumerate(self._names):
            with collect(bad, name):
                data = self._files.read(name)
                images[len(good)].copy_(self._decode(data))
                self._note_digest(name, data)
                good.append(i)
            self._tell("reading", i + 1)
        if bad and self._on_bad == "raise":
            raise_faults(self._files, bad)
        labels = self.labels[good] if self.num_classes else None
        bad_files = (*self._bad_files, *bad)
        if not good:
            raise DatasetError(f"{self._files.source}: none of its images is good:", bad_files)
        kept = self
        if bad:
            names = [self._names[i] for i in good]
            kept = self.part(names, labels, bad_files)
        return TensorImages(
            self.name, images[: len(good)], labels, bad_files=bad_files, identity=kept.identity()
        )

    def part(self, names: list[str], labels: Tensor | None, bad_files: Sequence[BadFile]) -> FileImages:
        """A dataset of some of the images, which shares what is known of the files."""
        made = self._made_of(names, labels, bad_files)
        made._digests, made.report = self._digests, self.report
        return made

    def _made_of(self, names: list[str], labels: Tensor | None, bad_files: Sequence[BadFile]) -> FileImages:
        return FileImages(self._files, names, self.image_shape, labels, bad_files, self._on_bad)

    @property
    def source(self) -> str:
        return self._files.source

    @property
    def names(self) -> list[str]:
        return self._names

    def decode_file(self, name: str) -> Tensor:
        """An image, uint8 C x H x W, by the name of its file."""
        return self._decode(self._files.read(name))

    def _read_items(self, index: Tensor) -> tuple[Tensor, Tensor]:
        images = torch.empty((len(index), *self.image_shape), dtype=torch.uint8)
        if self._on_bad == "skip":
            used = [self._read_good(i, row) for row, i in zip(images, index.tolist(), strict=True)]
            return images, torch.tensor(used, dtype=torch.int64)
        bad: list[BadFile] = []
        for row, i in zip(images, index.tolist(), strict=True):
            with collect(bad, self._names[i]):
                row.copy_(self.decode_file(self._names[i]))
        if bad:
            raise_faults(self._files, bad)
        return images, index

    def _read_good(self, first: int, row: Tensor) -> int:
        """Fills `row` with image `first` or the next one that can be decoded; returns its index."""
        places = [(first + step) % len(self) for step in range(min(len(self), _MOST_REPLACED))]
        for i in places:
            if i in self._damaged:
                continue
            bad: list[BadFile] = []
            with collect(bad, self._names[i]):
                row.copy_(self.decode_file(self._names[i]))
            if not bad:
                return i
            # Only the first thread that finds it warns.
            if self._damaged.setdefault(i, bad[0]) is bad[0]:
                _log.warning(
                    "%s: the next good image takes the place of a bad one: %s", self._files.source, bad[0]
                )
        raise DatasetError(
            f"{self._files.source}: {len(places)} images in a row can't be read:",
            [self._damaged[i] for i in places],
        )

    def _decode(self, data: bytes) -> Tensor:
        image = torch.from_numpy(image_file.decode(io.BytesIO(data), self._files.white)).permute(2, 0, 1)
        shape = cast(tuple[int, int, int], tuple(image.shape))
        if shape != self.image_shape:
            raise ValueError(
                f"{WRONG_SHAPE} {format_shape(shape)}, but must be {format_shape(self.image_shape)}"
            )
        return image

    def _item_names(self) -> list[str]:
        return self._names

    def _content(self) -> Iterator[bytes]:
        """The SHA-256 of each file, and the white that was chosen."""
        suffix = b"" if self._files.white is None else f" white {self._files.white}".encode()
        for name in self._names:
            bad: list[BadFile] = []
            # A file that can't be read counts as empty, which no file of a dataset is.
            digest = hashlib.sha256().digest()
            with collect(bad, name):
                digest = self._digest(name)
            if bad and self._on_bad == "raise":
                raise_faults(self._files, bad)
            if bad:
                _log.warning("%s: a file is identified as unreadable: %s", self._files.source, bad[0])
            yield digest + suffix
        self._files.index.save(self._files.images)

    def _digest(self, name: str) -> bytes:
        known = self._digests.get(name) or self._files.index.digest(name, self._files.stamp(name))
        return known or self._note_digest(name, self._files.read(name))

    def _note_digest(self, name: str, data: bytes) -> bytes:
        digest = self._digests[name] = hashlib.sha256(data).digest()
        self._files.index.note(name, self._files.stamp(name), digest=digest, size=len(data))
        return digest


class Selection(NamedTuple):
    """The images of a source that are good as far as their headers say.

    Attributes:
        shapes: their shapes by name, in order.
        labels: their classes; None without labels.
        bad: the files that are left out.
        class_names: names of the classes, if they come from folders.
        remarks: what a user should know of this.
    """

    files: ImageFiles
    shapes: dict[str, tuple[int, int, int]]
    labels: dict[str, int] | None
    bad: list[BadFile]
    class_names: list[str]
    remarks: list[str]

    def classes(self, names: Sequence[str]) -> Tensor | None:
        if self.labels is None:
            return None
        return torch.tensor([self.labels[name] for name in names], dtype=torch.int64)


def select_images(
    files: ImageFiles,
    on_bad: OnBad,
    *,
    one_shape: bool,
    class_folders: bool = False,
    renumber_classes: bool = False,
    report: Report | None = None,
) -> Selection:
    """Checks every file, and names every bad one. With `one_shape`, images of another shape than the most
    frequent one are bad."""
    left_out = {file.name for file in files.bad}
    shapes, bad = probe(files, [name for name in files.images if name not in left_out], report=report)
    if one_shape:
        bad += _other_shapes(shapes)
    labels, bad_labels, class_names = files.class_folders() if class_folders else (*files.labels(), [])
    bad = [*files.bad, *bad, *bad_labels]
    if bad and on_bad == "raise":
        raise_faults(files, bad)
    left_out = {file.name for file in bad}
    good = {name: shape for name, shape in shapes.items() if name not in left_out}
    if not good:
        raise DatasetError(f"{files.source}: none of its images is good:", bad)
    remarks: list[str] = []
    if renumber_classes and labels is not None:
        numbers = renumber([labels[name] for name in good])
        labels = {name: numbers[labels[name]] for name in good}
        class_names = [class_names[old] for old in numbers] if class_names else []
        remarks.append(describe_numbers(numbers))
    return Selection(files, good, labels, bad, class_names, remarks)


def probe(
    files: ImageFiles, images: Sequence[str], limit: int | None = None, report: Report | None = None
) -> tuple[dict[str, tuple[int, int, int]], list[BadFile]]:
    """The shapes of the good files, at most the first `limit`, and the bad files found so far, from the
    headers, or from what an earlier start noted of a file that has not changed since."""
    shapes: dict[str, tuple[int, int, int]] = {}
    bad: list[BadFile] = []
    for i, name in enumerate(images):
        if len(shapes) == limit:
            break
        with collect(bad, name):
            stamp = files.stamp(name)
            shape = files.index.shape(name, stamp)
            if shape is None:
                check_size(files, name)
                with files.open(name) as file:
                    shape = image_file.probe(file)
                files.index.note(name, stamp, shape=shape)
            shapes[name] = shape
        if report is not None and i % 100 == 0:
            report("indexing", i, len(images))
    files.index.save(files.images)
    return shapes, bad


def _other_shapes(shapes: dict[str, tuple[int, int, int]]) -> list[BadFile]:
    """The images that don't have the most frequent shape (of equally frequent shapes, the first)."""
    if len(set(shapes.values())) < 2:
        return []
    expected, count = Counter(shapes.values()).most_common(1)[0]
    model = next(name for name, shape in shapes.items() if shape == expected)
    wanted = f"{format_shape(expected)} as {model} ({count} of {len(shapes)} images)"
    return [
        BadFile(name, f"{WRONG_SHAPE} {format_shape(shape)}, but must be {wanted}")
        for name, shape in shapes.items()
        if shape != expected
    ]


def map_files(
    function: Callable[[str], _T],
    names: Sequence[str],
    bad: list[BadFile],
    workers: int,
    progress: Progress | None,
) -> Iterator[tuple[str, _T]]:
    """Names and results, in order; names for which `function` raises go to `bad`."""

    def attempt(name: str) -> tuple[list[_T], list[BadFile]]:
        result: list[_T] = []
        faults: list[BadFile] = []
        with collect(faults, name):
            result.append(function(name))
        return result, faults

    with ThreadPoolExecutor(workers, thread_name_prefix="aigc-ext-data") as pool:
        for start in range(0, len(names), 16 * workers):  # blocks limit the results held in memory
            block = names[start : start + 16 * workers]
            for name, (result, faults) in zip(block, pool.map(attempt, block), strict=True):
                bad += faults
                for value in result:
                    yield name, value
            if progress is not None:
                progress(start + len(block), len(names))


@contextmanager
def collect(bad: list[BadFile], name: str) -> Iterator[None]:
    """Turns an exception about the file `name` into an entry of `bad`, so that processing can continue."""
    try:
        yield
    except Exception as error:  # on damaged bytes Pillow, zipfile, zlib and json raise almost anything
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILE:
            raise
        unread = isinstance(error, OSError) and error.errno is not None
        bad.append((UnreadFile if unread else BadFile)(name, image_file.describe_error(error)))


def raise_faults(files: ImageFiles, bad: list[BadFile]) -> NoReturn:
    raise DatasetError(f"{files.source}: its files have faults ({len(bad)}):", bad)


def check_size(files: ImageFiles, name: str) -> None:
    size = files.size(name)
    if size == 0:
        raise ValueError("it is empty (0 bytes)")
    if size > image_file.MAX_FILE_BYTES:
        raise ValueError(f"it has {size} bytes, but at most {image_file.MAX_FILE_BYTES} are allowed")


def describe_passed_over(counts: Counter[str]) -> str | None:
    """A remark on files that were passed over, by suffix; None if there are none."""
    if not counts:
        return None
    total = counts.total()
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], not entry[0], entry[0]))
    shown = [f"{count} {suffix or 'without a suffix'}" for suffix, count in ordered]
    remark = f"{total} file{'s are' if total > 1 else ' is'} passed over: {', '.join(shown)}"
    return f"{remark}; convert images among them to PNG or JPEG" if counts.keys() & _FOREIGN else remark


def is_hidden(name: str) -> bool:
    # Thumbnails, notebook checkpoints, and macOS's additions to zips: `__MACOSX/._a.png` is not an image.
    parts = (part for part in name.split("/") if part != ".")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
