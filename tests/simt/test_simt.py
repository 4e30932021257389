"""The harness that runs CUDA kernels on the CPU must catch what it is there to catch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simt") / "faults"
    include = Path(torch.__file__).parent / "include"
    subprocess.run(
        [
            *("c++", "-std=c++20", "-O1", "-g", "-fsanitize=alignment", "-fno-sanitize-recover=alignment"),
            *("-I", str(ROOT / "tests/simt"), "-I", str(ROOT / "csrc"), "-isystem", str(include)),
            *("-Wno-unknown-pragmas", str(ROOT / "tests/simt/faults.cpp"), str(ROOT / "tests/simt/simt.cpp")),
            *("-o", str(path)),
        ],
        check=True,
    )
    return path


def run(program: Path, kernel: str, seed: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "AIGC_SIMT_SEED"}
    if seed is not None:
        environment["AIGC_SIMT_SEED"] = str(seed)
    return subprocess.run([program, kernel], capture_output=True, text=True, env=environment, timeout=60)


def values(result: subprocess.CompletedProcess[str]) -> list[float]:
    assert result.returncode == 0, result.stdout + result.stderr
    return [float(line) for line in result.stdout.split()]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_right_kernels_are_right_in_any_order(program: Path, seed: int | None) -> None:
    assert values(run(program, "block_sum", seed))[:2] == [sum(range(64)), sum(range(64, 128))]
    assert values(run(program, "warp_sum", seed))[:2] == [sum(range(32)), sum(range(32, 64))]
    for kernel in ("shared_arrays", "shared_parts"):
        assert values(run(program, kernel, seed)) == [63.0 - i for i in range(64)]


def test_a_missing_barrier_shows_as_a_wrong_sum(program: Path) -> None:
    sums = [values(run(program, "missing_barrier", seed))[0] for seed in range(4)]
    assert any(s != sum(range(64)) for s in sums)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", "waits at __syncthreads, which not all threads reach: 24 of 64 have ended"),
        ("shuffle_without_some_lanes", "waits at __shfl_xor_sync, which not all threads reach"),
        ("mask_without_the_caller", "__shfl_sync: the mask does not have the calling lane"),
        ("past_static_shared", "thread (63, 0, 0): shared memory of 63 elements is accessed at 63"),
        ("before_static_shared", "thread (0, 0, 0): shared memory of 64 elements is accessed at -1"),
        ("vector_past_static_shared", "thread (60, 0, 0): shared memory of 64 elements is accessed at 61, 4"),
        ("past_dynamic_shared", "thread (63, 0, 0): shared memory of 64 elements is accessed at 64"),
        ("part_past_dynamic_shared", "64 elements of 4 bytes from byte 4, but the launch gave 256 bytes"),
        ("misaligned_dynamic_shared", "1 elements of 8 bytes from byte 4 are not aligned"),
    ],
)
def test_what_cuda_leaves_undefined_is_an_error_that_names_the_thread(
    program: Path, kernel: str, message: str
) -> None:
    result = run(program, kernel)
    assert result.returncode == 1, result.stdout
    assert message in result.stdout
    assert "block (0, 0, 0), thread (" in result.stdout


def test_a_launch_with_more_shared_memory_than_a_card_has_is_refused(program: Path) -> None:
    result = run(program, "too_much_dynamic_shared")
    assert result.returncode == 1
    assert "102400 bytes of dynamic shared memory are more than all cards have" in result.stdout


@pytest.mark.parametrize("kernel", ["reads_what_nobody_wrote", "reads_dynamic_that_nobody_wrote"])
def test_shared_memory_that_nobody_wrote_is_nan(program: Path, kernel: str) -> None:
    out = values(run(program, kernel))
    assert out[0] != out[0]
    assert out[1:] == [62.0 - i for i in range(63)]


def test_a_misaligned_vector_load_is_caught_by_the_sanitizer(program: Path) -> None:
    result = run(program, "misaligned_vector_load")
    assert result.returncode != 0
    assert "misaligned" in result.stderr
