"""Lets chosen calls of the system fail, in the process that loaded faults.cpp first.

    LD_PRELOAD=build(folder)                            # in the environment of the process
    arm(root, KINDS, first=3, error=errno.ENOSPC)       # in the process

Whoever makes the calls: Python, Pillow, safetensors, PyTorch, our kernels.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

KINDS = (
    "open",  # of a file that exists, or of a folder
    "create",  # of a file that may not exist
    "read",
    "write",
    "fsync",
    "rename",
    "mkdir",
    "unlink",  # of a file or a folder
    "list",  # the entries of a folder
    "map",  # of a file into memory
    "tensor",  # PyTorch's memory on the CPU, of a kilobyte or more
    "workspace",  # our kernels' temporary memory
)
SHORT_WRITE = -1  # half of the data is written, and the call says so
KILL = -2  # the process ends at once, by SIGKILL; if it writes, half-way
_EVER = 1 << 60


def build(folder: Path) -> Path:
    """Compiles the library."""
    library = folder / "libfaults.so"
    source = Path(__file__).with_name("faults.cpp")
    subprocess.run(
        ["c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
    )
    return library


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    if not hasattr(library, "fault_arm"):
        raise RuntimeError("this process was not started with LD_PRELOAD=libfaults.so")
    library.fault_first.restype = ctypes.c_char_p
    library.fault_calls.restype = library.fault_count.restype = ctypes.c_long
    library.fault_code.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


def arm(
    root: Path,
    kinds: Iterable[str],
    *,
    first: int = _EVER,
    count: int = 1,
    error: int = 0,
    notes: Path | None = None,
) -> None:
    """From now on, calls of these kinds are counted from 1, and `count` of them fail, beginning with `first`.

    Args:
        root: only calls for files in this folder count.
        error: a number of `errno`, SHORT_WRITE or KILL.
        notes: where a process that is killed leaves what `first_injected` would return.
    """
    mask = sum(1 << KINDS.index(kind) for kind in kinds)
    code = _our_code()
    _library().fault_code(*code)
    _library().fault_notes(os.fsencode(notes or ""))
    _library().fault_arm(
        str(root.resolve()).encode(),
        ctypes.c_uint(mask),
        ctypes.c_long(first),
        ctypes.c_long(count),
        ctypes.c_int(error),
    )


def disarm() -> None:
    _library().fault_disarm()


def calls() -> int:
    """The number of calls since `arm`."""
    return int(_library().fault_calls())


def injected() -> int:
    """How many of them failed."""
    return int(_library().fault_count())


def first_injected() -> str:
    """Kind and path, or number of bytes, of the first that failed."""
    return str(_library().fault_first().decode())


def _our_code() -> tuple[int, int]:
    """The addresses of our library of ops, in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ours = [line.split()[0].split("-") for line in lines if "/libaigc_ops" in line]
    ends = [int(end, 16) for pair in ours for end in pair]
    return min(ends, default=0), max(ends, default=0)
