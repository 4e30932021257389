"""Recomputes a dumped step (`training.nonfinite`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aigc_ext.models import build_network
from aigc_ext.tasks.gan.dump import not_finite
from aigc_ext.tasks.likelihood.config import TrainConfig
from aigc_ext.tasks.likelihood.step import LikelihoodStep, arithmetic
from aigc_ext.training.checkpoint import CheckpointError, load_weights, read_checkpoint
from aigc_ext.training.parts import part_size


@dataclass(frozen=True)
class Replay:
    """The results of a dumped step: the loss, and the parameters whose gradient is not finite."""

    loss: float
    bad: tuple[str, ...]

    @property
    def reproduced(self) -> bool:
        return not math.isfinite(self.loss) or bool(self.bad)


def replay(dump: str | Path, network: nn.Module | None = None) -> Replay:
    """Recomputes the loss and the gradients of a dumped step, on the CPU: of the items of one process, with
    the random numbers that they have in a run of one.

    Args:
        dump: the directory that NonFiniteError names.
        network: needed only if it is not from `aigc_ext.models`; its weights are overwritten.

    Raises CheckpointError if the dump is damaged, or its network must be given and is not.
    """
    checkpoint = read_checkpoint(Path(dump))
    if "inputs" not in checkpoint.tensors:
        raise CheckpointError(checkpoint.path, "it is no dump: it has no inputs.safetensors")
    made = checkpoint.state["network"]
    if network is None and made is None:
        reason = "its network has no `config` to build it from; pass network=..."
        raise CheckpointError(checkpoint.path, reason)
    built: Any = (build_network(made) if network is None else network).train()
    load_weights(checkpoint, "network", built)
    config = TrainConfig.from_dict(checkpoint.state["config"])
    tensors = checkpoint.tensors["inputs"]
    kept = torch.optim.SGD(built.parameters(), lr=0)  # the gradients are what is asked for
    step = LikelihoodStep(built, kept, part_size=part_size(config, 1), autocast=arithmetic(config))
    (loss,) = step(tensors["items"], tensors.get("labels"), checkpoint.state["failed_step"]["seed"]).tolist()
    return Replay(loss, not_finite(built))
