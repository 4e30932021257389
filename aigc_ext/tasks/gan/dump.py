"""Recomputes a dumped step (`training.nonfinite`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.tasks.gan.config import TrainConfig
from aigc_ext.tasks.gan.objective import Mixing, StepInputs
from aigc_ext.tasks.gan.recipe import make_augment, make_objective
from aigc_ext.training.checkpoint import CheckpointError, load_weights, read_checkpoint


@dataclass(frozen=True)
class Replay:
    """The results of a dumped step: both losses, and the parameters whose gradient is not finite."""

    loss_d: float
    loss_g: float
    bad_d: tuple[str, ...]
    bad_g: tuple[str, ...]

    @property
    def reproduced(self) -> bool:
        return not math.isfinite(self.loss_d + self.loss_g) or bool(self.bad_d or self.bad_g)


def replay(
    dump: str | Path, generator: nn.Module | None = None, discriminator: nn.Module | None = None
) -> Replay:
    """Recomputes the losses and gradients of a dumped step, on the CPU.

    Args:
        dump: the directory that NonFiniteError names.
        generator, discriminator: needed only if they are not from `aigc_ext.models`; their weights are
            overwritten.

    Raises CheckpointError if the dump is damaged, or its networks must be given and are not.
    """
    checkpoint = read_checkpoint(Path(dump))
    if "inputs" not in checkpoint.tensors:
        raise CheckpointError(checkpoint.path, "it is no dump: it has no inputs.safetensors")
    built: dict[str, nn.Module] = {}
    for role, network, build in (
        ("generator", generator, build_generator),
        ("discriminator", discriminator, build_discriminator),
    ):
        made = checkpoint.state[role]
        if network is None and made is None:
            reason = f"its {role} has no `config` to build it from; pass {role}=..."
            raise CheckpointError(checkpoint.path, reason)
        built[role] = (build(made) if network is None else network).train()
        load_weights(checkpoint, role, built[role])

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
        augment.load_state_dict({name: rest[f"augment.{name}"] for name in augment.state_dict()})
    objective = make_objective(built["discriminator"], config, augment, tuple(step["value_range"]))
    loss_d, *_ = objective.discriminator_backward(inputs)
    bad_d = not_finite(built["discriminator"])
    built["discriminator"].requires_grad_(False)
    fake = objective.generate(built["generator"], inputs)
    loss_g = objective.generator_backward(fake, inputs)
    if step["stretch"]:
        stretched, _ = objective.path_length_backward(
            built["generator"], inputs, rest["path.mean"], config.loss.path_every
        )
        loss_g = loss_g + stretched
    return Replay(loss_d.item(), loss_g.item(), bad_d, not_finite(built["generator"]))


def not_finite(network: nn.Module) -> tuple[str, ...]:
    """The parameters whose gradient is not finite."""
    grads = ((name, p.grad) for name, p in network.named_parameters() if p.grad is not None)
    return tuple(name for name, grad in grads if not torch.isfinite(grad).all())
