"""The training loop: steps, figures, sample grids, checkpoints, and the run directory that holds them."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aigc_ext import _files
from aigc_ext.data import ImageDataset, describe_bad_files, normalize, open_dataset
from aigc_ext.metrics import MetricSet
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.ops.gan_loss import RELATIVISTIC
from aigc_ext.sampling import Sampler, readable_scale, save_grid, save_pretrained
from aigc_ext.sampling.sampler import attribute
from aigc_ext.training import recipe
from aigc_ext.training.augment import AdaAugment
from aigc_ext.training.batches import batches
from aigc_ext.training.checkpoint import (
    CheckpointError,
    best_checkpoint,
    checkpoint_name,
    list_checkpoints,
    prune_checkpoints,
    serialize,
    set_aside,
    write_checkpoint,
)
from aigc_ext.training.config import ConfigError, TrainConfig
from aigc_ext.training.distributed import Processes, process_group
from aigc_ext.training.loggers import Loggers, check_loggers, open_loggers
from aigc_ext.training.malloc import keep_freed_memory
from aigc_ext.training.nonfinite import NonFiniteError, make_objective
from aigc_ext.training.progress import ProgressLine, peak_memory_gb
from aigc_ext.training.run import (
    CONFIG_FILE,
    METRICS_FILE,
    STATS_FILE,
    ResumePoint,
    Run,
    RunError,
    StatsLog,
    check_resumable,
    create_run,
    open_run,
    watched_run,
)
from aigc_ext.training.runtime import StopSignals, resolve_device, torch_settings
from aigc_ext.training.state import TrainingState, architecture, derive_seed
from aigc_ext.training.step import STATISTICS, AdversarialStep, Mixing

BAD_FILES = "bad_files.txt"
_STEPS_PER_CUDA_CHECK = 50


@dataclass(frozen=True)
class TrainResult:
    """Where a run's results are.

    Attributes:
        grid: the newest sample grid.
        checkpoint: the newest checkpoint.
        model: the averaged generator, as `Sampler.from_pretrained` takes it; None if it has no `config`.
        stats: the figures, a JSON object per line.
        signal: the signal that ended the run early, or None if it is complete.
    """

    run_dir: Path
    grid: Path
    checkpoint: Path
    model: Path | None
    stats: Path
    step: int
    nimg: int
    signal: int | None


class Trainer:
    """Trains a generator and a discriminator against each other.

    Any pair of modules will do. The generator maps latents (N, z_dim) to images (N, C, H, W) of the data's
    shape, the discriminator maps images to logits; with `config.data.cond` both get int64 labels (N,) as a
    second argument. The networks are moved to `config.device` and trained in place.

    Every random number comes from `config.seed`: the initial weights (in `from_config`), the order of the
    data, the latents, and PyTorch's global generators during `fit` (which then gives the caller's back).
    All their states are in the checkpoints, so that a resumed run has the same bits as one that never
    stopped, on the CPU with the same number of threads.

    Args:
        data: the images; see `aigc_ext.data.open_dataset`.
        outdir: where `fit` makes the run directory.
        desc: added to the run directory's name.
        z_dim, value_range: by default the generator's attributes of these names.

    Attributes:
        state: the networks, the averaged generator `state.ema`, optimisers and counters.
        run_dir: the run directory, once there is one.

    Raises:
        ValueError: networks, data and config do not fit together.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        data: ImageDataset,
        config: TrainConfig,
        *,
        outdir: str | Path = "runs",
        desc: str = "",
        z_dim: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        if config.data.cond and not data.num_classes:
            raise ConfigError(f"data.cond is true, but {data.name} has no labels")
        check_loggers(config.log)
        self.config = config = recipe.complete(config, data.image_shape)
        self.data = data
        self.device = resolve_device(config.device)
        generator = generator.to(self.device).train()
        discriminator = discriminator.to(self.device).train()
        if config.channels_last:
            for network in (generator, discriminator):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.augment.kind == "ada" and config.loss.kind in RELATIVISTIC:
            raise ConfigError(
                f"augment.kind is 'ada', but loss.kind is {config.loss.kind!r}: D's logits of real images "
                "then mean nothing by themselves; use 'fixed'"
            )
        if config.loss.path_weight or config.loss.mixing:
            _check_has_mapping(generator, config)
        value_range = attribute(generator, "value_range", value_range)
        augment = recipe.make_augment(config.augment, value_range)
        if augment is not None:
            augment.to(self.device)
        self.state = TrainingState(generator, discriminator, config, self.device, augment)
        self.run_dir: Path | None = None

        self._classes = data.num_classes if config.data.cond else 0
        self._sampler = Sampler(
            self.state.ema, z_dim=z_dim, value_range=value_range, num_classes=self._classes
        )
        channels, height, width = data.image_shape
        made = self._sampler.sample([0]).shape[1:]
        if made != (height, width, channels):
            raise ValueError(
                f"the generator makes images of {made[0]}x{made[1]} pixels with {made[2]} channels, "
                f"but those of {data.name} have {height}x{width} with {channels}"
            )
        self._processes = Processes()
        self._take_step = self._make_step()
        self._outdir = Path(outdir)
        self._desc = desc
        self._resumed: ResumePoint | None = None
        self._saved: tuple[int, str] | None = None  # nimg and name of the newest checkpoint
        self._skipped_checked = self._skipped_logged = (0, 0)
        self._steps_unchecked = 0
        self._stretched = False  # did the last step take path lengths?
        self._metrics: MetricSet | None = None  # in the main process
        self._loggers = Loggers()

    @classmethod
    def from_config(cls, config: TrainConfig, *, outdir: str | Path = "runs", desc: str = "") -> Trainer:
        """Opens the data and builds the networks that `config` describes, with weights from its seed. Files
        that are no part of the data are left out; `fit` reports them."""
        data = open_dataset(config.data.source, on_bad="skip")
        shared = {
            "image_shape": data.image_shape,
            "num_classes": data.num_classes if config.data.cond else 0,
        }
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(config.seed, "weights"))
            generator = build_generator({**config.generator.to_dict(), **shared})
            discriminator = build_discriminator({**config.discriminator.to_dict(), **shared})
        return cls(generator, discriminator, data, config, outdir=outdir, desc=desc)

    def _make_step(self) -> AdversarialStep:
        state, config = self.state, self.config
        return AdversarialStep(
            *(state.generator, state.discriminator),
            make_objective(state.discriminator, config, state.augment),
            *(state.g_optimizer, state.d_optimizer),
            part_size=recipe.part_size(config, self._processes.count),
            processes=self._processes,
            path_mean=state.path_mean,
            path_decay=config.loss.path_decay,
            path_every=config.loss.path_every,
        )

    def restore(self, point: ResumePoint) -> None:
        """Takes over the state at a resume point; `fit` then goes on from it.

        Raises:
            ConfigError: this trainer's config differs from the run's in what cannot change.
            CheckpointError: the checkpoint does not fit the networks, the data or the device.
        """
        check_resumable(point.config, self.config)
        checkpoint = point.checkpoint
        if checkpoint is not None:
            data = _describe(self.data)
            if checkpoint.state["data"] != data:
                raise CheckpointError(
                    checkpoint.path, f"its data were {checkpoint.state['data']}, but are now {data}"
                )
            self.state.load(checkpoint)
            self._skipped_checked = self._skipped_logged = self.state.skipped
            if point.run_dir is not None:
                self._saved = (self.state.nimg, checkpoint.path.name)
        self.run_dir = point.run_dir
        self._resumed = point

    def fit(self, *, progress: bool = False) -> TrainResult:
        """Trains until `config.kimg`, or until SIGINT or SIGTERM, and leaves a run that can be resumed.

        Signals are taken only in the main thread; a second one interrupts at once.

        Args:
            progress: show one live line on stderr.

        Raises:
            NonFiniteError: too many steps in a row had no finite gradient; it names a dump.
            RunError: the run directory cannot be made, or is in use by another process.
        """
        if self.config.malloc == "keep":
            keep_freed_memory()
        with ExitStack() as stack:
            self._processes = stack.enter_context(process_group(self.device))
            self._take_step = self._make_step()
            run = stack.enter_context(self._open_run())
            stack.enter_context(torch_settings(self.config))
            stack.enter_context(_own_random_numbers(self.device))
            stop = stack.enter_context(StopSignals())
            self._prepare(run)
            if self.config.metrics and self._processes.main:
                self._metrics = self._make_metrics(run)
            names = self.config.log if self._processes.main else ()
            self._loggers = stack.enter_context(open_loggers(names, run, self.config, self.state.nimg))
            line = ProgressLine(
                self.state.nimg,
                self.config.total_images,
                self.device,
                enabled=progress and self._processes.main,
            )
            with line:
                name = self._train(run, stop, line)
            run.log.info(
                "%s at step %d (%d images)",
                f"stopped by {stop.received.name}" if stop.received else "finished",
                self.state.step,
                self.state.nimg,
            )
        return TrainResult(
            run_dir=run.path,
            grid=run.grid(name),
            checkpoint=run.checkpoint(name),
            model=run.model if architecture(self.state.generator) else None,
            stats=run.stats.path,
            step=self.state.step,
            nimg=self.state.nimg,
            signal=stop.received,
        )

    def _open_run(self) -> AbstractContextManager[Run]:
        """The main process makes and holds the run directory, and writes there; the others know its name."""
        if self._processes.main:
            if self.run_dir is None:
                self.run_dir = create_run(self._outdir, self.config, self.data.name, self._desc)
            self._processes.broadcast_text(str(self.run_dir))
            return open_run(self.run_dir)
        self.run_dir = Path(self._processes.broadcast_text(""))
        return nullcontext(watched_run(self.run_dir))

    def _make_metrics(self, run: Run) -> MetricSet:
        extractor: Literal["classifier", "random"] = "classifier" if self.data.num_classes else "random"
        if extractor == "random":
            run.log.info("the metrics compare features of random weights: %s has no labels", self.data.name)
        return MetricSet(
            self.config.metrics,
            self.data,
            num_images=self.config.metric_images,
            extractor=extractor,
            device=self.device,
        )

    def _train(self, run: Run, stop: StopSignals, line: ProgressLine) -> str:
        """Steps to the end or a signal; returns the name of the checkpoint of the last step."""
        config, state = self.config, self.state
        snapshot_images = config.tick_images * config.snap
        clock = time.perf_counter()
        tick_nimg, tick_seconds, earlier = state.nimg, state.seconds, state.seconds
        with closing(self._batches()) as stream:
            while state.nimg < config.total_images and not self._stopped(stop):
                before = state.nimg
                statistics = self._one_step(*next(stream))
                self._check_finite(statistics, run)
                done = state.nimg >= config.total_images
                if done or line.due():
                    line.show(state.nimg, state.means.read())
                if done or state.nimg // config.tick_images > before // config.tick_images:
                    state.seconds = earlier + time.perf_counter() - clock
                    rate = (state.nimg - tick_nimg) / (state.seconds - tick_seconds)
                    self._write_row(run, rate)
                    tick_nimg, tick_seconds = state.nimg, state.seconds
                if done or state.nimg // snapshot_images > before // snapshot_images:
                    self._snapshot(run)
        state.seconds = earlier + time.perf_counter() - clock
        if self._saved is not None and self._saved[0] == state.nimg:
            return self._saved[1]
        return self._snapshot(run)

    def _stopped(self, stop: StopSignals) -> bool:
        """Has any process received a signal? Then each acts as if it had."""
        number = self._processes.agreed_maximum(stop.received or 0)
        if number:
            stop.received = signal.Signals(number)
        return number > 0

    def _one_step(self, images: Tensor, labels: Tensor) -> Tensor:
        config, state, step = self.config, self.state, self._take_step
        real = normalize(images.to(self.device, non_blocking=True), self._sampler.value_range)
        if config.channels_last:
            real = real.contiguous(memory_format=torch.channels_last)
        condition = labels.to(self.device, non_blocking=True) if self._classes else None
        penalize, train_generator, self._stretched = self.kind_of_step(state.step)
        z, mixing = self._draw_latents()

        position = recipe.ramp(config, state.nimg)
        assert config.loss.gamma is not None
        step.objective.gamma = recipe.between(config.loss.gamma, config.loss.gamma_end, position)
        step.objective.blur_sigma = recipe.blur_sigma(config, state.nimg)
        recipe.set_rates(state.g_optimizer, config.g_optim, position)
        recipe.set_rates(state.d_optimizer, config.d_optim, position)
        images_per_update = config.batch * config.n_dis
        state.g_optimizer.ema_decay = config.ema.decay(state.nimg + config.batch, images_per_update, position)

        statistics = step(
            *(real, z, condition),
            penalize=penalize,
            train_generator=train_generator,
            stretch=self._stretched,
            mixing=mixing,
            seed=derive_seed(config.seed, f"step {state.step}"),
        )
        state.means.add(statistics)
        if isinstance(state.augment, AdaAugment):
            acc_real = statistics[STATISTICS.index("acc_real")]
            recipe.adjust_augment(state.augment, config, state.step, position, acc_real)
        state.step += 1
        state.nimg += config.batch
        return statistics

    def intervals(self) -> tuple[int, ...]:
        """After so many steps, each, something special comes again; see `kind_of_step`."""
        loss, n_dis = self.config.loss, self.config.n_dis
        return (
            loss.r1_interval if loss.gamma or loss.gamma_end else 1,
            n_dis,
            loss.path_interval * n_dis if loss.path_weight else 1,
        )

    def kind_of_step(self, step: int) -> tuple[bool, bool, bool]:
        """Does a step take R1, train the generator, and take path lengths?"""
        every_r1, n_dis, every_path = self.intervals()
        loss = self.config.loss
        trains = (step + 1) % n_dis == 0
        stretches = loss.path_weight > 0 and trains and step // n_dis % (every_path // n_dis) == 0
        return bool(loss.gamma or loss.gamma_end) and step % every_r1 == 0, trains, stretches

    @contextmanager
    def prepared_step(self) -> Iterator[Callable[[], Tensor]]:
        """Gives a function that takes one step of training, and returns its statistics, without a run
        directory: for measurements."""
        with (
            torch_settings(self.config),
            _own_random_numbers(self.device),
            closing(self._batches()) as stream,
        ):
            yield lambda: self._one_step(*next(stream))

    def _batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        config = self.config
        return batches(
            self.data,
            config.batch,
            derive_seed(config.seed, "data"),
            mirror=config.data.mirror,
            position=self.state.nimg,
            workers=config.workers,
            rank=self._processes.rank,
            processes=self._processes.count,
        )

    def _draw_latents(self) -> tuple[Tensor, Mixing | None]:
        """This process's share of the step's latents. Each process draws them all, so that they do not depend
        on how many share them."""
        config, rng = self.config, self.state.latents
        share = config.batch // self._processes.count
        rows = slice(self._processes.rank * share, (self._processes.rank + 1) * share)

        def normal() -> Tensor:
            return torch.randn(config.batch, self._sampler.z_dim, generator=rng, device=self.device)[rows]

        z = normal()
        if config.loss.mixing == 0:
            return z, None
        other, layers = normal(), int(self.state.generator.num_ws)  # type: ignore[arg-type]
        draws = torch.rand(2, config.batch, generator=rng, device=self.device)[:, rows]
        cutoff = (1 + draws[1] * (layers - 1)).to(torch.int64)
        return z, Mixing(other, torch.where(draws[0] < config.loss.mixing, cutoff, layers))

    def _check_finite(self, statistics: Tensor, run: Run) -> None:
        """Ends the run when an optimiser has refused every step of a long streak."""
        self._steps_unchecked += 1
        # Reading the counters costs nothing on the CPU, but waits for the device on CUDA.
        if self.device.type == "cuda" and self._steps_unchecked < _STEPS_PER_CUDA_CHECK:
            return
        state, skipped = self.state, self.state.skipped
        refused = max(now - before for now, before in zip(skipped, self._skipped_checked, strict=True))
        state.streak = state.streak + refused if refused == self._steps_unchecked else 0
        self._skipped_checked = skipped
        self._steps_unchecked = 0
        if state.streak >= self.config.nonfinite_limit:
            error = NonFiniteError(self._dump(statistics, run), state.streak, state.step)
            run.log.error("%s", error)
            raise error

    # What a run leaves on disk

    def _prepare(self, run: Run) -> None:
        """Brings the directory to the state of the last step, whatever a dead process left behind."""
        point, self._resumed = self._resumed, None
        if not self._processes.main:
            return
        for directory in (run.path, run.path / "checkpoints", run.model):
            _files.remove_temporaries(directory)
        history = run.stats
        if point is None:
            run.log.info("run %s", run.path)
        else:
            run.log.info("run %s goes on at step %d", run.path, self.state.step)
            for refusal in point.refused:
                run.log.warning("%s; it is now called %s", refusal, set_aside(refusal.path).name)
            for change in check_resumable(point.config, self.config):
                run.log.info("changed: %s", change)
            if point.checkpoint is not None:
                self._compare_threads(point.checkpoint.state["threads"], run)
                if point.run_dir is None:
                    run.log.info("it starts from %s", point.checkpoint.path)
                    history = StatsLog(point.checkpoint.path.resolve().parents[1] / STATS_FILE)
        newest = next((path.name for path in list_checkpoints(run.path)), None)
        if newest != (self._saved[1] if self._saved else None):
            raise RunError(f"run {run.path} was continued by another process meanwhile; resume it again")
        _files.replace_file(run.path / CONFIG_FILE, self.config.to_json().encode())

        # Rows of steps that were lost with their process are written again when these steps are taken again.
        rows = [row for row in history.rows() if row["step"] <= self.state.step]
        if len(rows) < self.state.rows:
            run.log.warning("%s has %d rows where there were %d", history.path, len(rows), self.state.rows)
        self.state.rows = len(rows)
        run.stats.restart(rows)
        measured = history.path.with_name(METRICS_FILE)
        if measured.exists():
            run.metrics.restart([row for row in StatsLog(measured).rows() if row["step"] <= self.state.step])

        if self.data.bad_files:
            report = "".join(f"{bad}\n" for bad in self.data.bad_files)
            _files.replace_file(run.path / BAD_FILES, report.encode())
            message = f"{len(self.data.bad_files)} files of {self.data.name} are left out ({BAD_FILES}):"
            run.log.warning("%s", describe_bad_files(message, self.data.bad_files))
        if self.data.num_classes and not self._classes:
            run.log.info("the labels of %s are not used, because data.cond is false", self.data.name)
        if not (run.path / "reals.png").exists():
            self._save_reals(run.path / "reals.png")
        if not (run.path / "fakes_init.png").exists():
            self._save_fakes(run.path / "fakes_init.png", serialize(self.state.ema.state_dict()))

    def _compare_threads(self, before: int, run: Run) -> None:
        now = torch.get_num_threads()
        if now != before:
            run.log.warning(
                "the run had %d CPU threads and now has %d: sums may round differently", before, now
            )

    def _write_row(self, run: Run, images_per_second: float) -> None:
        state = self.state
        if not self._processes.main:
            state.rows += 1
            state.means.reset()
            return
        skipped = state.skipped
        if skipped != self._skipped_logged:
            run.log.warning(
                "step %d: so far %d discriminator and %d generator steps were not finite and were skipped",
                state.step,
                *skipped,
            )
            self._skipped_logged = skipped
        row = {
            "step": state.step,
            "nimg": state.nimg,
            "epoch": state.nimg / len(self.data),
            **state.means.read(),
            "skipped_d": skipped[0],
            "skipped_g": skipped[1],
            "ema_decay": state.g_optimizer.ema_decay,
            "gamma": self._take_step.objective.gamma,
            "lr_g": state.g_optimizer.param_groups[0]["lr"],
            "blur_sigma": self._take_step.objective.blur_sigma if self.config.augment.blur_sigma else None,
            "augment_p": state.augment.p.item() if isinstance(state.augment, AdaAugment) else None,
            "seconds": round(state.seconds, 3),
            "img_per_sec": round(images_per_second, 1),
            "memory_gb": round(peak_memory_gb(self.device), 3),
        }
        run.stats.append(row)
        self._loggers.row("stats", row)
        state.rows += 1
        state.means.reset()

    def _snapshot(self, run: Run) -> str:
        """Writes the sample grid, the model and, last, the checkpoint: if it is there, so are the others.

        Returns its name.
        """
        state, name = self.state, checkpoint_name(self.state.nimg, self.config.batch)
        self._processes.check_equal((state.generator, state.discriminator, state.ema))
        self._saved = (state.nimg, name)
        if not self._processes.main:
            return name
        files = state.files()
        self._save_fakes(run.grid(name), files["ema"])
        self._loggers.grid(run.grid(name), state.nimg)
        if self._metrics is not None:
            figures = self._metrics(self._sampler)
            row = {"step": state.step, "nimg": state.nimg, "checkpoint": name, **figures}
            run.metrics.append(row)
            run.metrics.sync()
            self._loggers.row("metrics", row)
            shown = ", ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
            run.log.info("at %d images: %s", state.nimg, shown)
        facts = self._facts()
        if facts["generator"] is not None:
            save_pretrained(run.model, facts["generator"], files["ema"])
        run.stats.sync()
        write_checkpoint(run.checkpoint(name), files, facts)
        prune_checkpoints(run.path, self.config.keep, spare=best_checkpoint(run.metrics.rows()))
        return name

    def _dump(self, statistics: Tensor, run: Run) -> Path:
        """Writes the broken state and the inputs of its step; see `training.nonfinite`."""
        inputs = self._take_step.inputs
        assert inputs is not None
        tensors = {"real": inputs.real, "fake": inputs.fake, "z": inputs.z}
        if inputs.labels is not None:
            tensors["labels"] = inputs.labels
        if inputs.mixing is not None:
            tensors |= {"mixing_z": inputs.mixing.z, "mixing_cutoff": inputs.mixing.cutoff}
        path = run.path / f"nonfinite-{checkpoint_name(self.state.nimg, self.config.batch)}"
        if not self._processes.main:
            return path
        if path.exists():  # the run was resumed, and failed at the same step
            shutil.rmtree(path)
        facts = {
            **self._facts(),
            "failed_step": {
                "penalize": inputs.penalize,
                "stretch": self._stretched,
                "gamma": self._take_step.objective.gamma,
                "blur_sigma": self._take_step.objective.blur_sigma,
                "seed": inputs.seed,
                "start": inputs.start,
                "total": inputs.total,
                "value_range": list(self._sampler.value_range),
            },
            # As strings, since JSON has no NaN.
            "statistics": dict(zip(STATISTICS, map(str, statistics.tolist()), strict=True)),
            "last_checkpoint": self._saved[1] if self._saved else None,
        }
        write_checkpoint(path, {**self.state.files(), "inputs": serialize(tensors)}, facts)
        return path

    def _facts(self) -> dict[str, Any]:
        """What state.json says."""
        return {**self.state.counters(), "config": self.config.to_dict(), "data": _describe(self.data)}

    def _save_reals(self, path: Path) -> None:
        columns, rows = self.config.grid
        reals, _ = self.data.read(range(min(columns * rows, len(self.data))))
        images = reals.permute(0, 2, 3, 1).numpy()
        save_grid(images, path, columns=columns, scale=readable_scale(*images.shape[1:3]), label=False)

    def _save_fakes(self, path: Path, weights: bytes) -> None:
        """The images of the seeds 0, 1, 2, ...; `aigc-ext sample` makes the same ones from `weights`."""
        columns, rows = self.config.grid
        seeds = range(columns * rows)
        classes = [seed % self._classes for seed in seeds] if self._classes else None
        self.state.copy_buffers()
        images = self._sampler.sample(seeds, classes)
        scale = readable_scale(*images.shape[1:3])
        provenance = {
            "model_sha256": _files.sha256(weights),
            "nimg": self.state.nimg,
            "seeds": list(seeds),
            "classes": classes,
            "truncation": 1.0,
        }
        save_grid(images, path, columns=columns, scale=scale, provenance=provenance)


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """Inside, PyTorch's global generators are seeded by each step; afterwards they are the caller's again.

    The networks' own random numbers, such as a dropout's, come from them.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _check_has_mapping(generator: nn.Module, config: TrainConfig) -> None:
    missing = [name for name in ("mapping", "synthesis", "num_ws") if not hasattr(generator, name)]
    if missing:
        key = "mixing" if config.loss.mixing else "path_weight"
        raise ConfigError(
            f"loss.{key} is {getattr(config.loss, key)}, but must be 0: {type(generator).__name__} has no "
            f"{missing[0]}, as a generator with a mapping network has"
        )


def _describe(data: ImageDataset) -> dict[str, Any]:
    return {
        "name": data.name,
        "images": len(data),
        "shape": list(data.image_shape),
        "num_classes": data.num_classes,
    }
