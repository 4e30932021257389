"""WebDataset shards: tar files in which the members of a sample have the same name up to the extension."""

from __future__ import annotations

import glob
import io
import os
import tarfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from aigc_ext.data.dataset import MAX_CLASSES, BadFile, DatasetError
from aigc_ext.data.files import IMAGES, NO_IMAGE, ImageFiles, collect, is_hidden
from aigc_ext.data.index import Stamp, file_stamp

_LONGEST_CLASS = 32  # bytes of the longest valid .cls file


class _Member(NamedTuple):
    shard: Path
    offset: int
    size: int
    stamp: Stamp | None  # the shard's


class _Shards(ImageFiles):
    """The images of the shards, each named by its shard's path and its own name in the shard.

    The shards are indexed once, by their headers: a stream that can resume at any image needs the position of
    each one, which sequential reading does not give.
    """

    def __init__(self, source: str, paths: list[Path]) -> None:
        super().__init__(source, _common_name(paths), "\n".join(map(os.path.realpath, paths)))
        self._members: dict[str, _Member] = {}
        self._classes: dict[str, int] = {}
        self._bad_classes: list[BadFile] = []
        self._unlabelled: list[str] = []
        for path in paths:
            with collect(self.bad, str(path)):
                self._index(path)
        self.images = list(self._members)
        if not self.images and not self.bad:
            raise DatasetError(f"{source}: {NO_IMAGE}")

    def _index(self, path: Path) -> None:
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        stamp = file_stamp(path.stat())
        with path.open("rb") as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for info in _members(tar, path.stat().st_size):
                        folder, _, base = info.name.rpartition("/")
                        key, _, extension = base.partition(".")
                        sample = samples.setdefault(f"{folder}/{key}", {})
                        if extension in sample:
                            self.bad.append(
                                BadFile(f"{path}/{info.name}", "it is in the shard more than once")
                            )
                        sample[extension] = info
            except tarfile.ReadError as error:
                raise ValueError(
                    f"it is damaged or no uncompressed tar, and read up to there: {error}"
                ) from error
            finally:  # samples before the damage are good
                for sample in samples.values():
                    self._add(path, stamp, file, sample)

    def _add(
        self, path: Path, stamp: Stamp | None, file: BinaryIO, sample: dict[str, tarfile.TarInfo]
    ) -> None:
        # If there are several images, the one with a plain extension: `1.jpg` rather than `1.seg.png`.
        extensions = [extension for extension in sample if IMAGES.named(f"x.{extension}")]
        plain = [extension for extension in extensions if "." not in extension]
        if len(extensions) > 1 and plain:
            extensions = plain
        if not extensions:
            self.passed_over.update(f".{extension}" for extension in sample)
            return
        info = sample[extensions[0]]
        name = f"{path}/{info.name}"
        if len(extensions) > 1:
            self.bad.append(
                BadFile(name, f"its sample has {len(extensions)} images: {', '.join(extensions)}")
            )
        self._members[name] = _Member(path, info.offset_data, info.size, stamp)
        if "cls" not in sample:
            self._unlabelled.append(name)
            return
        file.seek(sample["cls"].offset_data)
        text = file.read(min(sample["cls"].size, _LONGEST_CLASS)).strip()
        if not text.isdigit() or int(text) >= MAX_CLASSES:
            self._bad_classes.append(
                BadFile(name, f"its .cls is {text!r}, but must be an integer from 0 to {MAX_CLASSES - 1}")
            )
        else:
            self._classes[name] = int(text)

    def size(self, name: str) -> int:
        return self._members[name].size

    def stamp(self, name: str) -> Stamp | None:
        member = self._members[name]
        return None if member.stamp is None else (member.size, member.offset, *member.stamp)

    def open(self, name: str) -> BinaryIO:
        member = self._members[name]
        file = member.shard.open("rb", buffering=0)
        return cast(BinaryIO, io.BufferedReader(_Part(file, member.offset, member.size)))

    def labels(self) -> tuple[dict[str, int] | None, list[BadFile]]:
        if not self._classes and not self._bad_classes:
            self.why_unlabelled = "none of its samples has a .cls"
            return None, []
        missing = [BadFile(name, "it has no .cls, but others have") for name in self._unlabelled]
        return self._classes, [*self._bad_classes, *missing]


class _Part(io.RawIOBase):
    """A part of a file as a file, with its own handle, so that threads and forks can't interfere."""

    def __init__(self, file: io.FileIO, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._position)])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_shards(pattern: str) -> ImageFiles:
    """The images in uncompressed tar files in WebDataset's layout.

    The members of a sample have the same path up to the first dot of the file name. A sample with an image
    (by suffix) is one image; of several, exactly one must have a plain extension, such as `1.jpg` next to
    `1.seg.png`. Its class is the number in the text file `1.cls`. Other members, and samples without an
    image, are ignored. The order is that of the shards in the pattern, and of the members in each.

    Args:
        pattern: a shard, a folder (all `*.tar` in it), or a pattern with shell wildcards or with braces,
            `train-{0000..0003}.tar`, which need the package braceexpand.

    Raises:
        DatasetError: there is no such shard, or no member has the name of an image.
    """
    source = f"wds:{pattern}"
    if "://" in pattern or pattern.startswith("pipe:"):
        raise DatasetError(f"{source}: shards must be local files; nothing is downloaded")
    names = [pattern]
    if "{" in pattern and not os.path.exists(pattern):
        try:
            from braceexpand import braceexpand
        except ImportError as error:
            raise DatasetError(
                f"{source}: for braces the package braceexpand is needed: run"
                " `pip install aigc_ext[webdataset]`, or write the shards with * and ?"
            ) from error
        try:
            names = list(braceexpand(pattern))
        except ValueError as error:
            raise DatasetError(f"{source}: {error}") from error
    paths = [Path(path) for name in names if name for path in _matches(name)]
    missing = [str(path) for path in paths if not path.exists()]
    if len(missing) == len(paths):
        what = "there is no *.tar in it" if pattern and not missing else "there is no such file or folder"
        raise DatasetError(f"{source}: {what}")
    return _Shards(source, list(dict.fromkeys(paths)))


def _matches(name: str) -> list[str]:
    if os.path.isdir(name):
        return sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))
    found = [] if os.path.exists(name) else sorted(glob.glob(name))
    return found or [name]


def _members(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """The regular visible files; raises ReadError where the tar is truncated or damaged."""
    for info in tar:
        if info.isreg() and info.offset_data + info.size > size:
            raise tarfile.ReadError(f"{info.name} is cut off")
        if info.isreg() and not info.issparse() and not is_hidden(info.name):
            yield info
    # tarfile treats a damaged header as the end.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"there is no header at byte {tar.offset}")


def _common_name(paths: list[Path]) -> str:
    """`train` for train-0000.tar to train-0003.tar."""
    stems = sorted(path.stem for path in paths)
    pairs = zip(stems[0], stems[-1], strict=False)
    name = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return (name.rstrip("0123456789-_.") if len(paths) > 1 else name) or paths[0].resolve().parent.name
