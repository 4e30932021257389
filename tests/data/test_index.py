"""Files are opened once, and again only after they have changed."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aigc_ext._cache import default_cache_dir
from aigc_ext.data import ImageDataset, files, image_file, index, open_dataset
from tests.data.helpers import encoded, pixels, write
from tests.data.test_shards import shard

COUNT = 8


def contents() -> dict[str, bytes]:
    return {f"{i}.bmp": encoded(pixels(i, (4, 4, 3)), "BMP") for i in range(COUNT)}


def folder(root: Path) -> str:
    return str(write(root / "set", contents()))


def zipped(root: Path) -> str:
    folder(root)
    return shutil.make_archive(str(root / "set"), "zip", root / "set")


def shards(root: Path) -> str:
    return f"wds:{shard(root / 'set.tar', contents().items())}"


def array(root: Path) -> str:
    np.save(root / "set.npy", np.stack([pixels(i, (4, 4, 3)) for i in range(COUNT)]))
    return str(root / "set.npy")


@pytest.fixture(autouse=True)
def everything_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("_MIN_FILES", "_CLOCK_NS"):
        monkeypatch.setattr(index, name, 0)


class Reads:
    """Counts how often the headers and the content of a file are read to know it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for owner, name in (
            (image_file, "probe"),
            (files.FileImages, "_note_digest"),
            (ImageDataset, "_identify"),
        ):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*arguments):
            self.count += function.__name__ != "_identify" or type(arguments[0]).__name__ == "_MappedImages"
            return function(*arguments)

        return call


@pytest.mark.parametrize("make", [folder, zipped, shards, array])
def test_a_second_start_reads_no_file_again(tmp_path, monkeypatch, make):
    source = make(tmp_path)
    first = open_dataset(source, memory_limit=0).identity()
    reads = Reads(monkeypatch)
    again = open_dataset(source, memory_limit=0)
    assert again.identity() == first
    assert (again.image_shape, reads.count) == ((3, 4, 4), 0)
    (tmp_path / "cache").rename(tmp_path / "away")
    assert open_dataset(source, memory_limit=0).identity() == first
    assert reads.count >= 1


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    root = Path(folder(tmp_path))
    before = open_dataset(root, memory_limit=0).identity()
    path = root / "3.bmp"
    info = path.stat()
    path.write_bytes(encoded(pixels(33, (4, 4, 3)), "BMP"))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (info.st_size, info.st_mtime_ns)
    after = open_dataset(root, memory_limit=0).identity()
    assert [a == b for a, b in zip(before.digests, after.digests, strict=True)] == [
        i != 3 for i in range(COUNT)
    ]


def test_a_member_that_was_replaced_is_read_again(tmp_path):
    path = Path(zipped(tmp_path))
    before = open_dataset(path, memory_limit=0).content_hash()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**contents(), "3.bmp": encoded(pixels(33, (4, 4, 3)), "BMP")}.items():
            archive.writestr(name, data)
    assert open_dataset(path, memory_limit=0).content_hash() != before


def test_what_has_just_changed_is_not_relied_upon(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_CLOCK_NS", 10**12)
    source = folder(tmp_path)
    open_dataset(source, memory_limit=0).content_hash()
    reads = Reads(monkeypatch)
    open_dataset(source, memory_limit=0)
    assert reads.count == COUNT


def test_a_damaged_index_is_made_anew(tmp_path, caplog):
    source = folder(tmp_path)
    first = open_dataset(source, memory_limit=0).identity()
    (path,) = (default_cache_dir() / "data").glob("index-*.json")
    path.write_bytes(path.read_bytes().replace(b"[3, 4, 4]", b"[3, 9, 4]"))
    assert open_dataset(source, memory_limit=0).identity() == first
    assert "is damaged and made anew" in caplog.text


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_dataset(folder(tmp_path), memory_limit=0).identity().names) == COUNT
    assert "cannot be written" in caplog.text


def test_small_sources_leave_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_MIN_FILES", COUNT + 1)
    open_dataset(folder(tmp_path), memory_limit=0).content_hash()
    assert not (tmp_path / "cache").exists()


def test_long_passes_are_reported(tmp_path):
    told: list[tuple[str, int, int]] = []
    dataset = open_dataset(folder(tmp_path), report=lambda *what: told.append(what))
    dataset.identity()
    assert {what for what, _, _ in told} == {"indexing", "reading", "identifying"}
    assert ("reading", COUNT, COUNT) in told
