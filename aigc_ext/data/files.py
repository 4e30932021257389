"""Datasets of image files, and folders and zips of images with labels in StyleGAN's `dataset.json`."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext.data import image_file
from aigc_ext.data.dataset import (
    MAX_CLASSES,
    BadFile,
    DatasetError,
    ImageDataset,
    Report,
    TensorImages,
    format_shape,
)
from aigc_ext.data.index import FileIndex, Stamp, file_stamp

_log = logging.getLogger(__name__)

LABELS_FILE = "dataset.json"
WRONG_SHAPE = "its shape is"  # the beginning of such a reason
NO_IMAGE = f"there is no image in it ({image_file.FORMATS})"


# Suffixes of files that often lie beside images, many at a time.
_NO_IMAGES = frozenset(
    (".txt", ".json", ".xml", ".csv", ".yaml", ".yml", ".npy", ".npz", ".pt", ".md", ".html")
)
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


class ImageFiles(ABC):
    """Encoded images with names, wherever they are stored.

    Attributes:
        source: the source as the user named it, for messages.
        name: short name for people and run directories.
        index: what is known of them from an earlier start.
        passed_over: how many other files there are, by suffix.
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

    @abstractmethod
    def labels(self) -> tuple[dict[str, int] | None, list[BadFile]]:
        """The class of each image, None if there are no labels; and errors, under the images' names."""

    def read(self, name: str) -> bytes:
        check_size(self, name)
        with self.open(name) as file:
            return file.read()


class Tree(ImageFiles):
    """A folder or zip: names relative to it, with `/`."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(str(path), name, os.path.realpath(path))
        self.path = path
        self.names: list[str] = []

    def _finish(self) -> None:
        self.names.sort()  # by code point, so that the order is the same on every file system
        self.images = [name for name in self.names if is_image(name) or self._holds_image(name)]
        images = set(self.images)
        others = (name for name in self.names if name not in images and not name.endswith(LABELS_FILE))
        self.passed_over = Counter(os.path.splitext(name)[1].lower() for name in others)
        if not self.images and not self.bad:
            only = f", only {len(self.names)} other files such as {self.names[0]}" if self.names else ""
            raise DatasetError(f"{self.source}: {NO_IMAGE}{only}")

    def _holds_image(self, name: str) -> bool:
        """Is there an image in a file whose suffix does not say so?"""
        if os.path.splitext(name)[1].lower() in _NO_IMAGES:
            return False
        with collect([], name), self.open(name) as file:  # what cannot be read is passed over
            return image_file.looks_like_image(file.read(image_file.HEAD))
        return False

    def labels(self) -> tuple[dict[str, int] | None, list[BadFile]]:
        return _read_labels(self)


class _Folder(Tree):
    def __init__(self, path: Path) -> None:
        super().__init__(path, path.resolve().name)
        self._stamps: dict[str, Stamp | None] = {}
        visited: dict[str, str] = {}
        pending = [""]
        while pending:
            folder = pending.pop()
            # By its real path: a link to a parent would be followed forever, and images reached in two ways
            # counted twice.
            real = os.path.realpath(path / folder)
            if real in visited:
                first = visited[real] or "the dataset folder itself"
                self.bad.append(
                    BadFile(folder, f"it is a symbolic link to a folder that is read already: {first}")
                )
                continue
            visited[real] = folder
            pending += reversed(self._list(folder))
        self._finish()

    def _list(self, folder: str) -> list[str]:
        """Adds the files of one folder, and returns its subfolders."""
        folders = []
        try:
            with os.scandir(self.path / folder) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.bad.append(BadFile(folder or ".", image_file.describe_error(error)))
            return []
        for child in children:
            name = f"{folder}/{child.name}" if folder else child.name
            if is_hidden(name):
                continue
            try:
                info = child.stat()
            except OSError as error:  # a broken or circular link
                self.bad.append(BadFile(name, image_file.describe_error(error)))
                continue
            if stat.S_ISDIR(info.st_mode):
                folders.append(name)
            elif stat.S_ISREG(info.st_mode):
                self.names.append(name)
                self._stamps[name] = file_stamp(info)
            elif is_image(name):
                self.bad.append(BadFile(name, "it is not a regular file"))
        return folders

    def stamp(self, name: str) -> Stamp | None:
        return self._stamps[name]

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")


class _Zip(Tree):
    def __init__(self, path: Path) -> None:
        super().__init__(path, path.stem)
        self._owner = -1
        self._stamp = file_stamp(path.stat())
        entries = Counter(
            info.filename
            for info in self._archive().infolist()
            if not info.is_dir() and not is_hidden(info.filename)
        )
        self.names = list(entries)
        self.bad = [
            BadFile(name, f"it is in the zip {times} times") for name, times in entries.items() if times > 1
        ]
        self._finish()

    def _archive(self) -> zipfile.ZipFile:
        # A forked process shares the file offset with its parent, so it needs its own archive.
        if self._owner != os.getpid():
            self._zip = zipfile.ZipFile(self.path)
            self._owner = os.getpid()
        return self._zip

    def size(self, name: str) -> int:
        return self._archive().getinfo(name).file_size

    def stamp(self, name: str) -> Stamp | None:
        if self._stamp is None:
            return None
        info = self._archive().getinfo(name)
        return info.file_size, info.CRC, info.header_offset, *self._stamp

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self._archive().open(name))


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

    def _read_images(self, index: Tensor) -> tuple[Tensor, Tensor]:
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

    def _image_names(self) -> list[str]:
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
            yield digest + suffix
        self._files.index.save(self._files.images)

    def _digest(self, name: str) -> bytes:
        known = self._digests.get(name) or self._files.index.digest(name, self._files.stamp(name))
        return known or self._note_digest(name, self._files.read(name))

    def _note_digest(self, name: str, data: bytes) -> bytes:
        digest = self._digests[name] = hashlib.sha256(data).digest()
        self._files.index.note(name, self._files.stamp(name), digest=digest, size=len(data))
        return digest


def open_tree(path: Path) -> ImageFiles:
    """The files of a folder or zip."""
    try:
        return _Folder(path) if path.is_dir() else _Zip(path)
    except DatasetError:
        raise
    except Exception as error:  # as in collect
        raise DatasetError(f"{path}: {image_file.describe_error(error)}") from error


class Selection(NamedTuple):
    """The images of a source that are good as far as their headers say.

    Attributes:
        shapes: their shapes by name, in order.
        labels: their classes; None without labels.
        bad: the files that are left out.
    """

    files: ImageFiles
    shapes: dict[str, tuple[int, int, int]]
    labels: dict[str, int] | None
    bad: list[BadFile]

    def classes(self, names: Sequence[str]) -> Tensor | None:
        if self.labels is None:
            return None
        return torch.tensor([self.labels[name] for name in names], dtype=torch.int64)


def select_images(
    files: ImageFiles, on_bad: OnBad, *, one_shape: bool, report: Report | None = None
) -> Selection:
    """Checks every file, and names every bad one. With `one_shape`, images of another shape than the most
    frequent one are bad."""
    shapes, bad = probe(files, files.images, report=report)
    if one_shape:
        bad += _other_shapes(shapes)
    labels, bad_labels = files.labels()
    bad = [*files.bad, *bad, *bad_labels]
    if bad and on_bad == "raise":
        raise_faults(files, bad)
    left_out = {file.name for file in bad}
    good = {name: shape for name, shape in shapes.items() if name not in left_out}
    if not good:
        raise DatasetError(f"{files.source}: none of its images is good:", bad)
    return Selection(files, good, labels, bad)


def open_images(
    selection: Selection, memory_limit: int, on_bad: OnBad, report: Report | None = None
) -> ImageDataset:
    """Makes a dataset of images of one shape, as described in `open_dataset`."""
    files, images = selection.files, list(selection.shapes)
    image_shape = selection.shapes[images[0]]
    dataset = FileImages(files, images, image_shape, selection.classes(images), selection.bad, on_bad)
    dataset.report = report
    size = len(images) * image_shape[0] * image_shape[1] * image_shape[2]
    if size <= memory_limit:
        return dataset.load()
    _log.info(
        "%s: %d bytes of pixels exceed memory_limit=%d: files are read as needed",
        files.source,
        size,
        memory_limit,
    )
    return dataset


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


def _read_labels(files: Tree) -> tuple[dict[str, int] | None, list[BadFile]]:
    """The class of each image (None without `dataset.json` or if its labels are null), and errors."""
    if LABELS_FILE not in files.names:
        deeper = [name for name in files.names if name.endswith("/" + LABELS_FILE)]
        if deeper:
            _log.warning(
                "%s: labels in %s are ignored: they must be at the top", files.path, ", ".join(deeper)
            )
        return None, []
    bad: list[BadFile] = []
    content = None
    with collect(bad, LABELS_FILE):
        content = _files.parse_json(files.read(LABELS_FILE))
    if bad:
        return None, bad
    if not isinstance(content, dict) or "labels" not in content:
        return None, [BadFile(LABELS_FILE, "it has no key 'labels'")]
    pairs = content["labels"]
    if pairs is None:
        return None, []
    if not isinstance(pairs, list):
        return None, [
            BadFile(LABELS_FILE, f"'labels' is {_short(pairs)}, but must be a list of [file name, class]")
        ]

    # A label for an image that exists but is bad is not another error.
    known, classes = {*files.images, *(file.name for file in files.bad)}, dict[str, int]()
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            bad.append(BadFile(LABELS_FILE, f"an entry is {_short(pair)}, but must be [file name, class]"))
            continue
        name, label = pair[0].replace("\\", "/"), pair[1]
        if name not in known:
            bad.append(BadFile(name, f"{LABELS_FILE} has a label for it, but there is no such image"))
        elif name in classes:
            bad.append(BadFile(name, f"{LABELS_FILE} has more than one label for it"))
        elif type(label) is not int or not 0 <= label < MAX_CLASSES:  # not isinstance: true is not a class
            allowed = f"an integer from 0 to {MAX_CLASSES - 1}"
            bad.append(BadFile(name, f"its label in {LABELS_FILE} is {_short(label)}, but must be {allowed}"))
            classes[name] = 0
        else:
            classes[name] = label
    bad += [
        BadFile(name, f"{LABELS_FILE} has no label for it") for name in files.images if name not in classes
    ]
    return classes, bad


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
        bad.append(BadFile(name, image_file.describe_error(error)))


def raise_faults(files: ImageFiles, bad: list[BadFile]) -> NoReturn:
    raise DatasetError(f"{files.source}: its files have faults ({len(bad)}):", bad)


def check_size(files: ImageFiles, name: str) -> None:
    size = files.size(name)
    if size == 0:
        raise ValueError("it is empty (0 bytes)")
    if size > image_file.MAX_FILE_BYTES:
        raise ValueError(f"it has {size} bytes, but at most {image_file.MAX_FILE_BYTES} are allowed")


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in image_file.SUFFIXES


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


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
