"""The source distribution is all that a build needs. The CI's job `package` also builds the wheel from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from tests.cpp.test_examples import PATH
from tests.test_repository import ROOT, files

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")

# For those who work on the repository.
LEFT_OUT = (".ci/", ".github/", ".clang-format", ".gitignore", ".pre-commit-config.yaml")


def backend(call: str, folder: Path) -> None:
    """Calls a hook of the build, as pip and `python -m build` do."""
    code = f"from setuptools import build_meta; build_meta.{call}"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the source distribution of a clean checkout holds. In one that has been built before, an old list
    of files would be added to."""
    folder = tmp_path_factory.mktemp("sdist")
    for path in files():
        copy = folder / "checkout" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    backend(f"build_sdist({str(folder)!r})", folder / "checkout")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(folder / "unpacked", filter="data")
    (root,) = (folder / "unpacked").iterdir()
    return root


def test_it_holds_the_repository(unpacked: Path) -> None:
    tracked = {str(path.relative_to(ROOT)) for path in files()}
    wanted = {name for name in tracked if not name.startswith(LEFT_OUT)}
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert wanted - held == set()
    made = {name for name in held - wanted if not name.startswith("aigc_ext.egg-info/")}
    assert made == {"PKG-INFO", "setup.cfg"}


def test_a_build_can_be_configured_from_it(unpacked: Path, tmp_path: Path) -> None:
    backend(f"prepare_metadata_for_build_wheel({str(tmp_path)!r})", unpacked)
    assert list(tmp_path.glob("*.dist-info/METADATA"))
    options = ["-DAIGC_CUDA=off", f"-DAIGC_TORCH_DIR={torch.__path__[0]}"]
    for i, variant in enumerate(([], ["-DAIGC_SIMT=on"], ["-DAIGC_SANITIZE=on"])):
        command = ["cmake", "-S", str(unpacked), "-B", str(tmp_path / f"build{i}"), "-G", "Ninja"]
        result = subprocess.run(
            [*command, *options, *variant],
            env={**os.environ, "PATH": PATH},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
