from __future__ import annotations

import importlib
import os
import pkgutil

import click

import benchmarks
from benchmarks import harness, report

NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if module.name not in ("harness", "report", "compare", "__main__")
)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--threads", default="1,2", show_default=True, help="Thread counts, separated by commas.")
@click.option(
    "--results", default=str(harness.RESULTS), show_default=True, help="Folder for CSV, table and plots."
)
def main(names: tuple[str, ...], threads: str, results: str) -> None:
    """Runs the benchmarks NAMES (all of them by default); writes CSV, a table and plots."""
    counts = [int(part) for part in threads.split(",")]
    available = len(os.sched_getaffinity(0))
    if max(counts) > available:
        raise click.BadParameter(f"--threads asks for {max(counts)}, but {available} cores are available")
    harness.same_allocator_for_all()
    for name in names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        rows = harness.run_module(name, module.cases, counts)
        harness.write_csv(harness.Path(results) / f"{name}.csv", rows)
    report.write(harness.Path(results))


main()
