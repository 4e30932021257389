"""What setup.py says of an environment that lacks something, before anything is compiled."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.test_repository import ROOT

SETUP = ROOT / "setup.py"


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aigc_ext_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(call: Callable[[], object]) -> str:
    """The message with which a check ends the process: one line."""
    with pytest.raises(SystemExit) as error:
        call()
    message = str(error.value.code)
    assert message.startswith("aigc_ext cannot be built: ")
    assert "\n" not in message
    return message


def make_tool(folder: Path, name: str, version: str | None) -> str:
    """A program that says its version, or that fails like a script of an environment that is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    tool = folder / name
    tool.write_text("#!/bin/sh\n" + (f"echo '{name} version {version}'\n" if version else "exit 1\n"))
    tool.chmod(0o755)
    return str(tool)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for PATH, `path`, one beside Python, `bin`, and one of `pip install --user`, `user`; empty."""
    for name in ("path", "bin", "user"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    user = {"scripts": str(tmp_path / "user"), "platlib": str(tmp_path / "user" / "site-packages")}
    own = {"scripts": str(tmp_path / "bin"), "platlib": str(tmp_path / "site-packages")}
    monkeypatch.setattr(
        sysconfig, "get_path", lambda name, scheme="own": (user if "user" in scheme else own)[name]
    )
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "own")
    return tmp_path


def test_old_setuptools() -> None:
    code = (
        "import runpy, setuptools, sys\nsetuptools.__version__ = '65.5.0'\n"
        "sys.argv = ['setup.py', 'build_ext']\nsys.modules['setuptools.command.bdist_wheel'] = None\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1
    assert result.stderr == (
        "aigc_ext cannot be built: setuptools is 65.5.0, but must be 77 or newer: "
        "pip install 'setuptools>=77' wheel cmake ninja\n"
    )


def test_no_compiler_is_told_before_anything_is_built(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "PATH")}
    make_tool(tmp_path, "cmake", "3.30.0")
    make_tool(tmp_path, "ninja", "1.13.0")
    result = subprocess.run(
        [sys.executable, SETUP, "build_ext", "--build-lib", str(tmp_path / "lib")],
        cwd=tmp_path,
        env={**environment, "PATH": str(tmp_path), "AIGC_BUILD_DIR": str(tmp_path / "build")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "aigc_ext cannot be built: no C++ compiler was found: apt-get install g++, or set CXX"
    )
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "build").exists()


# ---- torch


@pytest.mark.parametrize("place", ["site-packages", "user/site-packages"])
def test_isolation_hides_torch(setup, monkeypatch, places, place) -> None:
    (places / place / "torch").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused(setup.torch_dir)
    assert f"torch is installed in {places / place}, but pip builds in isolation, which hides it" in message
    assert message.endswith(
        "pip install 'setuptools>=77' wheel cmake ninja && pip install --no-build-isolation ."
    )


@pytest.mark.parametrize("prefix", ["/tmp/build-env-0k3", "/home/me/.cache/uv/builds-v0/.tmpX"])
def test_an_isolated_environment_without_torch(setup, monkeypatch, places, prefix) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "prefix", prefix)
    message = refused(setup.torch_dir)
    assert "the build is in isolation, where no torch is" in message
    assert "pip install --no-build-isolation ." in message


def test_no_torch(setup, monkeypatch, places) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "path", [])
    message = refused(setup.torch_dir)
    assert "there is none. After `pip install 'torch>=2.10'`" in message
    assert "isolation, " not in message


def test_a_torch_that_does_not_load(setup, monkeypatch, places) -> None:
    (places / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(str(places))
    assert "libcudart.so.12: cannot open shared object file" in refused(setup.torch_dir)


def test_old_torch(setup, monkeypatch) -> None:
    assert setup.torch_dir() == Path(torch.__path__[0])
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu126")
    assert "torch is 2.9.1+cu126, but must be 2.10 or newer: pip install -U torch" in refused(setup.torch_dir)


# ---- cmake, ninja, compiler


@pytest.mark.parametrize("folder", ["path", "bin", "user"])
def test_tools_of_an_environment_that_is_not_activated(setup, places, folder) -> None:
    cmake, ninja = (make_tool(places / folder, name, "3.30.1") for name in ("cmake", "ninja"))
    assert setup.find_cmake() == cmake
    assert setup.find_generator() == ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]


def test_the_first_cmake_that_is_new_enough(setup, places) -> None:
    old, broken = make_tool(places / "path", "cmake", "3.18.4"), make_tool(places / "bin", "cmake", None)
    assert refused(setup.find_cmake).endswith(
        f"but {old} is 3.18.4, {broken} is broken: pip install cmake ninja"
    )
    new = make_tool(places / "user", "cmake", "3.24.0")
    assert setup.find_cmake() == new


def test_no_cmake(setup, places) -> None:
    assert refused(setup.find_cmake).endswith("but there is none: pip install cmake ninja")


def test_no_ninja(setup, places, capsys) -> None:
    make_tool(places / "bin", "ninja", None)  # a script whose environment is gone
    assert refused(setup.find_generator).endswith("neither ninja nor make was found: pip install ninja")
    make_tool(places / "path", "make", "4.3")
    assert setup.find_generator() == ["-G", "Unix Makefiles"]
    assert "ninja was not found, so make is used" in capsys.readouterr().out


def test_compilers(setup, monkeypatch, places) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler was found" in refused(setup.check_compiler)
    make_tool(places / "path", "clang++", "17.0")
    setup.check_compiler()
    monkeypatch.setenv("CXX", "ccache g++-13")
    assert "CXX is 'ccache g++-13', which was not found" in refused(setup.check_compiler)
    make_tool(places / "path", "ccache", "4.0")
    setup.check_compiler()


# ---- an earlier configuration


def copy_of_what_cmake_reads(folder: Path) -> Path:
    """A checkout in which CMake has all that it needs; the rest is left out."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(ROOT / "cmake", folder / "cmake")
    (folder / "aigc_ext").mkdir()
    for name in ("CMakeLists.txt", "aigc_ext/version.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def checkout(setup, monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("AIGC_CUDA", "off")
    folder = copy_of_what_cmake_reads(tmp_path / "checkout")
    monkeypatch.setattr(setup, "ROOT", folder)
    return folder


def afresh(setup: ModuleType, capfd: pytest.CaptureFixture[str], build: Path) -> str:
    """The reason for which a folder is configured afresh; "" if it is gone on with."""
    setup.configure(build)
    output = capfd.readouterr().out
    assert "Build files have been written to" in output
    found = re.search(r"is configured afresh, since (.*)", output)
    return found[1] if found else ""


def test_an_earlier_configuration_is_reused(setup, checkout, capfd, tmp_path, monkeypatch) -> None:
    assert not afresh(setup, capfd, checkout / "build")
    assert not afresh(setup, capfd, checkout / "build")
    (tmp_path / "link").symlink_to(checkout)
    monkeypatch.setattr(setup, "ROOT", tmp_path / "link")
    assert not afresh(setup, capfd, tmp_path / "link" / "build")


def test_a_copied_checkout(setup, checkout, capfd, tmp_path, monkeypatch) -> None:
    setup.configure(checkout / "build")
    moved = tmp_path / "moved"
    shutil.copytree(checkout, moved)
    monkeypatch.setattr(setup, "ROOT", moved)
    assert afresh(setup, capfd, moved / "build") == f"it was configured as {checkout}"
    assert not afresh(setup, capfd, moved / "build")
    # A build folder of its own, which another checkout used before.
    monkeypatch.setenv("AIGC_CUDA", "off")
    assert afresh(setup, capfd, checkout / "build").startswith("it was configured as ")


def test_another_generator(setup, checkout, capfd, monkeypatch) -> None:
    if not setup.places_of("make"):
        pytest.skip("make is not installed")
    with monkeypatch.context() as patch:
        patch.setattr(setup, "find_generator", lambda: ["-G", "Unix Makefiles"])
        _, options = setup.configure(checkout / "build")
        assert options == ["--parallel", str(os.cpu_count())]
    capfd.readouterr()
    assert afresh(setup, capfd, checkout / "build") == "it was configured for Unix Makefiles"
    assert (checkout / "build" / "build.ninja").exists()


@pytest.mark.parametrize("variable", ["CMAKE_CXX_COMPILER:FILEPATH", "AIGC_NVCC:FILEPATH"])
def test_a_compiler_that_is_gone(setup, checkout, capfd, variable) -> None:
    setup.configure(checkout / "build")
    cache = checkout / "build" / "CMakeCache.txt"
    lines = [line for line in cache.read_text().splitlines() if not line.startswith(variable)]
    cache.write_text("\n".join([*lines, f"{variable}=/nowhere/compiler", ""]))
    assert afresh(setup, capfd, checkout / "build") == "its compiler, /nowhere/compiler, is gone"


def test_what_cmake_refuses(setup, checkout, monkeypatch, capfd) -> None:
    monkeypatch.setenv("AIGC_CUDA", "maybe")
    message = refused(lambda: setup.configure(checkout / "build"))
    assert message.endswith("CMake ended with exit status 1; its own messages, above, say why")
    assert "AIGC_CUDA is 'maybe'" in capfd.readouterr().err
