"""What is trained, as the engine sees it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext.data import ImageDataset
from aigc_ext.data.batch import Batch
from aigc_ext.optim import AdamEMA
from aigc_ext.training.config import RunConfig
from aigc_ext.training.distributed import Processes

Piece = nn.Module | torch.optim.Optimizer | torch.Generator | Tensor


class Progress(NamedTuple):
    """Where a run stands when a step begins: steps taken, samples learned from; and the seed of the step's
    random numbers."""

    step: int
    nimg: int
    seed: int


class Learner(NamedTuple):
    """An optimizer that refuses a step whose gradients are not finite. It is called `name` in messages, and
    its refusals `skipped_{key}` in a row of figures; it steps once in `every` steps of the run."""

    name: str
    key: str
    optimizer: AdamEMA
    every: int = 1


class Task(ABC):
    """Networks, their optimizers, and how they learn from a batch.

    The engine (`training.loop.Loop`) decides when; it has the run directory, the checkpoints, the figures,
    the processes and the signals, and calls what is declared here. A task must have `state`, `step` and
    `preview`; the other methods have defaults.
    """

    statistics: ClassVar[tuple[str, ...]]  # the entries of the vector that `step` returns
    shown: ClassVar[Mapping[str, str]] = {}  # those of the progress line, by their names on it
    preview_file: ClassVar[str]  # the name of a preview, with `{}` in the place of the snapshot's
    ranked_by: ClassVar[tuple[str, ...]] = ()  # metrics, the first that is measured: its lowest value is best
    replayed_by: ClassVar[str | None] = None  # what runs a dumped step again, as a message says it

    config: RunConfig
    data: ImageDataset
    device: torch.device
    learners: tuple[Learner, ...]  # in the order of their figures
    processes = Processes()  # who shares a batch
    publishes = False  # is there a model to publish?

    @abstractmethod
    def state(self) -> Mapping[str, Piece]:
        """All that changes in training, up to date, by its name on disk.

        A module has a file of its own in a checkpoint, and the same weights in all processes. Optimizers,
        sources of random numbers and tensors share one file; a tensor that a checkpoint does not have keeps
        its value.
        """

    @abstractmethod
    def step(self, batch: Batch, schedule: Any) -> Tensor:
        """Learns from this process's share of a batch, and returns the `statistics`, a float32 vector on the
        device; NaN for what was not computed. It waits for no device."""

    @abstractmethod
    def preview(self, path: Path, nimg: int, files: Mapping[str, bytes]) -> None:
        """Writes what a person looks at, listens to or reads, after `nimg` samples; `files` are the modules
        of `state`, serialised."""

    def schedule(self, at: Progress) -> Any:
        """What the step that begins here is told, computed from where it is: never changed later."""
        return at

    def figures(self, schedule: Any) -> Mapping[str, float | None]:
        """What a row of figures has of the last step's schedule."""
        return {}

    def join(self, processes: Processes) -> None:
        """Called before the first step."""
        self.processes = processes

    def begin(self, directory: Path, log: logging.Logger) -> None:  # noqa: B027 (may do nothing)
        """Called in the main process when a run starts or goes on: for files that belong to its beginning,
        and for remarks."""

    def metrics(self) -> Mapping[str, float]:
        """Figures of a snapshot; they may take a while."""
        return {}

    def publish(self, directory: Path, files: Mapping[str, bytes]) -> None:  # noqa: B027
        """Writes the model as its users load it."""

    def facts(self) -> Mapping[str, Any]:
        """JSON values for a checkpoint's `state.json`: what the modules are made from."""
        return {}

    def failed_step(self, schedule: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """What the last step was computed from, so that it can be run again: tensors, and JSON values."""
        return {}, {}

    def kinds_of_steps(self) -> Sequence[Hashable]:
        """For a dry run: the kinds of the first steps, until they come again. Those of one kind cost the
        same."""
        return (None,)

    def with_config(self, config: RunConfig) -> Task:
        """For a dry run, which tries small batches: the same modules under another config."""
        raise NotImplementedError(f"{type(self).__name__} has no dry run")
