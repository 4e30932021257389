"""What the command line does before it has torch, and after its reader or terminal has gone."""

from __future__ import annotations

import fcntl
import importlib
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from aigc_ext import _names, tasks
from aigc_ext.cli.main import cli
from tests.cli.test_cli import TINY

AS_SCRIPT = "import sys; sys.argv[0] = '/somewhere/bin/aigc-ext'; from aigc_ext.cli import main; "


@pytest.mark.parametrize("command", [None, *sorted(cli.commands)])
def test_help_needs_no_torch(command) -> None:
    """Importing it takes more than a second."""
    arguments = ["--help"] if command is None else [command, "--help"]
    code = AS_SCRIPT + (
        f"assert main({arguments}) == 0; "
        "late = {'torch', 'numpy', 'PIL'} & set(sys.modules); assert not late, late"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Usage: aigc-ext{' ' + command if command else ''} ")


def test_the_presets_in_the_help_are_the_presets() -> None:
    for task, presets in _names.TASKS.items():
        package = importlib.import_module(f"aigc_ext.tasks.{task}")
        assert tuple(package.PRESETS) == presets
        assert {type(preset) for preset in package.PRESETS.values()} == {package.TrainConfig}
        assert {tasks.task_of(preset) for preset in presets} == {package}


def test_the_command_line_does_not_change_what_a_program_sees() -> None:
    code = (
        AS_SCRIPT
        + "import aigc_ext, torch; aigc_ext.ops; assert aigc_ext.info().backends; torch.ops.aigc.snake"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("module", ["aigc_ext.info", "aigc_ext.cli"])
def test_a_reader_that_has_enough(module) -> None:
    arguments = [] if module == "aigc_ext.info" else ["info"]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert errors == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """SIGHUP, and nothing can be printed any more: the run is left like after SIGTERM."""
    pid, terminal = pty.fork()
    if pid == 0:
        command = ["-m", "aigc_ext.cli", "train", "--outdir", str(tmp_path), *TINY, "--kimg", "1e6"]
        os.execv(sys.executable, [sys.executable, *command])
    log = tmp_path / "00000-mlp-digits" / "log.txt"
    deadline = time.monotonic() + 120
    while not (tmp_path / "00000-mlp-digits" / "stats.jsonl").exists():
        assert time.monotonic() < deadline, os.read(terminal, 10_000)
        time.sleep(0.1)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert "stopped by SIGHUP" in log.read_text()
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP


def in_a_terminal(columns: int, *arguments: str) -> list[str]:
    """The lines that a command shows in a terminal of that width, each redrawing as one."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.pop("COLUMNS", None)
        os.execv(sys.executable, [sys.executable, "-m", "aigc_ext.cli", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = b""
    with suppress(OSError):  # its end, on Linux
        while data := os.read(terminal, 1 << 16):
            shown += data
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown.decode()
    return re.split(r"[\r\n]+|\x1b\[A", shown.decode())


def test_a_terminal_of_80_columns_shows_all_that_matters(tmp_path: Path, monkeypatch) -> None:
    """Also while the metrics are measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no classifier yet"))
    measured = ["--metrics", "fd", "--set", "metric_images=64"]
    lines = in_a_terminal(80, "train", "--outdir", str(tmp_path), *TINY, *measured)
    line = next(line for line in lines if line.startswith("100%|"))
    assert re.fullmatch(r"100%\|█{4,20}\| 0.2/0.2 kimg \[\S+, \d+ img/s, D \S+, G \S+, \S+ GB\]", line)
    bars = [line for line in lines if "%|" in line]
    assert max(map(len, bars)) < 80
    for what in ("training a classifier", "real images", "generated images"):
        assert any(re.match(rf"{what}: +\d+%\|", line) for line in bars), what
    run, cache = str(tmp_path / "00000-mlp-digits"), str(tmp_path / "cache")
    options = ["--data", "digits", "--num", "64", "--cache", cache]
    bars = [line for line in in_a_terminal(60, "metrics", "--network", run, *options) if "%|" in line]
    assert max(map(len, bars)) < 60
    for what in ("training a classifier", "real images", "generated images"):
        assert any(re.match(rf"{what}: +\d+%\|", line) for line in bars), what


def test_nohup(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            "nohup",
            sys.executable,
            "-m",
            "aigc_ext.cli",
            "train",
            "--outdir",
            str(tmp_path),
            *TINY,
            "--kimg",
            "1e6",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stats = tmp_path / "00000-mlp-digits" / "stats.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not stats.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGHUP)
        rows, deadline = len(stats.read_text()), time.monotonic() + 60
        while len(stats.read_text()) < rows + 1000:  # it goes on
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
