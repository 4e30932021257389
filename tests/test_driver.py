"""The driver is tested when the CUDA library is loaded: against stand-ins, since there need be no card
here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aigc_ext import _native
from tests.test_import import compile_library
from tests.test_repository import ROOT

DRIVER_OF = 'extern "C" int cuDriverGetVersion(int* version) {{ *version = {}; return {}; }}'
BUILT_WITH = 'extern "C" int aigc_cuda_runtime_version() {{ return {}; }}'


@pytest.mark.parametrize(("version", "status", "expected"), [(12040, 0, 12040), (0, 35, None)])
def test_version_of_a_driver(tmp_path: Path, version: int, status: int, expected: int | None) -> None:
    compile_library(tmp_path / "libcuda.so", DRIVER_OF.format(version, status))
    assert _native._cuda_of_driver(str(tmp_path / "libcuda.so")) == expected


def test_there_is_no_driver(tmp_path: Path) -> None:
    assert _native._cuda_of_driver("libno_driver_has_this_name.so.1") is None
    compile_library(tmp_path / "libcuda.so", "int other;")
    assert _native._cuda_of_driver(str(tmp_path / "libcuda.so")) is None


def test_which_driver_is_too_old(tmp_path: Path) -> None:
    library = tmp_path / "libaigc_ops_cuda.so"
    compile_library(library, BUILT_WITH.format(13000))
    for fits in (None, 13000, 13020, 14000):
        assert _native._why_driver_is_too_old(library, fits) is None
    reason = _native._why_driver_is_too_old(library, 12040)
    assert reason is not None
    assert "was built with CUDA 13.0, which needs driver 580 or newer" in reason
    assert "the one here runs CUDA 12.4 at most" in reason


def test_loading_says_so_and_the_rest_works(tmp_path: Path) -> None:
    """A CUDA build of torch on a machine whose driver is too old, as far as Python can tell."""
    compile_library(tmp_path / "libcuda.so.1", DRIVER_OF.format(12040, 0))
    compile_library(tmp_path / "libaigc_ops_cuda.so", BUILT_WITH.format(13000))
    (tmp_path / "libaigc_ops.so").symlink_to(_native.LIBRARY_DIR / "libaigc_ops.so")
    code = (
        "import pathlib, sys, types, torch, warnings\n"
        "torch.version.cuda = '12.6'\n"
        "source = pathlib.Path('aigc_ext/_native.py').read_text()\n"
        "source = source.replace('libraries = load()', '')\n"
        "native = types.ModuleType('native'); native.__file__ = 'aigc_ext/_native.py'\n"
        "exec(source, native.__dict__)\n"
        "native.LIBRARY_DIR = pathlib.Path(sys.argv[1])\n"
        "native.load()\n"
        "print(torch.ops.aigc.any_nonfinite([torch.ones(2)]).item())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "AIGC_EXT_LIBRARY"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**environment, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["0.0"]
    assert "RuntimeWarning: aigc_ext: " in result.stderr
    assert "needs driver 580 or newer" in result.stderr
