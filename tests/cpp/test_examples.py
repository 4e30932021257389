"""The programs under examples/cpp, built against the installed CMake package as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aigc_ext

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "cpp"
# cmake and ninja may be packages of this Python, whose environment need not be activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def run(*command: str | Path, **environment: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
        env={**os.environ, "PATH": PATH, **environment},
    )
    assert result.returncode == 0, f"{command} ended with {result.returncode}:\n{result.stdout}"
    return result.stdout


def build(name: str, *prefixes: Path | str) -> Path:
    """Configures and builds an example in build/examples/<name>, where an unchanged one takes no time."""
    folder = ROOT / "build" / "examples" / name
    prefix = ";".join(map(str, prefixes))
    run("cmake", "-S", EXAMPLES / name, "-B", folder, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder)
    return folder / name


def test_a_launcher_without_torch() -> None:
    program = build("launcher", aigc_ext.cmake_prefix())
    isa, values = run(program).split(":")
    assert isa == torch.ops.aigc.instruction_set()
    x, b = torch.arange(-2.0, 6.0).reshape(2, 4), torch.tensor([1.0, 0.0, -1.0, -2.0])
    expected = torch.nn.functional.leaky_relu(x + b, 0.2).clamp(-3, 3)
    torch.testing.assert_close(torch.tensor([float(v) for v in values.split()]), expected.flatten())
    assert run(program, AIGC_EXT_ISA="baseline").startswith("baseline:")
    assert "torch" not in run("ldd", program)


def test_the_ops_from_libtorch() -> None:
    program = build("libtorch", aigc_ext.cmake_prefix(), torch.utils.cmake_prefix_path)
    assert run(program).startswith("largest difference ")


def test_an_unset_prefix_is_an_error_that_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"aigc_ext-config\.cmake"):
        run("cmake", "-S", EXAMPLES / "launcher", "-B", tmp_path, "-G", "Ninja")
