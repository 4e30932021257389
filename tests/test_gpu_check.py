"""`make gpu-check` without a card: its dry run, and what becomes of steps that go wrong."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu_check import GpuCheck, Step

ROOT = Path(__file__).parents[1]


def test_the_dry_run_is_sound(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All steps are ok." in result.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"summary.txt", "info.txt", "log.txt", "tests.xml", "benchmarks.csv"}
    with (tmp_path / "out" / "benchmarks.csv").open() as file:
        ops = {row["op"] for row in csv.DictReader(file)}
    of_layers = {"bias_act", "batch_norm_act", "upfirdn2d", "filtered_lrelu", "modulated_conv2d"}
    assert ops == of_layers | {"discriminator_loss", "adam_ema", "MLP GAN step", "r1"}
    assert f"torch: {torch.__version__}" in (tmp_path / "out" / "info.txt").read_text()


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
