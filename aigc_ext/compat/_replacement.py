"""Replaces the functions of another project's modules by ours, and restores them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any

logger = logging.getLogger("aigc_ext")

_MISSING = object()


class Replacement(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The replacement for a set of modules: by module name, the names to define in it.

    While installed, importing one of the modules gives a module with only our names: its file is not run, so
    nothing is compiled. In a module that was imported before, our names are set and all others kept; they are
    also set in the parent packages that had imported them.
    """

    def __init__(self, modules: Mapping[str, Mapping[str, Any]]) -> None:
        self._modules = modules
        self._changed: list[tuple[ModuleType, str, object]] | None = None  # module, name, value before

    @property
    def installed(self) -> bool:
        return self._changed is not None

    def install(self) -> Installation:
        if self._changed is None:
            self._changed = []
            sys.meta_path.insert(0, self)
            for name, ours in self._modules.items():
                if (module := sys.modules.get(name)) is not None:
                    self._put_into(module, ours)
        in_place = [name for name in self._modules if name in sys.modules]
        installation = Installation(self, tuple(self._modules), tuple(in_place))
        logger.info("%s", installation)
        return installation

    def uninstall(self) -> None:
        """Restores the project's own modules. Does nothing if not installed."""
        if self._changed is None:
            return
        sys.meta_path.remove(self)
        for module, name, before in reversed(self._changed):
            if before is _MISSING:
                delattr(module, name)
            else:
                setattr(module, name, before)
        self._changed = None
        for name in self._modules:  # modules that are entirely ours: the next import finds the project's own
            made = sys.modules.get(name)
            if made is not None and getattr(made, "__loader__", None) is self:
                del sys.modules[name]
                parent, _, last = name.rpartition(".")
                if vars(sys.modules.get(parent, made)).get(last) is made:
                    delattr(sys.modules[parent], last)

    def _put_into(self, module: ModuleType, ours: Mapping[str, Any]) -> None:
        for name, value in ours.items():
            before = vars(module).get(name, _MISSING)
            self._set(module, name, value, before)
            package = module.__name__
            while before is not _MISSING and (package := package.rpartition(".")[0]):
                above = sys.modules.get(package)
                if above is not None and vars(above).get(name) is before:
                    self._set(above, name, value, before)

    def _set(self, module: ModuleType, name: str, value: object, before: object) -> None:
        assert self._changed is not None
        self._changed.append((module, name, before))
        setattr(module, name, value)

    # ---- called by the import system

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._modules:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin="aigc_ext.compat")

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._modules[module.__name__])


class Installation:
    """The result of ``install()``; the end of a ``with`` block undoes it.

    Attributes:
        modules: the replaced modules.
        in_place: those of them that had already been imported, and were changed; the others are replaced when
            they are imported. Names that other modules had imported from them are still the project's own.
    """

    def __init__(self, replacement: Replacement, modules: tuple[str, ...], in_place: tuple[str, ...]) -> None:
        self._replacement = replacement
        self.modules = modules
        self.in_place = in_place

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._replacement.uninstall()

    def __str__(self) -> str:
        text = f"aigc_ext replaces {', '.join(self.modules)}"
        return text + (f"; imported before: {', '.join(self.in_place)}" if self.in_place else "")
