"""Run directories by name."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

OUTDIR = Path("runs")
"""Where runs are made, and looked for, by default."""
_NAME = re.compile(r"(\d{5,})-.+")
_SHOWN = 4


def numbered_runs(outdir: Path) -> dict[Path, int]:
    """The runs in a folder and their numbers."""
    if not outdir.is_dir():
        return {}
    return {path: int(match[1]) for path in outdir.iterdir() if (match := _NAME.fullmatch(path.name))}


def newest_run(outdir: Path) -> Path | None:
    """The run with the highest number; None if there is none."""
    runs = numbered_runs(outdir)
    return max(runs, key=lambda run: runs[run]) if runs else None


def find_run(name: str | Path, outdir: Path = OUTDIR) -> Path:
    """What a name means: a path that exists; `latest`, the newest run in `outdir`, or of another folder
    (`elsewhere/latest`); or the only run there whose name begins so. Otherwise the name as a path.

    Raises ValueError if several runs begin so.
    """
    path = Path(name)
    if path.exists() or not path.name:
        return path
    for folder in dict.fromkeys((outdir / path.parent, path.parent)):
        if path.name == "latest" and (run := newest_run(folder)) is not None:
            return run
        begin_so = sorted(run for run in numbered_runs(folder) if run.name.startswith(path.name))
        if len(begin_so) > 1:
            raise ValueError(f"{name} is the start of {len(begin_so)} runs: {_listed(begin_so)}")
        if begin_so:
            return begin_so[0]
    return path


def known_runs(name: str | Path, outdir: Path = OUTDIR) -> str:
    """For an error about a run that does not exist: the runs that do, the most similar names first, as the
    end of a sentence; "" if there are none."""
    path = Path(name)
    runs = {
        str(run): number for folder in {outdir, path.parent} for run, number in numbered_runs(folder).items()
    }
    if not runs:
        return ""
    by_name = {Path(run).name: run for run in runs}
    similar = [by_name[close] for close in difflib.get_close_matches(path.name, by_name, n=_SHOWN)]
    others = sorted(runs.keys() - set(similar), key=lambda run: -runs[run])
    return f"; there is {_listed([*similar, *others])}"


def _listed(runs: list[Path] | list[str]) -> str:
    more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
    return ", ".join(map(str, runs[:_SHOWN])) + more
