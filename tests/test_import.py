"""However the native library fails to load, an ImportError names the cause and what to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aigc_ext

PACKAGE = Path(aigc_ext.__file__).parent
REBUILD = "pip install --no-build-isolation -e ."


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, whose libraries a test may break."""
    ignored = shutil.ignore_patterns("__pycache__", "include", "*.a")
    shutil.copytree(PACKAGE, tmp_path / "aigc_ext", ignore=ignored)
    return tmp_path / "aigc_ext"


def import_error(package: Path, before: str = "") -> str:
    """The last line of `import aigc_ext` of that package, which must be an ImportError."""
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r}); {before or 'pass'}\nimport aigc_ext"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # In an empty folder: the folder that a command with -c runs in comes first on sys.path.
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: aigc_ext: "), result.stderr
    return last


def compile_library(path: Path, source: str) -> None:
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)


def test_another_library_that_does_not_exist(copy: Path) -> None:
    message = import_error(copy, "import os; os.environ['AIGC_EXT_LIBRARY'] = '/nowhere/libother.so'")
    assert "/nowhere/libother.so does not exist" in message


def test_the_copy_itself_works(copy: Path) -> None:
    code = "import aigc_ext; print(aigc_ext.__file__, *aigc_ext.info().libraries)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=copy.parent, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.stdout.split()[:2] == [str(copy / "__init__.py"), str(copy / "lib" / "libaigc_ops.so")]


def test_missing_library(copy: Path) -> None:
    library = copy / "lib" / "libaigc_ops.so"
    library.unlink()
    error = import_error(copy)
    assert f"{library} does not exist" in error
    assert "not built" in error
    assert REBUILD in error


@pytest.mark.parametrize("size", [0, 40, 4096, -1])
def test_truncated_library(copy: Path, size: int) -> None:
    library = copy / "lib" / "libaigc_ops.so"
    library.write_bytes(library.read_bytes()[:size])
    error = import_error(copy)
    assert f"{library} does not load" in error
    assert "damaged" in error
    assert REBUILD in error


def test_a_text_file_in_place_of_the_library(copy: Path) -> None:
    (copy / "lib" / "libaigc_ops.so").write_text("version https://git-lfs.github.com/spec/v1\n" * 10)
    error = import_error(copy)
    assert "damaged" in error
    assert REBUILD in error


def test_undefined_symbol(copy: Path) -> None:
    source = 'extern "C" int aoti_torch_of_the_future(); static int at_load = aoti_torch_of_the_future();'
    compile_library(copy / "lib" / "libaigc_ops.so", source)
    error = import_error(copy)
    assert "undefined symbol: aoti_torch_of_the_future" in error
    assert "needs torch >= 2.10" in error
    assert REBUILD in error


def test_a_library_that_needs_another_one(copy: Path) -> None:
    other = copy / "lib" / "libelsewhere.so"
    compile_library(other, "int elsewhere() { return 1; }")
    library = copy / "lib" / "libaigc_ops.so"
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-x", "none", str(other), "-o", str(library)]
    subprocess.run(command, input="int elsewhere(); int at_load = elsewhere();", text=True, check=True)
    other.unlink()
    error = import_error(copy)
    assert "libelsewhere.so" in error
    assert REBUILD in error


def test_a_library_without_our_ops(copy: Path) -> None:
    compile_library(copy / "lib" / "libaigc_ops.so", "int nothing;")
    error = import_error(copy)
    assert "libaigc_ops.so" in error
    assert REBUILD in error


@pytest.mark.parametrize("version", ["2.9.1", "2.2.0a0+git1234"])
def test_too_old_torch(copy: Path, version: str) -> None:
    error = import_error(copy, f"import torch; torch.__version__ = {version!r}")
    assert f"torch is {version}, but must be >= 2.10" in error
    assert "pip install -U torch" in error


def test_no_torch(copy: Path) -> None:
    error = import_error(copy, "sys.modules['torch'] = None")
    assert "torch" in error
    assert "pip install" in error


@pytest.mark.parametrize("value", ["AVX2"])
def test_unknown_instruction_set(copy: Path, value: str) -> None:
    error = import_error(copy, f"import os; os.environ['AIGC_EXT_ISA'] = {value!r}")
    assert f"AIGC_EXT_ISA is '{value}', but on this CPU must be one of" in error
    assert "baseline" in error


def test_subpackages_are_there_without_an_import() -> None:
    code = (
        "import sys, aigc_ext; assert 'aigc_ext.training' not in sys.modules; names = dir(aigc_ext); "
        "[getattr(aigc_ext, name) for name in names]; print(*names)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    names = set(result.stdout.split())
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"cli"}
    assert names >= folders | {"config", "info", "decompose", "no_weight_gradients", "Info", "__version__"}


def test_what_type_checkers_see_of_subpackages() -> None:
    assert aigc_ext.training.Trainer is aigc_ext.tasks.gan.Trainer
    assert aigc_ext.sampling.Sampler.__name__ == "Sampler"
    assert aigc_ext.models.MLPGenerator().z_dim > 0
    assert aigc_ext.metrics.METRICS
    assert aigc_ext.data.open_dataset("digits").num_classes == 10
    assert callable(aigc_ext.compat.stylegan.install)
    with pytest.raises(AttributeError, match="module 'aigc_ext' has no attribute 'sampler'"):
        aigc_ext.sampler  # type: ignore[attr-defined]  # noqa: B018
