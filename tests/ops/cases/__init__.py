"""One module per op, each with a list CASES of OpCase."""

from __future__ import annotations

import importlib
import pkgutil

from tests.ops.suite import OpCase


def all_cases() -> list[OpCase]:
    cases: list[OpCase] = []
    for module in pkgutil.iter_modules(__path__):
        cases += importlib.import_module(f"{__name__}.{module.name}").CASES
    return cases
