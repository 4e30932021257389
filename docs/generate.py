"""`make docs`: generates the parts of files that follow from the records of the ops.

- `aigc_ext/ops/__init__.py`: the exports;
- `docs/ops.md`: the list of ops.

tests/ops/test_records.py fails if a file is out of date.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from aigc_ext.ops._op import Op, records

ROOT = Path(__file__).parents[1]
EXPORTS = ROOT / "aigc_ext" / "ops" / "__init__.py"
OPS_PAGE = ROOT / "docs" / "ops.md"


def exported(ops: list[Op]) -> dict[str, list[str]]:
    """The public names of each module: functions, their references, and the names in its list ALSO."""
    names: dict[str, set[str]] = {}
    for op in ops:
        also = op.public.__globals__.get("ALSO", ())
        for function in (op.public, op.ref, *also):
            names.setdefault(op.public.__module__, set()).add(function.__name__)
    return {module: sorted(names[module]) for module in sorted(names)}


def exports(text: str, ops: list[Op]) -> str:
    """The module with its imports of ops, which come last, regenerated."""
    head = text[: text.index("# Of every op")]
    lines = ["# Of every op: `make docs` writes these lines.\n"]
    for module, names in exported(ops).items():
        lines += [f"from {module} import {name} as {name}\n" for name in names]
    return head + "".join(lines)


def summary(op: Op) -> str:
    """The first sentence of the docstring, in Markdown."""
    text = " ".join((inspect.getdoc(op.public) or "").partition("\n\n")[0].split())
    text = re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", r"\|")


def page(text: str, ops: list[Op]) -> str:
    """The text with its table of ops, between two comments, regenerated."""
    lines = ["| op | |", "|---|---|", *(f"| `{op.name}` | {summary(op)} |" for op in ops)]
    table = "\n".join(lines)
    return re.sub(
        r"(<!-- ops -->).*?(<!-- /ops -->)", lambda m: f"{m[1]}\n{table}\n{m[2]}", text, flags=re.DOTALL
    )


def main() -> None:
    for path, write in ((EXPORTS, exports), (OPS_PAGE, page)):
        text = path.read_text(encoding="utf-8")
        path.write_text(write(text, records()), encoding="utf-8")


if __name__ == "__main__":
    main()
