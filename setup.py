"""Checks the environment, drives the CMake build and tags the wheel; everything native is described in
CMakeLists.txt.

What the environment lacks is said in one line, with what to type, before anything is compiled.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

import setuptools

ROOT = Path(__file__).parent.resolve()
OLDEST_SETUPTOOLS = 77  # the first that takes pyproject.toml's license as an SPDX expression
OLDEST_CMAKE = (3, 24)
OLDEST_TORCH = (2, 10)
TOOLS = "pip install 'setuptools>=77' wheel cmake ninja"
INSTALL = "pip install --no-build-isolation ."


def refuse(reason: str) -> NoReturn:
    sys.exit(f"aigc_ext cannot be built: {reason}")


if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    refuse(f"setuptools is {setuptools.__version__}, but must be {OLDEST_SETUPTOOLS} or newer: {TOOLS}")

from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402 (older versions have none)
from setuptools.command.build_ext import build_ext  # noqa: E402


def torch_dir() -> Path:
    """The folder of the installed torch, whose headers the ops are compiled against."""
    try:
        import torch
    except ImportError as error:
        refuse(f"{_why_no_torch(error)}: {TOOLS} && {INSTALL}")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        refuse(f"torch is {torch.__version__}, but must be 2.10 or newer: pip install -U torch")
    return Path(torch.__path__[0])


def _why_no_torch(error: ImportError) -> str:
    if error.name != "torch":
        return f"torch is installed, but cannot be imported ({error}). Once it can"
    for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
        place = Path(sysconfig.get_path("platlib", scheme)) / "torch"
        if place.is_dir():
            return f"torch is installed in {place.parent}, but pip builds in isolation, which hides it"
    # pip, build and uv make their environments in folders of these names.
    if re.search("pip-build-env-|build-env-|builds-v0", os.pathsep.join([sys.prefix, *sys.path])):
        return "the build is in isolation, where no torch is. In the environment that has one"
    return "it is compiled against the installed torch, and there is none. After `pip install 'torch>=2.10'`"


def places_of(tool: str) -> list[str]:
    """Where a tool is: on PATH, and where pip has put it, since an environment need not be activated."""
    folders = [
        *os.environ.get("PATH", "").split(os.pathsep),
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
    ]
    places = (shutil.which(tool, path=folder) for folder in dict.fromkeys(filter(None, folders)))
    return [place for place in places if place is not None]


def version_of(tool: str) -> tuple[int, ...] | None:
    """None if the tool does not run: pip's are scripts of an environment that may be gone or hidden."""
    try:
        result = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\d+(\.\d+)+", result.stdout)
    return None if result.returncode or found is None else tuple(map(int, found[0].split(".")))


def find_cmake() -> str:
    places = places_of("cmake")
    for place in places:
        if (version_of(place) or ()) >= OLDEST_CMAKE:
            return place
    shown = (f"{place} is {'.'.join(map(str, version_of(place) or ())) or 'broken'}" for place in places)
    refuse(
        f"cmake 3.24 or newer is needed, but {', '.join(shown) or 'there is none'}: pip install cmake ninja"
    )


def find_generator() -> list[str]:
    """CMake's options for ninja or else make: the generator's name comes second."""
    for place in places_of("ninja"):
        if version_of(place) is not None:
            return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={place}"]
    if places_of("make"):
        print("ninja was not found, so make is used: pip install ninja", flush=True)
        return ["-G", "Unix Makefiles"]
    refuse("neither ninja nor make was found: pip install ninja")


def check_compiler() -> None:
    named = os.environ.get("CXX")
    if named and shutil.which(shlex.split(named)[0]) is None:
        refuse(f"CXX is {named!r}, which was not found: set it to a C++20 compiler, or unset it")
    if not named and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        refuse("no C++ compiler was found: apt-get install g++, or set CXX")


def why_not_reused(build: Path, generator: str) -> str | None:
    """Why CMake would not go on from the last configuration of a folder; None if it would, or there is
    none."""
    cache = build / "CMakeCache.txt"
    if not cache.is_file():
        return None
    text = cache.read_text(encoding="utf-8", errors="replace")
    entries = dict(re.findall(r"^(\w+):\w+=(.*)$", text, re.MULTILINE))
    for key, here in (("CMAKE_HOME_DIRECTORY", ROOT), ("CMAKE_CACHEFILE_DIR", build)):
        there = entries.get(key, "")
        if Path(there).resolve() != here.resolve():
            return f"it was configured as {there or 'another folder'}"
    if entries.get("CMAKE_GENERATOR") != generator:
        return f"it was configured for {entries.get('CMAKE_GENERATOR')}"
    for key in ("CMAKE_CXX_COMPILER", "AIGC_NVCC"):
        compiler = entries.get(key, "")
        if os.path.isabs(compiler) and not os.path.exists(compiler):
            return f"its compiler, {compiler}, is gone"
    return None


def run(what: str, *command: str) -> None:
    status = subprocess.run(command).returncode
    if status:
        refuse(f"{what} ended with exit status {status}; its own messages, above, say why")


def configure(build: Path) -> tuple[str, list[str]]:
    """Checks the environment and configures the build; returns cmake, and its options for `--build`."""
    torch, cmake, (_, generator, *program) = torch_dir(), find_cmake(), find_generator()
    check_compiler()
    command = [
        *(cmake, "-S", str(ROOT), "-B", str(build), "-G", generator, *program),
        f"-DAIGC_TORCH_DIR={torch}",
        *autograd_options(),
        f"-DAIGC_CUDA={os.environ.get('AIGC_CUDA', 'auto')}",
        f"-DAIGC_SANITIZE={os.environ.get('AIGC_SANITIZE', 'OFF')}",
        *("-DCMAKE_INSTALL_LIBDIR=lib", "-DCMAKE_INSTALL_INCLUDEDIR=include"),
    ]
    if reason := why_not_reused(build, generator):
        print(f"{build} is configured afresh, since {reason}", flush=True)
        command.append("--fresh")
    run("CMake", *command)
    # Unlike ninja, make takes one process if it is not told; CMake reads this variable.
    told = generator == "Ninja" or "CMAKE_BUILD_PARALLEL_LEVEL" in os.environ
    return cmake, [] if told else ["--parallel", str(os.cpu_count() or 1)]


def autograd_options() -> list[str]:
    """CMake's options for the C++ autograd nodes, which need Python's headers. Without them the nodes are
    Python's, as on every torch and Python but these."""
    import torch

    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").exists():
        print(
            f"small calls will be slower: {include} has no Python.h (apt-get install python3-dev)", flush=True
        )
        return ["-DAIGC_AUTOGRAD="]
    release = torch.__version__.partition("+")[0]
    name = f"aigc_autograd-torch{release}-{sys.implementation.cache_tag}"
    return [f"-DAIGC_AUTOGRAD={name}", f"-DAIGC_PYTHON_INCLUDE={include}"]


class CMakeBuild(build_ext):
    """One "extension": the shared libraries, headers and CMake package, installed into the aigc_ext
    package."""

    def run(self) -> None:
        build = Path(os.environ.get("AIGC_BUILD_DIR", ROOT / "build" / "native"))
        package = ROOT / "aigc_ext" if self.inplace else Path(self.build_lib).resolve() / "aigc_ext"
        cmake, options = configure(build)
        run("the build", cmake, "--build", str(build), *options)
        run("the installation", cmake, "--install", str(build), "--prefix", str(package))

    def get_outputs(self) -> list[str]:
        return []


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: the libraries use neither Python's C API nor an unstable part of torch."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setuptools.setup(
        ext_modules=[setuptools.Extension("aigc_ext.lib", sources=[])],
        cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
    )
