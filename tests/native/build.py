"""Compiles csrc/core for the tests, into build/native_tests/<digest of all that goes in>."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "native_tests"

# As CMakeLists.txt compiles kernels, but at -O2.
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=fast", "-fno-math-errno"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-Wno-uninitialized"]
ISA_FLAGS: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS |= {"avx2": AVX2, "avx512": AVX512}

INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]


def _sources() -> list[Path]:
    return sorted([*(ROOT / "csrc" / "core").glob("*.h"), *HERE.glob("*.h"), *HERE.glob("*.cpp")])


def _run_all(commands: list[list[str]]) -> None:
    """Runs the commands side by side; the output of one that fails becomes the error."""
    processes = [
        subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands
    ]
    outputs = [process.communicate()[0] for process in processes]
    for command, process, output in zip(commands, processes, outputs, strict=True):
        if process.returncode != 0:
            raise RuntimeError(f"exit status {process.returncode} from\n{' '.join(command)}\n{output}")


def _cached(name: str, compiler: str, options: list[str], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled for these sources, this compiler and these options."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    digest = hashlib.sha256(version + " ".join(options).encode())
    for source in _sources():
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    with open(CACHE / f"{name}.lock", "w") as lock:  # pytest-xdist: one worker builds, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "complete").touch()
    return folder


def build_module() -> Path:
    """The folder of the Python module and of core_ops_<isa>.o, for each instruction set of this machine."""
    compiler = os.environ.get("CXX", "g++")
    includes = [*INCLUDES, f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")

    def make(folder: Path) -> None:
        compile_ = [compiler, *FLAGS, "-fPIC", "-fvisibility=hidden", "-c"]
        bindings = str(folder / "bindings.o")
        commands = [[*compile_, *includes, str(HERE / "bindings.cpp"), "-o", bindings]]
        objects = []
        for isa, flags in ISA_FLAGS.items():
            objects.append(str(folder / f"core_ops_{isa}.o"))
            options = [*flags, f"-DAIGC_ISA=cpu_{isa}", *INCLUDES]
            commands.append([*compile_, *options, str(HERE / "core_ops.cpp"), "-o", objects[-1]])
        _run_all(commands)
        module = folder / f"aigc_core{suffix}"
        _run_all([[compiler, "-shared", bindings, *objects, "-o", str(module)]])

    return _cached("module", compiler, [*FLAGS, str(ISA_FLAGS), *includes, suffix], make)


def load_module(folder: Path) -> ModuleType:
    path = folder / f"aigc_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("aigc_core", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_server(compiler: str) -> Path:
    """server.cpp and core_ops.cpp as one static program for another architecture."""

    def make(folder: Path) -> None:
        sources = [str(HERE / "server.cpp"), str(HERE / "core_ops.cpp")]
        output = ["-static", "-o", str(folder / "server")]
        _run_all([[compiler, *FLAGS, "-DAIGC_ISA=cpu_baseline", *INCLUDES, *sources, *output]])

    return _cached("server", compiler, FLAGS, make) / "server"
