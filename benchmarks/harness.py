"""Times contenders against each other in one run: interleaved, medians, outputs compared first.

A benchmark module has ``cases() -> Iterable[Case]``; ``python -m benchmarks NAME ...`` runs it and writes
``benchmarks/results/NAME.csv``.
"""

from __future__ import annotations

import csv
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("op", "case", "dtype", "contender", "median_us", "p20", "p80", "gbps", "device", "torch", "commit")

# glibc gives freed large blocks back to the system by default, which costs eager PyTorch up to 8x; it is
# not a win of
# ours, so every contender runs without it.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass
class Case:
    """One question: the same work done by each contender. The first one is the baseline of the printed
    ratios."""

    op: str
    case: str
    contenders: dict[str, Callable[[], Any]]
    dtype: str = "float32"
    bytes: int | None = None  # least traffic that the work needs, for GB/s
    # Tensors that a contender's return value is compared by; None where results are not comparable by nature
    # (training steps change their weights), which the case's name must justify.
    outputs: Callable[[Any], Any] | None = field(default=lambda result: result)
    rtol: float = 1e-4
    atol: float = 1e-5
    turn: float = 0.002  # seconds that a contender runs at a stretch, at least one call


def check_outputs(case: Case) -> None:
    """Every contender computes the same as the first, or the benchmark stops."""
    if case.outputs is None:
        return
    names = list(case.contenders)
    expected = case.outputs(case.contenders[names[0]]())
    for name in names[1:]:
        got = case.outputs(case.contenders[name]())
        if got is None:  # a yardstick (a copy, say) that computes something else
            continue
        torch.testing.assert_close(
            got, expected, rtol=case.rtol, atol=case.atol, msg=lambda m, n=name: f"{case.op}, {n}: {m}"
        )


def time_case(case: Case, seconds: float = 0.8, min_rounds: int = 15) -> dict[str, list[float]]:
    """Microseconds of each contender, in rounds that give every contender a turn."""
    loops: dict[str, int] = {}
    for name, run in case.contenders.items():
        for _ in range(3):
            run()
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
        loops[name] = max(1, int(case.turn / max(once, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in case.contenders}
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds * len(case.contenders)
        while time.perf_counter() < deadline or len(samples[next(iter(samples))]) < min_rounds:
            for name, run in case.contenders.items():
                n = loops[name]
                start = time.perf_counter()
                for _ in range(n):
                    run()
                samples[name].append((time.perf_counter() - start) / n * 1e6)
    finally:
        gc.enable()
    return samples


def device_name(threads: int) -> str:
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name}; {threads} thread{'s' if threads > 1 else ''}"


def commit() -> str:
    result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def run_module(
    name: str, cases: Callable[[], Iterable[Case]], threads: Iterable[int]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for count in threads:
        torch.set_num_threads(count)
        for case in cases():
            check_outputs(case)
            samples = time_case(case)
            baseline = statistics.median(next(iter(samples.values())))
            print(f"\n{case.op}: {case.case}, {case.dtype}, {count} thread{'s' if count > 1 else ''}")
            for contender, times in samples.items():
                p20, median, p80 = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
                gbps = f"{case.bytes / median / 1e3:.2f}" if case.bytes else ""
                ratio = baseline / median
                print(f"  {contender:32}{median:12.1f} us {ratio:8.2f}x {gbps:>8} {'GB/s' if gbps else ''}")
                rows.append(
                    dict(
                        zip(
                            COLUMNS,
                            (
                                case.op,
                                case.case,
                                case.dtype,
                                contender,
                                f"{median:.2f}",
                                f"{p20:.2f}",
                                f"{p80:.2f}",
                                gbps,
                                device_name(count),
                                torch.__version__,
                                commit(),
                            ),
                            strict=True,
                        )
                    )
                )
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def same_allocator_for_all() -> None:
    """Starts the process anew with the allocator settings, which glibc reads only at start."""
    if any(os.environ.get(key) != value for key, value in MALLOC.items()):
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], {**os.environ, **MALLOC}
        )
