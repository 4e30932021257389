"""`make sanitize`: the ops suite under AddressSanitizer and UndefinedBehaviorSanitizer, first by the CPU
kernels, then by the CUDA kernels on fibers (tests/simt). `make sanitize-threads`: the CPU kernels' items, run
by several threads, under ThreadSanitizer.

The sanitized libraries are built by the Makefile. Python itself is not, so the sanitizer is preloaded. Before
the suite runs, faults are planted, each of which must be reported: a sanitizer that is not in force passes
everything.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARIES = {"cpu": "build/sanitize/libaigc_ops.so", "simt": "build/sanitize-simt/libaigc_ops_simt.so"}
THREADS = "build/sanitize-threads/libaigc_ops.so"

# On 64 floats in memory that torch has allocated.
PLANT = """
import ctypes, sys, torch
values = torch.zeros(64)
function = getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])
function(ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(int(sys.argv[3])))
print("survived")
"""
# function, argument, what the report must say; None: it is not a fault
FAULTS = [
    ("read_at", 63, None),
    ("read_at", 64, "heap-buffer-overflow"),
    ("write_at", -1, "heap-buffer-overflow"),
    ("read_misaligned", 8, None),
    ("read_misaligned", 4, "load of misaligned address"),
    ("largest_plus", 0, None),
    ("largest_plus", 1, "signed integer overflow"),
]
RACES = [("write_from_two_threads", 1, None), ("write_from_two_threads", 0, "data race")]


def environment(reports: Path, threads: bool = False) -> dict[str, str]:
    """For a Python process that loads a sanitized library. Reports of errors go to files in ``reports``:
    pytest holds back what a process that dies has written.
    """
    asan = ("libasan.so", "libubsan.so", "libstdc++.so")  # exceptions are caught by the first
    runtime = [
        subprocess.run(
            [os.environ.get("CXX", "c++"), f"-print-file-name={name}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in (("libtsan.so",) if threads else asan)
    ]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(runtime),
        # Python's own leaks are none of our business; test_calls_leave_no_memory_behind has ours.
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports}/report",
        "TSAN_OPTIONS": f"report_bugs=1:exitcode=66:log_path={reports}/report",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}/report",
        "OMP_NUM_THREADS": "1",
        "HYPOTHESIS_PROFILE": "brief",
    }


def reports_in(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.iterdir()))


def python(threads: bool) -> list[str]:
    """Python's command line. ThreadSanitizer does not start where addresses are random in all their bits."""
    return [*(("setarch", "-R") if threads else ()), sys.executable]


def check_planted_faults(threads: bool) -> None:
    faults = (ROOT / (THREADS if threads else LIBRARIES["cpu"])).parent / "libaigc_planted_faults.so"
    planted = RACES if threads else FAULTS
    for function, argument, expected in planted:
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run(
                [*python(threads), "-c", PLANT, str(faults), function, str(argument)],
                env=environment(Path(folder), threads),
                capture_output=True,
                text=True,
            )
            report = reports_in(Path(folder)) + result.stderr
        survived = result.returncode == 0 and "survived" in result.stdout
        if survived != (expected is None) or (expected or "") not in report:
            wanted = f"be reported: {expected}" if expected else "pass"
            sys.exit(
                f"{function}({argument}) must {wanted}, but exit code "
                f"{result.returncode} came with:\n{result.stdout}{report}"
            )
    print(f"{sum(expected is not None for *_, expected in planted)} planted faults are reported")


def run_suite(backend: str, library: str, pytest_arguments: list[str], threads: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [*python(threads), "-m", "pytest", "-q", "-p", "no:cacheprovider", *pytest_arguments],
            cwd=ROOT,
            env={
                **environment(Path(folder), threads),
                "AIGC_EXT_BACKEND": backend,
                "AIGC_EXT_LIBRARY": str(ROOT / library),
            },
        )
        report = reports_in(Path(folder))
    if report:
        print(report)
    return result.returncode or bool(report)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__)
    parser.add_argument("--backend", choices=LIBRARIES, action="append", help="only this one")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    parser.add_argument("--threads", action="store_true", help="ThreadSanitizer on the CPU kernels")
    options = parser.parse_args()
    check_planted_faults(options.threads)
    failures = 0
    libraries = {"cpu": THREADS} if options.threads else LIBRARIES
    for backend in options.backend or libraries:
        print(f"The ops on {libraries[backend]}", flush=True)
        failures += run_suite(backend, libraries[backend], options.pytest, options.threads)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
