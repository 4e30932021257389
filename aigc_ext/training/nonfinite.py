"""When training breaks down: a dump of the step that failed, and how to run it again.

    runs/00000-mlp-mnist5k/nonfinite-000050-320/
        (a checkpoint, see `training.checkpoint`, of the networks as the failing step left them)
        inputs.safetensors      real, fake, z, labels, mixing of that step, or of its part that failed

A step whose gradients are not finite changes no weight of its network, so the networks in the dump are the
ones that failed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.training.checkpoint import CheckpointError, load_weights, read_checkpoint
from aigc_ext.training.config import TrainConfig
from aigc_ext.training.recipe import make_augment
from aigc_ext.training.step import Mixing, Objective, StepInputs


class NonFiniteError(RuntimeError):
    """Training stopped because no step had finite gradients any more.

    Attributes:
        dump: the directory that `replay` takes.
    """

    def __init__(self, dump: Path, streak: int, step: int) -> None:
        super().__init__(
            f"stopped at step {step}: {streak} steps in a row had a loss or gradient that is not finite; "
            f"the last one is in {dump} (aigc_ext.training.replay runs it again)"
        )
        self.dump = dump


@dataclass(frozen=True)
class Replay:
    """What a dumped step computes: both losses, and the parameters whose gradient is not finite."""

    loss_d: float
    loss_g: float
    bad_d: tuple[str, ...]
    bad_g: tuple[str, ...]

    @property
    def reproduced(self) -> bool:
        return not (math.isfinite(self.loss_d) and math.isfinite(self.loss_g)) or bool(
            self.bad_d or self.bad_g
        )


def make_objective(
    discriminator: nn.Module, config: TrainConfig, augment: nn.Module | None = None
) -> Objective:
    """The objective that a completed config (`recipe.complete`) describes."""
    loss = config.loss
    assert loss.gamma is not None
    assert config.augment.blur_sigma is not None
    return Objective(
        discriminator,
        AdversarialLoss(loss.kind, label_smoothing=loss.label_smoothing, l2_weight=loss.l2_weight),
        gamma=loss.gamma,
        r1_interval=loss.r1_interval,
        r2=loss.r2,
        path_weight=loss.path_weight * loss.path_interval,
        augment=augment,
        blur_sigma=config.augment.blur_sigma,
        autocast=torch.bfloat16 if config.precision == "bfloat16" else None,
    )


def replay(
    dump: str | Path, generator: nn.Module | None = None, discriminator: nn.Module | None = None
) -> Replay:
    """Computes the losses and gradients of a dumped step again, on the CPU.

    Args:
        dump: the directory that NonFiniteError names.
        generator, discriminator: needed only if they are not of `aigc_ext.models`; their weights are
            overwritten.

    Raises CheckpointError if the dump is damaged, or was written from networks that must be given.
    """
    checkpoint = read_checkpoint(Path(dump))
    if "inputs" not in checkpoint.tensors:
        raise CheckpointError(checkpoint.path, "it is no dump: it has no inputs.safetensors")
    networks = {"generator": generator, "discriminator": discriminator}
    builders = {"generator": build_generator, "discriminator": build_discriminator}
    built: dict[str, nn.Module] = {}
    for role, network in networks.items():
        if network is None:
            if checkpoint.state[role] is None:
                raise CheckpointError(
                    checkpoint.path, f"its {role} has no `config` to build it from; pass {role}=..."
                )
            network = builders[role](checkpoint.state[role])
        load_weights(checkpoint, role, network)
        built[role] = network.train()

    config = TrainConfig.from_dict(checkpoint.state["config"])
    tensors, step = checkpoint.tensors["inputs"], checkpoint.state["failed_step"]
    mixing = Mixing(tensors["mixing_z"], tensors["mixing_cutoff"]) if "mixing_z" in tensors else None
    inputs = StepInputs(
        *(tensors["real"], tensors["fake"], tensors["z"], tensors.get("labels"), step["penalize"], mixing),
        *(step["seed"], step["start"], step["total"], step["gamma"], step["blur_sigma"]),
    )
    rest = checkpoint.tensors["training_state"]
    augment = make_augment(config.augment, step["value_range"])
    if augment is not None:
        buffers = {k.removeprefix("augment."): v for k, v in rest.items() if k.startswith("augment.")}
        augment.load_state_dict(buffers)
    objective = make_objective(built["discriminator"], config, augment)
    loss_d, *_ = objective.discriminator_backward(inputs)
    bad_d = _not_finite(built["discriminator"])
    built["discriminator"].requires_grad_(False)
    fake = objective.generate(built["generator"], inputs)
    loss_g = objective.generator_backward(fake, inputs)
    if step["stretch"]:
        stretched, _ = objective.path_length_backward(
            built["generator"], inputs, rest["path.mean"], config.loss.path_every
        )
        loss_g = loss_g + stretched
    return Replay(loss_d.item(), loss_g.item(), bad_d, _not_finite(built["generator"]))


def _not_finite(network: nn.Module) -> tuple[str, ...]:
    return tuple(
        name
        for name, p in network.named_parameters()
        if p.grad is not None and not torch.isfinite(p.grad).all()
    )
