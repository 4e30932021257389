"""The discriminator's side: its loss, and its judgement of an output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_ext import ops
from aigc_ext.losses import AdversarialLoss, LossStats, r1_of_logits
from aigc_ext.tasks.adversarial.terms import Judgement
from aigc_ext.tasks.gan.objective import JUDGE, Objective, StepInputs, with_labels


class SeveralLosses(AdversarialLoss):
    """The sum of the losses of several discriminators, which are given lists of logits; statistics are their
    means."""

    def discriminator_backward(
        self,
        real_logits: Tensor | Sequence[Tensor],
        fake_logits: Tensor | Sequence[Tensor],
        weight: Tensor | None = None,
        penalty: Tensor | None = None,
        inputs: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, LossStats]:
        if isinstance(real_logits, Tensor) and isinstance(fake_logits, Tensor):
            return super().discriminator_backward(real_logits, fake_logits, weight, penalty, inputs)
        outputs, gradients, losses, all_stats = [], [], [], []
        for real, fake in zip(real_logits, fake_logits, strict=True):
            loss, stats, d_real, d_fake = ops.discriminator_loss_and_grad(
                real, fake, self.kind, self.label_smoothing, self.l2_weight, weight
            )
            outputs += [real, fake]
            gradients += [d_real, d_fake]
            losses.append(loss)
            all_stats.append(stats)
        total = torch.stack(losses).sum()
        if penalty is not None:
            outputs.append(penalty)
            gradients.append(torch.ones_like(penalty))
            total = total + penalty.detach()
        torch.autograd.backward(outputs, gradients, inputs=inputs)
        return total, LossStats(*(torch.stack(values).mean() for values in zip(*all_stats, strict=True)))


class Critic(Objective):
    """A discriminator with its loss (`tasks.gan.Objective`), whose judgement terms may look at."""

    discriminator: Any

    def _slope(self, logits: Tensor | Sequence[Tensor], items: Tensor) -> Tensor:
        """Of several discriminators that of their sum."""
        return r1_of_logits(torch.cat([each.flatten(1) for each in _listed(logits)], dim=1), items)

    def judge(self, items: Tensor, inputs: StepInputs) -> Judgement:
        """Under the same augmentation and other random numbers for all items of the same rows."""
        with inputs.random(JUDGE):
            if self.augment is not None:
                items = self.augment(items)
            if not hasattr(self.discriminator, "judge"):
                return Judgement(_listed(with_labels(self.discriminator, inputs.labels)(items)), ())
            c = inputs.labels
            given = self.discriminator.judge(items) if c is None else self.discriminator.judge(items, c)
            return Judgement(_listed(given[0]), given[1])


def _listed(logits: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits
