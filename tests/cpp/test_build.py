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


@pytest.fixture
def cuda_torch(tmp_path: Path) -> str:
    """Of a torch that is a CUDA build, all that CMake asks for when it configures."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = '12.8'\n")
    return f"-DAIGC_TORCH_DIR={tmp_path / 'torch'}"


def fake_nvcc(folder: Path, release: str, architectures: str) -> str:
    """An nvcc that only says what it is; returns CUDA_HOME."""
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    listed = "".join(f"compute_{number}\\n" for number in architectures.split())
    nvcc.write_text(
        f"#!/bin/sh\ncase $1 in\n--version) echo 'Cuda compilation tools, release {release}';;\n"
        f"--list-gpu-arch) printf '{listed}';;\n*) exit 1;;\nesac\n"
    )
    nvcc.chmod(0o755)
    return str(folder)


def configured(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *options]
    inherited = {k: v for k, v in os.environ.items() if k != "TORCH_CUDA_ARCH_LIST"}
    result = subprocess.run(
        command,
        env={**inherited, "PATH": PATH, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return result.returncode, " ".join(result.stdout.split())


@pytest.mark.parametrize("torch_folder", ["version.py", "libtorch"])
def test_auto_builds_nothing_that_a_cpu_build_of_torch_cannot_load(tmp_path: Path, torch_folder: str) -> None:
    (tmp_path / "torch").mkdir()
    if torch_folder == "version.py":
        (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = None\n")
    options = [f"-DAIGC_TORCH_DIR={tmp_path / 'torch'}"]
    status, output = configured(tmp_path, *options, CUDA_HOME=fake_nvcc(tmp_path, "13.0", "90"))
    assert status == 0
    assert "The CUDA ops are not built: torch is a CPU build" in output


def test_auto_goes_on_without_an_nvcc_that_is_too_old(tmp_path: Path, cuda_torch: str) -> None:
    environment = {"CUDA_HOME": fake_nvcc(tmp_path, "11.8", "80 86 90")}
    status, output = configured(tmp_path / "auto", cuda_torch, **environment)
    assert status == 0
    reason = "nvcc is 11.8, but must be 12.0 or newer, for C++20"
    assert f"The CUDA ops are not built: {reason}" in output
    status, output = configured(tmp_path / "on", cuda_torch, "-DAIGC_CUDA=on", **environment)
    assert status != 0
    assert f"AIGC_CUDA is on, but {reason}" in output


def test_only_architectures_that_nvcc_knows(tmp_path: Path, cuda_torch: str) -> None:
    environment = {"CUDA_HOME": fake_nvcc(tmp_path, "12.4", "75 80 86 89 90")}
    _, output = configured(tmp_path / "auto", cuda_torch, **environment)  # this nvcc compiles nothing
    assert "The CUDA ops are not built for 10.0, which this nvcc does not know" in output
    assert "The CUDA ops are built for 8.0 8.6 8.9 9.0+PTX" in output
    status, output = configured(
        tmp_path / "asked", cuda_torch, **environment, TORCH_CUDA_ARCH_LIST="9.0 12.0+PTX"
    )
    assert status != 0
    assert "TORCH_CUDA_ARCH_LIST has '12.0+PTX', but this nvcc knows only 75 80 86 89 90" in output


def test_a_compiler_without_cpp20(tmp_path: Path, cuda_torch: str) -> None:
    project = tmp_path / "old.cmake"  # what CMake would find out of an older compiler
    project.write_text("set(CMAKE_CXX_COMPILE_FEATURES cxx_std_11 cxx_std_14 cxx_std_17)\n")
    status, output = configured(tmp_path / "build", cuda_torch, f"-DCMAKE_PROJECT_INCLUDE={project}")
    assert status != 0
    assert "which does not know C++20: set CXX to one that does, such as g++ 10 or newer" in output


@needs_nvcc
def test_a_cmake_that_does_not_know_cpp20_of_nvcc(tmp_path: Path) -> None:
    for folder in dict.fromkeys(os.environ["PATH"].split(os.pathsep)):
        cmake = shutil.which("cmake", path=folder)
        version = run(cmake, "--version").split()[2] if cmake else ""
        if re.match(r"3\.(24\.|25\.[01]$)", version):
            break
    else:
        pytest.skip("no cmake from 3.24.0 to 3.25.1 is on PATH")
    assert cmake is not None
    run(cmake, "-S", ROOT, "-B", tmp_path, "-G", "Ninja", TORCH, "-DAIGC_CUDA=on", TORCH_CUDA_ARCH_LIST="9.0")
    commands = run("ninja", "-C", tmp_path, "-t", "commands", "aigc_ops_cuda")
    (compiled,) = (line for line in commands.splitlines() if "pixel_norm.cu.o -MF" in line)
    assert compiled.split().count("-std=c++20") == 1


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
