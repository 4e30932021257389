"""Replaces the functions of another project's modules by ours, and restores them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, ClassVar

from aigc_ext.compat import _obstacles
from aigc_ext.compat._recognition import (
    Api,
    NoCopyError,
    Signatures,
    as_they_are,
    replacements,
    signatures_of_module,
    signatures_of_source,
)

logger = logging.getLogger("aigc_ext")

_MISSING = object()
_OURS = ("aigc_ext", "torch")


@dataclass
class Replaced:
    """A module whose functions are ours.

    Attributes:
        module: its name.
        file: the project's own file, which did not run unless `own` says so; empty if there is none.
        names: what of it is ours.
        in_place: whether it had been imported before.
        calls: how often each was called. What torch.compile traced is not counted.
        own: names that ours lack, for which the project's own file was run when they were first used.
    """

    module: str
    file: str
    names: tuple[str, ...]
    in_place: bool
    calls: Counter[str] = field(default_factory=Counter)
    own: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        calls = ", ".join(f"{name} {count:,}" for name, count in sorted(self.calls.items()))
        text = f"{self.module}: {', '.join(self.names)}; calls: {calls or 'none'}"
        return text + (f"; its own file was run for {', '.join(self.own)}" if self.own else "")


class Replacement(importlib.abc.MetaPathFinder):
    """The replacement for a family of modules.

    While installed, importing one of the modules gives a module with our names: its file is not run, so
    nothing is compiled, until something asks for a name that ours lack. In a module that was imported before,
    our names are set and all others kept; they are also set wherever they had been imported to.

    Args:
        modules: by module name, the names to define in it, whatever it contains.
        apis: what a module under any other path must define to be replaced too.
        stand_ins: modules, with what they define, for where the project's own do not exist.
    """

    _all: ClassVar[list[Replacement]] = []

    def __init__(
        self,
        modules: Mapping[str, Mapping[str, Any]],
        apis: Sequence[Api] = (),
        stand_ins: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        Replacement._all.append(self)
        self._modules, self._apis, self._stand_ins = modules, apis, stand_ins or {}
        self._active: dict[str, Mapping[str, Any]] = {}
        self._changed: list[tuple[ModuleType, str, object]] | None = None  # module, name, value before
        self._made: list[str] = []  # modules that are entirely ours
        self.replaced: dict[str, Replaced] = {}
        self.left: dict[str, str] = {}  # by module, why

    def __repr__(self) -> str:
        state = f"installed, {len(self.replaced)} replaced" if self.installed else "not installed"
        return f"<{type(self).__name__} of {', '.join(self._modules)}: {state}>"

    @property
    def installed(self) -> bool:
        return self._changed is not None

    def install(self, package: str | None = None) -> Installation:
        """Replaces the family's modules: those of its usual names, and copies of them under any path.

        Args:
            package: also replace the modules in it that have the family's names, whatever they define.
        """
        prefixes = {} if package is None else self.in_package(package)
        return Installation.of([self], {**self._modules, **prefixes})

    def in_package(self, package: str) -> dict[str, Mapping[str, Any]]:
        return {f"{package}.{api.tail}": api.ours for api in self._apis}

    def start(self, modules: Mapping[str, Mapping[str, Any]]) -> None:
        """Installs, with these modules to be replaced whatever they define. Again, it adds what is new."""
        if self._changed is None:
            if not any(replacement.installed for replacement in Replacement._all):
                for replacement in Replacement._all:  # what they found is kept till here, for reports
                    replacement.replaced, replacement.left = {}, {}
            self._changed = []
            sys.meta_path.insert(0, self)
            _obstacles.explain_uncaught(self)
        self._active.update(modules)
        for name, module in list(sys.modules.items()):
            if isinstance(module, ModuleType) and name not in self.replaced:
                self._look_at_imported(name, module)

    def uninstall(self) -> None:
        """Restores the project's own modules. Does nothing if not installed."""
        if self._changed is None:
            return
        sys.meta_path.remove(self)
        _obstacles.explain_no_longer(self)
        for module, name, before in reversed(self._changed):
            if before is _MISSING:
                delattr(module, name)
            else:
                setattr(module, name, before)
        self._changed = None
        for name in self._made:  # the next import finds the project's own
            made = sys.modules.get(name)
            if made is None or not isinstance(made.__loader__, _Loader):
                continue
            del sys.modules[name]
            parent, _, last = name.rpartition(".")
            if vars(sys.modules.get(parent, made)).get(last) is made:
                delattr(sys.modules[parent], last)
        self._made, self._active = [], {}

    # ---- modules that were imported before

    def _look_at_imported(self, name: str, module: ModuleType) -> None:
        if name.partition(".")[0] in _OURS or isinstance(getattr(module, "__loader__", None), _Loader):
            return
        calls: Counter[str] = Counter()
        if name in self._active:
            ours = self._whatever(name, signatures_of_module(module), calls)
        else:
            here = [
                api
                for api in self._apis
                if getattr(vars(module).get(api.key), "__module__", None) == name
                and (api.distinct or api.fits_name(name))
            ]
            if not here:
                return
            found = self._recognise(here, name, signatures_of_module(module), calls)
            if found is None:
                return
            ours = found
        self._put_into(module, ours)
        file = getattr(module, "__file__", None) or ""
        self.replaced[name] = Replaced(name, file, _names(ours), True, calls)

    def _put_into(self, module: ModuleType, ours: Mapping[str, Any]) -> None:
        instead: dict[int, object] = {}
        for name, value in ours.items():
            before = vars(module).get(name, _MISSING)
            self._set(module, name, value, before)
            if callable(before):
                instead[id(before)] = value
        before_of = {id(b): b for _, _, b in self._changed or ()}  # keeps the ids from being used again
        for other in list(sys.modules.values()):
            if isinstance(other, ModuleType) and other is not module:
                for name, value in list(vars(other).items()):
                    if id(value) in instead and value is before_of[id(value)]:
                        self._set(other, name, instead[id(value)], value)

    def _set(self, module: ModuleType, name: str, value: object, before: object) -> None:
        assert self._changed is not None
        self._changed.append((module, name, before))
        setattr(module, name, value)

    # ---- called by the import system

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        forced = fullname in self._active
        apis = [api for api in self._apis if api.fits_name(fullname)]
        if not (forced or apis or fullname in self._stand_ins) or fullname.partition(".")[0] in _OURS:
            return None
        own = _own_spec(fullname, path, target)
        if fullname in self._stand_ins:
            if own is not None:
                return None
            self.replaced[fullname] = Replaced(fullname, "", (), False)
            return importlib.machinery.ModuleSpec(
                fullname, _Loader(self._stand_ins[fullname], None, (), self.replaced[fullname])
            )
        calls: Counter[str] = Counter()
        theirs = _signatures(own)
        if forced:
            ours = self._whatever(fullname, theirs, calls)
        elif (found := self._recognise(apis, fullname, theirs, calls)) is None:
            return None
        else:
            ours = found
        record = Replaced(fullname, (own and own.origin) or "", _names(ours), False, calls)
        self.replaced[fullname] = record
        self._made.append(fullname)
        logger.info("aigc_ext replaces %s (%s)", fullname, record.file)
        loader = _Loader(ours, own, [name for name in theirs if name not in ours], record)
        spec = importlib.machinery.ModuleSpec(fullname, loader, origin=record.file or "aigc_ext.compat")
        if own is not None:
            spec.has_location = own.has_location
            spec.submodule_search_locations = own.submodule_search_locations
        return spec

    def _whatever(self, name: str, theirs: Signatures, calls: Counter[str]) -> dict[str, Any]:
        ours = self._active[name]
        made = as_they_are(ours, name, calls)
        for key, value in ours.items():
            if callable(value) and theirs.get(key) is not None:
                try:
                    made.update(replacements(Api("", key, {key: value}), theirs, name, calls))
                except NoCopyError:
                    continue  # it is replaced all the same: the caller named this module
        return made

    def _recognise(
        self,
        apis: Iterable[Api],
        name: str,
        theirs: Signatures,
        calls: Counter[str],
    ) -> dict[str, Any] | None:
        reasons = []
        for api in apis:
            try:
                made = replacements(api, theirs, name, calls)
            except NoCopyError as error:
                reasons.append(str(error))
            else:
                self.left.pop(name, None)
                return made
        if any(theirs.get(api.key) is not None for api in apis):  # else it has only the file's name in common
            self.left[name] = "; or ".join(dict.fromkeys(reasons))
            logger.info("aigc_ext leaves %s: %s", name, self.left[name])
        return None


class _Loader(importlib.abc.Loader):
    """Makes a module of our names, and runs the project's own file only for a name that ours lack."""

    def __init__(
        self,
        ours: Mapping[str, Any],
        own: importlib.machinery.ModuleSpec | None,
        others: Sequence[str],
        record: Replaced,
    ) -> None:
        self._ours, self._own, self._others, self._record = ours, own, frozenset(others), record

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._ours)
        if not self._others or self._own is None or self._own.loader is None:
            return
        own, loader = self._own, self._own.loader
        run: list[ModuleType] = []

        def __getattr__(name: str) -> Any:
            if name not in self._others:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            if not run:
                run.append(importlib.util.module_from_spec(own))
                loader.exec_module(run[0])
            value = getattr(run[0], name)
            self._record.own.append(name)
            logger.info("aigc_ext ran %s for its %s", self._record.file, name)
            setattr(module, name, value)
            return value

        vars(module)["__getattr__"] = __getattr__


def look_alikes(name: str, module: ModuleType) -> list[str]:
    """The functions that an imported module defines itself and that have the names of such ops."""
    if name.partition(".")[0] in _OURS or isinstance(getattr(module, "__loader__", None), _Loader):
        return []
    return [
        key
        for key in ("fused_leaky_relu", "fused_bias_leakyrelu", "upfirdn2d", "bias_act", "filtered_lrelu")
        if inspect.isfunction(f := vars(module).get(key)) and f.__module__ == name
    ]


def _own_spec(
    name: str, path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    """What the import system would find without us."""
    for finder in sys.meta_path:
        if isinstance(finder, Replacement) or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(name, path, target)
        if spec is not None:
            return spec
    return None


def _signatures(spec: importlib.machinery.ModuleSpec | None) -> Signatures:
    """Of the module's source; nothing if there is none that can be read."""
    if spec is None or not isinstance(spec.loader, importlib.abc.InspectLoader):
        return {}
    try:
        source = spec.loader.get_source(spec.name)
        return {} if source is None else signatures_of_source(source)
    except (SyntaxError, ImportError, UnicodeDecodeError):  # importing it will say so
        return {}


def _names(ours: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name, value in ours.items() if callable(value))


class Installation:
    """The result of `install()`; the end of a `with` block undoes it.

    Attributes:
        modules: the names under which modules are replaced whatever they define. Copies of them under other
            names are replaced too; `aigc_ext.compat.report()` says which were found.
        in_place: the modules that had already been imported, and were changed; the others are replaced when
            they are imported.
    """

    def __init__(self, replacements: Sequence[Replacement], modules: tuple[str, ...]) -> None:
        self._replacements = replacements
        self.modules = modules
        self.in_place = tuple(
            name for r in replacements for name, record in r.replaced.items() if record.in_place
        )

    @classmethod
    def of(
        cls, replacements: Sequence[Replacement], modules: Mapping[str, Mapping[str, Any]]
    ) -> Installation:
        for replacement in replacements:
            replacement.start(modules)
        installation = cls(replacements, tuple(modules))
        logger.info("%s", installation)
        return installation

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for replacement in self._replacements:
            replacement.uninstall()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __str__(self) -> str:
        named = f"{', '.join(self.modules)}, and " if self.modules else ""
        text = f"aigc_ext replaces {named}copies of the ops under any name, as they are imported"
        return text + (f"; imported before: {', '.join(self.in_place)}" if self.in_place else "")
