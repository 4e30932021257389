"""The new locations of names that were in this package before the GAN became a separate task.

This is the only place where the engine names a task; it imports one only when such a name is accessed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigc_ext.tasks.gan import *  # noqa: F403

_HERE, _GAN = "aigc_ext.training", "aigc_ext.tasks.gan"
_PUBLIC = (
    "PRESETS STATISTICS AdaAugment AdversarialStep DiffAugment Objective Replay TrainConfig Trainer "
    "adjusted_p find_resume_point replay"
)
# By module: where to look for names that it no longer has. Modules without a file have moved entirely.
_PLACES = {
    "": (_GAN,),
    "augment": (f"{_GAN}.augment",),
    "blur": (f"{_GAN}.blur",),
    "config": ("aigc_ext.config", f"{_GAN}.config", "aigc_ext.models"),
    "loop": (_GAN,),
    "nonfinite": (_GAN, f"{_GAN}.recipe"),
    "presets": (_GAN,),
    "recipe": (f"{_GAN}.recipe", f"{_HERE}.parts"),
    "run": (_GAN,),
    "step": (f"{_GAN}.step", f"{_GAN}.objective"),
}


def _getattr_of(module: str, places: Sequence[str]) -> Callable[[str], Any]:
    def __getattr__(name: str) -> Any:
        for place in () if name.startswith("_") else places:
            found = getattr(importlib.import_module(place), name, None)
            if found is not None:
                return found
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__


def install() -> None:
    """Makes the old names of this package and its modules work."""
    package: Any = sys.modules[_HERE]
    for name, places in _PLACES.items():
        full = f"{_HERE}.{name}".rstrip(".")
        if full not in sys.modules:
            sys.modules[full] = ModuleType(full)
            sys.modules[full].__spec__ = ModuleSpec(full, None)
            setattr(package, name, sys.modules[full])
        sys.modules[full].__getattr__ = _getattr_of(full, places)  # type: ignore[method-assign]
    own = (name for name, value in vars(package).items() if not isinstance(value, ModuleType))
    package.__all__ = [*(name for name in own if name[0] != "_"), *_PUBLIC.split()]
