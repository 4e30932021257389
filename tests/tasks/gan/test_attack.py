"""Adversarial training of the discriminator: `loss.attack`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aigc_ext.config import ConfigError
from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import build_discriminator
from aigc_ext.tasks.gan import Objective, StepInputs, Trainer
from tests.tasks.gan.helpers import config


def inputs_of(real: torch.Tensor, seed: int | None = 0) -> StepInputs:
    return StepInputs(real, torch.zeros_like(real), real, None, False, seed=seed)


def learned_from(objective: Objective, inputs: StepInputs) -> torch.Tensor:
    """The images for which D is real that it sees first in its loss."""
    seen: list[torch.Tensor] = []
    hook = objective.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    objective.discriminator_backward(inputs)
    hook.remove()
    return seen[-2]  # the last one is the fake


def test_it_learns_from_images_that_were_changed_against_it() -> None:
    torch.manual_seed(0)
    d = build_discriminator({"family": "mlp", "image_shape": (1, 6, 6), "hidden": (16,)}).double()
    real = torch.rand(8, 1, 6, 6, dtype=torch.float64) * 2 - 1
    objective = Objective(d, AdversarialLoss(), attack=0.1)
    changed = learned_from(objective, inputs_of(real))
    assert (changed - real).abs().max() <= 0.1 + 1e-12
    assert changed.abs().max() <= 1
    assert (d(changed) < d(real)).all()
    # On a side of the box, in the direction of the gradient, wherever the start did not keep it from there.
    x = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(d(x).sum(), x)
    inside = (real - 0.1 * gradient.sign()).abs() < 1
    reached = (changed - (real - 0.1 * gradient.sign())).abs() < 1e-9
    assert reached[inside].double().mean() > 0.5
    assert torch.equal(changed, learned_from(objective, inputs_of(real)))
    assert torch.equal(learned_from(Objective(d, AdversarialLoss()), inputs_of(real)), real)


def test_gradients_are_those_of_the_loss_at_the_changed_images() -> None:
    torch.manual_seed(0)
    d = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()
    real = torch.rand(6, 1, 3, 3, dtype=torch.float64)
    objective = Objective(d, AdversarialLoss(), attack=0.05, value_range=(0.0, 1.0))
    before = {name: value.clone() for name, value in d.named_buffers()}
    attacked = objective._attacked(inputs_of(real))
    assert all(torch.equal(value, before[name]) for name, value in d.named_buffers())
    assert attacked.min() >= 0
    objective.discriminator_backward(inputs_of(real))
    found = [p.grad.clone() for p in d.parameters() if p.grad is not None]
    d.zero_grad()
    d.load_state_dict(before, strict=False)
    Objective(d, AdversarialLoss()).discriminator_backward(inputs_of(attacked))
    expected = [p.grad for p in d.parameters()]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_of_a_batch_are_attacked_alike_in_parts() -> None:
    torch.manual_seed(0)
    d = build_discriminator({"family": "mlp", "image_shape": (1, 6, 6), "hidden": (16,)}).double()
    whole = inputs_of(torch.rand(8, 1, 6, 6, dtype=torch.float64))
    objective = Objective(d, AdversarialLoss(), attack=0.1)
    half = whole._replace(
        **{name: getattr(whole, name)[4:] for name in ("real", "fake", "z")}, start=4, total=8
    )
    torch.testing.assert_close(learned_from(objective, whole)[4:], learned_from(objective, half))


def test_a_run_with_it(tmp_path) -> None:
    trainer = Trainer.from_config(config(loss__attack=0.1), outdir=tmp_path)
    assert (
        trainer.task._take_step.refusal(trainer.task._example()) is not None
    )  # the native op does not know it
    assert trainer.fit().step > 0
    with pytest.raises(ConfigError, match=r"loss.attack is 1.5"):
        config(loss__attack=1.5)
