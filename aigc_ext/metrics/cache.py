"""Figures of real data that were computed before, in files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from aigc_ext import _files

_FORMAT = 1
_log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """`aigc_ext` in the user's cache: `$XDG_CACHE_HOME`, or `~/.cache` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aigc_ext"


class Cache:
    """Named tensors under a key, a safetensors file each, written atomically and with a checksum.

    Args:
        directory: made when it is first written to; by default `default_cache_dir()`. It may be removed at
            any time.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = default_cache_dir() if directory is None else Path(directory)

    def get(
        self, kind: str, key: dict[str, str | int], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What is stored under the key, else what `compute` returns, which is then stored.

        A damaged file is computed anew and replaced, and a directory that cannot be written to is done
        without; the log says so.
        """
        text = json.dumps({"format": _FORMAT, "kind": kind, **key}, sort_keys=True)
        path = self.directory / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
        try:
            return _read(path, text)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            _log.warning("cache file %s is damaged (%s) and computed anew", path, error)
        tensors = compute()
        metadata = {"key": text, "sha256": _digest(tensors)}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _files.replace_file(path, safetensors.torch.save(tensors, metadata))
        except OSError as error:
            _log.warning("cache file %s cannot be written (%s)", path, error.strerror)
        return tensors


def _read(path: Path, key: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        # Copies: the tensors must not change with a file that is replaced or cut short.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if metadata.get("key") != key:
        raise ValueError("it belongs to another key")
    if metadata.get("sha256") != _digest(tensors):
        raise ValueError("its SHA-256 does not match")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
