"""Adversarial training of a generator and a discriminator: the engine's task, and its public form."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from aigc_ext import _files, models
from aigc_ext.config import ConfigError
from aigc_ext.data import ImageDataset, as_dataset, normalize
from aigc_ext.data.batch import Batch
from aigc_ext.data.dataset import Report
from aigc_ext.metrics import MetricSet
from aigc_ext.metrics.classifier import unsuited
from aigc_ext.metrics.cost import estimate_seconds
from aigc_ext.models import R3GANGenerator, build_discriminator, build_generator
from aigc_ext.sampling import Sampler, readable_scale, save_grid, save_pretrained
from aigc_ext.sampling.sampler import attribute
from aigc_ext.tasks.gan import recipe, symptoms
from aigc_ext.tasks.gan.augment import AdaAugment
from aigc_ext.tasks.gan.config import TrainConfig
from aigc_ext.tasks.gan.fastest import fastest, seconds_per_step
from aigc_ext.tasks.gan.objective import Mixing, StepInputs
from aigc_ext.tasks.gan.recipe import Schedule
from aigc_ext.tasks.gan.step import STATISTICS, AdversarialStep
from aigc_ext.tasks.initial import TunableLoop, TunableTask
from aigc_ext.tasks.networks import architecture, open_images
from aigc_ext.tasks.optimization import copy_buffers, make_optimizer
from aigc_ext.training import run
from aigc_ext.training.config import RunConfig
from aigc_ext.training.cost import affordable, duration
from aigc_ext.training.distributed import Processes
from aigc_ext.training.parts import part_size
from aigc_ext.training.runtime import derive_seed, resolve_device
from aigc_ext.training.task import Learner, Piece, Progress

_MAX_GRID_BYTES = 1 << 30


class GANTask(TunableTask):
    """A pair of networks in training mode, the averaged generator in eval mode, and their optimizers; its
    arguments are those of `Trainer`."""

    name = "gan"
    statistics = STATISTICS
    shown = {"D": "loss_d", "G": "loss_g", "D(x)": "d_real", "D(G(z))": "d_fake"}  # noqa: RUF012
    preview_file = "fakes{}.png"
    ranked_by = ("fd", "kid")
    replayed_by = "aigc_ext.training.replay"
    commands = {  # noqa: RUF012
        "more images": "sample --network {run} --seeds 0-15",
        "one file": "export --network {run} --output {run}/model.pt2",
    }

    config: TrainConfig
    data: ImageDataset

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        data: ImageDataset,
        config: TrainConfig,
        *,
        z_dim: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        recipe.check_classes(config, data)
        self.config = config = recipe.complete(config, data)
        self.data = data
        self.device = device = resolve_device(config.device)
        self.generator = generator.to(device).train()
        self.discriminator = discriminator.to(device).train()
        if config.channels_last:
            for network in (generator, discriminator):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        recipe.check_fits(config, generator)
        value_range = attribute(generator, "value_range", value_range)
        self.augment = recipe.make_augment(config.augment, value_range)
        if self.augment is not None:
            self.augment.to(device)
        self.ema = copy.deepcopy(generator).eval().requires_grad_(False)
        self.g_optimizer = make_optimizer(generator, config.g_optim, ema=self.ema)
        self.d_optimizer = make_optimizer(discriminator, config.d_optim)
        self.learners = (
            Learner("discriminator", "d", self.d_optimizer),
            Learner("generator", "g", self.g_optimizer, every=config.n_dis),
        )
        self.latents = torch.Generator(device).manual_seed(derive_seed(config.seed, "latents"))
        self.path_mean = torch.zeros((), device=device)
        self.publishes = architecture(generator) is not None
        self._classes = data.num_classes if config.data.cond else 0
        present = data.present_classes if self._classes else []
        self._trained = present if len(present) < self._classes else None
        self._sampler = Sampler(
            self.ema,
            z_dim=z_dim,
            value_range=value_range,
            num_classes=self._classes,
            trained_classes=self._trained,
        )
        self._metrics: MetricSet | None = None
        if math.prod((*config.grid, *data.image_shape)) > _MAX_GRID_BYTES:
            raise ConfigError(
                f"grid is {config.grid[0]}x{config.grid[1]}, but must have fewer cells: with images of "
                f"{'x'.join(map(str, data.image_shape))} it would have more than {_MAX_GRID_BYTES:,} bytes"
            )
        channels, height, width = data.image_shape
        made = self._sampler.sample([0]).shape[1:]
        if made != (height, width, channels):
            raise ValueError(
                f"the generator makes images of {made[0]}x{made[1]} pixels with {made[2]} channels, "
                f"but those of {data.name} have {height}x{width} with {channels}"
            )

    def __repr__(self) -> str:
        networks = f"{type(self.generator).__name__} and {type(self.discriminator).__name__}"
        return f"<{type(self).__name__} {networks} on {self.data!r}>"

    def join(self, processes: Processes) -> None:
        super().join(processes)
        config = self.config
        self._take_step = AdversarialStep(
            *(self.generator, self.discriminator),
            recipe.make_objective(self.discriminator, config, self.augment, self._sampler.value_range),
            *(self.g_optimizer, self.d_optimizer),
            part_size=part_size(config, processes.count),
            processes=processes,
            path_mean=self.path_mean,
            path_decay=config.loss.path_decay,
            path_every=config.loss.path_every,
            mode=config.step or "eager",
        )
        if config.step in ("native", "traced", "compiled"):
            inputs, stretch = self._example(), config.loss.path_weight > 0
            if because := self._take_step.refusal(inputs, stretch, config.step):
                raise ConfigError(f"step is {config.step!r}, but {because}")

    def settle(self, log: logging.Logger) -> None:
        """Measures which mode of the step is the fastest, on the CPU and for networks of ours, in which
        precision where that was left open, and what the metrics would cost."""
        tried = self._settle_step(log)
        if self.config.metrics is None:
            self._settle_metrics(log, tried)

    @property
    def _ours(self) -> bool:
        """Other networks may do something that is not recorded, nor undone."""
        networks = self.generator, self.discriminator
        return all(type(network).__module__.startswith(models.__name__) for network in networks)

    def _settle_step(self, log: logging.Logger) -> bool:
        """Have steps been taken for it?"""
        inputs, step, config = self._example(), self._take_step, self.config
        native = config.step in ("auto", "native") and step.refusal(inputs) is None
        modes = config.step == "auto" and self.device.type == "cpu" and self._ours and not native
        modes = modes and step.refusal(inputs, mode="traced") is None
        precisions = config.precision == "auto" and not native and self.processes.count == 1
        if modes or precisions:
            steps = math.ceil(config.total_images / config.batch)
            kinds = self.kinds_of_steps()
            log.info("trying a few steps, which may take a minute or, where a compiler is, some more")
            if found := fastest(step, inputs, kinds, steps, modes=modes, precisions=precisions):
                (mode, autocast), because = found
                step.objective.autocast = autocast
                if modes:
                    step.mode = mode
                    config = replace(config, step=mode)
                if autocast is torch.bfloat16:
                    config = replace(config, precision="bfloat16")
                log.info("step: %s", because)
        if config.precision == "auto":
            config = replace(config, precision="float32")
        self.config = config
        return modes or precisions

    def _example(self) -> StepInputs:
        """Inputs of this process's share of a step."""
        share = self.config.batch // self.processes.count

        def numbers(*shape: int) -> Tensor:  # not random ones, which would change those of the run
            return torch.linspace(-1, 1, share * math.prod(shape), device=self.device).view(share, *shape)

        real, z = numbers(*self.data.image_shape), numbers(self._sampler.z_dim)
        if self.config.channels_last:
            real = real.contiguous(memory_format=torch.channels_last)
        labels, mixing = torch.zeros(share, dtype=torch.int64, device=self.device), None
        if self.config.loss.mixing:
            mixing = Mixing(z.flip(0), labels + 1)
        return StepInputs(real, real, z, labels if self._classes else None, True, mixing, seed=0)

    def state(self) -> Mapping[str, Piece]:
        copy_buffers(self.ema, self.generator)
        augment = {} if self.augment is None else dict(self.augment.named_buffers())
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "ema": self.ema,
            "g_optimizer": self.g_optimizer,
            "d_optimizer": self.d_optimizer,
            "rng.latents": self.latents,
            "path.mean": self.path_mean,
            # Missing in checkpoints of a run that had another kind before.
            **{f"augment.{name}": buffer for name, buffer in augment.items()},
        }

    def schedule(self, at: Progress) -> Schedule:
        return recipe.schedule(self.config, at)

    def step(self, batch: Batch, schedule: Schedule) -> Tensor:
        assert batch.images is not None
        now, augment = schedule, self.augment
        real = normalize(batch.images, self._sampler.value_range)
        if self.config.channels_last:
            real = real.contiguous(memory_format=torch.channels_last)
        z, mixing = self._draw_latents()
        for optimizer, rates in ((self.g_optimizer, now.g_rates), (self.d_optimizer, now.d_rates)):
            for group in optimizer.param_groups:
                group.update(rates)
        self.g_optimizer.ema_decay = now.ema_decay
        if isinstance(augment, AdaAugment) and now.augment_p is not None:
            augment.set_p(now.augment_p)
        statistics = self._take_step(
            *(real, z, batch.labels if self._classes else None),
            penalize=now.penalize,
            train_generator=now.train_generator,
            stretch=now.stretch,
            mixing=mixing,
            seed=now.at.seed,
            gamma=now.gamma,
            blur_sigma=now.blur_sigma,
        )
        if isinstance(augment, AdaAugment):
            acc_real = statistics[STATISTICS.index("acc_real")]
            recipe.adjust_augment(augment, self.config, now.at.step, acc_real)
        return statistics

    def figures(self, schedule: Schedule) -> Mapping[str, float | None]:
        return {
            "ema_decay": schedule.ema_decay,
            "gamma": schedule.gamma,
            "lr_g": schedule.g_rates["lr"],
            "blur_sigma": schedule.blur_sigma if self.config.augment.blur_sigma else None,
            "augment_p": self.augment.p.item() if isinstance(self.augment, AdaAugment) else None,
            "variety": symptoms.variety(*self._take_step.images(symptoms.COMPARED)),
        }

    def symptoms(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        return symptoms.symptoms(rows, self.config)

    def begin(self, directory: Path, log: logging.Logger) -> None:
        config, data = self.config, self.data
        if config.data.transform == "center-crop" and config.data.resolution:
            wanted = "x".join(map(str, config.data.resolution))
            text = "images of another shape than %s lose their ends; --transform letterbox adds bars instead"
            log.info(f"%s: {text}", data.name, wanted)
        if data.num_classes and not self._classes:
            log.info("the labels of %s are not used, because data.cond is false", data.name)
        if self._classes and (remark := data.describe_empty_classes()):
            log.warning("%s: %s; they are not sampled unless asked for", data.name, remark)
        if self._classes and data.class_names:
            names = ", ".join(f"{number} {name}" for number, name in enumerate(data.class_names))
            log.info("the classes are: %s", names)
        super().begin(directory, log)
        if not (directory / "reals.png").exists():
            reals, _ = data.read(recipe.spread(data, math.prod(config.grid)))
            self._save(reals.permute(0, 2, 3, 1).numpy(), directory / "reals.png", label=False)
        if config.metrics:
            extractor: Literal["classifier", "random"] = "classifier" if data.num_classes else "random"
            if extractor == "random":
                log.info("the metrics compare features of random weights: %s has no labels", data.name)
            self._metrics = MetricSet(
                *(config.metrics, data),
                num_images=config.metric_images,
                extractor=extractor,
                device=self.device,
            )
        part = part_size(config, self.processes.count)
        if remark := recipe.smaller_groups(self.discriminator, part):
            log.warning("%s", remark)

    def preview(self, path: Path, nimg: int, files: Mapping[str, bytes]) -> None:
        """The images of the seeds 0, 1, 2, ...; `aigc-ext sample` makes the same ones from the checkpoint."""
        seeds = range(math.prod(self.config.grid))
        trained = self._trained or range(self._classes)
        classes = [trained[seed % len(trained)] for seed in seeds] if self._classes else None
        provenance = {
            "model_sha256": _files.sha256(files["ema"]),
            "nimg": nimg,
            "seeds": list(seeds),
            "classes": classes,
            "truncation": 1.0,
        }
        self._save(self._sampler.sample(seeds, classes), path, provenance=provenance)

    def metrics(self) -> Mapping[str, float]:
        return {} if self._metrics is None else self._metrics(self._sampler)

    @property
    def metrics_by_default(self) -> bool:
        return self.config.metrics is None

    def metric_seconds(self) -> float:
        config = self.config
        if config.metrics == () or (config.metrics is None and self._no_metrics()):
            return 0.0
        seconds = estimate_seconds(self.data, self._sampler, config.metric_images, self.device)
        return seconds.total(config.snapshots)

    def _no_metrics(self) -> str | None:
        """Why there are no metrics by default, as far as it is known without measuring."""
        config = self.config
        if config.metric_images * config.snapshots >= config.total_images:
            return "the run is short"
        return unsuited(self.data) if self.data.num_classes else None

    def _settle_metrics(self, log: logging.Logger, tried: bool) -> None:
        """Metrics by default: a new run has them where they cost little of its time."""
        names = ("fd", "coverage") if self.data.num_classes else ("fd",)
        found, because = self._worth_while(names, tried)
        # Processes that measure differently must agree.
        agreed = self.processes.broadcast_text(",".join(found))
        self.config = self.config.override("metrics", agreed.split(",") if agreed else [])
        log.info("metrics: %s", because)

    def _worth_while(self, names: tuple[str, ...], tried: bool) -> tuple[tuple[str, ...], str]:
        config, wanted = self.config, ",".join(names)
        way_on = f"--metrics {wanted} takes them all the same"
        if because := self._no_metrics():
            return (), f"none, since {because}; {way_on}"
        if not self._ours:
            return (), f"none, since networks of your own are not tried before they train; {way_on}"
        step = seconds_per_step(self._take_step, self._example(), self.kinds_of_steps(), warm=tried)
        training = step * math.ceil(config.total_images / config.batch)
        total = self.metric_seconds()
        cost = f"about {duration(total)} of {duration(training + total)}"
        if affordable(total, training):
            return names, f"{wanted} at each snapshot ({cost}; --metrics none turns them off)"
        return (), f"none, since {wanted} would take {cost}; {way_on}"

    def publish(self, directory: Path, files: Mapping[str, bytes]) -> None:
        """Writes the averaged generator in the form that `Sampler.from_pretrained` loads."""
        architecture = self.facts()["generator"]
        save_pretrained(directory, architecture, files["ema"], self._trained, self.config.data.licence)

    def facts(self) -> Mapping[str, Any]:
        """The configs from which `aigc_ext.models` builds the networks; None for a network that is not
        ours."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        facts: dict[str, Any] = {role: architecture(network) for role, network in networks.items()}
        return facts if self._trained is None else {**facts, "trained_classes": self._trained}

    def failed_step(self, schedule: Schedule) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        inputs = self._take_step.inputs
        assert inputs is not None
        tensors = {"real": inputs.real, "fake": inputs.fake, "z": inputs.z}
        if inputs.labels is not None:
            tensors["labels"] = inputs.labels
        if inputs.mixing is not None:
            tensors |= {"mixing_z": inputs.mixing.z, "mixing_cutoff": inputs.mixing.cutoff}
        facts = {
            "penalize": inputs.penalize,
            "stretch": schedule.stretch,
            "gamma": inputs.gamma,
            "blur_sigma": inputs.blur_sigma,
            "seed": inputs.seed,
            "start": inputs.start,
            "total": inputs.total,
            "value_range": list(self._sampler.value_range),
        }
        return tensors, facts

    def kinds_of_steps(self) -> Sequence[tuple[bool, bool, bool]]:
        return recipe.kinds_of_steps(self.config)

    def with_config(self, config: RunConfig) -> GANTask:
        assert isinstance(config, TrainConfig)
        return GANTask(
            *(self.generator, self.discriminator, self.data, config),
            z_dim=self._sampler.z_dim,
            value_range=self._sampler.value_range,
        )

    def _draw_latents(self) -> tuple[Tensor, Mixing | None]:
        """This process's share of the step's latents. Each process draws all of them, so that they do not
        depend on the number of processes."""
        config, rng = self.config, self.latents
        share = config.batch // self.processes.count
        rows = slice(self.processes.rank * share, (self.processes.rank + 1) * share)

        def normal() -> Tensor:
            return torch.randn(config.batch, self._sampler.z_dim, generator=rng, device=self.device)[rows]

        z = normal()
        if config.loss.mixing == 0:
            return z, None
        other, layers = normal(), int(self.generator.num_ws)  # type: ignore[arg-type]
        draws = torch.rand(2, config.batch, generator=rng, device=self.device)[:, rows]
        cutoff = (1 + draws[1] * (layers - 1)).to(torch.int64)
        return z, Mixing(other, torch.where(draws[0] < config.loss.mixing, cutoff, layers))

    def _save(self, images: np.ndarray, path: Path, **options: Any) -> None:
        scale = readable_scale(*images.shape[1:3])
        save_grid(images, path, columns=self.config.grid[0], scale=scale, **options)


class Trainer(TunableLoop):
    """Trains a generator and a discriminator against each other.

    Any pair of modules works. The generator maps latents (N, z_dim) to images (N, C, H, W) of the data's
    shape, the discriminator maps images to logits; with `config.data.cond` both get int64 labels (N,) as a
    second argument. The networks are moved to `config.device` and trained in place.

    All random numbers derive from `config.seed` (see `training.loop.Loop`), including the initial weights (in
    `from_config`) and the latents.

    Args:
        data: the images, in any form that `aigc_ext.data.as_dataset` takes: a dataset of `open_dataset`, a
            path, a tensor, an array, a torch Dataset.
        outdir: where `fit` makes the run directory.
        desc: added to the run directory's name.
        z_dim, value_range: by default the generator's attributes of these names.

    Attributes:
        state: the networks, the averaged generator `state.ema`, optimizers and counters.
        run_dir: the run directory; None until there is one.

    Raises:
        ValueError: networks, data and config do not match.
    """

    task: GANTask
    config: TrainConfig

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        data: ImageDataset | Any,
        config: TrainConfig,
        *,
        outdir: str | Path = "runs",
        desc: str = "",
        z_dim: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        data = as_dataset(data)
        task = GANTask(generator, discriminator, data, config, z_dim=z_dim, value_range=value_range)
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
        """Opens the data and builds the networks that `config` describes, with weights from its seed. Files
        that don't belong to the data are left out; `fit` reports them.

        Args:
            outdir, desc: as for the constructor.
            report: as for `aigc_ext.data.open_dataset`.
        """
        data = open_images(config.data, report)
        recipe.check_classes(config, data)
        config = recipe.complete(config, data)
        shared: Any = {"image_shape": data.image_shape}
        shared["num_classes"] = data.num_classes if config.data.cond else 0
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(config.seed, "weights"))
            generator = build_generator(replace(config.generator, **shared))
            discriminator = build_discriminator(replace(config.discriminator, **shared))
        if isinstance(generator, R3GANGenerator):
            generator.begin_at(recipe.channel_means(data))
        return cls(generator, discriminator, data, config, outdir=outdir, desc=desc)


def find_resume_point(target: str, outdir: Path) -> run.ResumePoint:
    """The point from which `--resume target` continues; see `training.run.resume_point`."""
    return run.resume_point(target, outdir, TrainConfig)
