"""An op folder without a .cu: the op runs on the CPU, and the other libraries build and load without it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.cpp.test_build import TORCH, needs_nvcc, undefined_symbols
from tests.cpp.test_examples import ROOT, run

LOAD = "import torch; torch.ops.load_library({!r}); x = torch.arange(-5.0, 15.0); ops = torch.ops.aigc; "


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with two ops: one of ours, which has all kernels, and tests/cpp/negated."""
    tree = tmp_path_factory.mktemp("cpu_only")
    for path in ("CMakeLists.txt", "aigc_ext/version.py"):
        (tree / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tree / path)
    for path in ("cmake", "csrc/core", "csrc/glue", "csrc/sample_sqnorm", "tests/simt"):
        shutil.copytree(ROOT / path, tree / path)
    shutil.copytree(ROOT / "tests/cpp/negated", tree / "csrc/negated")
    return tree


def configure(tree: Path, folder: Path, *options: str) -> str:
    return run("cmake", "-S", tree, "-B", folder, "-G", "Ninja", TORCH, *options, TORCH_CUDA_ARCH_LIST="9.0")


def test_the_simt_library_has_the_schema_and_refers_to_no_kernel(tree: Path, tmp_path: Path) -> None:
    output = configure(tree, tmp_path, "-DAIGC_SIMT=on")
    assert "negated is for the CPU only: it has no .cu" in output
    assert "sample_sqnorm is" not in output
    run("cmake", "--build", tmp_path, "--target", "aigc_ops", "aigc_ops_simt")
    cpu, simt = tmp_path / "libaigc_ops.so", tmp_path / "libaigc_ops_simt.so"
    assert [symbol for symbol in undefined_symbols(simt) if "aigc::" in symbol] == []
    run(sys.executable, "-c", LOAD.format(str(cpu)) + "assert ops.negated(x).equal(-x)")
    loaded = LOAD.format(str(simt))
    run(sys.executable, "-c", loaded + "assert ops.sample_sqnorm(x[:, None]).equal(x.square())")
    missing = "import pytest\nwith pytest.raises(NotImplementedError, match='aigc::negated'): ops.negated(x)"
    run(sys.executable, "-c", f"{loaded}\n{missing}")


@needs_nvcc
def test_the_cuda_library_has_nothing_of_it(tree: Path, tmp_path: Path) -> None:
    configure(tree, tmp_path, "-DAIGC_CUDA=on")
    inputs = run("ninja", "-C", tmp_path, "-t", "inputs", "libaigc_ops_cuda.so")
    assert "sample_sqnorm.cpp" in inputs
    assert "negated" not in inputs
