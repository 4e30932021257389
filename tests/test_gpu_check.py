"""`make gpu-check` without a card: its dry run, and what becomes of steps that go wrong."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aigc_ext.bench.timing import Setting
from benchmarks import gpu_check, harness, shapes
from benchmarks.gpu_check import BUDGET, PARTS, SMOKE_SECONDS, WITHOUT_A_BUILD, GpuCheck, Step

ROOT = Path(__file__).parents[1]


def test_the_dry_run_is_sound(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All steps are ok." in result.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"summary.txt", "info.txt", "log.txt", "tests.xml", "benchmarks.csv"}
    with (tmp_path / "out" / "benchmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["op"] for row in rows} > {"bias_act", "training step"}
    assert all(float(row["over_floor"]) > 0 for row in rows if row["op"] != "training step")
    assert f"torch: {torch.__version__}" in (tmp_path / "out" / "info.txt").read_text()
    # What it does keeps to the times that it has on a card.
    parts = {name.split()[0]: float(seconds) for name, seconds in PART.findall(result.stdout)}
    assert {"build", "smoke", "tests", "shapes", "counters"} <= parts.keys()
    assert all(seconds <= PARTS.get(name, PARTS["tests"]) for name, seconds in parts.items())


PART = re.compile(r"^(\w+) +(?:ok|skipped) +([\d.]+) s", re.MULTILINE)


def test_its_parts_fit_into_one_call_of_eight_minutes() -> None:
    assert sum(PARTS[name] for name in WITHOUT_A_BUILD) < BUDGET - 10
    assert BUDGET < 8 * 60
    assert PARTS["smoke"] > SMOKE_SECONDS
    assert sum(shapes.SECONDS.values()) + 20 < PARTS["shapes"]


def test_libraries_that_were_not_brought_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PACKAGE", tmp_path)
    check = GpuCheck(tmp_path / "out", dry=False, budget=10, build=False)
    assert not check.build()
    assert "libaigc_ops_cuda.so is not here" in check.summary()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libaigc_ops_cuda.so").touch()
    assert check.build()


def test_what_cannot_work_here_is_no_failure(tmp_path: Path) -> None:
    check = GpuCheck(tmp_path, dry=True, budget=100)
    refused = Step("counters", ["sh", "-c", "echo ERR_NVGPUCTRPERM; exit 1"], 10, excuse="ERR_NVGPUCTRPERM")
    broken = Step("broken", ["sh", "-c", "echo another; exit 1"], 10, excuse="ERR_NVGPUCTRPERM")
    check.run(refused, broken)
    assert [step.status for step in check.steps] == ["skipped", "failed"]
    assert "Not ok: broken" in (tmp_path / "summary.txt").read_text()


def test_what_was_killed_is_counted_by_what_it_printed(tmp_path: Path) -> None:
    output = (
        "tests/a.py::x PASSED [ 1%]\n[gw1] [ 2%] PASSED tests/a.py::y\n[gw0] [ 3%] FAILED tests/a.py::z\n"
    )
    assert gpu_check.counts_of(tmp_path / "none.xml", output) == ["2 passed, 1 failed, 0 error, 0 skipped"]


def test_a_case_that_fails_does_not_end_the_benchmark(tmp_path: Path, capsys: Any) -> None:
    measuring = shapes.Measuring(Setting(quick=True), tmp_path / "rows.csv")
    done = []

    def measure(item: int) -> None:
        if item == 1:
            raise AssertionError("other values")
        done.append(item)

    with measuring.file:
        measuring.part("shapes", 10.0, [0, 1, 2], measure)
        measuring.part("steps", -1.0, [0, 1], measure)
    assert done == [0, 2]
    assert len(measuring.failed) == 1
    output = capsys.readouterr().out
    assert "other values" in output
    assert "steps: 0 of 2 cases" in output


def test_no_git_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert harness.commit.__wrapped__() == "unknown"


def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "out")]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "sees no CUDA device" in result.stderr


def test_what_goes_wrong_is_reported_and_the_rest_runs(tmp_path: Path) -> None:
    check = GpuCheck(tmp_path, dry=True, budget=100)
    started = time.monotonic()
    assert not check.run(Step("breaks", ["sh", "-c", "echo the reason; exit 3"], 10))
    assert not check.run(
        Step("hangs", ["sh", "-c", "sleep 60 & sleep 60"], 0.5), Step("beside it", ["true"], 10)
    )
    assert check.run(Step("works", ["true"], 10))
    assert time.monotonic() - started < 30
    assert [step.status for step in check.steps] == ["failed", "timed out", "ok", "ok"]
    summary = check.summary()
    assert "exit status 3" in summary
    assert summary.endswith("Not ok: breaks, hangs")
    assert "the reason" in (tmp_path / "log.txt").read_text()


def test_nothing_outlasts_the_budget(tmp_path: Path) -> None:
    check = GpuCheck(tmp_path, dry=True, budget=0.5)
    check.run(Step("hangs", ["sleep", "60"], 30))
    check.run(Step("comes too late", ["sleep", "60"], 30))
    assert [step.status for step in check.steps] == ["timed out", "timed out"]
    assert sum(step.seconds for step in check.steps) < 10
