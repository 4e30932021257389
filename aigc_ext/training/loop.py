"""The training loop: what a step receives, when something is written, and when training ends.

`training.record` writes; the task defines what a step does.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from aigc_ext._progress import bars
from aigc_ext.config import ConfigError
from aigc_ext.data.batch import Batch
from aigc_ext.data.dataset import format_shape
from aigc_ext.training.batches import batches
from aigc_ext.training.checkpoint import Checkpoint, checkpoint_name
from aigc_ext.training.config import DataConfig, RunConfig
from aigc_ext.training.distributed import Processes, process_group, processes_of_the_run
from aigc_ext.training.identity import check_data
from aigc_ext.training.loggers import check_loggers
from aigc_ext.training.malloc import keep_freed_memory
from aigc_ext.training.nonfinite import NonFiniteError, Watch
from aigc_ext.training.progress import ProgressLine, memory_size_gb
from aigc_ext.training.record import Recorder
from aigc_ext.training.run import ResumePoint, Run, check_resumable, create_run, open_run, watched_run
from aigc_ext.training.runtime import StopSignals, derive_seed, own_random_numbers, torch_settings
from aigc_ext.training.state import State
from aigc_ext.training.task import Progress, Task


@dataclass(frozen=True)
class TrainResult:
    """The locations of a run's results."""

    run_dir: Path
    grid: Path  # the newest preview, such as a grid of samples
    checkpoint: Path  # the newest one
    model: Path | None  # the model that the task publishes, if any
    stats: Path  # the statistics, a JSON object per line
    step: int
    nimg: int
    signal: int | None  # the signal that ended the run early, or None if it is complete


class Loop:
    """Trains a task.

    All random numbers of a run derive from `config.seed`: the order of the data, and what a step draws from
    PyTorch's global generators, which `fit` seeds for each step and restores afterwards. Checkpoints contain
    everything that a step depends on, so on the CPU, with the same number of threads, a resumed run is
    bit-identical to one that never stopped.

    Args:
        task: the task, with its config and its data.
        outdir: where `fit` makes the run directory.
        desc: added to the run directory's name.
    """

    data = property(lambda self: self.task.data, lambda self, data: setattr(self.task, "data", data))

    def __init__(self, task: Task, *, outdir: str | Path = "runs", desc: str = "") -> None:
        check_loggers(task.config.log)
        _check_batch(task)
        _check_data_settings(task)
        self.task = task
        self.config = task.config
        self.device = task.device
        self.state = State(task)
        self.run_dir: Path | None = None  # None until there is one
        task.join(Processes())
        self._outdir = Path(outdir)
        self._desc = desc
        self._resumed: ResumePoint | None = None
        self._saved: tuple[int, str] | None = None  # nimg and name of the newest checkpoint
        self._tried = -1  # nimg of the newest snapshot; that it could not be written only one process knows
        self._recorder: Recorder | None = None  # in the main process

    def __repr__(self) -> str:
        done = f"{self.state.nimg / 1000:g} of {self.config.kimg:g} kimg"
        return f"<{type(self).__name__} {self.config.preset}: {done} of {self.data!r} on {self.device}>"

    def restore(self, point: ResumePoint, *, data_changed: bool = False) -> None:
        """Loads the state at a resume point, from which `fit` then continues.

        Args:
            data_changed: allow images that were added, removed or changed since; `fit` logs which. The result
                is then not that of a run that was never interrupted.

        Raises ConfigError if this config differs from the run's in a key that cannot change, CheckpointError
        if the checkpoint does not match the networks, the content of the data or the device.
        """
        check_resumable(point.config, self.config)
        checkpoint = point.checkpoint
        if checkpoint is not None:
            _check_end(checkpoint, point.config, self.config)
            remark = check_data(checkpoint, self.data, cond=self.config.data.cond, may_change=data_changed)
            point = replace(point, remark=remark)
            self.state.load(checkpoint)
            if point.run_dir is not None:
                self._saved = (self.state.nimg, checkpoint.path.name)
                self._tried = self.state.nimg
        self.run_dir = point.run_dir
        self._resumed = point

    def fit(self, *, progress: bool = False) -> TrainResult:
        """Trains until `config.kimg`, or until SIGINT, SIGTERM or SIGHUP, and leaves a run that can be
        resumed.

        Signals are handled only in the main thread; a second one interrupts at once.

        Args:
            progress: show one live line on stderr.

        Raises:
            NonFiniteError: too many consecutive steps had no finite gradient; it names a dump.
            RunError: the run directory cannot be made, or is in use by another process.
        """
        task, state, config = self.task, self.state, self.config
        if config.malloc == "keep":
            keep_freed_memory()
        with ExitStack() as stack:
            task.join(stack.enter_context(process_group(self.device)))
            run = stack.enter_context(self._open_run())
            stack.enter_context(torch_settings(config))
            stack.enter_context(own_random_numbers(self.device))
            stop = stack.enter_context(StopSignals())
            shown = progress and self.task.processes.main
            if shown:
                stack.enter_context(bars())
            if state.step == 0:
                task.settle(run.log)
                self.config = config = task.config
            point, self._resumed = self._resumed, None
            if self.task.processes.main:
                self._recorder = Recorder(run, state)
                stack.enter_context(self._recorder.recording(point, self._saved[1] if self._saved else None))
            with ProgressLine(
                *(state.nimg, config.total_images, self.device, task.shown),
                item=task.data.item,
                enabled=shown,
            ) as line:
                name = self._train(run, stop, line)
            run.log.info(
                "%s at step %d (%d %ss)",
                f"stopped by {stop.received.name}" if stop.received else "finished",
                *(state.step, state.nimg, self.data.item),
            )
        return TrainResult(
            run_dir=run.path,
            grid=run.path / task.preview_file.format(name),
            checkpoint=run.checkpoint(name),
            model=run.model if task.publishes else None,
            stats=run.stats.path,
            step=state.step,
            nimg=state.nimg,
            signal=stop.received,
        )

    @contextmanager
    def prepared_step(self) -> Iterator[Callable[[], Tensor]]:
        """For benchmarks: a function that takes one training step, without a run directory, and returns its
        statistics."""
        with (
            torch_settings(self.config),
            own_random_numbers(self.device),
            closing(self._batches()) as stream,
        ):
            yield lambda: self._one_step(*next(stream))

    def _open_run(self) -> AbstractContextManager[Run]:
        """In the main process makes, locks and opens the run directory for writing; others only learn its
        name."""
        if self.task.processes.main:
            if self.run_dir is None:
                self.run_dir = create_run(self._outdir, self.config, self.data.name, self._desc)
            self.task.processes.broadcast_text(str(self.run_dir))
            return open_run(self.run_dir)
        self.run_dir = Path(self.task.processes.broadcast_text(""))
        return nullcontext(watched_run(self.run_dir))

    def _train(self, run: Run, stop: StopSignals, line: ProgressLine) -> str:
        """Trains to the end or a signal; returns the name of the last step's checkpoint."""
        config, state, watch = self.config, self.state, Watch(self.state)
        snapshot_images = config.tick_images * config.snap
        clock = time.perf_counter()
        tick_nimg, tick_seconds, earlier = state.nimg, state.seconds, state.seconds
        with closing(self._batches()) as stream:
            while state.nimg < config.total_images and not self._stopped(stop):
                before = state.nimg
                statistics = self._one_step(*next(stream))
                if (streak := watch.longest_streak()) >= config.nonfinite_limit:
                    self._break_down(run, statistics, streak)
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
                    self._snapshot(last=done)
        state.seconds = earlier + time.perf_counter() - clock
        # After a signal the process may soon be killed, and metrics, which precede the checkpoint, can take
        # minutes.
        measure = stop.received is None
        if self._tried != state.nimg:
            self._snapshot(measure=measure, last=True)
        elif self._saved is None or self._saved[0] != state.nimg:
            self._write_snapshot(measure=measure, last=True)
        assert self._saved is not None
        return self._saved[1]

    def _one_step(self, items: Tensor, labels: Tensor) -> Tensor:
        task, state = self.task, self.state
        batch = Batch(labels=labels)._replace(**{self.data.kind: items})
        seed = derive_seed(self.config.seed, f"step {state.step}")
        state.schedule = task.schedule(Progress(state.step, state.nimg, seed))
        statistics = task.step(batch.to(self.device), state.schedule)
        state.means.add(statistics)
        state.step += 1
        state.nimg += self.config.batch
        return statistics

    def _snapshot(self, *, measure: bool = True, last: bool = False) -> None:
        """Writes a checkpoint and everything that belongs to it."""
        self.task.processes.check_equal(self.state.modules().values())
        self._tried = self.state.nimg
        self._write_snapshot(measure=measure, last=last)

    def _write_snapshot(self, *, measure: bool, last: bool) -> None:
        name = checkpoint_name(self.state.nimg, self.config.batch)
        if self._recorder is None or self._recorder.snapshot(name, measure=measure, last=last):
            self._saved = (self.state.nimg, name)

    def _break_down(self, run: Run, statistics: Tensor, streak: int) -> None:
        path = run.dump(checkpoint_name(self.state.nimg, self.config.batch))
        if self._recorder is not None:
            self._recorder.dump(path, statistics, self._saved[1] if self._saved else None)
        error = NonFiniteError(path, streak, self.state.step, self.task.replayed_by)
        run.log.error("%s", error)
        raise error

    def _stopped(self, stop: StopSignals) -> bool:
        """Has any process received a signal? If so, all act as if they had."""
        number = self.task.processes.agreed_maximum(stop.received or 0)
        if number:
            stop.received = signal.Signals(number)
        return number > 0

    def _batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        config = self.config
        return batches(
            self.data,
            config.batch,
            derive_seed(config.seed, "data"),
            mirror=config.data.mirror,
            balance=config.data.balance,
            position=self.state.nimg,
            workers=config.workers,
            rank=self.task.processes.rank,
            processes=self.task.processes.count,
        )


def _check_batch(task: Task) -> None:
    """Raises ConfigError if not even the items of a step can be in memory at once. Drawing them would take
    for ever."""
    shape = task.data.item_shape
    share = task.config.batch / processes_of_the_run()
    needed, there = share * math.prod(shape) * 4 / 1e9, memory_size_gb(task.device)
    if needed > there:
        raise ConfigError(
            f"batch is {task.config.batch}, but must be smaller: its {task.data.item}s alone, "
            f"{format_shape(shape)}, would take {needed:.3g} GB in float32, and there are {there:.3g}"
        )


def _check_data_settings(task: Task) -> None:
    """Raises ConfigError for a setting that would have no effect, because it is of another kind of data, or
    that needs classes which there are not."""
    data, settings, usual = task.data, task.config.data, DataConfig()
    names: list[str] = []
    if data.kind != "images":
        names.append("mirror")
    if data.item != "image":  # tokens of images are texts, but the images are prepared as all are
        names += ["resolution", "transform", "enlarge", "white"]
    if data.kind != "audio":
        names += ["segment", "sample_rate"]
    for name in names:
        if (value := getattr(settings, name)) != getattr(usual, name):
            raise ConfigError(
                f"data.{name} is {value}, but has no effect: {data.name} is data of {data.kind}"
            )
    if settings.balance and not data.num_classes:
        raise ConfigError(f"data.balance is true, but {data.describe_unlabelled()}")


def _check_end(checkpoint: Checkpoint, before: RunConfig, now: RunConfig) -> None:
    """Raises ConfigError if a run should end before the point that it has reached. A complete run is at its
    end, or beyond it by less than a batch."""
    nimg = checkpoint.state["nimg"]
    if nimg - now.total_images >= max(before.batch, now.batch):
        raise ConfigError(
            f"kimg is {now.kimg:g}, but the run has learned from {nimg / 1000:g} thousand images already:"
            f" give more, or sample from it as it is ({checkpoint.path})"
        )
