"""The interface between the engine and what it trains."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext.data import Dataset
from aigc_ext.data.batch import Batch
from aigc_ext.optim import AdamEMA
from aigc_ext.training.config import RunConfig
from aigc_ext.training.distributed import Processes

Piece = nn.Module | torch.optim.Optimizer | torch.Generator | Tensor


class Progress(NamedTuple):
    """A run's progress when a step begins: steps taken, samples learned from, and the seed of the step's
    random numbers."""

    step: int
    nimg: int
    seed: int


class Learner(NamedTuple):
    """An optimizer that skips steps whose gradients are not finite. Messages call it `name`; rows of
    statistics have its skipped steps as `skipped_{key}`. It steps once every `every` steps of the run."""

    name: str
    key: str
    optimizer: AdamEMA
    every: int = 1


class Task(ABC):
    """Networks, their optimizers, and how they learn from a batch.

    The engine (`training.loop.Loop`) decides when; it manages the run directory, checkpoints, statistics,
    processes and signals, and calls the methods declared here. A task must implement `state`, `step` and
    `preview`; the other methods have defaults.
    """

    statistics: ClassVar[tuple[str, ...]]  # the entries of the vector that `step` returns
    shown: ClassVar[Mapping[str, str]] = {}  # those on the progress line, by their names there
    preview_file: ClassVar[str]  # the name of a preview, with `{}` for the snapshot's name
    ranked_by: ClassVar[tuple[str, ...]] = ()  # metrics; the lowest value of the first measured one is best
    replayed_by: ClassVar[str | None] = None  # what recomputes a dumped step, for messages

    config: RunConfig
    data: Dataset
    device: torch.device
    learners: tuple[Learner, ...]  # in the order of their statistics
    processes = Processes()  # those that share a batch
    commands: ClassVar[Mapping[str, str]] = {}  # what `aigc-ext` can do with the model, `{run}` for its run
    publishes = False  # is there a model to publish?

    @abstractmethod
    def state(self) -> Mapping[str, Piece]:
        """The current values of everything that training changes, by name on disk.

        Each module has its own file in a checkpoint, and the same weights in all processes. Optimizers,
        random number generators and tensors share one file; a tensor that is missing in a checkpoint keeps
        its value.
        """

    @abstractmethod
    def step(self, batch: Batch, schedule: Any) -> Tensor:
        """Learns from this process's share of a batch, and returns the `statistics`, a float32 vector on the
        device, NaN where not computed. It must not wait for the device."""

    @abstractmethod
    def preview(self, path: Path, nimg: int, files: Mapping[str, bytes]) -> None:
        """Writes a preview for people to look at, listen to or read, after `nimg` samples; `files` are the
        serialised modules of `state`."""

    def schedule(self, at: Progress) -> Any:
        """The settings of the step that begins at this point, a function of the point alone."""
        return at

    def figures(self, schedule: Any) -> Mapping[str, float | None]:
        """The entries of a row of statistics that come from the last step, other than its `statistics`."""
        return {}

    def symptoms(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        """What the newest of these rows of statistics show to be wrong with the run, and what to try:
        messages by the symptom's name. The run warns of each symptom once."""
        return {}

    def join(self, processes: Processes) -> None:
        """Called before the first step."""
        self.processes = processes

    def settle(self, log: logging.Logger) -> None:  # noqa: B027
        """Called before the first step of a new run, with the run's settings of PyTorch in effect: may
        replace `config` by one in which something is settled that depends on the machine."""

    def begin(self, directory: Path, log: logging.Logger) -> None:  # noqa: B027 (may do nothing)
        """Called in the main process when a run starts or is resumed: for files that belong to its start, and
        for log messages."""

    def metrics(self) -> Mapping[str, float]:
        """The metrics of a snapshot; they may take a while."""
        return {}

    def publish(self, directory: Path, files: Mapping[str, bytes]) -> None:  # noqa: B027
        """Writes the model in the form that users load."""

    def facts(self) -> Mapping[str, Any]:
        """JSON values for a checkpoint's `state.json`: the configurations of the modules."""
        return {}

    def failed_step(self, schedule: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """The inputs of the last step, so that it can be recomputed: tensors, and JSON values."""
        return {}, {}

    def kinds_of_steps(self) -> Sequence[Hashable]:
        """For a dry run: the kinds of the steps in one period. Steps of one kind cost the same."""
        return (None,)

    @property
    def metrics_by_default(self) -> bool:
        """Are there metrics only if they take little of the run's time?"""
        return False

    def metric_seconds(self) -> float:
        """For a dry run: how long the metrics of the whole run will take; 0 if there are none."""
        return 0.0

    def with_config(self, config: RunConfig) -> Task:
        """For a dry run, which tries small batches: the same modules with another config."""
        raise NotImplementedError(f"{type(self).__name__} has no dry run")
