"""Atomic writing of files: a run writes all its files with these functions.

Whatever fails, an OSError names the file, and what was begun is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_MAX_JSON_DEPTH = 100
TEMPORARY_PREFIX = ".tmp-"
"""The prefix of files that are still being written. They are removed when their run next starts."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises ValueError whatever is wrong with it: also for bytes that are no UTF-8, and for values nested more
    than 100 deep, on which Python's parser or a reader of the value would end with a RecursionError.
    """
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    too_deep = ValueError(f"it is nested more than {_MAX_JSON_DEPTH} deep")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise too_deep from error
    level = [value]
    for _ in range(_MAX_JSON_DEPTH + 1):
        containers = [each for each in level if isinstance(each, (dict, list))]
        if not containers:
            return value
        values = (each.values() if isinstance(each, dict) else each for each in containers)
        level = [inner for each in values for inner in each]
    raise too_deep


def json_digest(content: Mapping[str, Any]) -> str:
    """The SHA-256 of an object without its key "sha256", under which it is stored."""
    body = {key: value for key, value in content.items() if key != "sha256"}
    return sha256(json.dumps(body, sort_keys=True).encode())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError inside names the file. Python's own errors do only where the file is opened, not where it is
    read, written or synced, as on a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def describe_os_error(error: OSError) -> str:
    """`No space left on device: runs/00000-mlp/stats.jsonl`."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"


def read_bytes(path: Path) -> bytes:
    with named(path):
        return path.read_bytes()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with named(path), path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync_directory(path: Path) -> None:
    """Makes the names in a directory durable: a file's own fsync does not cover its directory entry."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A name next to `path`, on the same file system, so that the rename is atomic."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")


def write_durable(path: Path, data: bytes) -> None:
    """Writes a new file and returns once its content is on disk."""
    with named(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replaces a file's content atomically: a reader sees the old content or the new.

    Args:
        durable: this also holds after a system crash, and the new content is on disk once this returns.
    """
    temporary = temporary_path(path)
    with removed_if_it_fails(temporary):
        if durable:
            write_durable(temporary, data)
        else:
            with named(path):
                temporary.write_bytes(data)
        os.replace(temporary, path)
    if durable:
        fsync_directory(path.parent)


@contextmanager
def removed_if_it_fails(temporary: Path) -> Iterator[None]:
    """If the block raises, what it has made of this file or folder is removed: a disk that is full needs the
    space. A process that is killed leaves it, for `remove_temporaries`."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            _remove(temporary)
        raise


def remove_temporaries(directory: Path, *, min_age: float = 0.0) -> list[Path]:
    """Removes the unfinished files of a killed process from `directory`; returns their paths.

    Args:
        min_age: minimum age in seconds, for a directory in which other processes may be writing.
    """
    newest = time.time() - min_age
    left = [path for path in directory.glob(f"{TEMPORARY_PREFIX}*") if path.lstat().st_mtime <= newest]
    for path in left:
        _remove(path)
    return left


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
