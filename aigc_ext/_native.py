"""Finds and loads the native libraries; if that fails, the error says what to do."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import warnings
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

try:
    import torch
except ImportError as error:
    raise ImportError(
        f"aigc_ext: torch cannot be imported: {error}. Run `pip install 'torch>=2.10'`."
    ) from error

LIBRARY_DIR = Path(__file__).parent / "lib"
OLDEST_TORCH = (2, 10)
# The first driver for each major version of CUDA, with which all its minor versions run.
DRIVERS = {12: 525, 13: 580}


def _load(path: Path) -> Path:
    if not path.exists():
        raise ImportError(
            f"aigc_ext: {path} does not exist: the native code is not built for this installation. "
            "In a checkout run `pip install --no-build-isolation -e .`; otherwise reinstall the wheel."
        )
    if _is_truncated(path):
        raise ImportError(f"aigc_ext: {path} does not load: file too short. {_advice('file too short')}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        cause = error.__cause__ or error  # the loader's message, which newer torch versions wrap
        raise ImportError(f"aigc_ext: {path} does not load: {cause}. {_advice(str(cause))}") from error
    return path


def _is_truncated(path: Path) -> bool:
    """Is the file truncated? Loading it would kill the process with SIGBUS. The section table is a file's
    last part."""
    with path.open("rb") as file:
        header = file.read(64)
    if header[:5] != b"\x7fELF\x02":  # not 64-bit ELF: the loader says so
        return False
    if len(header) < 64:
        return True
    order = "<" if header[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", header, 0x28)
    entry_size, entries = struct.unpack_from(f"{order}HH", header, 0x3A)
    return bool(path.stat().st_size < table + entry_size * entries)


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


def _cuda_of_driver(library: str = "libcuda.so.1") -> int | None:
    """The newest CUDA that the driver here runs, as 1000 * major + 10 * minor; None without a driver."""
    try:
        ask = ctypes.CDLL(library).cuDriverGetVersion
    except (OSError, AttributeError):
        return None
    version = ctypes.c_int()
    return version.value if ask(ctypes.byref(version)) == 0 else None


def _why_driver_is_too_old(library: Path, driver: int | None) -> str | None:
    """torch may be built for an older CUDA than our library, and run where ours does not."""
    if driver is None:
        return None
    built = ctypes.CDLL(str(library)).aigc_cuda_runtime_version()
    if driver // 1000 >= built // 1000:
        return None
    needed = DRIVERS.get(built // 1000)
    wanted = f"driver {needed} or newer" if needed else f"a driver for CUDA {built // 1000}"
    return (
        f"aigc_ext: {library} was built with CUDA {_version_of(built)}, which needs {wanted}, but the one "
        f"here runs CUDA {_version_of(driver)} at most: its kernels will fail. Update the driver, or build "
        f"aigc_ext with an nvcc of CUDA {driver // 1000}: "
        "`pip install --no-build-isolation --no-binary aigc_ext aigc_ext`."
    )


def _version_of(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def load() -> list[Path]:
    """Loads libaigc_ops and, if torch is a CUDA build and it exists, libaigc_ops_cuda. If the driver is too
    old for that, a RuntimeWarning says so: the CPU's ops work, and a call with CUDA tensors raises an error.

    AIGC_EXT_LIBRARY names a library to load instead: one of the tests' other backends.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise ImportError(
            f"aigc_ext: torch is {torch.__version__}, but must be >= {'.'.join(map(str, OLDEST_TORCH))}: "
            "`pip install -U torch`"
        )
    if other := os.environ.get("AIGC_EXT_LIBRARY"):
        loaded = [_load(Path(other))]
    else:
        loaded = [_load(LIBRARY_DIR / "libaigc_ops.so")]
        cuda = LIBRARY_DIR / "libaigc_ops_cuda.so"
        if torch.version.cuda is not None and cuda.exists():
            loaded.append(_load(cuda))
            if reason := _why_driver_is_too_old(cuda, _cuda_of_driver()):
                warnings.warn(reason, RuntimeWarning, stacklevel=2)
    try:
        torch.ops.aigc.instruction_set()
    except AttributeError as error:
        raise ImportError(f"aigc_ext: {loaded[0]} has none of our ops. {_advice(str(error))}") from error
    except RuntimeError as error:
        raise ImportError(f"aigc_ext: {error}") from error
    return loaded


def load_autograd() -> ModuleType | None:
    """The C++ form of the ops' autograd nodes; None if it wasn't built for this torch and this Python, or
    AIGC_EXT_AUTOGRAD is `python`. The form in Python, of ops/_op.py, does the same, slower at small sizes."""
    chosen = os.environ.get("AIGC_EXT_AUTOGRAD", "auto")
    if chosen not in ("auto", "native", "python"):
        raise ImportError(f"aigc_ext: AIGC_EXT_AUTOGRAD is {chosen!r}, but must be auto, native or python")
    # Beside the versions in the name, nothing could tell: another torch may have the same symbols.
    name = f"aigc_autograd-torch{torch.__version__.split('+')[0]}-{sys.implementation.cache_tag}.so"
    path = LIBRARY_DIR / name
    if chosen == "python":
        return None
    if not path.exists() or _is_truncated(path):
        if chosen == "native":
            raise ImportError(f"aigc_ext: AIGC_EXT_AUTOGRAD is native, but {path} is missing or damaged")
        return None
    loader = ExtensionFileLoader("aigc_autograd", str(path))
    try:
        module = module_from_spec(spec_from_loader("aigc_autograd", loader))  # type: ignore[arg-type]
        loader.exec_module(module)
    except ImportError as error:
        raise ImportError(f"aigc_ext: {path} does not load: {error}. {_advice(str(error))}") from error
    return module


libraries = load()
autograd = load_autograd()
