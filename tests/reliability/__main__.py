"""`make trust`: faults by injection in every command and fuzzed parsers, each on a core of its own, and their
figures in docs/reliability.md.

    python -m tests.reliability [--every N] [--seconds N]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tests.reliability import fuzz, inject

PAGE = inject.ROOT / "docs" / "reliability.md"
_OUTCOMES = ("stopped", "carried on")
_READS, _WRITES = ("open", "read", "list", "map"), ("create", "write")
_OTHERS = ("fsync", "rename", "mkdir", "unlink", "tensor", "workspace")


def tables_of(injected: dict[str, Any], read: dict[str, Any], every: int, seconds: float) -> dict[str, str]:
    """The parts of the page, by the names of their markers."""
    return {
        "faults": _faults(injected, every),
        "parsers": _parsers(read),
        "time": f"The last run took {seconds / 60:.1f} minutes.",
    }


def _faults(report: dict[str, Any], every: int) -> str:
    rows, by_kind = [], dict[str, Counter[str]]()
    for name, calls in report["calls"].items():
        counts = Counter[str]()
        for fault, outcomes in report["outcomes"][name].items():
            counts.update(outcomes)
            by_kind.setdefault(fault, Counter()).update(outcomes)
        wrong = sum(problem.startswith(f"{name}: ") for problem in report["problems"])
        columns: list[int] = [sum(calls[kind] for kind in kinds) for kinds in (_READS, _WRITES)]
        columns += [calls[kind] for kind in _OTHERS]
        columns += [sum(counts[outcome] for outcome in _OUTCOMES)]
        rows.append([name, *columns, *(counts[outcome] for outcome in _OUTCOMES), wrong])
    head = ["command", "reads", "writes", *_OTHERS, "faults", *_OUTCOMES, "wrong"]
    kinds = [
        [fault, sum(counts[outcome] for outcome in _OUTCOMES), *(counts[outcome] for outcome in _OUTCOMES)]
        for fault, counts in by_kind.items()
    ]
    total = sum(counts[outcome] for counts in by_kind.values() for outcome in _OUTCOMES)
    text = (
        f"{total:,} faults in {report['seconds']:.0f} s, {len(report['problems'])} wrong; every "
        f"{every}{'st' if every == 1 else 'rd' if every == 3 else 'nd' if every == 2 else 'th'} call of each "
        "kind was refused once, with each error that it can have."
    )
    return f"{text}\n\n{_table(head, rows)}\n\n{_table(['fault', 'injected', *_OUTCOMES], kinds)}"


def _parsers(report: dict[str, Any]) -> str:
    corpus = {target.name: len(fuzz.corpus(target)) for target in fuzz.targets()}
    rows = [
        [
            name,
            each["calls"],
            each["refused"],
            f"{each['slowest']:.2f} s",
            corpus[name],
            len(each["problems"]),
        ]
        for name, each in report.items()
    ]
    calls = sum(each["calls"] for each in report.values())
    seconds = sum(each["seconds"] for each in report.values())
    wrong = sum(len(each["problems"]) for each in report.values())
    head = ["parser", "inputs", "refused", "slowest", "in the corpus", "wrong"]
    return f"{calls:,} inputs in {seconds:.0f} s, {wrong} wrong.\n\n{_table(head, rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def shown(value: object) -> str:
        return f"{value:,}" if isinstance(value, int) else str(value)

    lines = [head, ["---", *("---:" for _ in head[1:])], *([shown(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rewrite(page: str, parts: dict[str, str]) -> str:
    for name, text in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if page.count(start) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE} must have {start} and {end} once")
        page = re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", page, flags=re.DOTALL)  # noqa: B023
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=3, help="inject a fault into every Nth call")
    parser.add_argument("--seconds", type=int, default=300, help="for the parsers")
    options = parser.parse_args()
    start = time.monotonic()
    command = [sys.executable, "-m", f"{__package__}.fuzz", "--seconds", str(options.seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=inject.ROOT) as parsers:
        done = inject.start(["--every", str(options.every)])
        assert parsers.stdout is not None
        text = parsers.stdout.read()
    if not done.stdout or not text:
        return 1  # it has said why
    injected, read = json.loads(done.stdout), json.loads(text)
    parts = tables_of(injected, read, options.every, time.monotonic() - start)
    PAGE.write_text(rewrite(PAGE.read_text(), parts))
    print(PAGE.relative_to(inject.ROOT))
    return max(done.returncode, parsers.returncode)


if __name__ == "__main__":
    sys.exit(main())
