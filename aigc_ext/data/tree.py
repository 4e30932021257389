"""Folders and zips of images, with labels in StyleGAN's `dataset.json` or by folder."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

from aigc_ext import _files
from aigc_ext.data import image_file
from aigc_ext.data.dataset import MAX_CLASSES, BadFile, DatasetError
from aigc_ext.data.files import IMAGES, LABELS_FILE, FileKind, ImageFiles, collect, is_hidden
from aigc_ext.data.index import Stamp, file_stamp

_log = logging.getLogger(__name__)

_FOLLOW = "--follow-links (data.follow_links) takes it"
# Suffixes of files that often lie beside images, many at a time.
_NO_IMAGES = frozenset(
    (".txt", ".json", ".xml", ".csv", ".yaml", ".yml", ".npy", ".npz", ".pt", ".md", ".html")
)


class Tree(ImageFiles):
    """A folder or zip: names relative to it, with `/`.

    Attributes:
        names: of all visible files.
        top: the one folder in it that has all images, as where a whole folder was zipped, with a `/`; empty
            if there is no such folder.
    """

    def __init__(self, path: Path, name: str, kind: FileKind) -> None:
        super().__init__(str(path), name, os.path.realpath(path))
        self.kind = kind
        self.path = path
        self.names: list[str] = []
        self.top = ""

    def _finish(self) -> None:
        self.names.sort()  # by code point, so that the order is the same on every file system
        self.images = [name for name in self.names if self.kind.named(name) or self._holds_item(name)]
        tops = {name.partition("/")[0] for name in self.images if "/" in name}
        if len(tops) == 1 and all("/" in name for name in self.images):
            self.top = f"{tops.pop()}/"
        images = set(self.images)
        others = (name for name in self.names if name not in images and not name.endswith(self.kind.beside))
        self.passed_over = Counter(os.path.splitext(name)[1].lower() for name in others)
        if not self.images and not self.bad:
            only = f", only {len(self.names)} other files such as {self.names[0]}" if self.names else ""
            raise DatasetError(f"{self.source}: {self.kind.none}{only}")

    def _holds_item(self, name: str) -> bool:
        """Is there an item in a file whose suffix does not say so?"""
        if os.path.splitext(name)[1].lower() in _NO_IMAGES:
            return False
        with collect([], name), self.open(name) as file:  # what cannot be read is passed over
            return self.kind.looks_like(file.read(self.kind.head))
        return False

    def labels(self) -> tuple[dict[str, int] | None, list[BadFile]]:
        """Those in `dataset.json`, at the top or in the one folder that has everything."""
        if self.top + LABELS_FILE in self.names:
            return _read_labels(self, self.top + LABELS_FILE)
        if LABELS_FILE in self.names:
            return _read_labels(self, LABELS_FILE)
        self.why_unlabelled = f"there is no {LABELS_FILE} in it"
        deeper = [name for name in self.names if name.endswith("/" + LABELS_FILE)]
        folders = self._class_folders()
        if deeper:
            self.why_unlabelled = f"labels in {', '.join(deeper)} are ignored: they must be at the top"
            _log.warning("%s: %s", self.path, self.why_unlabelled)
        elif len(folders) > 1:
            shown = ", ".join([*folders[:3], *(["..."] if len(folders) > 3 else [])])
            self.why_unlabelled += f"; --class-folders takes its {len(folders)} folders as classes: {shown}"
        return None, []

    def class_folders(self) -> tuple[dict[str, int] | None, list[BadFile], list[str]]:
        """Classes from the top-level folders, in the order of their names: labels, errors, and the names of
        the classes."""
        folders = self._class_folders()
        numbers = {name: number for number, name in enumerate(folders)}
        labels: dict[str, int] = {}
        bad: list[BadFile] = []
        for name in self.images:
            folder, slash, _ = name.removeprefix(self.top).partition("/")
            if slash:
                labels[name] = numbers[folder]
            else:
                bad.append(BadFile(name, "it is in no class folder"))
        return labels, bad, folders

    def _class_folders(self) -> list[str]:
        inside = (name.removeprefix(self.top) for name in self.images)
        return sorted({name.partition("/")[0] for name in inside if "/" in name})


class _Folder(Tree):
    def __init__(self, path: Path, follow_links: bool, kind: FileKind) -> None:
        super().__init__(path, path.resolve().name, kind)
        self._inside = None if follow_links else os.path.join(os.path.realpath(path), "")
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
            if child.is_symlink() and (target := self._leads_out(name)):
                item = stat.S_ISREG(info.st_mode) and self.kind.named(name)
                if item:
                    self.names.append(name)  # it is one of those that are left out
                if item or stat.S_ISDIR(info.st_mode) or child.name in self.kind.beside:
                    reason = f"it is a symbolic link out of the data folder, to {target}: {_FOLLOW}"
                    self.bad.append(BadFile(name, reason))
            elif stat.S_ISDIR(info.st_mode):
                folders.append(name)
            elif stat.S_ISREG(info.st_mode):
                self.names.append(name)
                self._stamps[name] = file_stamp(info)
            elif self.kind.named(name):
                self.bad.append(BadFile(name, "it is not a regular file"))
        return folders

    def _leads_out(self, name: str) -> str | None:
        """Where a link leads if that is outside of the data folder and links are not followed there."""
        target = os.path.realpath(self.path / name)
        if self._inside is None or os.path.join(target, "").startswith(self._inside):
            return None
        return target

    def stamp(self, name: str) -> Stamp | None:
        return self._stamps.get(name)

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")


class _Zip(Tree):
    def __init__(self, path: Path, kind: FileKind) -> None:
        super().__init__(path, path.stem, kind)
        self._owner = -1
        self._stamp = file_stamp(path.stat())
        # Some programs write Windows' separator, against the standard.
        stored = [(info.filename.replace("\\", "/"), info.filename) for info in self._archive().infolist()]
        if any(not name for name, _ in stored):
            raise ValueError("it has an entry without a name")
        visible = [names for names in stored if not names[0].endswith("/") and not is_hidden(names[0])]
        self._stored = dict(visible)
        entries = Counter(name for name, _ in visible)
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
        return self._archive().getinfo(self._stored[name]).file_size

    def stamp(self, name: str) -> Stamp | None:
        if self._stamp is None:
            return None
        info = self._archive().getinfo(self._stored[name])
        return info.file_size, info.CRC, info.header_offset, *self._stamp

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self._archive().open(self._stored[name]))


def open_tree(path: Path, follow_links: bool, kind: FileKind = IMAGES) -> Tree:
    """The files of a folder or zip; symbolic links out of a folder are bad files unless they are followed."""
    try:
        return _Folder(path, follow_links, kind) if path.is_dir() else _Zip(path, kind)
    except DatasetError:
        raise
    except Exception as error:  # as in collect
        raise DatasetError(f"{path}: {image_file.describe_error(error)}") from error


class _Names:
    """Finds the image that a label means: by its name or, if that is not exactly the name of one, by the name
    with the other separator or in the other form of Unicode, which file systems and programs exchange."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._alike: dict[str, list[str]] = {}
        for name in self._names:
            self._alike.setdefault(_plain(name), []).append(name)

    def find(self, name: str) -> str | None:
        if name in self._names:
            return name
        alike = self._alike.get(_plain(name), [])
        return alike[0] if len(alike) == 1 else None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def _read_labels(files: Tree, path: str) -> tuple[dict[str, int] | None, list[BadFile]]:
    """The class of each image (None if there are none), and errors; `path` is that of the labels' file, whose
    names are relative to it."""
    folder = path.removesuffix(LABELS_FILE)
    bad: list[BadFile] = []
    content = None
    with collect(bad, path):
        content = _parse(files.read(path))
    if not bad and not (isinstance(content, dict) and "labels" in content):
        bad = [BadFile(path, "it has no key 'labels'")]
    if bad:
        files.why_unlabelled = str(bad[0])
        return None, bad
    pairs = content["labels"]
    if pairs is None:
        files.why_unlabelled = f"the labels in {path} are null"
        return None, []
    if not isinstance(pairs, list):
        bad = [BadFile(path, f"'labels' is {_short(pairs)}, but must be a list of [file name, class]")]
        files.why_unlabelled = str(bad[0])
        return None, bad

    # A label for an image that exists but is bad is not another error.
    known, classes = _Names([*files.images, *(file.name for file in files.bad)]), dict[str, int]()
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            bad.append(BadFile(path, f"an entry is {_short(pair)}, but must be [file name, class]"))
            continue
        name, label = known.find(folder + pair[0]), pair[1]
        if name is None:
            bad.append(BadFile(pair[0], f"{path} has a label for it, but there is no such {files.kind.item}"))
        elif name in classes:
            bad.append(BadFile(name, f"{path} has more than one label for it"))
        elif type(label) is not int or not 0 <= label < MAX_CLASSES:  # not isinstance: true is not a class
            allowed = f"an integer from 0 to {MAX_CLASSES - 1}"
            bad.append(BadFile(name, f"its label in {path} is {_short(label)}, but must be {allowed}"))
            classes[name] = 0
        else:
            classes[name] = label
    bad += [BadFile(name, f"{path} has no label for it") for name in files.images if name not in classes]
    return classes, bad


def _parse(data: bytes) -> Any:
    try:
        return _files.parse_json(data)
    except json.JSONDecodeError as error:
        # Written by hand, most often; Python says no more than that a value is missing, at the next place.
        comma = re.compile(r",\s*[\]}]").search(error.doc, max(0, error.doc.rfind(",", 0, error.pos + 1)))
        if comma is not None and comma.start() <= error.pos <= comma.end():
            line = error.doc.count("\n", 0, comma.start()) + 1
            raise ValueError(f"line {line} has a comma before a closing bracket, which is no JSON") from error
        raise ValueError(f"it is no JSON: {error}") from error


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
