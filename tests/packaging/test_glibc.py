"""The libraries load with glibc 2.28, so that `make wheel` may call the wheel manylinux_2_28
(csrc/core/old_glibc.cpp)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aigc_ext._native import LIBRARY_DIR

# What manylinux_2_28 has.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is part of binutils")
@pytest.mark.parametrize("library", sorted(LIBRARY_DIR.glob("*.so")), ids=lambda path: path.name)
def test_no_symbol_is_newer(library: Path) -> None:
    table = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True).stdout
    undefined = re.findall(r"\*UND\*.*\((GLIBC|GLIBCXX|CXXABI)_([\d.]+)\) +(\S+)$", table, re.MULTILINE)
    assert undefined
    newer = [
        f"{name} of {kind}_{version}"
        for kind, version, name in undefined
        if tuple(map(int, version.split("."))) > NEWEST[kind]
    ]
    assert not newer
