"""Training of networks that reconstruct what they are given, with or without a discriminator: the engine's
task, and its public form."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext import _files
from aigc_ext.config import ConfigError
from aigc_ext.data import (
    Dataset,
    ImageDataset,
    as_dataset,
    split,
    to_uint8,
    wav_file,
)
from aigc_ext.data.batch import Batch
from aigc_ext.data.dataset import Report
from aigc_ext.metrics import MetricSet, ReconstructionDistance, named_extractor
from aigc_ext.metrics.classifier import unsuited
from aigc_ext.metrics.cost import estimate_seconds
from aigc_ext.models import build_discriminator, build_network
from aigc_ext.optim import AdamEMA
from aigc_ext.sampling import (
    Sampler,
    readable_scale,
    save_grid,
    save_pretrained,
    save_wav,
    spectrum_pictures,
)
from aigc_ext.tasks.adversarial import recipe, symptoms
from aigc_ext.tasks.adversarial.balance import Balance
from aigc_ext.tasks.adversarial.config import TrainConfig
from aigc_ext.tasks.adversarial.quality import (
    as_floats,
    reconstruction_quality,
    sample_rate_of,
    whole_waves,
)
from aigc_ext.tasks.adversarial.recipe import Schedule
from aigc_ext.tasks.adversarial.step import ReconstructionStep
from aigc_ext.tasks.adversarial.terms import Weighted, make_terms
from aigc_ext.tasks.gan import recipe as gan
from aigc_ext.tasks.gan.augment import AdaAugment
from aigc_ext.tasks.initial import TunableLoop, TunableTask
from aigc_ext.tasks.networks import architecture, open_images, open_recordings
from aigc_ext.tasks.optimization import copy_buffers, make_optimizer
from aigc_ext.training.config import RunConfig
from aigc_ext.training.cost import affordable, duration
from aigc_ext.training.distributed import Processes
from aigc_ext.training.parts import part_size
from aigc_ext.training.runtime import derive_seed, resolve_device
from aigc_ext.training.task import Learner, Piece, Progress

_MOST_HEARD = 4  # recordings of a preview


class ReconstructionTask(TunableTask):
    """A network in training mode, its average in eval mode, a discriminator or None, and their optimizers;
    its arguments are those of `Trainer`."""

    name = "adversarial"
    preview_file = "reconstructions{}.png"
    ranked_by = ("fd", "nelbo", "kid", "lsd", "rfd")
    replayed_by = "aigc_ext.tasks.adversarial.replay"

    config: TrainConfig
    data: Any

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        data: Dataset,
        config: TrainConfig,
        *,
        held: Dataset | None = None,
        terms: Sequence[Weighted] = (),
    ) -> None:
        recipe.check(config, data, generator)
        self.config = config = recipe.complete(config, data)
        self.data, self.held = data, held
        self.device = device = resolve_device(config.device)
        self.generator: Any = generator.to(device).train()
        self.value_range: tuple[float, float] = getattr(generator, "value_range", (-1.0, 1.0))
        self._more = tuple(terms)
        self.terms = make_terms(config, generator, terms)
        adversarial = config.loss.adversarial > 0
        if adversarial and discriminator is None:
            raise ValueError(f"discriminator is None, but loss.adversarial is {config.loss.adversarial}")
        self.discriminator = discriminator.to(device).train() if adversarial and discriminator else None
        for network in (self.generator, self.discriminator):
            if config.channels_last and network is not None:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.augment = gan.make_augment(config.augment, self.value_range) if adversarial else None
        if self.augment is not None:
            self.augment.to(device)
        self.ema: Any = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.g_optimizer = make_optimizer(self.generator, config.g_optim, ema=self.ema)
        learners = [Learner("generator", "g", self.g_optimizer)]
        self.d_optimizer: AdamEMA | None = None
        if self.discriminator is not None:
            self.d_optimizer = make_optimizer(self.discriminator, config.d_optim)
            learners.insert(0, Learner("discriminator", "d", self.d_optimizer))
        self.learners = tuple(learners)
        self.balance: Balance | None = None
        if config.loss.balance:
            names = [term.name for term, _ in self.terms]
            self.balance = Balance(names, config.loss.balance_norm, config.loss.balance_decay, device)
        self.publishes = architecture(generator) is not None
        self.generates = getattr(generator, "bottleneck", None) == "kl" and data.kind == "images"
        source = shlex.quote(config.data.source)
        self.commands = {  # type: ignore[misc]
            **({"more images": "sample --network {run} --seeds 0-15"} if self.generates else {}),
            "made anew": f"sample --network {{run}} --input {source}",
        }
        self._cond = config.data.cond
        present = data.present_classes if self._cond else []
        self._trained = present if len(present) < data.num_classes and self._cond else None
        self._sampler: Sampler | None = None
        if self.generates:
            decoder: Any = self.ema.decoder
            self._sampler = Sampler(decoder, trained_classes=self._trained)
        if self._of_samples and not self.generates:
            raise ConfigError(
                f"metrics are {', '.join(self._of_samples)}, but must be none: only a generator with the "
                "bottleneck 'kl' makes samples by itself"
            )
        if "rfd" in (config.metrics or ()) and not (held and data.kind == "images" and self.publishes):
            raise ConfigError("metrics has rfd, but that is of held-out images and an autoencoder of ours")
        self._metrics: MetricSet | None = None
        self._distance: ReconstructionDistance | None = None
        self.join(Processes())

    def __repr__(self) -> str:
        names = [type(network).__name__ for network in (self.generator, self.discriminator) if network]
        return f"<{type(self).__name__} {' and '.join(names)} on {self.data!r}>"

    def join(self, processes: Processes) -> None:
        super().join(processes)
        config, loss = self.config, self.config.loss
        penalties = {name: getattr(loss, name) for name in getattr(self.generator, "penalties", ())}
        critic = None
        if self.discriminator is not None:
            critic = recipe.make_critic(self.discriminator, config, self.augment)
        self._take_step = ReconstructionStep(
            *(self.generator, self.g_optimizer, self.terms, penalties),
            critic=critic,
            d_optimizer=self.d_optimizer,
            balance=self.balance,
            judged=loss.judged,
            part_size=part_size(config, processes.count),
            processes=processes,
        )
        self.statistics = self._take_step.statistics  # type: ignore[misc]  # they depend on the terms
        shown = {"loss": "loss", **{name: name for name in self._take_step.statistics[1:3]}}
        if critic is not None:
            shown |= {"D(x)": "d_real", "D(G)": "d_fake"}
        self.shown = shown  # type: ignore[misc]

    def state(self) -> Mapping[str, Piece]:
        copy_buffers(self.ema, self.generator)
        pieces: dict[str, Piece] = {
            "generator": self.generator,
            "ema": self.ema,
            "g_optimizer": self.g_optimizer,
        }
        if self.discriminator is not None and self.d_optimizer is not None:
            pieces |= {"discriminator": self.discriminator, "d_optimizer": self.d_optimizer}
        if self.balance is not None:
            pieces |= {"balance.totals": self.balance.totals, "balance.counts": self.balance.counts}
        buffers = {} if self.augment is None else dict(self.augment.named_buffers())
        return {**pieces, **{f"augment.{name}": buffer for name, buffer in buffers.items()}}

    def schedule(self, at: Progress) -> Schedule:
        return recipe.schedule(self.config, at)

    def step(self, batch: Batch, schedule: Schedule) -> Tensor:
        now, augment = schedule, self.augment
        given = getattr(batch, self.data.kind)
        items = as_floats(given, self.value_range)
        if self.config.channels_last and items.dim() == 4:
            items = items.contiguous(memory_format=torch.channels_last)
        for optimizer, rates in ((self.g_optimizer, now.g_rates), (self.d_optimizer, now.d_rates)):
            for group in optimizer.param_groups if optimizer is not None else ():
                group.update(rates)
        self.g_optimizer.ema_decay = now.ema_decay
        if isinstance(augment, AdaAugment) and now.augment_p is not None:
            augment.set_p(now.augment_p)
        statistics = self._take_step(
            *(items, batch.labels if self._cond else None),
            penalize=now.penalize,
            adversarial=now.adversarial,
            seed=now.at.seed,
        )
        if isinstance(augment, AdaAugment):
            acc_real = statistics[self.statistics.index("acc_real")]
            config: Any = self.config
            gan.adjust_augment(augment, config, now.at.step, acc_real)
        return statistics

    def figures(self, schedule: Schedule) -> Mapping[str, float | None]:
        figures: dict[str, float | None] = {"ema_decay": schedule.ema_decay, "lr_g": schedule.g_rates["lr"]}
        if isinstance(self.augment, AdaAugment):
            figures["augment_p"] = self.augment.p.item()
        return figures

    def symptoms(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        return symptoms.symptoms(
            rows, self.config, getattr(self.generator, "num_codes", None), self.data.item
        )

    def settle(self, log: logging.Logger) -> None:
        """Metrics by default: a new run has them where they cost little of its time."""
        if self.config.metrics is not None:
            return
        found, because = self._worth_while()
        # Processes that measure differently must agree.
        agreed = self.processes.broadcast_text(",".join(found))
        self.config = self.config.override("metrics", agreed.split(",") if agreed else [])
        log.info("metrics of samples: %s", because)

    @property
    def _of_samples(self) -> list[str]:
        return [name for name in self.config.metrics or () if name != "rfd"]

    def _no_metrics(self) -> str | None:
        """Why there are none of samples by default, as far as it is known without measuring."""
        config = self.config
        if not self.generates:
            return "the codes need a prior to sample from"
        if config.metric_images * config.snapshots >= config.total_images:
            return "the run is short"
        return unsuited(self.data) if self.data.num_classes else None

    def _worth_while(self) -> tuple[tuple[str, ...], str]:
        config = self.config
        if because := self._no_metrics():
            return (), f"none, since {because}"
        training = self._seconds_per_step() * math.ceil(config.total_images / config.batch)
        total = self.metric_seconds()
        cost = f"about {duration(total)} of {duration(training + total)}"
        if affordable(total, training):
            return ("fd",), f"fd at each snapshot ({cost}; --metrics none turns it off)"
        return (), f"none, since fd would take {cost}; --metrics fd takes it all the same"

    def _seconds_per_step(self) -> float:
        """Of a copy, so that nothing is changed."""
        config, share = replace(self.config, metrics=()), self.config.batch // self.processes.count
        networks = copy.deepcopy((self.generator, self.discriminator))
        other = ReconstructionTask(*networks, self.data, config, terms=self._more)
        items = torch.zeros(share, *self.data.item_shape, dtype=torch.uint8, device=self.device)
        batch = Batch(
            **{self.data.kind: items}, labels=torch.zeros(share, dtype=torch.int64, device=self.device)
        )
        seconds = []
        for step in (1, 2):  # the first one is slower
            began = time.perf_counter()
            other.step(batch, other.schedule(Progress(10**9 + step, 0, 0))).tolist()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def begin(self, directory: Path, log: logging.Logger) -> None:
        config, data = self.config, self.data
        if self.held is None:
            log.info("no items are held out, so that there are no metrics of reconstructions")
        else:
            log.info("%d %ss of %d are held out", len(self.held), data.item, len(self.held) + len(data))
        if data.num_classes and not self._cond:
            log.info("the labels of %s are not used, because data.cond is false", data.name)
        super().begin(directory, log)
        kind: Literal["classifier", "random"] = "classifier" if data.num_classes else "random"
        if self._of_samples:
            self._metrics = MetricSet(
                self._of_samples,
                data,
                num_images=config.metric_images,
                extractor=kind,
                device=self.device,
            )
        if "rfd" in (config.metrics or ()):
            images: Any = self.held
            self._distance = ReconstructionDistance(
                images, named_extractor(kind, data, device=self.device), num_images=config.metric_images
            )
            log.info("rfd is of %d images that are held out", self._distance.count)

    def metrics(self) -> Mapping[str, float]:
        found: dict[str, float] = {}
        if self.held is not None:
            bernoulli = any(term.name == "bernoulli" for term, _ in self.terms)
            found |= reconstruction_quality(
                self.ema, self.held, cond=self._cond, device=self.device, bernoulli=bernoulli
            )
        if self._metrics is not None and self._sampler is not None:
            found |= self._metrics(self._sampler)
        if self._distance is not None:
            found["rfd"] = self._distance(self.ema)
        return found

    @property
    def metrics_by_default(self) -> bool:
        return self.config.metrics is None

    def metric_seconds(self) -> float:
        config = self.config
        wanted = self._no_metrics() is None if config.metrics is None else bool(self._of_samples)
        if not self.generates or not wanted:
            return 0.0
        assert self._sampler is not None
        seconds = estimate_seconds(self.data, self._sampler, config.metric_images, self.device)
        return seconds.total(config.snapshots)

    def preview(self, path: Path, nimg: int, files: Mapping[str, bytes]) -> None:
        """Items, held-out ones if there are any, each with its reconstruction below it; with kl also, in
        `samples{}.png`, the images of the seeds 0, 1, 2, ... Of recordings these are pictures of spectra, and
        `reconstructions{}.wav` has the first ones and their reconstructions, one after the other."""
        data: Any = self.held or self.data
        columns = self.config.grid[0]
        items, labels = data.read(gan.spread(data, math.prod(self.config.grid)))
        target = as_floats(items.to(self.device), self.value_range)
        with torch.no_grad():
            made = self.ema(target, labels.to(self.device)) if self._cond else self.ema(target)
        if data.kind == "audio":
            pairs = [spectrum_pictures(target), spectrum_pictures(made)]
        else:
            pairs = [items, to_uint8(made, self.value_range).cpu()]
        rows = [each[start : start + columns] for start in range(0, len(items), columns) for each in pairs]
        if len(rows[-1]) < columns:  # the last row is short
            missing = columns - len(rows[-1])
            rows[-2:] = [torch.cat([row, row.new_zeros(missing, *row.shape[1:])]) for row in rows[-2:]]
        provenance = {"model_sha256": _files.sha256(files["ema"]), "nimg": nimg}
        self._save(torch.cat(rows).permute(0, 2, 3, 1).numpy(), path, provenance=provenance)
        if data.kind == "audio":
            rate = sample_rate_of(data)
            waves = [F.pad(wave, (0, rate // 4)) for wave in _heard(self.ema, data, self.device)]
            samples = wav_file.to_int16(torch.cat(waves).numpy())
            save_wav(samples, path.with_suffix(".wav"), rate, provenance=provenance)
        if self._sampler is None:
            return
        seeds = range(math.prod(self.config.grid))
        trained = self._trained or range(self.data.num_classes)
        classes = [trained[seed % len(trained)] for seed in seeds] if self._cond else None
        provenance |= {"seeds": list(seeds), "classes": classes, "truncation": 1.0}
        name = path.name.replace("reconstructions", "samples")
        self._save(self._sampler.sample(seeds, classes), path.with_name(name), provenance=provenance)

    def _save(self, images: np.ndarray, path: Path, **options: Any) -> None:
        scale = readable_scale(*images.shape[1:3])
        save_grid(images, path, columns=self.config.grid[0], scale=scale, **options)

    def publish(self, directory: Path, files: Mapping[str, bytes]) -> None:
        """Writes the averaged network in the form that `sampling.load_pretrained` loads."""
        architecture = self.facts()["generator"]
        save_pretrained(directory, architecture, files["ema"], self._trained, self.config.data.licence)

    def facts(self) -> Mapping[str, Any]:
        """The configs from which `aigc_ext.models` builds the networks; None for a network that is not ours,
        or that there is not."""
        facts: dict[str, Any] = {
            "generator": architecture(self.generator),
            "discriminator": None if self.discriminator is None else architecture(self.discriminator),
        }
        return facts if self._trained is None else {**facts, "trained_classes": self._trained}

    def failed_step(self, schedule: Schedule) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        inputs = self._take_step.inputs
        assert inputs is not None
        tensors = {"items": inputs.z, "real": inputs.real, "fake": inputs.fake}
        if inputs.labels is not None:
            tensors["labels"] = inputs.labels
        facts = {
            "penalize": inputs.penalize,
            "adversarial": schedule.adversarial,
            "seed": inputs.seed,
            "start": inputs.start,
            "total": inputs.total,
            "value_range": list(self.value_range),
        }
        return tensors, facts

    def kinds_of_steps(self) -> Sequence[tuple[bool, bool]]:
        return recipe.kinds_of_steps(self.config)

    def with_config(self, config: RunConfig) -> ReconstructionTask:
        assert isinstance(config, TrainConfig)
        return ReconstructionTask(
            *(self.generator, self.discriminator, self.data, config), held=self.held, terms=self._more
        )


class Trainer(TunableLoop):
    """Trains a network to reconstruct items, with a discriminator if `config.loss.adversarial` is not 0.

    All random numbers derive from `config.seed` (see `training.loop.Loop`), including the initial weights and
    the choice of held-out items (in `from_config`).

    Args:
        generator: an `Autoencoder`, or a module with its interface for training (`reconstruct`, `activate`,
            `value_range`; `forward(items)` for reconstructions in eval mode).
        discriminator: maps items to logits, or to a list of several tensors of logits; with a method
            `judge(items, c=None)` that returns logits and features, terms may use these. None without one.
        data: what is trained on, in any form that `aigc_ext.data.as_dataset` takes.
        held: the held-out items of the metrics; None for none.
        terms: further terms of the loss with their weights, such as
            `Weighted(Compared("perceptual", lambda a, b: losses.perceptual(a, b, features)), 0.1)`.
        outdir: where `fit` makes the run directory.
        desc: added to the run directory's name.

    Attributes:
        state: the networks, the average `state.ema`, optimizers and counters.
        run_dir: the run directory; None until there is one.

    Raises:
        ValueError: networks, data and config do not match.
    """

    task: ReconstructionTask
    config: TrainConfig

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        data: Dataset | Any,
        config: TrainConfig,
        *,
        held: Dataset | Any | None = None,
        terms: Sequence[Weighted] = (),
        outdir: str | Path = "runs",
        desc: str = "",
    ) -> None:
        data = data if isinstance(data, Dataset) else as_dataset(data)
        if held is not None and not isinstance(held, Dataset):
            held = as_dataset(held)
        task = ReconstructionTask(generator, discriminator, data, config, held=held, terms=terms)
        super().__init__(task, outdir=outdir, desc=desc)

    @classmethod
    def from_config(
        cls,
        config: TrainConfig,
        *,
        outdir: str | Path = "runs",
        desc: str = "",
        report: Report | None = None,
    ) -> Trainer:
        """Opens the data, holds a part out, and builds the networks that `config` describes, with weights
        from its seed.

        Args:
            outdir, desc: as for the constructor.
            report: as for `aigc_ext.data.open_dataset`.
        """
        data = _open(config, report)
        held: Dataset | None = None
        if config.held_out:
            data, held = split(data, config.held_out, derive_seed(config.seed, "held out"))
        shared: dict[str, Any] = {"num_classes": data.num_classes if config.data.cond else 0}
        if isinstance(data, ImageDataset):
            shared["image_shape"] = data.image_shape
        if data.kind == "audio":
            shared["sample_rate"] = sample_rate_of(data)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(config.seed, "weights"))
            generator = build_network(_for_data(config.generator, shared))
            discriminator = None
            if config.loss.adversarial:
                discriminator = build_discriminator(_for_data(config.discriminator, shared))
        return cls(generator, discriminator, data, config, held=held, outdir=outdir, desc=desc)


def _heard(network: Any, data: Any, device: torch.device) -> list[Tensor]:
    """A few waves, each followed by its reconstruction, on the CPU."""
    waves = itertools.islice(whole_waves(data, device), _MOST_HEARD)
    with torch.no_grad():
        return [wave.cpu() for each in waves for wave in (each, network(each[None])[0])]


def _open(config: TrainConfig, report: Report | None) -> Dataset:
    """Recordings for a network that makes them, else images."""
    audio = getattr(config.generator.network, "media", None) == "audio"
    return (open_recordings if audio else open_images)(config.data, report)


def _for_data(settings: Any, shared: Mapping[str, Any]) -> Any:
    """Settings of a network with what comes from the data, as far as its family has it."""
    return replace(settings, **{key: value for key, value in shared.items() if key in settings.arguments()})
