"""Makes glibc's allocator keep freed memory.

By default glibc maps every large block anew and unmaps it when it is freed, so each large CPU tensor causes
page
faults every time: leaky ReLU over 64 MiB takes 50 ms instead of 8 on one core. Tensors of less than a few
MiB, such as those of the preset mlp, gain nothing. The settings are those of the environment variables
MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_, without starting a new process.
"""

from __future__ import annotations

import ctypes
import os

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_KEEP_BYTES = 1 << 30
_GROW_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """Lets freed blocks of up to 1 GiB be reused instead of returned to the system.

    It applies to the whole process until it ends, and the process stays at its peak size.

    Raises RuntimeError if the C library is not glibc, or rejects the settings.
    """
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        raise RuntimeError("malloc is 'keep', but the C library of this system is not glibc")
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in (
        (_M_MMAP_THRESHOLD, _KEEP_BYTES),
        (_M_TRIM_THRESHOLD, _KEEP_BYTES),
        (_M_TOP_PAD, _GROW_BYTES),
    ):
        if mallopt(parameter, value) != 1:
            raise RuntimeError(f"malloc is 'keep', but glibc refused mallopt({parameter}, {value})")
