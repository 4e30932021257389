from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import pytest

from .build import ISA_FLAGS, build_module, build_server, load_module


class Runner(Protocol):
    def __call__(self, op: str, x: np.ndarray, out: np.ndarray) -> None:
        """Runs an operation of core_ops.cpp; the bytes of `out` on entry are what it finds there."""


class Isa:
    """csrc/core as one instruction set runs it."""

    def __init__(self, name: str, run: Runner) -> None:
        self.name = name
        self._run = run

    def __call__(self, op: str, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """`op` of core_ops.cpp on x. The result is like x, or like `out`, whose content the op finds."""
        result = np.zeros_like(x) if out is None else out.copy()
        self._run(op, np.ascontiguousarray(x), result)
        return result

    def width(self, dtype: str) -> int:
        return int(self(f"width.{dtype}", np.zeros(0), np.zeros(1, np.int32))[0])


class Pipe:
    """The operations of server.cpp in a process of another architecture."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __call__(self, op: str, x: np.ndarray, out: np.ndarray) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{op} {x.nbytes} {out.nbytes}\n".encode() + x.tobytes() + out.tobytes())
        self.process.stdin.flush()
        answer = self.process.stdout.read(out.nbytes)
        assert len(answer) == out.nbytes, f"{op}: the process ended, status {self.process.poll()}"
        out[...] = np.frombuffer(answer, out.dtype).reshape(out.shape)


@pytest.fixture(scope="session")
def build_folder() -> Path:
    return build_module()


@pytest.fixture(scope="session")
def module(build_folder: Path) -> ModuleType:
    return load_module(build_folder)


@pytest.fixture(scope="session", params=[*ISA_FLAGS, "aarch64"])
def isa(request: pytest.FixtureRequest, module: ModuleType) -> Iterator[Isa]:
    name: str = request.param
    if name != "aarch64":
        if not module.isas()[name]:
            pytest.skip(f"this CPU does not have {name}: compiled, not run")
        yield Isa(name, lambda op, x, out: module.run(name, op, x, out))
        return
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: neither compiled nor run for aarch64")
    command = [emulator, str(build_server(compiler))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Isa(name, Pipe(process))
    assert process.returncode == 0
