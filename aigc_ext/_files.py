"""Files that are whole or not there: what a run leaves on disk is written through these few functions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".tmp-"
"""What is still being written has a name that starts so. It never survives the next start of its run."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def json_digest(content: Mapping[str, Any]) -> str:
    """The SHA-256 that an object carries under the key "sha256", of all else in it."""
    body = {key: value for key, value in content.items() if key != "sha256"}
    return sha256(json.dumps(body, sort_keys=True).encode())


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync_directory(path: Path) -> None:
    """Makes the names in a directory durable: a file's own fsync does not cover its directory entry."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A name beside `path`, on the same file system, so that the rename is atomic."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")


def write_durable(path: Path, data: bytes) -> None:
    """Writes a new file and returns once its bytes are on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Sets a file's content so that a reader sees the old one or the new one.

    Args:
        durable: also if the machine dies, and the new one for certain once this returns.
    """
    temporary = temporary_path(path)
    if durable:
        write_durable(temporary, data)
    else:
        temporary.write_bytes(data)
    os.replace(temporary, path)
    if durable:
        fsync_directory(path.parent)


def remove_temporaries(directory: Path, *, min_age: float = 0.0) -> list[Path]:
    """Removes what a killed process left half written in `directory`; returns what it removed.

    Args:
        min_age: in seconds, for a directory in which other processes may be writing.
    """
    newest = time.time() - min_age
    left = [path for path in directory.glob(f"{TEMPORARY_PREFIX}*") if path.lstat().st_mtime <= newest]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return left
