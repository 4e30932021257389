"""Training of one network by maximum likelihood: the engine's task, and its public form."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aigc_ext import _files
from aigc_ext._runs import find_run
from aigc_ext.config import ConfigError
from aigc_ext.data import Dataset
from aigc_ext.data.batch import Batch
from aigc_ext.data.dataset import Report
from aigc_ext.data.tokens import KIND as TOKENS
from aigc_ext.data.tokens import token_source
from aigc_ext.models import build_network
from aigc_ext.sampling import readable_scale, save_grid, save_pretrained, save_wav
from aigc_ext.sampling.pretrained import takes_option
from aigc_ext.tasks.initial import TunableLoop, TunableTask
from aigc_ext.tasks.likelihood.config import SamplerConfig, TrainConfig
from aigc_ext.tasks.likelihood.items import Items, open_items
from aigc_ext.tasks.likelihood.precision import faster_precision
from aigc_ext.tasks.likelihood.step import STATISTICS, LikelihoodStep, arithmetic, likelihood
from aigc_ext.tasks.optimization import copy_buffers, make_optimizer, ramp, rates, warm_up
from aigc_ext.training.checkpoint import CheckpointError
from aigc_ext.training.config import RunConfig
from aigc_ext.training.distributed import Processes
from aigc_ext.training.parts import part_size
from aigc_ext.training.run import ResumePoint, check_resumable
from aigc_ext.training.runtime import derive_seed, resolve_device
from aigc_ext.training.task import Learner, Piece, Progress

_PREVIEWS = {"image": "fakes{}.png", "text": "samples{}.txt", "audio": "samples{}.wav"}
_AT_ONCE = 64  # held-out items
_PAUSE = 0.2  # seconds between recordings


class LikelihoodTask(TunableTask):
    """A network in training mode, its average in eval mode, and the optimizer; its arguments are those of
    `Trainer`.

    It knows of the network only its `loss(items, labels)`, the sum of nats and the number of targets, and its
    `sample(seeds, classes, **options)`, which makes what its `media` says.
    """

    name = "likelihood"
    statistics = STATISTICS
    shown = {"nats": "loss"}  # noqa: RUF012
    ranked_by = ("nats",)
    replayed_by = "aigc_ext.tasks.likelihood.replay"
    commands = {"more samples": "sample --network {run} --seeds 0-15"}  # noqa: RUF012

    config: TrainConfig

    def __init__(self, network: nn.Module, items: Items, config: TrainConfig) -> None:
        self.config = config = _complete(config, items.training)
        self.items, self.data = items, items.training
        self.device = device = resolve_device(config.device)
        self.network = network.to(device).train()
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        self._classes = self.data.num_classes if config.data.cond else 0
        present = self.data.present_classes if self._classes else []
        self._trained = present if len(present) < self._classes else None
        self.ema.trained_classes = self._trained  # type: ignore[assignment]
        self.optimizer = make_optimizer(network, config.optim, ema=self.ema)
        self.learners = (Learner("network", "network", self.optimizer),)
        self.publishes = isinstance(getattr(network, "config", None), dict)
        self.preview_file = _PREVIEWS[network.media]  # type: ignore[misc,index]
        self._inputs: tuple[Tensor, Tensor | None] | None = None
        self._sampler = _options(network, config.sampler)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {type(self.network).__name__} on {self.data!r}>"

    def join(self, processes: Processes) -> None:
        super().join(processes)
        self._take_step = LikelihoodStep(
            self.network,
            self.optimizer,
            part_size=part_size(self.config, processes.count),
            processes=processes,
            autocast=arithmetic(self.config),
        )

    def settle(self, log: logging.Logger) -> None:
        """Measures which precision is faster, for networks of ours, where that was left open."""
        config, found = self.config, None
        if config.precision != "auto":
            return
        if self.publishes and self.processes.count == 1:
            rows = min(part_size(config, 1) or config.batch, len(self.data))
            items, labels = (tensor.to(self.device) for tensor in self.data.read(range(rows)))
            passes = config.total_images / rows
            found = faster_precision(self.network, items, labels if self._classes else None, passes)
        chosen, because = found or ("float32", "not measured")
        log.info("precision: %s (%s)", chosen, because)
        self.config = replace(config, precision=chosen)
        self._take_step.autocast = arithmetic(self.config)

    def state(self) -> Mapping[str, Piece]:
        copy_buffers(self.ema, self.network)
        return {"network": self.network, "ema": self.ema, "optimizer": self.optimizer}

    def schedule(self, at: Progress) -> Schedule:
        return schedule(self.config, at)

    def step(self, batch: Batch, schedule: Schedule) -> Tensor:
        items, labels = getattr(batch, self.data.kind), batch.labels if self._classes else None
        for group in self.optimizer.param_groups:
            group.update(schedule.rates)
        self.optimizer.ema_decay = schedule.ema_decay
        self._inputs = items, labels
        return self._take_step(items, labels, schedule.at.seed)

    def figures(self, schedule: Schedule) -> Mapping[str, float | None]:
        return {"ema_decay": schedule.ema_decay, "lr": schedule.rates["lr"]}

    def begin(self, directory: Path, log: logging.Logger) -> None:
        data, held = self.data, self.items.held_out
        if data.num_classes and not self._classes:
            log.info("the labels of %s are not used, because data.cond is false", data.name)
        if self._classes and (remark := data.describe_empty_classes()):
            log.warning("%s: %s; they are not sampled unless asked for", data.name, remark)
        if self._classes and data.class_names:
            names = ", ".join(f"{number} {name}" for number, name in enumerate(data.class_names))
            log.info("the classes are: %s", names)
        super().begin(directory, log)
        if held is None:
            log.info("no %s is held out, so that there is no metric", data.item)
        else:
            log.info(
                "of %s, %d %ss are trained on, and %d are held out",
                data.name,
                *(len(data), data.item),
                len(held),
            )

    def preview(self, path: Path, nimg: int, files: Mapping[str, bytes]) -> None:
        """The samples of the seeds 0, 1, 2, ...; of texts and captions with held-out items in front."""
        seeds, network = list(range(math.prod(self.config.grid))), self.ema
        options = dict(self._sampler)
        trained = self._trained or range(self._classes)
        classes = [trained[seed % len(trained)] for seed in seeds] if self._classes else None
        shown = self._shown(len(seeds)) if self.items.prompts else []
        if shown:
            seeds, classes = seeds[: len(shown)], None if classes is None else classes[: len(shown)]
            options["prompts"] = [self.items.prompts[index] for index in shown]
        made = network.sample(seeds, classes, **options)  # type: ignore[operator]
        provenance = {
            "model_sha256": _files.sha256(files["ema"]),
            "nimg": nimg,
            "seeds": seeds,
            "classes": classes,
        }
        if network.media == "image":
            scale = readable_scale(*made.shape[1:3])
            columns = self.config.grid[0]
            save_grid(made, path, columns=columns, scale=scale, provenance={**provenance, **options})
        elif network.media == "audio":  # one after the other
            rate = int(network.sample_rate)  # type: ignore[arg-type]
            pause = np.zeros((len(made), int(_PAUSE * rate)), np.int16)
            save_wav(
                np.concatenate([made, pause], 1).ravel(), path, rate, provenance={**provenance, **options}
            )
        else:
            _files.replace_file(path, self._written(made, shown, nimg).encode())

    def _shown(self, count: int) -> list[int]:
        """The positions in the whole data of the first held-out items."""
        part: Any = self.items.held_out or self.data
        whole = part.index.tolist() if hasattr(part, "index") else list(range(len(part)))
        return whole[:count]

    def _written(self, made: Sequence[Any], shown: Sequence[int], nimg: int) -> str:
        """A preview for people to read."""
        lines = [f"AI-generated: texts of the network after {nimg} items."]
        for number, text in enumerate(made):
            lines.append("")
            if shown:
                lines.append(f"source:  {self.items.prompts[shown[number]]}")
                lines.append(f"target:  {self.items.references[shown[number]]}")
            lines.append(f"network: {text}")
        return "\n".join([*lines, ""])

    def metrics(self) -> Mapping[str, float]:
        """Of the averaged network, `nats`: the negative logarithm of the probability of a target, in the mean
        over those of held-out items."""
        held = self.items.held_out
        if held is None:
            return {}
        nats, targets = 0.0, 0
        count = min(len(held), self.config.metric_items)
        for start in range(0, count, _AT_ONCE):
            items, labels = held.read(range(start, min(start + _AT_ONCE, count)))
            with torch.no_grad():
                found = likelihood(
                    self.ema,
                    items.to(self.device),
                    labels.to(self.device) if self._classes else None,
                    arithmetic(self.config),
                )
            nats, targets = nats + found[0].item(), targets + int(found[1])
        return {"nats": nats / max(targets, 1)}

    def publish(self, directory: Path, files: Mapping[str, bytes]) -> None:
        save_pretrained(
            directory, self.facts()["network"], files["ema"], self._trained, self.config.data.licence
        )

    def facts(self) -> Mapping[str, Any]:
        """The config from which `aigc_ext.models` builds the network; None for a network that is not ours."""
        facts: dict[str, Any] = {"network": self.network.config if self.publishes else None}
        return facts if self._trained is None else {**facts, "trained_classes": self._trained}

    def failed_step(self, schedule: Schedule) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        assert self._inputs is not None
        items, labels = self._inputs
        tensors = {"items": items} if labels is None else {"items": items, "labels": labels}
        return tensors, {"seed": schedule.at.seed, "lr": schedule.rates["lr"]}

    def with_config(self, config: RunConfig) -> LikelihoodTask:
        assert isinstance(config, TrainConfig)
        return LikelihoodTask(self.network, self.items, config)


def _options(network: nn.Module, sampler: SamplerConfig) -> dict[str, Any]:
    """Those of the sampler that the network has; what it does not have must not be set."""
    usual, options = SamplerConfig().to_dict(), sampler.to_dict()
    taken = {name: value for name, value in options.items() if takes_option(network, name)}
    for name, value in options.items():
        if name not in taken and value != usual[name]:
            raise ConfigError(
                f"sampler.{name} is {value}, but must be {usual[name]}: a {type(network).__name__} "
                "has no such option"
            )
    return taken


class Schedule(NamedTuple):
    """The settings that change from step to step, for the step that begins `at` a point of the run."""

    at: Progress
    rates: dict[str, Any]  # of the optimizer
    ema_decay: float


def schedule(config: TrainConfig, at: Progress) -> Schedule:
    """The schedule of the step that begins at this point."""
    end, position = at.nimg + config.batch, ramp(config.ramp_kimg, at.nimg)
    warm = warm_up(config.warmup_kimg, end)
    return Schedule(at, rates(config.optim, position, warm), config.ema.decay(end, config.batch, position))


def _complete(config: TrainConfig, data: Dataset) -> TrainConfig:
    """The config with a value for every null that depends on the data."""
    for key, value in config.flat().items():
        if key.endswith(("_end", "_start")) and value is not None and not config.ramp_kimg:
            raise ConfigError(f"{key} is {value}, but must be null: ramp_kimg is 0, so that there is no ramp")
    if data.licence and not config.data.licence:
        config = config.override("data.licence", data.licence)
    if config.ema.kimg is None:
        config = config.override("ema.kimg", config.batch * 10 / 32)
    return config


class Trainer(TunableLoop):
    """Trains a network by maximum likelihood.

    Any module works that has `loss(items, labels)`, which returns the sum of nats of a batch and the number
    of its targets, `sample(seeds, classes, **options)` and `media`, "image", "text" or "audio". It is moved
    to `config.device` and trained in place.

    All random numbers derive from `config.seed` (see `training.loop.Loop`), including the initial weights (in
    `from_config`) and what is held out.

    Args:
        items: what is trained on and what is held out.
        outdir: where `fit` makes the run directory.
        desc: added to the run directory's name.

    Attributes:
        state: the network, its average `state.ema`, the optimizer and counters.
        run_dir: the run directory; None until there is one.

    Raises:
        ValueError: network, items and config do not match.
    """

    task: LikelihoodTask
    config: TrainConfig

    def __init__(
        self,
        network: nn.Module,
        items: Items,
        config: TrainConfig,
        *,
        outdir: str | Path = "runs",
        desc: str = "",
    ) -> None:
        super().__init__(LikelihoodTask(network, items, config), outdir=outdir, desc=desc)

    @classmethod
    def from_config(
        cls,
        config: TrainConfig,
        *,
        outdir: str | Path = "runs",
        desc: str = "",
        report: Report | None = None,
    ) -> Trainer:
        """Opens the items and builds the network that `config` describes, with weights from its seed.

        Args:
            outdir, desc: as for the constructor.
            report: as for `aigc_ext.data.open_dataset`.
        """
        if tokens := token_source(config.data.source):
            # Later, `latest` and the beginning of a name may be those of another run.
            try:
                run = find_run(tokens.network)
            except ValueError as error:
                raise ConfigError(f"data.source: {error}") from error
            config = config.override("data.source", f"{TOKENS}:{run}:{tokens.images}")
        items = open_items(config, report)
        known = {name: value for name, value in items.facts.items() if name in config.network.arguments()}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(config.seed, "weights"))
            network = build_network(replace(config.network, **known))
        if items.codec is not None:
            codec: Any = network.codec
            codec.load_state_dict(items.codec.state_dict())
        return cls(network, items, config, outdir=outdir, desc=desc)

    def restore(self, point: ResumePoint, *, data_changed: bool = False) -> None:
        """As `Loop.restore`; also raises CheckpointError if the checkpoint's network had other settings, such
        as the vocabulary that another version of `tokenizers` learned."""
        check_resumable(point.config, self.config)
        if point.checkpoint is not None:
            before, now = point.checkpoint.state.get("network"), self.task.facts()["network"]
            if before != now and isinstance(before, dict) and isinstance(now, dict):
                names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
                raise CheckpointError(
                    point.checkpoint.path,
                    f"its network has another {', '.join(names)} than the one of this data and config",
                )
        super().restore(point, data_changed=data_changed)
