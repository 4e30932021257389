"""Tests for a card, on a machine without one: out of the way, unless they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")


def collect(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)


def test_they_are_deselected() -> None:
    result = collect("tests/cuda/test_errors.py", "tests/test_import.py")
    assert result.returncode == 0, result.stdout
    assert "tests/test_import.py::" in result.stdout
    assert "tests/cuda" not in result.stdout
    assert " deselected" in result.stdout


@pytest.mark.parametrize("expression", ["cuda", "cuda and not slow"])
def test_asking_for_them_is_an_error_that_says_what_is_missing(expression: str) -> None:
    result = collect("-m", expression, "tests/cuda/test_errors.py")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "-m cuda: torch" in result.stderr


def test_asking_for_all_others_is_not() -> None:
    assert collect("-m", "not cuda", "tests/cuda/test_errors.py", "tests/test_import.py").returncode == 0
