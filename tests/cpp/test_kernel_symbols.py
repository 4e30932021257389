"""The CPU kernels of the instruction sets must share no function: see csrc/core/numeric.h."""

from __future__ import annotations

import re
from pathlib import Path

import aigc_ext
from tests.cpp.test_examples import run

ARCHIVE = Path(aigc_ext.cmake_prefix()) / "lib" / "libaigc_kernels.a"


def test_no_function_is_shared_between_instruction_sets() -> None:
    """A weak symbol outside its set's namespace: the linker could keep the AVX-512 copy for every CPU."""
    listing = run("nm", "--demangle", "--defined-only", "--print-file-name", ARCHIVE)
    functions = re.findall(r"^\S+:(\S+_cpu\.cpp\.o):\S* ([TtWVu]) (.*)$", listing, re.MULTILINE)
    assert sum("aigc::cpu_baseline::" in name for _, _, name in functions) > 20
    weak = [f"{file}: {name}" for file, kind, name in functions if kind in "WVu"]
    assert [entry for entry in weak if "aigc::cpu_" not in entry and "DW.ref." not in entry] == []
