"""The training loop: what a step is made from, when something is written, and when it all ends.

What is written then is in `training.record`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.data import ImageDataset, normalize, open_dataset
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.sampling import Sampler
from aigc_ext.sampling.sampler import attribute
from aigc_ext.training import recipe
from aigc_ext.training.augment import AdaAugment
from aigc_ext.training.batches import batches
from aigc_ext.training.checkpoint import CheckpointError, checkpoint_name
from aigc_ext.training.config import TrainConfig
from aigc_ext.training.distributed import Processes, process_group
from aigc_ext.training.loggers import check_loggers
from aigc_ext.training.malloc import keep_freed_memory
from aigc_ext.training.nonfinite import NonFiniteError, make_objective
from aigc_ext.training.progress import ProgressLine
from aigc_ext.training.record import Recorder, describe
from aigc_ext.training.run import ResumePoint, Run, check_resumable, create_run, open_run, watched_run
from aigc_ext.training.runtime import StopSignals, own_random_numbers, resolve_device, torch_settings
from aigc_ext.training.state import TrainingState, architecture, derive_seed
from aigc_ext.training.step import STATISTICS, AdversarialStep, Mixing

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
        self.config = config = recipe.complete(config, data)
        self.data = data
        self.device = resolve_device(config.device)
        generator = generator.to(self.device).train()
        discriminator = discriminator.to(self.device).train()
        if config.channels_last:
            for network in (generator, discriminator):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        recipe.check_fits(config, generator)
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
        self._skipped_checked = (0, 0)
        self._steps_unchecked = [0, 0]  # of the discriminator, of the generator
        self._recorder: Recorder | None = None  # in the main process

    @classmethod
    def from_config(cls, config: TrainConfig, *, outdir: str | Path = "runs", desc: str = "") -> Trainer:
        """Opens the data and builds the networks that `config` describes, with weights from its seed. Files
        that are no part of the data are left out; `fit` reports them."""
        data = open_dataset(config.data.source, on_bad="skip")
        config = recipe.complete(config, data)
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
            data = describe(self.data)
            if checkpoint.state["data"] != data:
                raise CheckpointError(
                    checkpoint.path, f"its data were {checkpoint.state['data']}, but are now {data}"
                )
            self.state.load(checkpoint)
            self._skipped_checked = self.state.skipped
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
            stack.enter_context(own_random_numbers(self.device))
            stop = stack.enter_context(StopSignals())
            point, self._resumed = self._resumed, None
            if self._processes.main:
                self._recorder = Recorder(run, self.state, self.config, self.data, self._sampler)
                stack.enter_context(self._recorder.recording(point, self._saved[1] if self._saved else None))
            part = recipe.part_size(self.config, self._processes.count)
            if remark := recipe.smaller_groups(self.state.discriminator, part):
                run.log.warning("%s", remark)
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
                    if self._recorder is not None:
                        rate = (state.nimg - tick_nimg) / (state.seconds - tick_seconds)
                        self._recorder.row(rate)
                    state.rows += 1
                    state.means.reset()
                    tick_nimg, tick_seconds = state.nimg, state.seconds
                if done or state.nimg // snapshot_images > before // snapshot_images:
                    self._snapshot()
        state.seconds = earlier + time.perf_counter() - clock
        if self._saved is not None and self._saved[0] == state.nimg:
            return self._saved[1]
        # Who sends a signal may kill soon: metrics can take minutes, and the checkpoint waits for them.
        return self._snapshot(measure=stop.received is None)

    def _snapshot(self, *, measure: bool = True) -> str:
        """Writes a checkpoint and all that goes with it; returns its name."""
        state, name = self.state, checkpoint_name(self.state.nimg, self.config.batch)
        self._processes.check_equal((state.generator, state.discriminator, state.ema))
        self._saved = (state.nimg, name)
        if self._recorder is not None:
            self._recorder.snapshot(name, measure=measure)
        return name

    def _stopped(self, stop: StopSignals) -> bool:
        """Has any process received a signal? Then each acts as if it had."""
        number = self._processes.agreed_maximum(stop.received or 0)
        if number:
            stop.received = signal.Signals(number)
        return number > 0

    def _one_step(self, images: Tensor, labels: Tensor) -> Tensor:
        config, state = self.config, self.state
        real = normalize(images.to(self.device, non_blocking=True), self._sampler.value_range)
        if config.channels_last:
            real = real.contiguous(memory_format=torch.channels_last)
        condition = labels.to(self.device, non_blocking=True) if self._classes else None
        z, mixing = self._draw_latents()
        state.schedule = now = recipe.schedule(config, state.step, state.nimg)
        now.g_rates.apply(state.g_optimizer)
        now.d_rates.apply(state.d_optimizer)
        state.g_optimizer.ema_decay = now.ema_decay
        if isinstance(state.augment, AdaAugment) and now.augment_p is not None:
            state.augment.set_p(now.augment_p)
        statistics = self._take_step(
            *(real, z, condition),
            penalize=now.penalize,
            train_generator=now.train_generator,
            stretch=now.stretch,
            mixing=mixing,
            seed=derive_seed(config.seed, f"step {state.step}"),
            gamma=now.gamma,
            blur_sigma=now.blur_sigma,
        )
        state.means.add(statistics)
        if isinstance(state.augment, AdaAugment):
            acc_real = statistics[STATISTICS.index("acc_real")]
            recipe.adjust_augment(state.augment, config, state.step, acc_real)
        state.step += 1
        state.nimg += config.batch
        return statistics

    @contextmanager
    def prepared_step(self) -> Iterator[Callable[[], Tensor]]:
        """Gives a function that takes one step of training, and returns its statistics, without a run
        directory: for measurements."""
        with (
            torch_settings(self.config),
            own_random_numbers(self.device),
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
        """Ends the run when an optimiser has refused every step of its own in a long streak."""
        self._steps_unchecked[0] += 1
        self._steps_unchecked[1] += self.state.step % self.config.n_dis == 0  # the generator's
        # Reading the counters costs nothing on the CPU, but waits for the device on CUDA.
        if self.device.type == "cuda" and self._steps_unchecked[0] < _STEPS_PER_CUDA_CHECK:
            return
        state, skipped = self.state, self.state.skipped
        for i, steps in enumerate(self._steps_unchecked):
            if skipped[i] - self._skipped_checked[i] < steps:
                state.streaks[i] = 0
            else:
                state.streaks[i] += steps
        self._skipped_checked = skipped
        self._steps_unchecked = [0, 0]
        streak = max(state.streaks)
        if streak >= self.config.nonfinite_limit:
            path = run.dump(checkpoint_name(state.nimg, self.config.batch))
            if self._recorder is not None:
                assert self._take_step.inputs is not None
                last = self._saved[1] if self._saved else None
                self._recorder.dump(path, self._take_step.inputs, statistics, last)
            error = NonFiniteError(path, streak, state.step)
            run.log.error("%s", error)
            raise error
