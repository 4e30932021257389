"""`python docs/presets.py`: generates docs/presets.md from the classes of the settings.

A test compares the page with the result, so that it is never out of date.
"""

from __future__ import annotations

import ast
import inspect
import json
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

from aigc_ext.config import Config
from aigc_ext.models import (
    DiscriminatorConfig,
    GeneratorConfig,
    NetworkConfig,
    ReconstructorConfig,
    SequenceConfig,
)
from aigc_ext.tasks import adversarial, gan, likelihood
from aigc_ext.training.config import RunConfig

INTRODUCTION = """# Settings

Every key of a run's config with its default (set keys with `--set generator.z_dim=64`, or with `--config` and
a JSON file), the changes of each preset, and the networks, family by family. `python docs/presets.py`
generates this page from the code.
"""

TASKS = {
    "A GAN's run": gan,
    "A run that reconstructs": adversarial,
    "A run that learns a likelihood": likelihood,
}

NETWORKS = """## Networks

`--set 'generator={"family": "stylegan3"}'` selects another family, with its own defaults. In Python a network
is made from the same settings, and from `image_shape` (C, H, W) and `num_classes` (0: none), which a run
takes from its data: `StyleGAN3Generator((3, 64, 64), num_layers=10)`, or
`StyleGAN3Generator(StyleGAN3GeneratorConfig(...))`. Keys in *italics* are arguments only in Python; a run
uses their defaults.
"""


def docs_of(cls: type) -> dict[str, str]:
    """The docstrings after the fields of a dataclass, by name."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Config):
            continue
        (body,) = ast.parse(dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for before, after in pairwise(body.body):
            if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                assert isinstance(before.target, ast.Name)
                assert isinstance(after.value, ast.Constant)
                assert isinstance(after.value.value, str)
                docs[before.target.id] = inspect.cleandoc(after.value.value)
    return docs


def shown(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def rows(settings: Config, prefix: str = "", known: Config | None = None) -> list[str]:
    """A row of the table for each key of a config, and for the keys of the configs in it, except those that
    `known` has alike."""
    docs, made = docs_of(type(settings)), []
    old = {} if known is None else docs_of(type(known))
    for key in settings.key_names():
        value = getattr(settings, key)
        before = getattr(known, key, None)
        if value == before and docs.get(key) == old.get(key) and key != "preset":
            continue
        if isinstance(value, NetworkConfig):
            made.append(f"| `{prefix}{key}` | `{value.family}` | The network's family; see below. |")
        elif isinstance(value, Config):
            made += rows(value, f"{prefix}{key}.", before if type(before) is type(value) else None)
        else:
            text = " ".join(docs[key].split()).replace("|", "\\|")
            made.append(f"| `{prefix}{key}` | {shown(value)} | {text} |")
    return made


def table(lines: list[str]) -> str:
    return "\n".join(["| key | default | |", "|---|---|---|", *lines]) + "\n"


def changes(preset: RunConfig) -> list[str]:
    """A preset's differences from the defaults; for another family, from that family's defaults."""
    made = []
    settings, usual = preset, type(preset)()
    for key in settings.key_names():
        value, default = getattr(settings, key), getattr(usual, key)
        if not isinstance(value, Config):
            if value != default and key != "preset":
                made.append(f"`{key}` {shown(value)}")
            continue
        if isinstance(value, NetworkConfig):
            default = type(value)()
            if value.family != getattr(usual, key).family:
                made.append(f"`{key}` `{value.family}`")
        made += [
            f"`{key}.{name}` {shown(getattr(value, name))}"
            for name in value.key_names()
            if getattr(value, name) != getattr(default, name)
        ]
    return made


def family(cls: type[NetworkConfig]) -> str:
    docs, settings = docs_of(cls), cls()
    lines = []
    for name in cls.arguments():
        if name not in docs and name not in cls.key_names():  # it comes from the data
            continue
        key = f"`{name}`" if name in cls.key_names() else f"*`{name}`*"
        lines.append(f"| {key} | {shown(getattr(settings, name))} | {' '.join(docs[name].split())} |")
    return table(lines)


def page() -> str:
    parts, first = [INTRODUCTION], gan.TrainConfig()
    for title, task in TASKS.items():
        settings = task.TrainConfig()
        known = None if settings == first else first
        parts.append(f"## {title}\n")
        if known is not None:
            parts.append("Keys that are as those of a GAN's run are left out.\n")
        parts.append(table(rows(settings, known=known)))
        parts.append("Presets:\n")
        lines = (f"- `{name}`: {'; '.join(changes(preset))}." for name, preset in task.PRESETS.items())
        parts.append("\n".join(lines) + "\n")
    parts.append(NETWORKS)
    for role, choice in (
        ("Generator", GeneratorConfig),
        ("Reconstructor", ReconstructorConfig),
        ("Model of sequences", SequenceConfig),
        ("Discriminator", DiscriminatorConfig),
    ):
        for name, cls in choice.families.items():
            assert issubclass(cls, NetworkConfig)
            if not cls.__module__.startswith("aigc_ext."):  # somebody else's, or a test's
                continue
            parts.append(f"### {role} `{name}`: `{cls.network.__name__}`\n")
            parts.append(family(cls))
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
