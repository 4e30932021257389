from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from .build import ISA_FLAGS


def test_every_instruction_set_compiles(module: ModuleType) -> None:
    assert list(module.isas()) == list(ISA_FLAGS)
    assert module.isas()["baseline"]


@pytest.mark.parametrize("isa", ISA_FLAGS)
def test_no_function_is_shared_between_instruction_sets(build_folder: Path, isa: str) -> None:
    """A weak symbol outside its set's namespace: the linker could keep the AVX-512 copy for every CPU."""
    assert shutil.which("nm"), "nm is part of binutils, which the compiler needs"
    listing = subprocess.run(
        ["nm", "--demangle", "--defined-only", str(build_folder / f"core_ops_{isa}.o")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    weak = re.findall(r"^\S* [WVu] (.*)$", listing, re.MULTILINE)
    outside = [symbol for symbol in weak if f"aigc::cpu_{isa}::" not in symbol]
    assert not outside
    assert f"aigc::cpu_{isa}::run_core_op" in listing


def test_unknown_names_are_refused(module: ModuleType) -> None:
    x = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"no operation 'nothing\.float32'"):
        module.run("baseline", "nothing.float32", x, x.copy())
    with pytest.raises(ValueError, match="no instruction set 'mmx'"):
        module.run("mmx", "exp.float32", x, x.copy())
