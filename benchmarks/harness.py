"""Runs benchmarks (`aigc_ext.bench.timing`) and writes their rows.

A benchmark module has ``cases(setting) -> Iterable[Case]``; ``python -m benchmarks NAME ...`` runs it and
writes ``benchmarks/results/NAME.csv``, with ``--device cuda`` ``cuda-NAME.csv``.

On a GPU (benchmarks/card.py), time is measured with CUDA events, separately for a warm and a cold L2 cache.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from aigc_ext import _files
from aigc_ext.bench.timing import MALLOC, check_outputs, device_name, peak_mb, time_case
from aigc_ext.bench.timing import Case as Case
from aigc_ext.bench.timing import Setting as Setting
from aigc_ext.bench.timing import those_that_work as those_that_work

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("op", "case", "dtype", "contender", "median_us", "p20", "p80", "gbps", "device", "torch", "commit")
# The last part of `device` says how: "; 2 threads", or on a GPU "; L2 warm". Only rows for a GPU also have:
#   copy       gbps as a fraction of that of a copy of 1 GiB on the same GPU
#   launches   calls that launch work, where a CUDA graph counts as one; kernels: what then runs on the GPU
#   peak_mb    memory allocated by the call; empty for a CUDA graph, which keeps its own. On the CPU only in
#              the files of benchmarks that ask for it (`Case.memory`)
CARD_COLUMNS = ("copy", "launches", "kernels", "peak_mb", "date")


@functools.cache
def commit() -> str:
    try:
        result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return result.stdout.strip() or "unknown"


def run_module(
    cases: Callable[[Setting], Iterable[Case]], setting: Setting, threads: Iterable[int]
) -> Iterator[dict[str, Any]]:
    """The rows of a benchmark, each as soon as it is measured."""
    if setting.on_card:
        from benchmarks import card

        for case in cases(setting):
            yield from card.measure(case, setting)
        return
    for count in threads:
        torch.set_num_threads(count)
        for case in cases(setting):
            check_outputs(case)
            samples = time_case(case, seconds=0.01, min_rounds=3) if setting.quick else time_case(case)
            print(f"\n{case.op}: {case.case}, {case.dtype}, {count} thread{'s' if count > 1 else ''}")
            for row in rows_of(case, samples, device_name(count)):
                if case.memory:
                    row["peak_mb"] = f"{peak_mb(case.contenders[row['contender']]):.1f}"
                    print(f"  {row['contender']:32}{row['peak_mb']:>12} MB", flush=True)
                yield row


def rows_of(case: Case, samples: dict[str, list[float]], device: str) -> Iterator[dict[str, Any]]:
    """A row for each contender, printed as well."""
    baseline = statistics.median(next(iter(samples.values())))
    for contender, times in samples.items():
        p20, median, p80 = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
        gbps = f"{case.bytes / median / 1e3:.2f}" if case.bytes else ""
        print(
            f"  {contender:32}{median:12.1f} us {baseline / median:8.2f}x {gbps:>8} {'GB/s' if gbps else ''}",
            flush=True,
        )
        values = (
            *(case.op, case.case, case.dtype, contender, f"{median:.2f}", f"{p20:.2f}", f"{p80:.2f}", gbps),
            *(device, torch.__version__, commit()),
        )
        yield dict(zip(COLUMNS, values, strict=True))


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes after every row, so that an interrupted run leaves its measurements. What the file has of other
    processors and thread counts stays."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = list(csv.DictReader(file))
    path.parent.mkdir(parents=True, exist_ok=True)
    measured: list[dict[str, Any]] = []
    for row in rows:
        measured.append(row)
        kept = [other for other in kept if other["device"] != row["device"]]
        everything = [*kept, *measured]
        columns = dict.fromkeys(itertools.chain(row, *everything))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)
        _files.replace_file(path, text.getvalue().encode(), durable=False)


def processor_of(row: dict[str, Any]) -> str:
    return str(row["device"]).split("; ")[0]


def with_environment(isa: str | None) -> None:
    """Restarts the process with what is read only at its start: the allocator's settings, and the instruction
    set that our kernels, oneDNN and MKL are held to."""
    wanted = dict(MALLOC)
    if isa:
        wanted |= {
            "AIGC_EXT_ISA": isa,
            "ONEDNN_MAX_CPU_ISA": isa.upper(),
            "MKL_ENABLE_INSTRUCTIONS": isa.upper(),
        }
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], {**os.environ, **wanted}
        )
