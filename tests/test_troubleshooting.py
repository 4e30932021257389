"""docs/troubleshooting.md has every error of building and importing, in its own words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = " ".join((ROOT / "docs" / "troubleshooting.md").read_text().split())


def literals(node: ast.expr) -> list[str]:
    """The constant parts of a message: of a string, of an f-string, of both in brackets or with a +."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    return [
        str(part.value)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


def messages() -> list[tuple[str, list[str]]]:
    found = []
    for file, names in (("setup.py", ("refuse",)), ("aigc_ext/_native.py", ("ImportError",))):
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            if isinstance(node, ast.Call) and called in names:
                found.append((f"{file}:{node.lineno}", literals(node.args[0])))
            named = isinstance(node, ast.FunctionDef) and node.name in (
                "_why_no_torch",
                "_advice",
                "why_not_reused",
            )
            if isinstance(node, ast.FunctionDef) and named:
                returned = (
                    part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value
                )
                found += [(f"{file}:{value.lineno}", literals(value)) for value in returned]
    for file in ("CMakeLists.txt", "cmake/cuda.cmake"):
        text = (ROOT / file).read_text()
        for match in re.finditer(
            r'message\(FATAL_ERROR ((?:"[^"]*"\s*)+)\)|set\(\$\{result\} ("[^"]*")', text
        ):
            message = "".join(re.findall(r'"([^"]*)"', match[1] or match[2]))
            found.append(
                (f"{file}:{text[: match.start()].count(chr(10)) + 1}", re.split(r"\$\{\w+\}", message))
            )
    return found


ALL = messages()


def test_all_are_looked_at() -> None:
    assert len(ALL) > 25


@pytest.mark.parametrize(("place", "parts"), ALL, ids=[place for place, _ in ALL])
def test_it_is_on_the_page(place: str, parts: list[str]) -> None:
    """One of its parts of two words or more, up to where it says what to type."""
    told = [
        re.split(r"[:(`]|\. (?=[A-Z])", " ".join(part.split()).strip(" :,.'"))[0].strip(" :,.'")
        for part in parts
    ]
    told = [part for part in told if part.count(" ") >= 1]
    assert any(part in PAGE for part in told) or not told, f"{place} is missing: {told}"
