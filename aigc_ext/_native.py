"""Finds and loads the native libraries; says what to do where that fails."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

LIBRARY_DIR = Path(__file__).parent / "lib"
OLDEST_TORCH = (2, 10)


def _load(name: str) -> Path:
    path = LIBRARY_DIR / f"lib{name}.so"
    if not path.exists():
        raise ImportError(
            f"aigc_ext: {path} does not exist: the native code is not built for this installation. "
            "In a checkout run `pip install --no-build-isolation -e .`; otherwise reinstall the wheel."
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(f"aigc_ext: {path} does not load: {error}. {_advice(str(error))}") from error
    return path


def _advice(message: str) -> str:
    if "undefined symbol" in message:
        return (
            f"The installed torch {torch.__version__} lacks a symbol that the library was linked against; "
            f"it needs torch >= {'.'.join(map(str, OLDEST_TORCH))}, "
            "and its CUDA part a CUDA build of torch. Update torch, or rebuild aigc_ext with "
            "`pip install --no-build-isolation -e .`."
        )
    if "GLIBC" in message or "GLIBCXX" in message or "CXXABI" in message:
        return (
            "The library was built for a newer C/C++ runtime than this system's. Build it here: "
            "`pip install --no-build-isolation --no-binary aigc_ext aigc_ext`."
        )
    if "invalid ELF header" in message or "wrong ELF class" in message or "file too short" in message:
        return (
            f"The file is damaged or of another machine type than this one ({platform.machine()}). "
            "Reinstall aigc_ext, or rebuild it with `pip install --no-build-isolation -e .`."
        )
    return "Rebuild it with `pip install --no-build-isolation -e .`."


def load() -> list[Path]:
    """Loads libaigc_ops and, where torch is a CUDA build and it was built, libaigc_ops_cuda."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise ImportError(
            f"aigc_ext: torch is {torch.__version__}, but must be >= {'.'.join(map(str, OLDEST_TORCH))}: "
            "`pip install -U torch`"
        )
    loaded = [_load("aigc_ops")]
    if torch.version.cuda is not None and (LIBRARY_DIR / "libaigc_ops_cuda.so").exists():
        loaded.append(_load("aigc_ops_cuda"))
    try:
        torch.ops.aigc.instruction_set()
    except RuntimeError as error:
        raise ImportError(f"aigc_ext: {error}") from error
    return loaded


libraries = load()
