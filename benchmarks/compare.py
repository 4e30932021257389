"""``python -m benchmarks.compare OLD NEW [--fail-if-regression]``: two result folders, row by row."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from benchmarks.report import read


@click.command()
@click.argument("old", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tolerance", default=0.1, show_default=True, help="Slower by more than this is a regression.")
@click.option("--fail-if-regression", is_flag=True, help="Exit with 1 if one of aigc_ext's rows is slower.")
def main(old: Path, new: Path, tolerance: float, fail_if_regression: bool) -> None:
    """Compares our rows of the same processor, relative to the eager rows of the same run."""

    def relative(folder: Path) -> dict[tuple[str, ...], float]:
        rows = read(folder)
        first: dict[tuple[str, ...], float] = {}
        result: dict[tuple[str, ...], float] = {}
        for row in rows:
            key = (row["op"], row["case"], row["dtype"], row["device"])
            first.setdefault(key, float(row["median_us"]))
            if row["contender"].startswith("aigc_ext"):
                ours = (*key, row["contender"])
                result[ours] = float(row["median_us"]) / first[key]
        return result

    before, after = relative(old), relative(new)
    worse = []
    for key in sorted(before.keys() & after.keys()):
        change = after[key] / before[key]
        mark = ""
        if change > 1 + tolerance:
            worse.append(key)
            mark = "  slower"
        print(f"{' | '.join(key):90} {1 / before[key]:7.2f}x -> {1 / after[key]:7.2f}x{mark}")
    for key in sorted(before.keys() ^ after.keys()):
        print(f"{' | '.join(key):90} only in {'old' if key in before else 'new'}")
    if fail_if_regression and worse:
        sys.exit(1)


if __name__ == "__main__":
    main()
