"""What nvcc makes of the hot kernels, by csrc/check_kernels.py: no spilled registers, 16-byte accesses."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cpp.test_examples import ROOT

SCRIPT = ROOT / "csrc" / "check_kernels.py"
_spec = importlib.util.spec_from_file_location("check_kernels", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
check_kernels = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = check_kernels
_spec.loader.exec_module(check_kernels)

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None or check_kernels.missing_tool() is not None,
    reason="needs nvcc, cuobjdump and nvdisasm",
)

# An op's file with fewer of its dtypes and activations, so that it compiles in seconds.
REDUCED = """
#include "core/activation.h"
#include "core/numeric.h"

namespace aigc {
template <class F>
constexpr void two_dtypes(DType, F&& f) {
  f(static_cast<float*>(nullptr));
  f(static_cast<half*>(nullptr));
}
template <class F>
void two_acts(Act, F&& f) {
  f(ActTag<Act::lrelu>());
  f(ActTag<Act::swish>());
}
}  // namespace aigc

#define dispatch_dtype two_dtypes
#define dispatch_act two_acts
#include "OP/OP.cu"
"""


def compiled(source: str, folder: Path) -> Path:
    unit, cubin = folder / "unit.cu", folder / "unit.cubin"
    unit.write_text(source)
    command = ["nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-arch=sm_90", "-cubin"]
    includes = ["-I", str(ROOT / "csrc"), "-I", str(Path(torch.__file__).parent / "include")]
    subprocess.run([*command, *includes, "-o", str(cubin), str(unit)], check=True, timeout=600)
    return cubin


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("op", sorted({hot.op for hot in check_kernels.HOT}))
def test_hot_kernels_keep_to_registers_and_wide_accesses(op: str, tmp_path: Path) -> None:
    path = compiled(REDUCED.replace("OP", op), tmp_path)
    found = check_kernels.kernels(path)
    for hot in check_kernels.HOT:
        if hot.op == op:
            assert any(check_kernels.re.search(hot.pattern, kernel.name) for kernel in found), hot
    result = check(path)
    assert result.returncode == 0, result.stdout + result.stderr


FAULTS = """
namespace aigc {
namespace {
template <class T> struct Forward {};
template <class T, class Pass, bool kSum> __global__ void bias_act_kernel(T* p, int n) {
  BODY
}
template __global__ void bias_act_kernel<float, Forward<float>, false>(float*, int);
}  // namespace
}  // namespace aigc
"""
LOAD = "float4 v = reinterpret_cast<float4*>(p)[n];"
STORE = "reinterpret_cast<float4*>(p)[threadIdx.x] = v;"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (LOAD + STORE, None),
        ("float4 v = {p[n], 1, 2, 3};" + STORE, "no 16-byte load"),
        (LOAD + "p[threadIdx.x] = v.x + v.y + v.z + v.w;", "no 16-byte store"),
        (LOAD + STORE + "volatile float a[64]; a[n & 63] = v.x; p[0] = a[n & 31];", "of local memory"),
    ],
    ids=["none", "load", "store", "local"],
)
def test_planted_faults_are_found(body: str, complaint: str | None, tmp_path: Path) -> None:
    result = check(compiled(FAULTS.replace("BODY", body), tmp_path))
    assert "1 kernels, 1 of them hot" in result.stdout, result.stdout + result.stderr
    assert result.returncode == (complaint is not None), result.stdout
    if complaint is not None:
        assert complaint in result.stdout


def test_a_file_without_kernels_is_an_error() -> None:
    result = check(ROOT / "aigc_ext" / "lib" / "libaigc_ops.so")
    assert result.returncode != 0
    assert "no kernels" in result.stderr or "exit status" in result.stderr
