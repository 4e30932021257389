"""What is trained, as the engine sees it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext.data import ImageDataset
from aigc_ext.data.batch import Batch
from aigc_ext.optim import AdamEMA
from aigc_ext.training.config import RunConfig
from aigc_ext.training.distributed import Processes


class Progress(NamedTuple):
    """Where a run stands when a step begins.

    Attributes:
        step: steps taken.
        nimg: samples learned from.
        seed: of this step's random numbers.
    """

    step: int
    nimg: int
    seed: int


class Learner(NamedTuple):
    """An optimizer that refuses a step whose gradients are not finite, and what its refusals are counted by.

    Attributes:
        name: of what it trains, in messages.
        key: in the rows of figures: `skipped_{key}`.
        optimizer: its parameters are those that are trained.
        every: it steps once in so many steps of the run.
    """

    name: str
    key: str
    optimizer: AdamEMA
    every: int = 1


class Task(ABC):
    """Networks, their optimizers, and how they learn from a batch.

    The engine (`training.loop.Loop`) decides when; it has the run directory, the checkpoints, the figures,
    the processes and the signals, and calls what is declared here. A task must have `state`, `step` and
    `preview`; the other methods have defaults.

    Attributes:
        statistics: the entries of the vector that `step` returns.
        shown: those of the progress line, by their names on it.
        preview_file: the name of a preview, with `{}` in the place of the snapshot's.
        ranked_by: metrics whose lowest value marks the best checkpoint; the first that was measured counts.
        replayed_by: what runs a dumped step again, as a message says it.
        config: what the run is told.
        data: what it learns from.
        device: where it trains.
        learners: the optimizers, in the order of their figures.
        processes: who shares a batch.
    """

    statistics: ClassVar[tuple[str, ...]]
    shown: ClassVar[Mapping[str, str]] = {}
    preview_file: ClassVar[str]
    ranked_by: ClassVar[tuple[str, ...]] = ()
    replayed_by: ClassVar[str | None] = None

    config: RunConfig
    data: ImageDataset
    device: torch.device
    learners: tuple[Learner, ...]
    processes = Processes()

    @abstractmethod
    def state(self) -> Mapping[str, nn.Module | torch.optim.Optimizer | torch.Generator | Tensor]:
        """All that changes in training, by its name on disk.

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
        """Writes what a person looks at, listens to or reads.

        Args:
            nimg: samples learned from.
            files: the modules of `state`, serialised.
        """

    def schedule(self, at: Progress) -> Any:
        """What the step that begins here is told, computed from where it is: never changed later."""
        return at

    def figures(self, schedule: Any) -> Mapping[str, float | None]:
        """What a row has of the last step's schedule."""
        return {}

    def join(self, processes: Processes) -> None:
        """Called before the first step."""
        self.processes = processes

    def begin(self, directory: Path, log: logging.Logger) -> None:  # noqa: B027 (may do nothing)
        """Called in the main process when a run starts or goes on: for files that belong to its beginning,
        and for remarks."""

    def settle(self) -> None:  # noqa: B027
        """Called before `state` is written or shown."""

    def metrics(self) -> Mapping[str, float]:
        """Figures of a snapshot; they may take a while."""
        return {}

    @property
    def publishes(self) -> bool:
        """Is there a model to publish?"""
        return False

    def publish(self, directory: Path, files: Mapping[str, bytes]) -> None:  # noqa: B027
        """Writes the model as its users load it."""

    def facts(self) -> Mapping[str, Any]:
        """JSON values for a checkpoint's `state.json`: what the modules are made from."""
        return {}

    def failed_step(self, schedule: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """What the last step was computed from, so that it can be run again: tensors, and JSON values."""
        return {}, {}

    def kind_of_step(self, step: int) -> Hashable:
        """Steps of one kind cost the same; the kinds come again after `period` steps."""
        return None

    @property
    def period(self) -> int:
        return 1

    def with_config(self, config: RunConfig) -> Task:
        """The same modules under another config: a dry run measures small batches."""
        raise NotImplementedError(f"{type(self).__name__} has no dry run")
