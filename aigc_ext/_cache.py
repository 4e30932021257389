"""A cache on disk for results computed from real data: of metrics, and of the data itself."""

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
from aigc_ext._safetensors import open_safetensors

_FORMAT = 1
_log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """`aigc_ext` in the user's cache directory: `$XDG_CACHE_HOME`, or `~/.cache` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aigc_ext"


class Cache:
    """Named tensors under a key, each key a safetensors file with a checksum, written atomically.

    Args:
        directory: created on the first write; by default `default_cache_dir()`. It may be removed at any
            time.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = default_cache_dir() if directory is None else Path(directory)

    def get(
        self, kind: str, key: dict[str, str | int], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Returns the stored tensors, or else computes and stores them.

        A damaged file is recomputed and replaced. If the directory is not writable, nothing is stored. Both
        are logged.
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
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        # Copies: the tensors must not change if the file is replaced or truncated.
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
