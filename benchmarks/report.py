"""``python -m benchmarks.report``: tables and plots from the CSV files, so that no figure is typed by
hand."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.harness import processor_of

Row = dict[str, str]
MOST_PLOTTED = 100  # cases of one picture


def read(folder: Path) -> list[Row]:
    return [row for path in sorted(folder.glob("*.csv")) for row in csv.DictReader(path.open())]


def grouped(rows: list[Row]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["op"], row["case"], row["dtype"], row["device"]].append(row)
    return groups


def table(rows: list[Row]) -> str:
    """Markdown: for each processor a table of its rows, one of those with a peak of memory, and one of the
    GPUs' rows, which have more columns."""
    parts: dict[tuple[str, bool, bool], list[Row]] = defaultdict(list)
    for row in rows:
        card = "launches" in row
        parts[processor_of(row), card, not card and bool(row.get("peak_mb"))].append(row)
    return "\n\n".join(f"## {part[0]}\n\n{part_of_table(parts[part])}" for part in sorted(parts))


def part_of_table(rows: list[Row]) -> str:
    """One line per contender; ratios are to the group's first contender. Rows where we lose are included."""
    card = "launches" in rows[0]
    header = ["op", "case", "L2" if card else "threads", "contender", "µs (p20–p80)", "GB/s", "speed"]
    more = {"copy": "of a copy's GB/s", "launches": "launches", "kernels": "kernels", "peak_mb": "peak MB"}
    more = {key: title for key, title in more.items() if card or rows[0].get(key)}
    header += more.values()
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (op, case, dtype, device), group in grouped(rows).items():
        baseline = float(group[0]["median_us"])
        for row in group:
            median, p20, p80 = (float(row[key]) for key in ("median_us", "p20", "p80"))
            how = device.split("; ")[-1].removeprefix("L2 ").split()[0]
            line = (
                f"| {op} | {case}, {dtype} | {how} | {row['contender']} "
                f"| {median:,.1f} ({p20:,.1f}–{p80:,.1f}) | {row['gbps']} | {baseline / median:.2f}× |"
            )
            lines.append(line + "".join(f" {row[key]} |" for key in more))
    devices = sorted(
        {
            f"{row['device'].split(';')[0]}, torch {row['torch']}" + (f", {row['date']}" if card else "")
            for row in rows
        }
    )
    return "\n".join(
        [*lines, "", f"Measured on {'; '.join(devices)}. Medians of interleaved repeats, with p20–p80."]
    )


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = grouped(rows)
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(8, 0.6 * len(groups) + 0.32 * len(rows)),
        squeeze=False,
        gridspec_kw={"height_ratios": [len(group) + 1 for group in groups.values()]},
    )
    for axis, ((op, case, dtype, device), group) in zip(axes[:, 0], groups.items(), strict=True):
        names = [row["contender"] for row in group]
        axis.barh(
            names,
            [float(row["median_us"]) for row in group],
            color=["#1f6fb4" if name.startswith("aigc_ext") else "#b8bcc2" for name in names],
        )
        axis.invert_yaxis()
        axis.set_title(f"{op}: {case}, {dtype}, {device} (µs)", fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(folder: Path) -> None:
    rows = read(folder)
    (folder / "README.md").write_text(f"# Measured\n\nWritten by `make bench`.\n\n{table(rows)}\n")
    for path in sorted(folder.glob("*.csv")):
        rows = list(csv.DictReader(path.open()))
        if len(grouped(rows)) <= MOST_PLOTTED:
            plot(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results")
