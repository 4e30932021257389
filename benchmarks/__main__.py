from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
from pathlib import Path

import torch

import benchmarks
from benchmarks import harness

NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if module.name not in ("harness", "card", "report", "compare", "gpu_check", "shapes", "zoo", "__main__")
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Runs benchmarks; writes CSV, a table and plots."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", default="1,2", help="thread counts on the CPU (1,2)")
    parser.add_argument("--isa", choices=["avx2"], help="hold all contenders to this instruction set")
    parser.add_argument(
        "--no-compile", action="store_true", help="step without what takes minutes to compile"
    )
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder to write into")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: the figures are meaningless")
    parser.add_argument("--csv-only", action="store_true", help="no table and no plots")
    options = parser.parse_args()
    options.names = ["overhead" if name == "call_overhead" else name for name in options.names]  # as before
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"NAME is {', '.join(sorted(unknown))}, but must be of {', '.join(NAMES)}")
    counts = [int(part) for part in options.threads.split(",")]
    available = len(os.sched_getaffinity(0))
    if options.device == "cpu" and max(counts) > available:
        parser.error(f"--threads asks for {max(counts)}, but {available} cores are available")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no CUDA device")
    if options.quick and options.results == harness.RESULTS:
        parser.error("--quick needs --results: its figures are none")
    harness.with_environment(options.isa)
    setting = harness.Setting(torch.device(options.device), options.quick, not options.no_compile)
    for name in options.names or NAMES:
        cases = importlib.import_module(f"benchmarks.{name}").cases
        file = f"cuda-{name}.csv" if setting.on_card else f"{name}.csv"
        harness.write_csv(options.results / file, harness.run_module(cases, setting, counts))
    if not options.csv_only:
        from benchmarks import report  # needs matplotlib

        report.write(options.results)


main()
