"""Folders and zips of image files, with the labels of StyleGAN's `dataset.json`."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import torch
from torch import Tensor

from aigc_ext.data import image_file
from aigc_ext.data.dataset import MAX_CLASSES, BadFile, DatasetError, ImageDataset, TensorImages, format_shape

_log = logging.getLogger(__name__)

LABELS_FILE = "dataset.json"


class _Files(Protocol):
    """The visible files of a folder or zip, by their names relative to it, with `/`.

    Attributes:
        names: sorted by code point, so that the order is the same on every file system.
        bad: what can't be a file of the dataset whatever it holds.
    """

    path: Path
    names: list[str]
    bad: list[BadFile]

    def size(self, name: str) -> int: ...

    def open(self, name: str) -> BinaryIO: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self.bad: list[BadFile] = []
        visited: dict[str, str] = {}
        pending = [""]
        while pending:
            folder = pending.pop()
            # By its real path: a link back up would be followed for ever, a second way in would count images
            # twice.
            real = os.path.realpath(path / folder)
            if real in visited:
                first = visited[real] or "the dataset folder itself"
                self.bad.append(
                    BadFile(folder, f"it is a symbolic link to a folder that is read already: {first}")
                )
                continue
            visited[real] = folder
            pending += reversed(self._list(folder))
        self.names.sort()

    def _list(self, folder: str) -> list[str]:
        """Adds the files of one folder, and returns the folders in it."""
        folders = []
        try:
            children = sorted(os.listdir(self.path / folder))
        except OSError as error:
            self.bad.append(BadFile(folder or ".", image_file.describe_error(error)))
            return []
        for child in children:
            name = f"{folder}/{child}" if folder else child
            if _is_hidden(name):
                continue
            try:
                mode = (self.path / name).stat().st_mode
            except OSError as error:  # a link that leads nowhere, or round in a circle
                self.bad.append(BadFile(name, image_file.describe_error(error)))
                continue
            if stat.S_ISDIR(mode):
                folders.append(name)
            elif stat.S_ISREG(mode):
                self.names.append(name)
            elif _is_image(name):
                self.bad.append(BadFile(name, "it is not a regular file"))
        return folders

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")


class _Zip:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = -1
        entries = Counter(
            info.filename
            for info in self._archive().infolist()
            if not info.is_dir() and not _is_hidden(info.filename)
        )
        self.names = sorted(entries)
        self.bad = [
            BadFile(name, f"it is in the zip {times} times") for name, times in entries.items() if times > 1
        ]

    def _archive(self) -> zipfile.ZipFile:
        # A forked process shares the file offset with its parent, so it needs an archive of its own.
        if self._owner != os.getpid():
            self._zip = zipfile.ZipFile(self.path)
            self._owner = os.getpid()
        return self._zip

    def size(self, name: str) -> int:
        return self._archive().getinfo(name).file_size

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self._archive().open(name))


class FileImages(ImageDataset):
    """Images that are decoded each time they are read."""

    def __init__(
        self,
        name: str,
        files: _Files,
        images: list[str],
        image_shape: tuple[int, int, int],
        labels: Tensor | None,
    ) -> None:
        super().__init__(name, len(images), image_shape, labels)
        self._files = files
        self._names = images

    def load(self) -> TensorImages:
        """Decodes all images into memory.

        Raises:
            DatasetError: with all the files that can't be decoded.
        """
        labels = self.labels if self.num_classes else None
        return TensorImages(
            self.name, self._read_images(torch.arange(len(self))), labels, self.content_hash()
        )

    def _read_images(self, index: Tensor) -> Tensor:
        images = torch.empty((len(index), *self.image_shape), dtype=torch.uint8)
        bad: list[BadFile] = []
        for row, i in zip(images, index.tolist(), strict=True):
            with _collect(bad, self._names[i]):
                row.copy_(self._decode(_read_file(self._files, self._names[i])))
        _raise_if_bad(self._files, bad)
        return images

    def _decode(self, data: bytes) -> Tensor:
        image = torch.from_numpy(image_file.decode(io.BytesIO(data))).permute(2, 0, 1)
        shape = cast(tuple[int, int, int], tuple(image.shape))
        if shape != self.image_shape:
            raise ValueError(
                f"its shape is {format_shape(shape)}, but must be {format_shape(self.image_shape)}"
            )
        return image

    def _content(self) -> Iterator[bytes]:
        for name in self._names:
            bad: list[BadFile] = []
            with _collect(bad, name):
                data = _read_file(self._files, name)
            _raise_if_bad(self._files, bad)
            yield hashlib.sha256(data).digest()


def open_files(path: Path, memory_limit: int) -> ImageDataset:
    """Opens a folder or zip as `open_dataset` says. Every file is checked, and every bad one is named."""
    try:
        files: _Files = _Folder(path) if path.is_dir() else _Zip(path)
    except Exception as error:  # as in _collect
        raise DatasetError(f"{path}: {image_file.describe_error(error)}") from error
    images = [name for name in files.names if _is_image(name)]
    if not images and not files.bad:
        others = f", only {len(files.names)} other files such as {files.names[0]}" if files.names else ""
        raise DatasetError(
            f"{path}: there is no image in it (by suffix: {', '.join(sorted(image_file.SUFFIXES))}){others}"
        )

    shapes, bad = _probe(files, images)
    labels, bad_labels = _read_labels(files, images)
    _raise_if_bad(files, [*files.bad, *bad, *bad_labels])

    image_shape = shapes[0]
    name = path.resolve().name if path.is_dir() else path.stem
    dataset = FileImages(name, files, images, image_shape, labels)
    size = len(images) * image_shape[0] * image_shape[1] * image_shape[2]
    if size <= memory_limit:
        return dataset.load()
    _log.info(
        "%s: %d bytes of pixels exceed memory_limit=%d: files are read as needed", path, size, memory_limit
    )
    return dataset


def _probe(files: _Files, images: list[str]) -> tuple[list[tuple[int, int, int]], list[BadFile]]:
    """Shapes of the good files, and the bad ones, from the headers. The most frequent shape is right."""
    shapes: dict[str, tuple[int, int, int]] = {}
    bad: list[BadFile] = []
    for name in images:
        with _collect(bad, name):
            _check_size(files, name)
            with files.open(name) as file:
                shapes[name] = image_file.probe(file)
    if shapes:
        (expected, count), *others = Counter(shapes.values()).most_common()
        if others:
            model = next(name for name, shape in shapes.items() if shape == expected)
            wanted = f"{format_shape(expected)} as {model} ({count} of {len(shapes)} images)"
            for name in [name for name, shape in shapes.items() if shape != expected]:
                bad.append(
                    BadFile(name, f"its shape is {format_shape(shapes.pop(name))}, but must be {wanted}")
                )
    return list(shapes.values()), bad


def _read_labels(files: _Files, images: list[str]) -> tuple[Tensor | None, list[BadFile]]:
    """Class of each image (None without `dataset.json` or if its labels are null), and what is wrong."""
    if LABELS_FILE not in files.names:
        deeper = [name for name in files.names if name.endswith("/" + LABELS_FILE)]
        if deeper:
            _log.warning(
                "%s: labels in %s are ignored: they must be at the top", files.path, ", ".join(deeper)
            )
        return None, []
    bad: list[BadFile] = []
    content = None
    with _collect(bad, LABELS_FILE):
        content = json.loads(_read_file(files, LABELS_FILE))
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

    known, classes = set(images), dict[str, int]()
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            bad.append(BadFile(LABELS_FILE, f"an entry is {_short(pair)}, but must be [file name, class]"))
            continue
        name, label = pair[0].replace("\\", "/"), pair[1]
        if name not in known:
            bad.append(BadFile(name, f"{LABELS_FILE} has a label for it, but there is no such image"))
        elif name in classes:
            bad.append(BadFile(name, f"{LABELS_FILE} has more than one label for it"))
        elif type(label) is not int or not 0 <= label < MAX_CLASSES:  # not isinstance: true is no class
            allowed = f"an integer from 0 to {MAX_CLASSES - 1}"
            bad.append(BadFile(name, f"its label in {LABELS_FILE} is {_short(label)}, but must be {allowed}"))
            classes[name] = 0
        else:
            classes[name] = label
    bad += [BadFile(name, f"{LABELS_FILE} has no label for it") for name in images if name not in classes]
    return torch.tensor([classes.get(name, 0) for name in images], dtype=torch.int64), bad


@contextmanager
def _collect(bad: list[BadFile], name: str) -> Iterator[None]:
    """Turns an exception about the file `name` into an entry of `bad`, so that the next one gets its turn."""
    try:
        yield
    except Exception as error:  # on damaged bytes Pillow, zipfile, zlib and json raise almost anything
        bad.append(BadFile(name, image_file.describe_error(error)))


def _raise_if_bad(files: _Files, bad: list[BadFile]) -> None:
    if bad:
        raise DatasetError(f"{files.path}: its files have faults ({len(bad)}):", bad)


def _check_size(files: _Files, name: str) -> None:
    size = files.size(name)
    if size == 0:
        raise ValueError("it is empty (0 bytes)")
    if size > image_file.MAX_FILE_BYTES:
        raise ValueError(f"it has {size} bytes, but at most {image_file.MAX_FILE_BYTES} are allowed")


def _read_file(files: _Files, name: str) -> bytes:
    _check_size(files, name)
    with files.open(name) as file:
        return file.read()


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in image_file.SUFFIXES


def _is_hidden(name: str) -> bool:
    # Thumbnails, notebook checkpoints, and what macOS adds to a zip: `__MACOSX/._a.png` is no image.
    parts = (part for part in name.split("/") if part != ".")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
