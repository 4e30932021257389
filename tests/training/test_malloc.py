from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

from aigc_ext.training.malloc import keep_freed_memory


def test_glibc_keeps_freed_memory():
    """Without torch, in a process of its own: the setting cannot be taken back."""
    module = Path(inspect.getfile(keep_freed_memory))
    code = f"""
import ctypes, runpy
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
def mapped():
    fields = ctypes.c_size_t * 10
    libc.mallinfo2.restype = type("info", (ctypes.Structure,), {{"_fields_": [("f", fields)]}})
    return libc.mallinfo2().f[3]  # blocks obtained by mmap
for expected in (1, 0):
    before = mapped()
    block = libc.malloc(200 << 20)
    assert mapped() - before == expected, (mapped(), before)
    libc.free(block)
    runpy.run_path({str(module)!r})["keep_freed_memory"]()
"""
    untold = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=untold)
