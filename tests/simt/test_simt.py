"""The harness that runs CUDA kernels on the CPU must catch what it is there to catch."""

from __future__ import annotations

import os
import shutil
import subprocess
from fractions import Fraction
from functools import reduce
from operator import and_, or_, xor
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


ALIGNMENT = ("-fsanitize=alignment", "-fno-sanitize-recover=alignment")
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def build(source: str, directory: Path, sanitizer: tuple[str, ...] = ALIGNMENT) -> Path:
    path = directory / source.removesuffix(".cpp")
    include = Path(torch.__file__).parent / "include"
    subprocess.run(
        [
            *("c++", "-std=c++20", "-O1", "-g", *sanitizer),
            *("-I", str(ROOT / "tests/simt"), "-I", str(ROOT / "csrc"), "-isystem", str(include)),
            *("-Wno-unknown-pragmas", str(ROOT / "tests/simt" / source), str(ROOT / "tests/simt/simt.cpp")),
            *("-o", str(path)),
        ],
        check=True,
    )
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("faults.cpp", tmp_path_factory.mktemp("simt"))


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("arithmetic.cpp", tmp_path_factory.mktemp("simt"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("faults.cpp", tmp_path_factory.mktemp("simt"), ADDRESS)


def run(program: Path, kernel: str, seed: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "AIGC_SIMT_SEED"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
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
    assert values(run(program, "number_of_the_block", seed)) == [*range(64)]
    for kernel in ("shared_arrays", "shared_parts"):
        assert values(run(program, kernel, seed)) == [63.0 - i for i in range(64)]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_lanes_of_disjoint_masks_go_on_independently(program: Path, seed: int | None) -> None:
    halves = values(run(program, "halves_of_a_warp", seed))
    for warp in (0, 32):
        assert halves[warp : warp + 16] == [sum(range(warp, warp + 16))] * 16
        assert halves[warp + 16 : warp + 32] == [i ^ 1 for i in range(warp + 16, warp + 32)]
    steps = [1 if i % 2 == 0 else 8 for i in range(64)]
    expected = [i // 32 * 32 + (i + 2 * steps[i]) % 32 for i in range(64)]
    assert values(run(program, "odd_and_even_lanes", seed)) == expected


def test_shuffles_of_a_width_stay_in_their_group(program: Path) -> None:
    lanes = range(64)
    assert values(run(program, "shuffle_down")) == [i + 3 if i % 8 < 5 else i for i in lanes]
    assert values(run(program, "shuffle_up")) == [i - 3 if i % 8 >= 3 else i for i in lanes]
    # An earlier group can be read by xor, a later one cannot.
    assert values(run(program, "shuffle_xor")) == [i ^ 12 if i & 8 else i for i in lanes]
    assert values(run(program, "shuffle_from")) == [i // 8 * 8 + 5 for i in lanes]


def test_reductions_and_votes_of_a_whole_and_of_a_partial_warp(program: Path) -> None:
    out = values(run(program, "reductions"))
    for first, lanes in ((0, range(32)), (32, range(32, 40))):
        signed = [i - 20 for i in lanes]
        bits = [i | 64 for i in lanes]
        small = [x < -16 for x in signed]
        same = [int(x / 4) == int(signed[0] / 4) for x in signed]
        assert out[first : first + 11] == [
            *(sum(signed), min(signed), max(signed), 0 if first == 0 else 12),
            *(reduce(and_, bits), reduce(or_, bits), reduce(xor, bits)),
            *(sum(1 << i for i, x in enumerate(small) if x), any(small), all(small)),
            sum(1 << i for i, x in enumerate(same) if x),
        ]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_asynchronous_copies_arrive_at_their_wait(program: Path, seed: int | None) -> None:
    sums = [sum(stage * 16 + (63 - i) % 16 for stage in range(4)) if i >= 16 else 0 for i in range(64)]
    assert values(run(program, "pipeline", seed)) == sums
    assert values(run(program, "wide_copies", seed)) == [*range(63), 0]


@pytest.mark.parametrize("kernel", ["copy_without_wait", "copy_without_commit", "copy_without_barrier"])
def test_an_asynchronous_copy_that_is_not_waited_for_shows_as_nan(program: Path, kernel: str) -> None:
    """So does one that overwrites what another thread has yet to read, in some order of the threads."""
    out = [x for seed in range(4) for x in values(run(program, kernel, seed))]
    assert any(x != x for x in out)


def test_a_missing_barrier_shows_as_a_wrong_sum(program: Path) -> None:
    sums = [values(run(program, "missing_barrier", seed))[0] for seed in range(4)]
    assert any(s != sum(range(64)) for s in sums)


def test_a_block_that_needs_another_first_shows_as_a_wrong_result(program: Path) -> None:
    in_order, *shuffled = (values(run(program, "sum_of_the_blocks_before", seed)) for seed in (None, 1, 2))
    assert in_order == [sum(range(i + 1)) for i in range(64)]
    assert in_order not in shuffled


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (
            "divergent_barrier",
            "thread (0, 0, 0): waits at __syncthreads, which not all threads reach: "
            "24 of 64 do not, and the first of them, (40, 0, 0), has ended",
        ),
        (
            "shuffle_without_some_lanes",
            "thread (0, 0, 0): waits at __shfl_xor_sync with mask 0xffffffff "
            "for thread (20, 0, 0), which has ended",
        ),
        ("lane_that_ended", "with mask 0xffffffff for thread (37, 0, 0), which has ended"),
        (
            "barrier_and_collective",
            "waits at __syncwarp with mask 0xffffffff for thread (3, 0, 0), which waits at __syncthreads",
        ),
        ("mask_without_the_caller", "__shfl_sync: mask 0x1 does not have the calling lane, 1"),
        (
            "lane_outside_of_the_mask",
            "thread (23, 0, 0): __shfl_down_sync: reads from lane 31, which is not in its mask",
        ),
        (
            "lane_that_does_not_exist",
            "thread (39, 0, 0): __shfl_down_sync: reads from lane 15, which is not in its mask",
        ),
        (
            "masks_that_overlap",
            "waits at __shfl_sync with mask 0x1ffff for thread (16, 0, 0), which has ended",
        ),
        (
            "other_collectives",
            "thread (0, 0, 0): waits at __all_sync with mask 0xffffffff "
            "for thread (1, 0, 0), which waits at __any_sync with mask 0xffffffff",
        ),
        ("width_of_twelve", "__shfl_down_sync: the width is 12, but must be 1, 2, 4, 8, 16 or 32"),
        ("misaligned_vector_load", "that is misaligned: its type needs 16 bytes (/"),
        ("misaligned_copy", "__pipeline_memcpy_async: the source is not aligned to the size"),
        ("copy_of_a_wrong_size", "__pipeline_memcpy_async: the size must be 4, 8 or 16 bytes"),
        ("copy_to_global_memory", "__pipeline_memcpy_async: the destination is not in shared memory"),
        ("past_static_shared", "thread (63, 0, 0): shared memory of 63 elements is accessed at 63"),
        ("before_static_shared", "thread (0, 0, 0): shared memory of 64 elements is accessed at -1"),
        ("vector_past_static_shared", "thread (60, 0, 0): shared memory of 64 elements is accessed at 61, 4"),
        ("array_that_is_not_shared", "a SharedArray that is not declared __shared__"),
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


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("divergent_barrier", "(anonymous namespace)::divergent_barrier(float const*, float*)"),
        ("width_of_twelve", "void (anonymous namespace)::shuffle_down<12>(float const*, float*)"),
        ("too_much_dynamic_shared", "(anonymous namespace)::shared_arrays(float const*, float*)"),
    ],
)
def test_an_error_names_the_kernel(program: Path, tmp_path: Path, kernel: str, name: str) -> None:
    assert run(program, kernel).stdout.startswith(f"error {name}")
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    assert run(stripped, kernel).stdout.startswith("error aigc::launch<const float*, float*")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("too_much_dynamic_shared", "102400 bytes of dynamic shared memory are more than all cards have"),
        ("too_high_a_grid", "a grid of (1, 65536, 1) blocks of (1, 1, 1) threads cannot be launched"),
    ],
)
def test_a_launch_that_cuda_refuses_is_refused(program: Path, kernel: str, message: str) -> None:
    result = run(program, kernel)
    assert result.returncode == 1
    assert message in result.stdout


def test_kernels_declare_shared_memory_with_bounds() -> None:
    """The harness sees no other __shared__ array: overruns, and reads of what nobody wrote, would pass."""
    sources = [*ROOT.glob("csrc/*/*.cu"), *ROOT.glob("csrc/*/*.h")]
    lines = [line.strip() for path in sources for line in path.read_text().splitlines()]
    lines = [line for line in lines if "__shared__" in line and not line.startswith("//")]
    assert len(lines) >= 3
    plain = [line for line in lines if not line.startswith("__shared__ SharedArray<")]
    assert plain == ["extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];"]


@pytest.mark.parametrize("kernel", ["reads_what_nobody_wrote", "reads_dynamic_that_nobody_wrote"])
def test_shared_memory_that_nobody_wrote_is_nan(program: Path, kernel: str) -> None:
    out = values(run(program, kernel))
    assert out[0] != out[0]
    assert out[1:] == [62.0 - i for i in range(63)]


@pytest.mark.parametrize(
    ("kernel", "overflow"),
    [
        ("past_global_memory", "global-buffer-overflow"),
        ("past_dynamic_shared_by_pointer", "heap-buffer-overflow"),
        ("past_static_shared_by_pointer", "global-buffer-overflow"),
        ("past_a_local_array", "stack-buffer-overflow"),
    ],
)
def test_address_sanitizer_sees_what_threads_do_by_plain_pointers(
    sanitized: Path, kernel: str, overflow: str
) -> None:
    result = run(sanitized, kernel)
    assert result.returncode != 0
    assert f"ERROR: AddressSanitizer: {overflow}" in result.stderr
    assert f"in {kernel}" in result.stderr


@pytest.mark.parametrize(
    "kernel", ["block_sum", "odd_and_even_lanes", "pipeline", "shared_arrays", "reductions"]
)
def test_right_kernels_are_right_under_address_sanitizer(program: Path, sanitized: Path, kernel: str) -> None:
    result = run(sanitized, kernel, seed=1)
    assert values(result) == values(run(program, kernel))
    assert "AddressSanitizer: " not in result.stderr  # it warns where it does not know a thread's stack


def test_an_error_under_address_sanitizer_unwinds_every_thread(sanitized: Path) -> None:
    result = run(sanitized, "divergent_barrier")
    assert result.returncode == 1
    assert "waits at __syncthreads, which not all threads reach" in result.stdout
    assert "False positive error reports may follow" not in result.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("source", ["faults.cpp", "arithmetic.cpp"])
def test_what_the_stand_in_has_cuda_has_too(source: str, tmp_path: Path) -> None:
    command = ["nvcc", "-x", "cu", "-std=c++20", "-arch=sm_80", "--expt-relaxed-constexpr", "-c"]
    files = ["-I", str(ROOT / "csrc"), str(ROOT / "tests/simt" / source), "-o", str(tmp_path / "kernels.o")]
    result = subprocess.run([*command, *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("seed", [None, 1])
def test_atomics(arithmetic: Path, seed: int | None) -> None:
    # 64 threads; the kernel says what each value is.
    assert values(run(arithmetic, "atomics", seed)) == [
        *(64, -sum(range(64)), -40, 23, -1, reduce(xor, range(64)), 0, 128),
        *(64 % 10, 10 - 64 % 10, 2**32 - 64, 2**32 - 9, 3, 64 * 2**40, 2**49, 1, 16, 64),
    ]


def test_functions_of_bits_and_vectors(arithmetic: Path) -> None:
    assert values(run(arithmetic, "bits")) == [
        *(8, 9, 32, 11, 23, 0, 5, 41, 0xC0000001, 0xFFFFFFFE, -1),
        *(0x3F800000, -(2**31), float(np.float32(np.pi)), 1, 2**62, 2, 9.5, 1.25),
    ]
    assert values(run(arithmetic, "vectors")) == [43, 0.75, 4 + 6 + 10 + 14, 8, 43.75]


def test_approximate_functions_are_as_far_off_as_cudas_may_be(arithmetic: Path) -> None:
    out = values(run(arithmetic, "approximations"))
    x, log, log2, root, root_rn, inverse, y, exp, power, quotient = np.array(out[:-3]).reshape(64, 10).T
    half_unit = 2.0**-24

    def error(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return np.abs(value / truth - 1)

    near_one = np.abs(log2 - np.log2(x))[(x > 0.5) & (x < 2)]
    assert 2.0**-24 < near_one.max() <= 2.0**-22
    assert np.abs(log - np.log(x)).max() <= 2.0**-21.41
    assert 5 * half_unit < error(exp, np.exp(y)).max() <= (2 + np.abs(1.173 * y).max()) * 2 * half_unit
    assert error(power, x**3).max() <= 2.0**-19
    assert half_unit < error(quotient, y / x).max() <= 4 * half_unit
    assert error(root, x**-0.5).max() <= 4 * half_unit
    assert error(root_rn, x**-0.5).max() <= half_unit
    assert error(inverse, 1 / x).max() <= half_unit
    assert out[-3:] == [0, 0, 2.0**-24]


def rounded(x: Fraction, bits: int, least: int, largest: int) -> float:
    """To nearest even; 2**least is the smallest normal number, 2**largest the greatest power of two."""
    if x == 0:
        return 0.0
    exponent = x.numerator.bit_length() - x.denominator.bit_length()  # or one more than it should be
    exponent = max(exponent - (abs(x) < Fraction(2) ** exponent), least)
    unit = Fraction(2) ** (exponent - bits + 1)
    result = round(x / unit) * unit
    return float(result) if abs(result) < 2 ** (largest + 1) else float("inf") * (1 if x > 0 else -1)


@pytest.mark.parametrize(("name", "format_"), [("half", (11, -14, 15)), ("bfloat16", (8, -126, 127))])
def test_half_types_round_once_an_operation(
    arithmetic: Path, name: str, format_: tuple[int, int, int]
) -> None:
    def to(x: Fraction) -> float:
        return rounded(x, *format_)

    by_zero = {0: np.nan, 1: np.inf, -1: -np.inf}  # the patterns have +0 only
    rows = np.array(values(run(arithmetic, name))).reshape(-1, 19)
    assert len(rows) == 42 * 42
    for row in rows:
        a, b, c = (Fraction(x) for x in row[:3])
        product = to(a * b)
        in_place = product - c if np.isinf(product) else to(Fraction(product) - c)
        expected = [
            *(
                to(a + b),
                to(a - b),
                product,
                to(a / b) if b else by_zero[0 if a == 0 else np.sign(row[0])],
                to(a * b + c),
            ),
            *(-row[0], abs(row[0]), max(row[0], row[1]), min(row[0], row[1]), in_place),
            *(product, to(b * c), to(a * b + c), to(a + b), to(a * (1 + Fraction(2) ** -40))),
        ]
        assert np.array_equal(row[3:18], expected, equal_nan=True), (row, expected)
        assert row[18] == (a < b) + 2 * (a <= b) + 4 * (a == b) + 8 * (a != b) + 16 * (a > b) + 32 * (a >= b)
    assert values(run(arithmetic, "narrow_ties")) == [1025, 1025, 131, 131, 131, float("inf"), 1, 1]
