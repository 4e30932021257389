"""Safetensors files that may be anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """`safetensors.safe_open`, which maps the file into memory, for PyTorch.

    Raises SafetensorError for other contents, and OSError, naming the file, if the system refuses to open or
    map it: PyTorch, which does that, raises a RuntimeError.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (RuntimeError, MemoryError) as error:
        raise OSError(f"{path} cannot be opened: {' '.join(str(error).split())}") from error
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
