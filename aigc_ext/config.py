"""Self-checking settings: frozen dataclasses, stored as JSON.

Nothing here depends on a network or a task. docs/decisions/0010-config-checker.md says why this is no
library.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import numbers
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from aigc_ext import _files

T = TypeVar("T", bound="Config")


_LONGEST = 2000


class ConfigError(ValueError):
    """A key that does not exist, or a value that is not allowed; the message names key, value and rule. A
    value may be a whole file: of a long message, the middle is left out."""

    def __init__(self, message: str) -> None:
        half = _LONGEST // 2
        super().__init__(message if len(message) <= _LONGEST else f"{message[:half]} ... {message[-half:]}")


class UnknownKeyError(ConfigError, TypeError):
    """A key or argument that does not exist; the message names the closest one."""

    def __init__(self, prefix: str, name: str, known: Sequence[str]) -> None:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        super().__init__(f"unknown key {prefix}{name}; {hint}known here: {', '.join(known)}")


class Rule:
    """A restriction of a type: the second argument in `Annotated[type, rule]`."""

    def broken_rule(self, value: Any) -> str | None:
        """What `value` must be, as the end of a sentence, or None if it already is."""
        return None


@dataclass(frozen=True)
class Range(Rule):
    """Limits of a number: `ge`/`le` inclusive, `gt`/`lt` exclusive."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def broken_rule(self, value: float) -> str | None:
        for limit, holds, words in (
            (self.ge, operator.ge, "at least"),
            (self.gt, operator.gt, "greater than"),
            (self.le, operator.le, "at most"),
            (self.lt, operator.lt, "less than"),
        ):
            # Written as `not (in range)` so that NaN breaks every rule.
            if limit is not None and not holds(value, limit):
                return f"{words} {limit}"
        return None


Count = Annotated[int, Range(ge=1, lt=2**63)]
NonNegative = Annotated[float, Range(ge=0)]
Positive = Annotated[float, Range(gt=0)]
Fraction = Annotated[float, Range(ge=0, lt=1)]

# By type: what a value must be an instance of, and the words for it in messages.
_SCALARS: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    str: (str, "a string"),
}


def check_value(key: str, value: Any, hint: Any) -> Any:
    """Returns `value` converted to the type `hint`, or raises ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = check_value(key, value, args[0])
        for limit in args[1:]:
            if rule := limit.broken_rule(value):
                raise ConfigError(f"{key} is {value}, but must be {rule}")
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return check_value(key, value, inner)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{key} is {value!r}, but must be one of {', '.join(map(repr, args))}")
        return value
    if origin in (tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} is {value!r}, but must be a list")
        if args[-1] is Ellipsis or origin is Sequence:
            args = (args[0],) * len(value)
        if len(value) != len(args):
            raise ConfigError(f"{key} has {len(value)} entries, but must have {len(args)}")
        entries = zip(value, args, strict=True)
        return tuple(check_value(f"{key}[{i}]", entry, arg) for i, (entry, arg) in enumerate(entries))
    if issubclass(hint, Config):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return hint.chosen(key, value).from_dict(value, prefix=f"{key}.")
        raise ConfigError(f"{key} is {value!r}, but must be an object with keys")
    kind, words = _SCALARS[hint]
    # bool is an int to Python, but `batch=true` is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{key} is {value!r}, but must be {words}")
    try:
        value = hint(value)
    except OverflowError as error:  # an integer of more than 308 digits
        raise ConfigError(f"{key} is {value}, but must be finite") from error
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}, but must be finite")
    return value


@dataclass(frozen=True)
class Config:
    """A frozen dataclass that checks its fields against their annotations whenever it is made."""

    def __post_init__(self) -> None:
        for name, hint in self.hints().items():
            object.__setattr__(self, name, check_value(name, getattr(self, name), hint))

    @classmethod
    @functools.cache
    def hints(cls) -> dict[str, Any]:
        """The fields' types and rules by name."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def key_names(cls) -> Sequence[str]:
        """The keys of its JSON form, in order."""
        return list(cls.hints())

    @classmethod
    def chosen(cls, key: str, values: Mapping[str, Any]) -> type[Config]:
        """The class to build from the values of `key`: this one, unless it is a `Choice`."""
        return cls

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], *, base: T | None = None, prefix: str = "") -> T:
        """Builds the config from plain values; missing keys have `base`'s value, or the default.

        Raises ConfigError naming an unknown key, or a value of the wrong type or out of range.
        """
        hints, known = cls.hints(), cls.key_names()
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise UnknownKeyError(prefix, name, known)
            inherited = getattr(base, name, None)
            if (
                isinstance(inherited, Config)
                and isinstance(value, Mapping)
                and value.get("family") in (None, getattr(inherited, "family", None))
            ):
                checked[name] = inherited.from_dict(value, base=inherited, prefix=f"{prefix}{name}.")
            else:
                checked[name] = check_value(f"{prefix}{name}", value, hints[name])
        return cls(**checked) if base is None else dataclasses.replace(base, **checked)

    def to_dict(self) -> dict[str, Any]:
        values = ((key, getattr(self, key)) for key in self.key_names())
        return {key: value.to_dict() if isinstance(value, Config) else value for key, value in values}

    def flat(self) -> dict[str, Any]:
        """The values by their dotted keys."""
        flat: dict[str, Any] = {}
        for key in self.key_names():
            value = getattr(self, key)
            inner = value.flat().items() if isinstance(value, Config) else ()
            flat |= {f"{key}.{name}": each for name, each in inner} or {key: value}
        return flat

    def override(self: T, key: str, value: Any) -> T:
        """A copy with one dotted key (`"g_optim.lr"`) set."""
        tree: Any = value
        for name in reversed(key.split(".")):
            tree = {name: tree}
        return self.from_dict(tree, base=self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls: type[T], path: str | Path, *, base: T | None = None) -> T:
        """Reads a config file; missing keys have `base`'s value, or the default.

        Raises ConfigError, naming the file, if it isn't a JSON object or has an unknown key or a wrong value.
        """
        values = read_config(path)
        try:
            return cls.from_dict(values, base=base)
        except ConfigError as error:
            raise ConfigError(f"config {path}: {error}") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of a config file, unchecked. Raises ConfigError if it is not a file with a JSON object."""
    try:
        values = _files.parse_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"config {path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {path} holds a {type(values).__name__}, but must hold a JSON object")
    return values


@dataclass(frozen=True)
class Choice(Config):
    """Settings of one of several families, selected by the key `family`.

    A subclass with `usual` is a choice. Its own subclasses are its families and register themselves, in the
    choices above it too: each has a field `family` whose default is its name. `usual` is the family of an
    object that names none.
    """

    families: ClassVar[dict[str, type[Choice]]] = {}
    usual: ClassVar[str] = ""

    def __init_subclass__(cls, usual: str | None = None) -> None:
        if usual is not None:
            cls.families, cls.usual = {}, usual
        elif "family" in vars(cls):
            for choice in (
                each for each in cls.__mro__ if issubclass(each, Choice) and "usual" in vars(each)
            ):
                choice.families[vars(cls)["family"].default] = cls

    @classmethod
    def chosen(cls, key: str, values: Mapping[str, Any]) -> type[Config]:
        named = values.get("family", cls.usual)
        if not isinstance(named, str) or named not in cls.families:
            names = sorted(cls.families, key=lambda name: (name != cls.usual, name))
            raise ConfigError(f"{key}.family is {named!r}, but must be one of {', '.join(map(repr, names))}")
        return cls.families[named]


def parse_setting(setting: str) -> tuple[str, Any]:
    """Splits `a.b=value`; the value is JSON if it parses as such, otherwise a string."""
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ConfigError(f"setting {setting!r} is not of the form key=value, such as g_optim.lr=0.0002")
    try:
        return key.strip(), _files.parse_json(text)
    except ValueError:
        return key.strip(), text
