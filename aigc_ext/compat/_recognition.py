"""Recognises copies of the ops in other projects, by the names and signatures that a module defines.

A module is read, never run: its functions and classes, their parameters and defaults are taken from its
syntax tree. A copy may name its parameters in another order, have other defaults, or have parameters that
only choose between implementations; calls are translated. A parameter that could change the result means
that it is not such a copy.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

CHOOSES_IMPLEMENTATION = frozenset({"device", "impl", "use_custom_op"})
_is_compiling = torch.compiler.is_compiling


@dataclass(frozen=True)
class Api:
    """What a module of a family defines.

    Attributes:
        tail: last part of the module's name; a copy's may go on after an underscore (`fused_act_cpu`).
        key: the function without which a module is no copy.
        ours: our functions and classes, and data that is put beside them.
        distinct: no other kind of function has the key as its name.
    """

    tail: str
    key: str
    ours: Mapping[str, Any]
    distinct: bool = True

    def fits_name(self, module: str) -> bool:
        return re.fullmatch(rf"{self.tail}(_\w+)?", module.rpartition(".")[2]) is not None


class NoCopyError(Exception):
    """Why a module is not a copy that can be replaced."""


@dataclass(frozen=True)
class Unreadable:
    """What cannot be known without running the file."""

    text: str


# None is what is not a function or class of the module itself, such as what it imports.
Signatures = Mapping[str, "inspect.Signature | Unreadable | None"]


def top_level(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """The names that a module binds, with the statement; also those within `if`, `try` and `with`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (name for target in targets for name in ast.walk(target)):
                if isinstance(name, ast.Name):
                    yield name.id, node
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            yield from top_level(node)


def signatures_of_source(source: str) -> Signatures:
    """The names that it binds; the signatures of its functions, and of the constructors of its classes."""
    found: dict[str, inspect.Signature | Unreadable | None] = {}
    for name, node in top_level(ast.parse(source)):
        signature: inspect.Signature | Unreadable | None = None
        if isinstance(node, ast.FunctionDef):
            signature = _signature(node.args)
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    with_self = _signature(method.args)
                    signature = with_self.replace(parameters=list(with_self.parameters.values())[1:])
        if name in found and found[name] != signature:
            signature = Unreadable("it is defined twice, in two forms")
        found[name] = signature
    return found


def signatures_of_module(module: Any) -> Signatures:
    """The same of a module that was imported."""
    found: dict[str, inspect.Signature | Unreadable | None] = {}
    for name, value in list(vars(module).items()):
        found[name] = None
        if getattr(value, "__module__", None) == module.__name__ and callable(value):
            try:
                found[name] = inspect.signature(value)
            except (TypeError, ValueError):
                found[name] = Unreadable("it has no signature")
    return found


def _signature(arguments: ast.arguments) -> inspect.Signature:
    kinds = inspect.Parameter
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = len(positional) - len(arguments.defaults)
    defaults = [inspect.Parameter.empty] * missing + [_value(node) for node in arguments.defaults]
    parameters = [
        kinds(argument.arg, kinds.POSITIONAL_OR_KEYWORD, default=default)
        for argument, default in zip(positional, defaults, strict=True)
    ]
    if arguments.vararg:
        parameters.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    for argument, node in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        default = inspect.Parameter.empty if node is None else _value(node)
        parameters.append(kinds(argument.arg, kinds.KEYWORD_ONLY, default=default))
    if arguments.kwarg:
        parameters.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _value(node: ast.expr) -> Any:
    """The value of a constant expression, such as `2 ** 0.5` or `math.sqrt(2)`."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        values = [_value(item) for item in node.elts]
        if not any(isinstance(value, Unreadable) for value in values):
            return tuple(values) if isinstance(node, ast.Tuple) else values
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        if isinstance(value, (int, float)):
            return -value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if numbers and isinstance(node.op, ast.Pow) and abs(left) <= 1000 and abs(right) <= 10:
            return left**right
        if numbers and isinstance(node.op, ast.Div) and right:
            return left / right
    if isinstance(node, ast.Call) and len(node.args) == 1 and ast.unparse(node.func).endswith("sqrt"):
        value = _value(node.args[0])
        if isinstance(value, (int, float)) and value >= 0:
            return math.sqrt(value)
    return Unreadable(ast.unparse(node))


def replacements(api: Api, theirs: Signatures, module: str, calls: Counter[str]) -> dict[str, Any]:
    """What to put into a copy whose names have these signatures; the functions count their calls.

    Raises:
        NoCopyError: it is no copy of this API, or not one that is understood.
    """
    if theirs.get(api.key) is None:
        raise NoCopyError(f"it does not define {api.key}()")
    made = {}
    for name, ours in api.ours.items():
        if not callable(ours):
            made[name] = ours
        elif name in theirs:
            signature = theirs[name]
            if not isinstance(signature, inspect.Signature):
                raise NoCopyError(f"of {name}, {signature.text if signature else 'nothing is defined here'}")
            made[name] = _translated(name, ours, signature, module, calls)
    return made


def as_they_are(ours: Mapping[str, Any], module: str, calls: Counter[str]) -> dict[str, Any]:
    """Our functions with their own signatures, for a module that is replaced whatever it defines."""
    return {
        name: _counting(name, value, lambda *args, **kwargs: (args, kwargs), module, calls)
        if callable(value)
        else value
        for name, value in ours.items()
    }


def _translated(
    name: str, ours: Any, theirs: inspect.Signature, module: str, calls: Counter[str]
) -> Callable[..., Any]:
    known = inspect.signature(ours).parameters
    order, defaults, ignored = [], {}, set()
    for parameter in theirs.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise NoCopyError(f"{name}() takes any arguments, *{parameter.name}")
        if parameter.kind is not parameter.KEYWORD_ONLY:
            order.append(parameter.name)
        if parameter.name not in known:
            if parameter.name not in CHOOSES_IMPLEMENTATION:
                raise NoCopyError(f"{name}() has a parameter {parameter.name!r}, whose meaning is unknown")
            ignored.add(parameter.name)
        elif parameter.default is not parameter.empty and parameter.name not in CHOOSES_IMPLEMENTATION:
            if isinstance(parameter.default, Unreadable):
                raise NoCopyError(
                    f"{name}() has the default {parameter.name}={parameter.default.text}, which only running "
                    "the file would tell"
                )
            if parameter.default != known[parameter.name].default:
                defaults[parameter.name] = parameter.default
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.name not in theirs.parameters:
            raise NoCopyError(f"{name}() has no parameter {parameter.name!r}")
    same_order = list(known)[: len(order)] == order
    names = tuple(order)

    def translate(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if same_order and not defaults and not ignored:
            return args, kwargs
        if len(args) > len(names):
            raise TypeError(
                f"{name}() takes at most {len(names)} positional arguments, but {len(args)} were given"
            )
        given = dict(zip(names, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise TypeError(f"{name}() got multiple values for argument {min(twice)!r}")
        given = {**defaults, **given, **kwargs}
        return (), {key: value for key, value in given.items() if key not in ignored}

    made = _counting(name, ours, translate, module, calls)
    made.__signature__ = theirs  # type: ignore[attr-defined]
    return made


def _counting(
    name: str, ours: Any, translate: Callable[..., Any], module: str, calls: Counter[str]
) -> Callable[..., Any]:
    """Our function or class, with its arguments translated. A class counts the calls of its instances."""
    if isinstance(ours, type):
        forward = ours.forward  # type: ignore[attr-defined]

        def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
            args, kwargs = translate(*args, **kwargs)
            ours.__init__(self, *args, **kwargs)  # type: ignore[misc]

        def count_and_run(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not _is_compiling():
                calls[name] += 1
            return forward(self, *args, **kwargs)

        # Named as the project's own, so that a network pickled with it is loaded without us too.
        names = {"__module__": module, "__qualname__": name, "__doc__": ours.__doc__}
        return type(name, (ours,), {"__init__": initialise, "forward": count_and_run, **names})

    @functools.wraps(ours)
    def count_and_call(*args: Any, **kwargs: Any) -> Any:
        if not _is_compiling():
            calls[name] += 1
        args, kwargs = translate(*args, **kwargs)
        return ours(*args, **kwargs)

    return count_and_call
