"""The native build as a user configures it: its errors, and what the libraries depend on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import aigc_ext
from tests.cpp.test_examples import PATH, ROOT, run

TORCH = f"-DAIGC_TORCH_DIR={Path(torch.__file__).parent}"
LIBRARY = Path(aigc_ext.cmake_prefix()) / "lib" / "libaigc_ops.so"


def configure_error(folder: Path, *options: str, **environment: str) -> str:
    """CMake's message without its line breaks."""
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", TORCH, *options]
    environment = {**os.environ, "PATH": PATH, **environment}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    return " ".join(result.stderr.split())


def test_an_unknown_value_of_aigc_cuda(tmp_path: Path) -> None:
    error = configure_error(tmp_path, "-DAIGC_CUDA=banana")
    assert "AIGC_CUDA is 'banana', but must be auto, on or off" in error


def test_cuda_without_nvcc(tmp_path: Path) -> None:
    # CMake also looks into the system's folders, whether they are on PATH or not.
    folders = {*os.environ["PATH"].split(os.pathsep), "/usr/local/bin", "/usr/bin", "/bin"}
    hidden = ";".join(folder for folder in sorted(folders) if (Path(folder) / "nvcc").exists())
    tools = {"CMAKE_MAKE_PROGRAM": "ninja", "CMAKE_CXX_COMPILER": os.environ.get("CXX", "g++")}
    found = [f"-D{variable}={shutil.which(tool, path=PATH)}" for variable, tool in tools.items()]
    error = configure_error(tmp_path, "-DAIGC_CUDA=on", f"-DCMAKE_IGNORE_PATH={hidden}", *found, CUDA_HOME="")
    assert "AIGC_CUDA is on, but no nvcc was found on PATH or in CUDA_HOME" in error


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@needs_nvcc
@pytest.mark.parametrize("value", ["banana", "9", "sm_90", "8.0;9.0+ptx"])
def test_a_wrong_architecture(tmp_path: Path, value: str) -> None:
    error = configure_error(tmp_path, "-DAIGC_CUDA=on", TORCH_CUDA_ARCH_LIST=value)
    assert (
        f"TORCH_CUDA_ARCH_LIST has '{value.split(';')[-1]}', but must list versions as 8.0 or 9.0+PTX"
        in error
    )


def undefined_symbols(library: Path) -> list[str]:
    lines = run("nm", "-D", "--undefined-only", "--demangle", library).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


def check_dependencies(library: Path) -> list[str]:
    """No Python, no C++ symbol of torch; returns the libraries that it names."""
    symbols = undefined_symbols(library)
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols), "the C shim of the stable ABI"
    assert [s for s in symbols if re.search(r"\b(c10|at|torch|caffe2)::", s)] == []
    assert [s for s in symbols if re.match(r"_?Py", s)] == []
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library))
    assert not any("python" in name for name in needed)
    return needed


def test_the_cpu_library_needs_no_python_and_no_torch_symbol() -> None:
    needed = check_dependencies(LIBRARY)
    assert "libtorch_cpu.so" in needed


@needs_nvcc
def test_the_cuda_library_builds_without_a_gpu_and_needs_no_cudart() -> None:
    folder = ROOT / "build" / "test_cuda"
    options = ("-G", "Ninja", TORCH, "-DAIGC_CUDA=on")
    run("cmake", "-S", ROOT, "-B", folder, *options, TORCH_CUDA_ARCH_LIST="9.0")
    run("cmake", "--build", folder, "--target", "aigc_ops_cuda", TORCH_CUDA_ARCH_LIST="9.0")
    library = folder / "libaigc_ops_cuda.so"
    needed = check_dependencies(library)
    assert not any("cudart" in name or "libcuda" in name for name in needed)
    symbols = undefined_symbols(library)
    assert not any(re.match(r"cuda[A-Z]", symbol) for symbol in symbols), "cudart is not linked statically"
