"""The weights with which a new run begins, if not with random ones: those of a run, checkpoint or model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from aigc_ext import _files, _names
from aigc_ext._runs import find_run, numbered_runs
from aigc_ext.config import ConfigError
from aigc_ext.models import (
    DiscriminatorConfig,
    GeneratorConfig,
    NetworkConfig,
    ReconstructorConfig,
    SequenceConfig,
)
from aigc_ext.models.transfer import Transfer, transfer_weights
from aigc_ext.sampling import PretrainedError, load_pretrained
from aigc_ext.tasks import config_class, task_name, task_of
from aigc_ext.training.checkpoint import STATE_FILE, Checkpoint, newest_checkpoint, read_checkpoint
from aigc_ext.training.loop import Loop
from aigc_ext.training.run import CONFIG_FILE, INIT_FILE, RunError, config_of
from aigc_ext.training.task import Task

_ROLES = ("generator", "discriminator", "network", "ema")
"""The networks of the tasks, by their names in checkpoints."""
_MODELS: dict[str, type[NetworkConfig]] = {
    "gan": GeneratorConfig,
    "adversarial": ReconstructorConfig,
    "likelihood": SequenceConfig,
}
"""What the models of a task are."""
_WANTED = {
    "gan": ("a GAN's", "a GAN's generator"),
    "adversarial": ("an autoencoder's or a vocoder's", "an autoencoder or a vocoder"),
    "likelihood": ("that of a model of likelihood", "a model of likelihood"),
}
"""What a run and a model of a task are called in messages."""


@dataclass(frozen=True)
class InitialWeights:
    """The networks of a run, checkpoint or model.

    Attributes:
        source: where they are from, for messages.
        networks: state_dicts by their names in checkpoints: `generator` and `discriminator`, or `network`;
            and `ema`, the average. A model has no discriminator, and is its own average.
        architectures: the settings of each but `ema`, None if they are not ours.
        config: of the run; None for a model.
    """

    source: str
    networks: Mapping[str, Mapping[str, Tensor]]
    architectures: Mapping[str, Mapping[str, Any] | None]
    config: Any

    @property
    def task(self) -> str:
        """The name of the task that trains them."""
        if self.config is not None:
            return task_name(self.config.preset)
        (of_model,) = self.architectures.values()
        assert of_model is not None
        return _task_of_family(of_model["family"])

    @property
    def main(self) -> str:
        """The name of the network that `ema` is the average of."""
        return _main_of(self.task)

    def settings(self, role: str, *, of_run: bool = False) -> Any:
        """The settings of a network, None if it is not ours.

        Args:
            of_run: only those that a run's config can have; the others, which come from its data, have their
                defaults.
        """
        values = self.architectures.get(role) or {}
        kind = DiscriminatorConfig if role == "discriminator" else _MODELS[self.task]
        chosen: Any = kind.families.get(values.get("family", ""))
        if chosen is None:
            return None
        names = chosen.key_names() if of_run else chosen.arguments()
        return chosen(**{name: values[name] for name in names if name in values})

    def check_task(self, task: str) -> None:
        """Raises RunError or PretrainedError, naming the source, if they are those of another task."""
        if self.task == task:
            return
        run, model = _WANTED[task]
        if self.config is not None:
            raise RunError(f"{self.source} is of preset {self.config.preset}, but must be {run}")
        name = self.settings(self.main).network.__name__
        raise PretrainedError(f"network {self.source} is {name}, but must be {model}")


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
    main = _main_of(_task_of_family(architecture["family"]))
    return InitialWeights(str(source), {main: state, "ema": state}, {main: architecture}, None)


def _of_checkpoint(checkpoint: Checkpoint) -> InitialWeights:
    config = config_of(checkpoint, config_class)
    return InitialWeights(
        source=str(checkpoint.path),
        networks={role: checkpoint.tensors[role] for role in _ROLES if role in checkpoint.tensors},
        architectures={role: checkpoint.state.get(role) for role in _ROLES},
        config=config,
    )


def _task_of_family(family: str) -> str:
    return next(task for task, kind in _MODELS.items() if family in kind.families)


def _main_of(task: str) -> str:
    return "network" if task == "likelihood" else "generator"


def initial_config(weights: InitialWeights, preset: str | None = None) -> Any:
    """The config of a new run with these networks: the recipe of `preset`, by default that of their run or
    family, with their settings; of their run also the data, which need not be the same.

    Raises:
        ConfigError: the preset has networks of another family or kind, or the networks are not ours.
        RunError, PretrainedError: the preset is of another task.
    """
    if preset is not None:
        weights.check_task(task_name(preset))
    role = weights.main
    main = weights.settings(role, of_run=True)
    if main is None:
        raise ConfigError(
            f"{weights.source} has a {role} that is not of aigc_ext.models; build the networks in Python "
            "and call Trainer(...).init_from"
        )
    config = _recipe(weights, preset)
    usual = getattr(config, role)
    if usual.family != main.family:
        raise ConfigError(
            f"preset is {preset!r}, whose {role} is a {usual.family}, but that of {weights.source} is a "
            f"{main.family}"
        )
    if _is_kl(usual) != _is_kl(main):
        raise ConfigError(
            f"preset is {preset!r}, whose bottleneck is {usual.bottleneck!r}, but that of {weights.source} "
            f"is {main.bottleneck!r}"
        )
    config = replace(config, **{role: main})
    discriminator = weights.settings("discriminator", of_run=True)
    if discriminator is not None and discriminator.family == config.discriminator.family:
        config = replace(config, discriminator=discriminator)
    if weights.config is not None:
        return replace(config, **_of_data(weights.config))
    return _as_the_model(config, weights.settings(role))


def _recipe(weights: InitialWeights, preset: str | None) -> Any:
    presets = task_of(_names.TASKS[weights.task][0]).PRESETS
    if preset is not None:
        return presets[preset]
    main, run = weights.settings(weights.main), weights.config

    def suits(recipe: Any) -> bool:
        usual = getattr(recipe, weights.main)
        return bool(usual.family == main.family) and _is_kl(usual) == _is_kl(main)

    if run is not None:
        usual = presets.get(run.preset)
        # A run of its own making has its own recipe.
        return usual if usual is not None and suits(usual) else run
    if getattr(main, "source", 0):  # a Transformer's settings are not those of a preset, but what it reads is
        return presets["textgen"]
    fitting = [each for each in presets.values() if suits(each)]
    variant = getattr(main, "variant", None)
    return next(each for each in fitting if getattr(getattr(each, weights.main), "variant", None) == variant)


def _is_kl(settings: Any) -> bool:
    """The recipe of an autoencoder depends on whether its codes are Gaussian."""
    return getattr(settings, "bottleneck", None) == "kl"


def _of_data(run: Any) -> dict[str, Any]:
    """What a run's config says of what it learns from. Where items are held out, these too: the new run would
    otherwise be measured with items that the old one has learned."""
    names = ["data", "caption", "text"]
    if hasattr(run, "held_out"):
        names += ["held_out", "seed"]
    return {name: getattr(run, name) for name in names if hasattr(run, name)}


def _as_the_model(config: Any, settings: Any) -> Any:
    """With what a model says of its data: whether it knows classes or captions, how long its texts are."""
    config = config.override("data.cond", getattr(settings, "num_classes", 0) > 0)
    if getattr(settings, "prefix", 0):
        config = config.override("caption", True)
    if source := getattr(settings, "source", 0):
        target = settings.length - source - 2  # the separator and the end
        config = config.override("text.source", source).override("text.target", target)
    return config


@dataclass(frozen=True)
class Beginning:
    """What a run has begun with.

    Attributes:
        source: of the weights.
        done: what each network took.
        remarks: what else is different from the source.
    """

    source: str
    done: Mapping[str, Transfer]
    remarks: Sequence[str]

    def lines(self) -> list[str]:
        """For people to read: one of each network, and the remarks."""
        main = "network" if "network" in self.done else "generator"
        names = {"ema": f"averaged {main}"}
        return [*(f"{names.get(role, role)}: {done}" for role, done in self.done.items()), *self.remarks]

    def listing(self) -> str:
        """Every tensor, a line each."""
        lines = [f"weights of {self.source}"]
        for role, transfer in self.done.items():
            lines += [f"{role}.{name}: taken" for name in transfer.taken]
            lines += [f"{role}.{name}: taken as far as it multiplies z" for name in transfer.partly]
            lines += [f"{role}.{name}: {rows} taken" for name, rows in transfer.rows.items()]
            lines += [f"{role}.{name}: new: {why}" for name, why in transfer.new.items()]
            lines += [f"{role}: {name} of the source is not used" for name in transfer.unused]
        return "\n".join(lines) + "\n"


class TunableTask(Task):
    """A task whose new runs may begin with the weights of another run or a model."""

    name: ClassVar[str]  # of its package
    initial: Beginning | None = None

    def begin(self, directory: Path, log: logging.Logger) -> None:
        if self.initial is not None and not (directory / INIT_FILE).exists():
            log.info("it begins with weights of %s (all tensors: %s)", self.initial.source, INIT_FILE)
            for line in self.initial.lines():
                log.info("%s", line)
            _files.replace_file(directory / INIT_FILE, self.initial.listing().encode())


class TunableLoop(Loop):
    """The loop of such a task."""

    task: TunableTask

    def init_from(self, source: str | Path | InitialWeights) -> Mapping[str, Transfer]:
        """Begins a new run with the weights of another: each network and the averaged one take every tensor
        of the same layer and shape, and keep their own initial values elsewhere. The data, the number of
        classes, the vocabulary and, where the networks allow it, the resolution may differ. Optimizers and
        counters start anew.

        Args:
            source: a run (its newest checkpoint), a checkpoint, or a model (which is its own average); see
                `read_initial_weights`.

        Returns what was taken and what not, by the names of the networks in a checkpoint, without those that
        the source does not have; `fit` logs it.

        Raises:
            ValueError: nothing of the generator or network fits, the run has begun already, or there is no
                such source, it is of another task, or damaged.
        """
        if self.state.step:
            raise ValueError(f"init_from is for a new run, but this one is at step {self.state.step}")
        weights = source if isinstance(source, InitialWeights) else read_initial_weights(source, self._outdir)
        weights.check_task(self.task.name)
        networks = self.state.modules()
        done = {
            role: transfer_weights(
                networks[role],
                weights.networks[role],
                weights.settings(weights.main if role == "ema" else role),
            )
            for role in _ROLES
            if role in networks and role in weights.networks
        }
        state, transfer = networks[weights.main].state_dict(), done[weights.main]
        # A bias may fit anywhere.
        if not any(state[name].ndim > 1 for name in (*transfer.taken, *transfer.partly, *transfer.rows)):
            raise ValueError(f"{weights.source}: none of its {weights.main}'s weights fits this one")
        missing = "a model" if weights.config is None else "that run"
        remarks = [f"{role}: new ({missing} has none)" for role in networks if role not in done]
        remarks += [f"{role}: not used (this run has none)" for role in weights.networks if role not in done]
        before = weights.settings(weights.main)
        self.task.initial = Beginning(
            weights.source,
            done,
            [*remarks, *_differences(weights.config, self.config, before, networks[weights.main])],
        )
        return done


def _differences(before: Any, now: Any, settings: Any, network: Any) -> list[str]:
    """What the tensors do not show."""
    remarks = []
    rates = getattr(settings, "sample_rate", None), getattr(network, "sample_rate", None)
    if settings is not None and rates[0] != rates[1]:
        remarks.append(f"the source was made for {rates[0]} samples a second, and this run has {rates[1]}")
    same_data = before is not None and before.data.source == now.data.source
    if same_data and _chosen(now) and _chosen(before) != _chosen(now):
        remarks.append(
            "with another seed or held_out than the source's, it has learned items that are held out now: "
            "their metrics are too good"
        )
    return remarks


def _chosen(config: Any) -> tuple[int, float] | None:
    """What decides which items are held out; None if none are."""
    fraction = getattr(config, "held_out", 0.0)
    return (config.seed, fraction) if fraction else None
