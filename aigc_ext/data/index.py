"""What earlier starts learned about the files of a source, so that they need not be opened again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from typing import Any

from aigc_ext import _files
from aigc_ext._cache import default_cache_dir

Stamp = tuple[int, ...]
"""Numbers that change whenever a file is changed: its size and times."""
Shape = tuple[int, int, int]

_FORMAT = "aigc_ext index 1"
# A second change within the resolution of a file system's clock (2 seconds on FAT) leaves the times as they
# are.
_CLOCK_NS = 2_000_000_000
# Smaller sources are looked through in a moment.
_MIN_FILES = 500
_MIN_BYTES = 64 << 20
_log = logging.getLogger(__name__)


def file_stamp(info: os.stat_result) -> Stamp | None:
    """The stamp of a file; None if it changed so recently that another change could leave the same one.

    The time of the last change of status is part of it: copying tools set the time of modification back.
    """
    changed = max(info.st_mtime_ns, info.st_ctime_ns)
    if time.time_ns() - changed < _CLOCK_NS:
        return None
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


class FileIndex:
    """The shapes and hashes of a source's files, kept in the user's cache directory.

    An entry counts as long as the file's stamp is the same.

    Args:
        origin: what identifies the source on this machine, such as its real path.
    """

    def __init__(self, origin: str) -> None:
        name = hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._path = default_cache_dir() / "data" / f"index-{name}.json"
        self._entries: dict[str, list[Any]] = self._read()  # [shape, SHA-256, *stamp] by name
        self._changed = False
        self._bytes = 0

    def shape(self, name: str, stamp: Stamp | None) -> Shape | None:
        entry = self._entry(name, stamp)
        return None if entry is None or entry[0] is None else tuple(entry[0])

    def digest(self, name: str, stamp: Stamp | None) -> bytes | None:
        """The SHA-256 of a file's content."""
        entry = self._entry(name, stamp)
        return None if entry is None or entry[1] is None else bytes.fromhex(entry[1])

    def note(
        self,
        name: str,
        stamp: Stamp | None,
        *,
        shape: Shape | None = None,
        digest: bytes | None = None,
        size: int = 0,
    ) -> None:
        """`size` is the number of bytes that were read to know it."""
        if stamp is None:
            return
        entry = self._entry(name, stamp) or [None, None, *stamp]
        if shape is not None:
            entry[0] = list(shape)
        if digest is not None:
            entry[1] = digest.hex()
        self._entries[name] = entry
        self._changed = True
        self._bytes += size

    def save(self, names: Iterable[str]) -> None:
        """Writes the entries of `names`, all files of the source, if looking at them again would take a
        while. A cache that cannot be written is only logged."""
        if not self._changed:
            return
        present = set(names)
        entries = {name: entry for name, entry in self._entries.items() if name in present}
        if len(entries) < _MIN_FILES and self._bytes < _MIN_BYTES:
            return
        body = json.dumps({"format": _FORMAT, "entries": entries}).encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _files.replace_file(self._path, f"{_files.sha256(body)}\n".encode() + body, durable=False)
        except OSError as error:
            _log.warning("cache file %s cannot be written (%s)", self._path, error.strerror)
        self._changed = False

    def _entry(self, name: str, stamp: Stamp | None) -> list[Any] | None:
        entry = self._entries.get(name)
        return entry if entry is not None and stamp is not None and entry[2:] == list(stamp) else None

    def _read(self) -> dict[str, list[Any]]:
        try:
            digest, _, body = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            _log.warning("cache file %s cannot be read (%s) and is made anew", self._path, error.strerror)
            return {}
        if digest.decode("ascii", "replace") != _files.sha256(body):
            _log.warning("cache file %s is damaged and made anew", self._path)
            return {}
        content = json.loads(body)
        return content["entries"] if content["format"] == _FORMAT else {}
