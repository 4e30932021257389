"""Training tasks: each is a package that the engine, `aigc_ext.training`, knows nothing about.

- `gan`: a generator and a discriminator against each other;
- `adversarial`: a network that gives back what it is given, with or without a discriminator;
- `likelihood`: one network that predicts each part of an item from those before it.

Each has `PRESETS`, its `TrainConfig`, and a `Trainer`, which `from_config` makes from one. A run belongs to
the task whose preset it names; one with a name of its own is a GAN's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from aigc_ext import _names
from aigc_ext.training.config import RunConfig
from aigc_ext.training.run import ResumePoint, resume_point


def task_name(preset: object) -> str:
    """The name of the task that has this preset."""
    return next((task for task, presets in _names.TASKS.items() if preset in presets), "gan")


def task_of(preset: object) -> ModuleType:
    """Its package."""
    return importlib.import_module(f"{__name__}.{task_name(preset)}")


def config_class(values: Mapping[str, Any]) -> type[RunConfig]:
    """The class of a config with these JSON values."""
    found: type[RunConfig] = task_of(values.get("preset")).TrainConfig
    return found


def find_resume_point(target: str, outdir: Path) -> ResumePoint:
    """The point from which `--resume target` continues, of any task; see `training.run.resume_point`."""
    return resume_point(target, outdir, config_class)
