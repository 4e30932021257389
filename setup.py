"""Drives the CMake build and tags the wheel; everything native is described in CMakeLists.txt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def torch_dir() -> Path:
    try:
        import torch
    except ImportError:
        sys.exit(
            "aigc_ext is built against the torch that is installed, and none is. Run:\n"
            "  pip install 'torch==2.13.*'\n"
            "  pip install --no-build-isolation ."
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        sys.exit(f"torch is {torch.__version__}, but aigc_ext needs 2.10 or newer")
    return Path(torch.__path__[0])


class CMakeBuild(build_ext):
    """One "extension": the shared libraries, headers and CMake package, installed into the aigc_ext
    package."""

    def run(self) -> None:
        cmake = shutil.which("cmake")
        if cmake is None:
            sys.exit("cmake was not found: pip install cmake ninja")
        build = Path(os.environ.get("AIGC_BUILD_DIR", ROOT / "build" / "native"))
        package = ROOT / "aigc_ext" if self.inplace else Path(self.build_lib).resolve() / "aigc_ext"
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DAIGC_TORCH_DIR={torch_dir()}",
            f"-DAIGC_CUDA={os.environ.get('AIGC_CUDA', 'auto')}",
            f"-DAIGC_SANITIZE={os.environ.get('AIGC_SANITIZE', 'OFF')}",
            *("-DCMAKE_INSTALL_LIBDIR=lib", "-DCMAKE_INSTALL_INCLUDEDIR=include"),
        ]
        ninja = shutil.which("ninja")
        if ninja is not None:
            configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build)], check=True)
        subprocess.run([cmake, "--install", str(build), "--prefix", str(package)], check=True)

    def get_outputs(self) -> list[str]:
        return []


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: the libraries use neither Python's C API nor an unstable part of torch."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("aigc_ext.lib", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
