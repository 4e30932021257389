"""Where names are now that were in this package before the GAN became a task of its own.

The only place where the engine names a task; it imports one only when such a name is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigc_ext.tasks.gan import *  # noqa: F403

_HERE, _GAN = "aigc_ext.training", "aigc_ext.tasks.gan"
_MODULES = ("augment", "blur", "presets", "recipe", "step")
# By the module that had them, "" being the package: where its names are now.
_NAMES = {
    "": {
        _GAN: "PRESETS STATISTICS AdaAugment AdversarialStep DiffAugment Objective Replay TrainConfig "
        "Trainer adjusted_p find_resume_point replay"
    },
    "config": {
        "aigc_ext.config": "ConfigError Count Fraction NonNegative Positive Range parse_setting",
        f"{_GAN}.config": "AdamConfig AugmentConfig EMAConfig LossConfig TrainConfig",
        "aigc_ext.models": "DCGANDiscriminatorConfig DCGANGeneratorConfig MLPDiscriminatorConfig "
        "MLPGeneratorConfig R3GANDiscriminatorConfig R3GANGeneratorConfig SNGANDiscriminatorConfig "
        "SNGANGeneratorConfig StyleGAN2DiscriminatorConfig StyleGAN2GeneratorConfig StyleGAN3GeneratorConfig",
    },
    "loop": {_GAN: "Trainer"},
    "nonfinite": {_GAN: "Replay replay", f"{_GAN}.recipe": "make_objective"},
    "recipe": {f"{_HERE}.parts": "part_size"},
    "run": {_GAN: "find_resume_point"},
    "step": {f"{_GAN}.objective": "Mixing Objective StepInputs with_labels"},
}


def _getattr_of(module: str) -> Callable[[str], Any]:
    """A module's `__getattr__`: for names that have moved, or, of a module that has, for all of them."""
    places = {name: place for place, names in _NAMES.get(module, {}).items() for name in names.split()}
    rest = f"{_GAN}.{module}" if module in _MODULES else None

    def __getattr__(name: str) -> Any:
        place = places.get(name, rest)
        if place is None or name.startswith("__"):
            here = f"{_HERE}.{module}".rstrip(".")
            raise AttributeError(f"module {here!r} has no attribute {name!r}")
        return getattr(importlib.import_module(place), name)

    return __getattr__


def install() -> None:
    """Makes the old names work, of this package and of its modules."""
    for module in _MODULES:
        alias = sys.modules[f"{_HERE}.{module}"] = ModuleType(f"{_HERE}.{module}")
        alias.__spec__ = ModuleSpec(alias.__name__, None)
        setattr(sys.modules[_HERE], module, alias)
    for module in {*_NAMES, *_MODULES}:
        made: Any = sys.modules[f"{_HERE}.{module}".rstrip(".")]
        made.__getattr__ = _getattr_of(module)
