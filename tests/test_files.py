"""What `_files` promises if the system refuses a call."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aigc_ext import _files


def refuse(error):
    def call(*args, **kwargs):
        raise OSError(error, os.strerror(error))

    return call


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_replaced_stays_and_nothing_is_left(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, call, refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        _files.replace_file(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_errors_name_the_file(tmp_path, monkeypatch):
    """Python names it where it is opened, but not where it is synced or read."""
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError) as caught:
        _files.write_durable(tmp_path / "a", b"new")
    assert _files.describe_os_error(caught.value) == f"Input/output error: {tmp_path / 'a'}"
    with pytest.raises(OSError) as caught:
        _files.fsync_directory(tmp_path)
    assert caught.value.filename == str(tmp_path)
    # /proc/self/mem can be opened, and its first page not be read.
    with pytest.raises(OSError) as caught:
        _files.read_bytes(Path("/proc/self/mem"))
    assert _files.describe_os_error(caught.value) == "Input/output error: /proc/self/mem"


def test_an_error_that_has_a_file_keeps_it(tmp_path):
    with pytest.raises(OSError) as caught, _files.named(tmp_path / "a"):
        (tmp_path / "b").read_bytes()
    assert caught.value.filename == str(tmp_path / "b")


def test_an_unfinished_folder_is_removed(tmp_path):
    temporary = _files.temporary_path(tmp_path / "a")
    (temporary / "b").mkdir(parents=True)
    (temporary / "b" / "c").write_text("")
    with pytest.raises(FileNotFoundError), _files.removed_if_it_fails(temporary):
        (tmp_path / "d").read_bytes()
    assert list(tmp_path.iterdir()) == []
