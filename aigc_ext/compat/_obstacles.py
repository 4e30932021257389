"""Explains errors that old code meets on today's libraries, with the line to change. Nothing is patched."""

from __future__ import annotations

import ast
import linecache
import pickle
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_holders: set[int] = set()
_hook_before: Any = None
_MISSING_MODULES = {
    "pkg_resources": (
        "setuptools 82 has no pkg_resources any more; packaging.version.parse does what parse_version did, "
        "and importlib.metadata.version what get_distribution did (or install 'setuptools<81')"
    ),
    "distutils": (
        "Python 3.12 has no distutils any more; use packaging.version.parse for LooseVersion, and "
        "shutil.copytree for dir_util.copy_tree"
    ),
    "torch._six": (
        "PyTorch 2 has no torch._six any more; string_classes was str, container_abcs is collections.abc, "
        "and inf is torch.inf"
    ),
    "imp": "Python 3.12 has no imp any more; use importlib",
}


def explain(error: BaseException) -> str | None:
    """What to change in the project's code, or None if the error is not one of the known obstacles."""
    frames = list(_frames(error.__traceback__))
    if isinstance(error, ValueError) and str(error) == "betas must be either both floats or both Tensors":
        lines = list(dict.fromkeys(_integer_betas(frames)))
        where = "\n".join(f"  {line}" for line in lines) or f"  {_line(frames)}"
        return f"torch.optim takes no integers as betas any more; write floats here:\n{where}"
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error):
        return (
            "torch.load reads only tensors by default since torch 2.6, not whatever else a pickle may run; "
            f"if you trust the file, add weights_only=False here:\n  {_line(frames)}"
        )
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        for module, advice in _MISSING_MODULES.items():
            if error.name == module or error.name.startswith(f"{module}."):
                return f"{advice}. The line is:\n  {_line(frames)}"
    return None


def explain_uncaught(holder: object) -> None:
    """Until `explain_no_longer`, an error that ends the program is followed by its explanation."""
    global _hook_before
    if not _holders:
        _hook_before, sys.excepthook = sys.excepthook, _hook
    _holders.add(id(holder))


def explain_no_longer(holder: object) -> None:
    _holders.discard(id(holder))
    if not _holders and sys.excepthook is _hook:  # else someone has put theirs over it
        sys.excepthook = _hook_before


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    _hook_before(kind, error, traceback)
    if text := explain(error):
        print(f"\naigc_ext.compat: {text}", file=sys.stderr)


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    """Those of the project, outermost first."""
    libraries = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    libraries.append(Path(__file__).resolve().parents[1])
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        inside = not file.startswith("<") and not any(
            path in libraries for path in Path(file).resolve().parents
        )
        if inside:
            yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _line(frames: list[tuple[FrameType, int]]) -> str:
    if not frames:
        return "(no line of the project: the call came from a library)"
    frame, number = frames[-1]
    file = frame.f_code.co_filename
    return f"{file}:{number}: {linecache.getline(file, number).strip()}"


def _integer_betas(frames: list[tuple[FrameType, int]]) -> Iterator[str]:
    """Where betas with an integer are written, in the files that the call came through."""
    for file in dict.fromkeys(frame.f_code.co_filename for frame, _ in reversed(frames)):
        try:
            tree = ast.parse("".join(linecache.getlines(file)))
        except SyntaxError:  # a file that has changed since it was imported
            continue
        for node in ast.walk(tree):
            for value in _betas_of(node):
                if any(isinstance(n, ast.Constant) and type(n.value) is int for n in value.elts):
                    floats = [
                        repr(float(n.value))
                        if isinstance(n, ast.Constant) and type(n.value) is int
                        else ast.unparse(n)
                        for n in value.elts
                    ]
                    number = value.lineno
                    line = linecache.getline(file, number).strip()
                    yield f"{file}:{number}: {line}\n    betas=({', '.join(floats)})"


def _betas_of(node: ast.AST) -> Iterator[ast.Tuple | ast.List]:
    values: list[ast.expr] = []
    if isinstance(node, ast.keyword) and node.arg == "betas":
        values = [node.value]
    elif isinstance(node, ast.Dict):
        values = [
            v
            for k, v in zip(node.keys, node.values, strict=True)
            if isinstance(k, ast.Constant) and k.value == "betas"
        ]
    elif isinstance(node, ast.Assign) and any("betas" in ast.unparse(t) for t in node.targets):
        values = [node.value]
    for value in values:
        if isinstance(value, (ast.Tuple, ast.List)):
            yield value
