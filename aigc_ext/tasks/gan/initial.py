"""The weights with which a new run begins, if not with random ones: those of a run, checkpoint or model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from aigc_ext._runs import find_run, numbered_runs
from aigc_ext.config import ConfigError
from aigc_ext.models import GeneratorConfig, ImageDiscriminatorConfig, NetworkConfig
from aigc_ext.models.transfer import Transfer
from aigc_ext.sampling import PretrainedError, load_pretrained
from aigc_ext.tasks import config_class
from aigc_ext.tasks.gan.config import TrainConfig
from aigc_ext.tasks.gan.presets import PRESETS
from aigc_ext.training.checkpoint import STATE_FILE, Checkpoint, newest_checkpoint, read_checkpoint
from aigc_ext.training.run import CONFIG_FILE, RunError, config_of

INIT_FILE = "init_from.txt"
"""In a run directory: where each tensor of its networks comes from."""
_ROLES = ("generator", "discriminator", "ema")


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The networks of a run, checkpoint or model.

    Attributes:
        source: where they are from, for messages.
        networks: state_dicts by `generator`, `discriminator` and `ema`, the averaged generator. A model has
            no discriminator, and only one generator.
        architectures: the settings of `generator` and `discriminator`, None if they are not ours.
        config: of the run; None for a model.
    """

    source: str
    networks: Mapping[str, Mapping[str, Tensor]]
    architectures: Mapping[str, Mapping[str, Any] | None]
    config: TrainConfig | None


def read_initial_weights(source: str | Path, outdir: str | Path = "runs") -> InitialWeights:
    """Reads the networks of a run (of its newest undamaged checkpoint), a checkpoint, a model directory, or
    a model of the Hugging Face Hub on this machine; `latest` is the newest run in `outdir`.

    Raises RunError, CheckpointError or PretrainedError, naming the source, if there is no such thing or it is
    damaged.
    """
    if source == "latest" and not numbered_runs(Path(outdir)):
        raise RunError(f"init_from is 'latest', but there is no run in {outdir}")
    try:
        path = find_run(source, Path(outdir))
    except ValueError as error:
        raise RunError(f"init_from: {error}") from error
    if (path / STATE_FILE).is_file():
        return _of_checkpoint(read_checkpoint(path))
    if (path / CONFIG_FILE).is_file() and (path / "checkpoints").is_dir():
        checkpoint, _ = newest_checkpoint(path)
        if checkpoint is not None:
            return _of_checkpoint(checkpoint)
    model, _ = load_pretrained(path if path.exists() else source)
    state = model.state_dict()
    architecture: Any = getattr(model, "config")  # noqa: B009 (a Module's attributes have no type)
    if architecture["family"] not in GeneratorConfig.families:
        raise PretrainedError(f"network {source} is {type(model).__name__}, but must be a GAN's generator")
    return InitialWeights(str(source), {"generator": state, "ema": state}, {"generator": architecture}, None)


def initial_config(weights: InitialWeights, preset: str | None = None) -> TrainConfig:
    """The config of a new run with these networks: the recipe of `preset`, by default that of their run or
    family, with their settings; of their run also the data, which need not be the same.

    Raises ConfigError if the preset has networks of another family, or the networks are not ours.
    """
    generator = _settings(weights, "generator", GeneratorConfig)
    if generator is None:
        raise ConfigError(
            f"{weights.source} has a generator that is not of aigc_ext.models; build the networks in Python "
            "and call Trainer(...).init_from"
        )
    config = _recipe(weights, generator, preset)
    if config.generator.family != generator.family:
        raise ConfigError(
            f"preset is {preset!r}, whose generator is a {config.generator.family}, but that of "
            f"{weights.source} is a {generator.family}"
        )
    config = dataclasses.replace(config, generator=generator)
    discriminator = _settings(weights, "discriminator", ImageDiscriminatorConfig)
    if discriminator is not None and discriminator.family == config.discriminator.family:
        config = dataclasses.replace(config, discriminator=discriminator)
    if weights.config is not None:
        return dataclasses.replace(config, data=weights.config.data)
    classes = (weights.architectures["generator"] or {}).get("num_classes", 0)
    return config.override("data.cond", classes > 0)


def describe_transfers(done: Mapping[str, Transfer]) -> list[str]:
    """A line for each network."""
    names = {"generator": "generator", "discriminator": "discriminator", "ema": "averaged generator"}
    lines = [f"{names[role]}: {transfer}" for role, transfer in done.items()]
    return lines if "discriminator" in done else [*lines, "discriminator: new (a model has none)"]


def list_transfers(source: str, done: Mapping[str, Transfer]) -> str:
    """Every tensor, a line each."""
    lines = [f"weights of {source}"]
    for role, transfer in done.items():
        lines += [f"{role}.{name}: taken" for name in transfer.taken]
        lines += [f"{role}.{name}: taken as far as it multiplies z" for name in transfer.partly]
        lines += [f"{role}.{name}: new: {why}" for name, why in transfer.new.items()]
        lines += [f"{role}: {name} of the source is not used" for name in transfer.unused]
    return "\n".join(lines) + "\n"


def _recipe(weights: InitialWeights, generator: GeneratorConfig, preset: str | None) -> TrainConfig:
    if preset is not None:
        return PRESETS[preset]
    run = weights.config
    if run is not None:
        usual = PRESETS.get(run.preset)
        same = usual is not None and usual.generator.family == generator.family
        # A run of its own making has its own recipe.
        return usual if usual is not None and same else run
    fitting = [each for each in PRESETS.values() if each.generator.family == generator.family]
    variant = getattr(generator, "variant", None)
    return next(each for each in fitting if getattr(each.generator, "variant", None) == variant)


def _settings(weights: InitialWeights, role: str, kind: type[NetworkConfig]) -> Any:
    """The settings that a run's config can have; the others come from its data."""
    architecture = weights.architectures.get(role)
    if architecture is None:
        return None
    chosen: Any = kind.families[architecture["family"]]
    return chosen(**{name: architecture[name] for name in chosen.key_names() if name in architecture})


def _of_checkpoint(checkpoint: Checkpoint) -> InitialWeights:
    state = checkpoint.state
    if isinstance(config := state.get("config"), dict) and config_class(config) is not TrainConfig:
        raise RunError(f"{checkpoint.path} is of preset {config['preset']}, but must be a GAN's")
    return InitialWeights(
        source=str(checkpoint.path),
        networks={role: checkpoint.tensors[role] for role in _ROLES if role in checkpoint.tensors},
        architectures={role: state.get(role) for role in ("generator", "discriminator")},
        config=config_of(checkpoint, TrainConfig),
    )
