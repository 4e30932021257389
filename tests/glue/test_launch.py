"""launch() checks every call of the CUDA runtime, against a stand-in for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.test_repository import ROOT

CALLS = ("cudaGetDevice", "cudaDeviceGetAttribute", "cudaFuncSetAttribute", "cudaLaunchKernel")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("launch") / "launch"
    here = ROOT / "tests/glue"
    includes = [f"-I{here / 'stand_in'}", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["c++", "-std=c++20", *includes, str(here / "launch.cpp"), "-o", str(path)], check=True)
    return path


@pytest.mark.parametrize("call", ["", *CALLS])
def test_what_fails_is_named_and_the_error_is_not_left_behind(program: Path, call: str) -> None:
    result = subprocess.run([program, call], capture_output=True, text=True, check=True, timeout=60)
    expected = f"{call} failed: the reason" if call else "launched"
    assert result.stdout.splitlines() == [expected, "0"]
