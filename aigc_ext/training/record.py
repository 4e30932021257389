"""What a run leaves on disk: figures, sample grids, snapshots, and the dump of a step that failed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext.data import ImageDataset, describe_bad_files
from aigc_ext.metrics import MetricSet
from aigc_ext.sampling import Sampler, readable_scale, save_grid, save_pretrained
from aigc_ext.training.augment import AdaAugment
from aigc_ext.training.checkpoint import (
    best_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    serialize,
    set_aside,
    write_checkpoint,
)
from aigc_ext.training.config import TrainConfig
from aigc_ext.training.loggers import Loggers, open_loggers
from aigc_ext.training.progress import peak_memory_gb
from aigc_ext.training.run import (
    CONFIG_FILE,
    METRICS_FILE,
    STATS_FILE,
    ResumePoint,
    Run,
    RunError,
    StatsLog,
    check_resumable,
)
from aigc_ext.training.state import TrainingState
from aigc_ext.training.step import STATISTICS, StepInputs

BAD_FILES = "bad_files.txt"


class Recorder:
    """Writes down one run, for the main process; nothing that training computes depends on it.

    Args:
        run: the run directory, which this process holds.
        state, config, data: the trainer's.
        sampler: of the averaged generator.
    """

    def __init__(
        self,
        run: Run,
        state: TrainingState,
        config: TrainConfig,
        data: ImageDataset,
        sampler: Sampler,
    ) -> None:
        self._run = run
        self._state = state
        self._config = config
        self._data = data
        self._sampler = sampler
        self._classes = data.num_classes if config.data.cond else 0
        self._skipped_logged = state.skipped
        self._metrics: MetricSet | None = None
        self._loggers = Loggers()

    @contextmanager
    def recording(self, point: ResumePoint | None, newest: str | None) -> Iterator[None]:
        """Brings the directory to the state of the last step, whatever a dead process left behind; inside,
        the other methods may be called.

        Args:
            point: where the run was resumed, if this is the first time since.
            newest: the name of the checkpoint that was written last, if any.

        Raises RunError if another process has written to the run since.
        """
        self._prepare(point, newest)
        if self._config.metrics:
            self._metrics = self._make_metrics()
        with open_loggers(self._config.log, self._run, self._config, self._state.nimg) as self._loggers:
            yield

    def row(self, images_per_second: float) -> None:
        """Writes the figures since the last row."""
        state, now = self._state, self._state.schedule
        skipped = state.skipped
        if skipped != self._skipped_logged:
            self._run.log.warning(
                "step %d: so far %d discriminator and %d generator steps were not finite and were skipped",
                state.step,
                *skipped,
            )
            self._skipped_logged = skipped
        row = {
            "step": state.step,
            "nimg": state.nimg,
            "epoch": state.nimg / len(self._data),
            **state.means.read(),
            "skipped_d": skipped[0],
            "skipped_g": skipped[1],
            "ema_decay": now.ema_decay,
            "gamma": now.gamma,
            "lr_g": now.g_rates.lr,
            "blur_sigma": now.blur_sigma if self._config.augment.blur_sigma else None,
            "augment_p": state.augment.p.item() if isinstance(state.augment, AdaAugment) else None,
            "seconds": round(state.seconds, 3),
            "img_per_sec": round(images_per_second, 1),
            "memory_gb": round(peak_memory_gb(self._state.device), 3),
        }
        self._run.stats.append(row)
        self._loggers.row("stats", row)

    def snapshot(self, name: str, *, measure: bool) -> None:
        """Writes the sample grid, the metrics if `measure`, the model and, last, the checkpoint: if it is
        there, so are the others."""
        run, state = self._run, self._state
        files = state.files()
        self._save_fakes(run.grid(name), files["ema"])
        self._loggers.grid(run.grid(name), state.nimg)
        if measure and self._metrics is not None:
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
        self._prune()

    def dump(self, path: Path, inputs: StepInputs, statistics: Tensor, last_checkpoint: str | None) -> None:
        """Writes the broken state and the inputs of its step; see `training.nonfinite`."""
        tensors = {"real": inputs.real, "fake": inputs.fake, "z": inputs.z}
        if inputs.labels is not None:
            tensors["labels"] = inputs.labels
        if inputs.mixing is not None:
            tensors |= {"mixing_z": inputs.mixing.z, "mixing_cutoff": inputs.mixing.cutoff}
        if path.exists():  # the run was resumed, and failed at the same step
            shutil.rmtree(path)
        facts = {
            **self._facts(),
            "failed_step": {
                "penalize": inputs.penalize,
                "stretch": self._state.schedule.stretch,
                "gamma": inputs.gamma,
                "blur_sigma": inputs.blur_sigma,
                "seed": inputs.seed,
                "start": inputs.start,
                "total": inputs.total,
                "value_range": list(self._sampler.value_range),
            },
            # As strings, since JSON has no NaN.
            "statistics": dict(zip(STATISTICS, map(str, statistics.tolist()), strict=True)),
            "last_checkpoint": last_checkpoint,
        }
        write_checkpoint(path, {**self._state.files(), "inputs": serialize(tensors)}, facts)

    def _prepare(self, point: ResumePoint | None, newest: str | None) -> None:
        run, state = self._run, self._state
        for directory in (run.path, run.path / "checkpoints", run.model):
            _files.remove_temporaries(directory)
        history = run.stats
        if point is None:
            run.log.info("run %s", run.path)
        else:
            run.log.info("run %s goes on at step %d", run.path, state.step)
            for refusal in point.refused:
                run.log.warning("%s; it is now called %s", refusal, set_aside(refusal.path).name)
            for change in check_resumable(point.config, self._config):
                run.log.info("changed: %s", change)
            if point.checkpoint is not None:
                self._compare_threads(point.checkpoint.state["threads"])
                if point.run_dir is None:
                    run.log.info("it starts from %s", point.checkpoint.path)
                    history = StatsLog(point.checkpoint.path.resolve().parents[1] / STATS_FILE)
        if newest != next((path.name for path in list_checkpoints(run.path)), None):
            raise RunError(f"run {run.path} was continued by another process meanwhile; resume it again")
        _files.replace_file(run.path / CONFIG_FILE, self._config.to_json().encode())

        # Rows of steps that were lost with their process are written again when these steps are taken again.
        rows = [row for row in history.rows() if row["step"] <= state.step]
        if len(rows) < state.rows:
            run.log.warning("%s has %d rows where there were %d", history.path, len(rows), state.rows)
        state.rows = len(rows)
        run.stats.restart(rows)
        measured = history.path.with_name(METRICS_FILE)
        if measured.exists():
            run.metrics.restart([row for row in StatsLog(measured).rows() if row["step"] <= state.step])
        self._prune()  # a dead process may not have come to it, and a complete run takes no further snapshot

        if self._data.bad_files:
            report = "".join(f"{bad}\n" for bad in self._data.bad_files)
            _files.replace_file(run.path / BAD_FILES, report.encode())
            message = f"{len(self._data.bad_files)} files of {self._data.name} are left out ({BAD_FILES}):"
            run.log.warning("%s", describe_bad_files(message, self._data.bad_files))
        if self._data.num_classes and not self._classes:
            run.log.info("the labels of %s are not used, because data.cond is false", self._data.name)
        if not (run.path / "reals.png").exists():
            self._save_reals(run.path / "reals.png")
        if not (run.path / "fakes_init.png").exists():
            self._save_fakes(run.path / "fakes_init.png", serialize(state.ema.state_dict()))

    def _prune(self) -> None:
        run = self._run
        prune_checkpoints(run.path, self._config.keep, spare=best_checkpoint(run.metrics.rows()))

    def _compare_threads(self, before: int) -> None:
        now = torch.get_num_threads()
        if now != before:
            self._run.log.warning(
                "the run had %d CPU threads and now has %d: sums may round differently", before, now
            )

    def _make_metrics(self) -> MetricSet:
        extractor: Literal["classifier", "random"] = "classifier" if self._data.num_classes else "random"
        if extractor == "random":
            self._run.log.info(
                "the metrics compare features of random weights: %s has no labels", self._data.name
            )
        return MetricSet(
            self._config.metrics,
            self._data,
            num_images=self._config.metric_images,
            extractor=extractor,
            device=self._state.device,
        )

    def _facts(self) -> dict[str, Any]:
        """What state.json says."""
        state, config = self._state, self._config
        return {**state.counters(), "config": config.to_dict(), "data": describe(self._data)}

    def _save_reals(self, path: Path) -> None:
        columns, rows = self._config.grid
        reals, _ = self._data.read(range(min(columns * rows, len(self._data))))
        images = reals.permute(0, 2, 3, 1).numpy()
        save_grid(images, path, columns=columns, scale=readable_scale(*images.shape[1:3]), label=False)

    def _save_fakes(self, path: Path, weights: bytes) -> None:
        """The images of the seeds 0, 1, 2, ...; `aigc-ext sample` makes the same ones from `weights`."""
        columns, rows = self._config.grid
        seeds = range(columns * rows)
        classes = [seed % self._classes for seed in seeds] if self._classes else None
        self._state.copy_buffers()
        images = self._sampler.sample(seeds, classes)
        scale = readable_scale(*images.shape[1:3])
        provenance = {
            "model_sha256": _files.sha256(weights),
            "nimg": self._state.nimg,
            "seeds": list(seeds),
            "classes": classes,
            "truncation": 1.0,
        }
        save_grid(images, path, columns=columns, scale=scale, provenance=provenance)


def describe(data: ImageDataset) -> dict[str, Any]:
    """By what a checkpoint knows its data again, as JSON values."""
    return {
        "name": data.name,
        "images": len(data),
        "shape": list(data.image_shape),
        "num_classes": data.num_classes,
    }
