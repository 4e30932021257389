"""Writes a run's files: statistics, previews, snapshots, and the dump of a failed step."""

from __future__ import annotations

import errno
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext.data import describe_bad_files
from aigc_ext.training.checkpoint import (
    best_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    serialize,
    set_aside,
    write_checkpoint,
)
from aigc_ext.training.identity import describe, write_items
from aigc_ext.training.loggers import Logger, open_loggers
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
from aigc_ext.training.state import State

BAD_FILES = "bad_files.txt"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NEWEST_ROWS = 500  # that are searched for symptoms


class Recorder:
    """Records a run, in the main process; training does not depend on it.

    Args:
        run: the run directory, which this process has locked.
        state: the run's state.
    """

    def __init__(self, run: Run, state: State) -> None:
        self._run = run
        self._state = state
        self._task = state.task
        self._skipped_logged = state.skipped
        self._loggers: list[Logger] = []
        self._rows: list[dict[str, Any]] = []  # not written yet, because the disk is full
        self._newest: deque[Mapping[str, Any]] = deque(maxlen=_NEWEST_ROWS)
        self._warned: set[str] = set()  # the symptoms that the run has had

    @contextmanager
    def recording(self, point: ResumePoint | None, newest: str | None) -> Iterator[None]:
        """Brings the directory to the state of the last step, whatever a dead process left behind; inside,
        the other methods may be called.

        Args:
            point: where the run was resumed, if this is the first call since.
            newest: the name of the checkpoint that was written last, if any.

        Raises RunError if another process has written to the run since.
        """
        config, first = self._task.config, self._preview_path("_init")
        self._prepare(point, newest, first)
        with open_loggers(config.log, self._run, config, self._state.nimg, first) as self._loggers:
            yield

    def row(self, images_per_second: float) -> None:
        """Writes the statistics since the last row; on a full disk, later."""
        state, task = self._state, self._task
        skipped, learners = state.skipped, task.learners
        if skipped != self._skipped_logged:
            counts = (f"{n} {learner.name}" for n, learner in zip(skipped, learners, strict=True))
            self._run.log.warning(
                "step %d: so far %s steps were not finite and were skipped", state.step, " and ".join(counts)
            )
            self._skipped_logged = skipped
        row: dict[str, Any] = {
            "step": state.step,
            "nimg": state.nimg,
            "epoch": state.nimg / len(task.data),
            **state.means.read(),
            **{f"skipped_{learner.key}": n for n, learner in zip(skipped, learners, strict=True)},
            **task.figures(state.schedule),
            "seconds": round(state.seconds, 3),
            "img_per_sec": round(images_per_second, 1),
            "memory_gb": round(peak_memory_gb(task.device), 3),
        }
        self._newest.append(row)
        found = task.symptoms(list(self._newest))
        if new := {name: text for name, text in found.items() if name not in self._warned}:
            row["warnings"] = new
            self._warned |= new.keys()
            for text in new.values():
                self._run.log.warning("%s", text)
        for logger in self._loggers:
            logger.row("stats", row)
        self._rows.append(row)
        with self._unless_full("the row is written later"):
            self._write_rows()

    def snapshot(self, name: str, *, measure: bool, last: bool) -> bool:
        """Writes the preview, the metrics if `measure`, the model and, last, the checkpoint: if it exists, so
        do the others.

        Returns whether all is written. A full disk is an error only for the `last` snapshot of a run.
        """
        if last:
            self._write_snapshot(name, measure)
            return True
        with self._unless_full(f"without a checkpoint of {self._state.nimg} {self._task.data.item}s"):
            self._write_snapshot(name, measure)
            return True
        return False

    @contextmanager
    def _unless_full(self, how: str) -> Iterator[None]:
        """If the disk is full, the run goes on, and there may be space when it next writes. Other errors, of
        a disk that is broken or gone, end it."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._run.log.warning("%s: the run goes on, %s", _files.describe_os_error(error), how)

    def _write_rows(self) -> None:
        while self._rows:
            self._run.stats.append(self._rows[0])
            del self._rows[0]

    def _write_snapshot(self, name: str, measure: bool) -> None:
        run, state, task = self._run, self._state, self._task
        files, preview = state.files(), self._preview_path(name)
        task.preview(preview, state.nimg, files)
        for logger in self._loggers:
            logger.preview(preview, state.nimg)
        if measure and (figures := task.metrics()):
            row = {"step": state.step, "nimg": state.nimg, "checkpoint": name, **figures}
            run.metrics.append(row)
            run.metrics.sync()
            for logger in self._loggers:
                logger.row("metrics", row)
            shown = ", ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
            run.log.info("at %d %ss: %s", state.nimg, task.data.item, shown)
        if task.publishes:
            task.publish(run.model, files)
        self._write_rows()  # which the checkpoint counts
        run.stats.sync()
        write_checkpoint(run.checkpoint(name), files, self._facts())
        self._prune()

    def dump(self, path: Path, statistics: Tensor, last_checkpoint: str | None) -> None:
        """Writes the broken state and the inputs of its step; see `training.nonfinite`."""
        tensors, failed = self._task.failed_step(self._state.schedule)
        if path.exists():  # the run was resumed, and failed at the same step
            shutil.rmtree(path)
        facts = {
            **self._facts(),
            "failed_step": failed,
            # As strings, since JSON has no NaN.
            "statistics": dict(zip(self._task.statistics, map(str, statistics.tolist()), strict=True)),
            "last_checkpoint": last_checkpoint,
        }
        write_checkpoint(path, {**self._state.files(), "inputs": serialize(tensors)}, facts)

    def _preview_path(self, name: str) -> Path:
        return self._run.path / self._task.preview_file.format(name)

    def _prepare(self, point: ResumePoint | None, newest: str | None, first: Path) -> None:
        run, state, task = self._run, self._state, self._task
        for directory in (run.path, run.path / "checkpoints", run.model):
            _files.remove_temporaries(directory)
        history = run.stats
        if point is None:
            run.log.info("run %s", run.path)
        else:
            run.log.info("run %s goes on at step %d", run.path, state.step)
            for refusal in point.refused:
                run.log.warning("%s; it is now called %s", refusal, set_aside(refusal.path).name)
            for change in check_resumable(point.config, task.config):
                run.log.info("changed: %s", change)
            if point.remark is not None:
                run.log.warning("%s", point.remark)
            if point.checkpoint is not None:
                before, now = point.checkpoint.state["threads"], torch.get_num_threads()
                if now != before:
                    message = "the run had %d CPU threads and now has %d: sums may round differently"
                    run.log.warning(message, before, now)
                if point.run_dir is None:
                    run.log.info("it starts from %s", point.checkpoint.path)
                    history = StatsLog(point.checkpoint.path.resolve().parents[1] / STATS_FILE)
        if newest != next((path.name for path in list_checkpoints(run.path)), None):
            raise RunError(f"run {run.path} was continued by another process meanwhile; resume it again")
        _files.replace_file(run.path / CONFIG_FILE, task.config.to_json().encode())
        write_items(run.path, task.data)

        # Rows of steps that were lost with their process are written again with these steps.
        rows = [row for row in history.rows() if row.get("step", 0) <= state.step]
        if len(rows) < state.rows:
            run.log.warning("%s has %d rows where there were %d", history.path, len(rows), state.rows)
        state.rows = len(rows)
        run.stats.restart(rows)
        self._newest.extend(rows)
        self._warned = {name for row in rows for name in row.get("warnings", {})}
        measured = history.path.with_name(METRICS_FILE)
        if measured.exists():
            rows = StatsLog(measured).rows()
            run.metrics.restart([row for row in rows if row.get("step", 0) <= state.step])
        self._prune()  # a dead process may have missed it, and a complete run takes no more snapshots

        for remark in task.data.remarks:
            run.log.warning("%s", remark)
        if task.data.bad_files:
            report = "".join(f"{bad}\n" for bad in task.data.bad_files)
            _files.replace_file(run.path / BAD_FILES, report.encode())
            message = f"{len(task.data.bad_files)} files of {task.data.name} are left out ({BAD_FILES}):"
            run.log.warning("%s", describe_bad_files(message, task.data.bad_files))
        if not first.exists():
            task.preview(first, state.nimg, state.files())
        task.begin(run.path, run.log)

    def _prune(self) -> None:
        run, task = self._run, self._task
        there = {path.name for path in list_checkpoints(run.path)}  # one may be missing: the disk was full
        measured = [row for row in run.metrics.rows() if row.get("checkpoint") in there]
        best = best_checkpoint(measured, task.ranked_by)
        prune_checkpoints(run.path, task.config.keep, spare=best)

    def _facts(self) -> dict[str, Any]:
        """The content of state.json."""
        config = self._task.config
        data = describe(self._task.data, config.data.source)
        return {**self._state.counters(), "config": config.to_dict(), "data": data}
