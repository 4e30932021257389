"""Recomputes a dumped step (`training.nonfinite`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aigc_ext.models import build_discriminator, build_network
from aigc_ext.tasks.adversarial import recipe
from aigc_ext.tasks.adversarial.balance import Balance
from aigc_ext.tasks.adversarial.config import TrainConfig
from aigc_ext.tasks.adversarial.step import ReconstructionStep
from aigc_ext.tasks.adversarial.terms import Weighted, make_terms
from aigc_ext.tasks.gan.dump import Replay, not_finite
from aigc_ext.tasks.gan.objective import StepInputs
from aigc_ext.tasks.gan.recipe import make_augment
from aigc_ext.training.checkpoint import Checkpoint, CheckpointError, load_weights, read_checkpoint


def replay(
    dump: str | Path,
    generator: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    *,
    terms: Sequence[Weighted] = (),
) -> Replay:
    """Recomputes the losses and gradients of a dumped step, on the CPU. `loss_d` is 0 without a
    discriminator.

    Args:
        dump: the directory that NonFiniteError names.
        generator, discriminator: needed only if they are not from `aigc_ext.models`; their weights are
            overwritten.
        terms: those that were given to `Trainer`, if any.

    Raises CheckpointError if the dump is damaged, or its networks must be given and are not.
    """
    checkpoint = read_checkpoint(Path(dump))
    if "inputs" not in checkpoint.tensors:
        raise CheckpointError(checkpoint.path, "it is no dump: it has no inputs.safetensors")
    config = TrainConfig.from_dict(checkpoint.state["config"])
    network: Any = _loaded(checkpoint, "generator", generator, build_network)
    tensors, facts = checkpoint.tensors["inputs"], checkpoint.state["failed_step"]
    rest = checkpoint.tensors["training_state"]
    critic, loss_d = None, 0.0
    bad_d: tuple[str, ...] = ()
    inputs = StepInputs(
        *(tensors["real"], tensors["fake"], tensors["items"], tensors.get("labels"), facts["penalize"], None),
        *(facts["seed"], facts["start"], facts["total"]),
    )
    if config.loss.adversarial:
        judge = _loaded(checkpoint, "discriminator", discriminator, build_discriminator)
        augment = make_augment(config.augment, facts["value_range"])
        if augment is not None:
            augment.load_state_dict({name: rest[f"augment.{name}"] for name in augment.state_dict()})
        critic = recipe.make_critic(judge, config, augment)
        loss_d = critic.discriminator_backward(inputs)[0].item()
        bad_d = not_finite(judge)
        judge.requires_grad_(False)
    chosen = make_terms(config, network, terms)
    balance = None
    if config.loss.balance:
        names = [term.name for term, _ in chosen]
        balance = Balance(names, config.loss.balance_norm, config.loss.balance_decay)
        balance.totals, balance.counts = rest["balance.totals"], rest["balance.counts"]
    step = ReconstructionStep(
        *(network, torch.optim.SGD(network.parameters()), chosen),
        {name: getattr(config.loss, name) for name in getattr(network, "penalties", ())},
        critic=critic,
        balance=balance,
        judged=config.loss.judged,
    )
    loss_g = step.generator_backward(inputs._replace(real=inputs.z), adversarial=facts["adversarial"])
    return Replay(loss_d, loss_g.item(), bad_d, not_finite(network))


def _loaded(checkpoint: Checkpoint, role: str, network: nn.Module | None, build: Any) -> nn.Module:
    made = checkpoint.state[role]
    if network is None and made is None:
        reason = f"its {role} has no `config` to build it from; pass {role}=..."
        raise CheckpointError(checkpoint.path, reason)
    built: nn.Module = (build(made) if network is None else network).train()
    load_weights(checkpoint, role, built)
    return built
