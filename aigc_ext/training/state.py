"""Everything that changes while a task is trained, and its saving and loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aigc_ext.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    serialize,
)
from aigc_ext.training.progress import RunningMeans
from aigc_ext.training.task import Piece, Task
from aigc_ext.version import __version__


class State:
    """A task's state and the counters of its run. Other attributes are looked up in the task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.means = RunningMeans(task.statistics, task.device)  # since the last row of statistics
        self.step = 0  # steps taken
        self.nimg = 0  # samples learned from
        self.rows = 0  # rows of statistics written
        self.seconds = 0.0  # spent training
        self.streaks = [0] * len(task.learners)  # latest consecutive steps that each optimizer skipped
        self.schedule: Any = None  # the last step's

    def __getattr__(self, name: str) -> Any:
        if name == "task":  # a copy that is still being made has none
            raise AttributeError(name)
        return getattr(self.task, name)

    @property
    def skipped(self) -> tuple[int, ...]:
        """The number of steps that each learner's optimizer skipped. Waits for the device."""
        return tuple(int(learner.optimizer.skipped) for learner in self.task.learners)

    def pieces(self) -> dict[str, Piece]:
        means = {"means.sums": self.means.sums, "means.counts": self.means.counts}
        return {**self.task.state(), **means}

    def modules(self) -> dict[str, nn.Module]:
        return {name: piece for name, piece in self.task.state().items() if isinstance(piece, nn.Module)}

    def files(self) -> dict[str, bytes]:
        """The tensors as the safetensors files of a checkpoint, by stem."""
        shared: dict[str, Tensor] = {}
        for name, piece in self.pieces().items():
            if isinstance(piece, Optimizer):
                shared |= {f"{name}.{key}": value for key, value in optimizer_tensors(piece).items()}
            elif isinstance(piece, torch.Generator):
                shared[name] = piece.get_state()
            elif isinstance(piece, Tensor):
                shared[name] = piece
        files = {name: serialize(module.state_dict()) for name, module in self.modules().items()}
        return {**files, "training_state": serialize(shared)}

    def counters(self) -> dict[str, Any]:
        """The rest of the state, and what it belongs to, as JSON values."""
        return {
            "step": self.step,
            "nimg": self.nimg,
            "rows": self.rows,
            "seconds": self.seconds,
            "streaks": self.streaks,
            "skipped": self.skipped,
            "device": self.task.device.type,
            "threads": torch.get_num_threads(),
            "aigc_ext": __version__,
            "torch": torch.__version__,
            **self.task.facts(),
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint; raises CheckpointError if it is of other networks or another kind of device."""
        counters = checkpoint.state
        if counters["device"] != self.task.device.type:
            # Random numbers differ there, so the run would not continue the same way.
            raise CheckpointError(
                checkpoint.path,
                f"it was written on {counters['device']}, but the device is now {self.task.device}",
            )
        for name, module in self.modules().items():
            load_weights(checkpoint, name, module)
        if "training_state" not in checkpoint.tensors:
            raise CheckpointError(checkpoint.path, "it has no training_state.safetensors")
        try:
            self._load_pieces(checkpoint.tensors["training_state"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                checkpoint.path, f"training_state.safetensors does not fit the optimizers ({reason})"
            ) from error
        self.step, self.nimg, self.rows = counters["step"], counters["nimg"], counters["rows"]
        self.seconds = counters["seconds"]
        learners = self.task.learners
        # Older checkpoints have one number for all learners.
        streaks = counters.get("streaks") or [counters.get("streak", 0)] * len(learners)
        for what, values in (("streaks", streaks), ("skipped", counters["skipped"])):
            if len(values) != len(learners):
                raise CheckpointError(
                    checkpoint.path, f"it has {len(values)} {what}, but there are {len(learners)} optimizers"
                )
        self.streaks = list(streaks)
        for learner, skipped in zip(learners, counters["skipped"], strict=True):
            learner.optimizer.skipped.fill_(skipped)

    def _load_pieces(self, shared: Mapping[str, Tensor]) -> None:
        for name, piece in self.pieces().items():
            if isinstance(piece, Optimizer):
                load_optimizer(piece, _under(name, shared))
            elif isinstance(piece, torch.Generator):
                piece.set_state(shared[name])
            elif isinstance(piece, Tensor) and name in shared:
                piece.copy_(shared[name])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
