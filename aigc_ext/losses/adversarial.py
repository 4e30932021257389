"""An adversarial objective with its options, for discriminator and generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aigc_ext import ops
from aigc_ext.ops.gan_loss import RELATIVISTIC, LossStats, check_options, images_term


@dataclass(frozen=True)
class AdversarialLoss:
    """The losses of :mod:`aigc_ext.ops.gan_loss` with their options fixed.

    Args:
        kind: logistic, minimax, hinge, lsgan, wgan, relativistic or relativistic_avg.
        label_smoothing: for the discriminator; logistic and minimax only.
        l2_weight: lambda of the regularised objective: adds ``lambda / 2`` times the mean squares of the real
            and the fake logits to the discriminator's loss, and ``lambda / 2 * mean ||G(z)||^2`` to the
            generator's.

    Raises:
        ValueError: unknown ``kind``; ``label_smoothing`` or ``l2_weight`` out of range.
    """

    kind: str = "logistic"
    label_smoothing: float = 0.0
    l2_weight: float = 0.0

    def __post_init__(self) -> None:
        check_options(self.kind, self.label_smoothing, self.l2_weight, "mean")

    @property
    def relativistic(self) -> bool:
        """Does the generator's loss need the real logits?"""
        return self.kind in RELATIVISTIC

    def discriminator(
        self, real_logits: Tensor, fake_logits: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, LossStats]:
        """The loss, 0-d, and the statistics to log. ``weight`` is ``[N]`` and multiplies each sample's
        losses.

        Raises:
            ValueError: the logits of a sample have another shape in ``fake_logits`` than in ``real_logits``.
        """
        _check_pair(real_logits, fake_logits)
        return ops.discriminator_loss_and_stats(
            real_logits, fake_logits, self.kind, self.label_smoothing, self.l2_weight, weight
        )

    def generator(
        self,
        fake_logits: Tensor,
        real_logits: Tensor | None = None,
        images: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss, 0-d. The relativistic kinds need ``real_logits``, ``l2_weight`` needs ``images`` =
        G(z)."""
        if real_logits is not None:
            _check_pair(real_logits, fake_logits)
        return ops.generator_loss(fake_logits, real_logits, self.kind, self.l2_weight, images, weight)

    def discriminator_backward(
        self,
        real_logits: Tensor,
        fake_logits: Tensor,
        weight: Tensor | None = None,
        penalty: Tensor | None = None,
        inputs: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, LossStats]:
        """:meth:`discriminator` and its ``backward()``, without recording the loss: the fastest step.

        Accumulates into ``.grad`` of the parameters, as ``loss.backward()`` does. Both logits must require a
        gradient; the results have none.

        Args:
            weight: as for :meth:`discriminator`.
            penalty: a scalar, such as a gradient penalty times its factor, added to the loss and to the
                backward.
            inputs: the leaves that get a gradient, as for ``Tensor.backward``; None for all.
        """
        _check_pair(real_logits, fake_logits)
        loss, stats, d_real, d_fake = ops.discriminator_loss_and_grad(
            real_logits, fake_logits, self.kind, self.label_smoothing, self.l2_weight, weight
        )
        outputs, gradients = [real_logits, fake_logits], [d_real, d_fake]
        if penalty is not None:
            outputs.append(penalty)
            gradients.append(torch.ones_like(penalty))
            loss = loss + penalty.detach()
        torch.autograd.backward(outputs, gradients, inputs=inputs)
        return loss, stats

    def generator_backward(
        self,
        fake_logits: Tensor,
        real_logits: Tensor | None = None,
        images: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """:meth:`generator` and its ``backward()``, like :meth:`discriminator_backward`."""
        if real_logits is not None:
            _check_pair(real_logits, fake_logits)
        loss, d_fake = ops.generator_loss_and_grad(fake_logits, real_logits, self.kind, weight)
        if self.l2_weight == 0:
            torch.autograd.backward(fake_logits, d_fake)
            return loss
        term = images_term(fake_logits, images, self.l2_weight, weight, "mean")
        torch.autograd.backward([fake_logits, term], [d_fake, torch.ones_like(term)])
        return loss + term.detach()


def _check_pair(real_logits: Tensor, fake_logits: Tensor) -> None:
    """One discriminator gives every sample logits of one shape; only the numbers of samples may differ."""
    for name, logits in (("real_logits", real_logits), ("fake_logits", fake_logits)):
        if not isinstance(logits, Tensor):
            raise TypeError(f"{name} is a {type(logits).__name__}, but must be a tensor")
    if real_logits.shape[1:] != fake_logits.shape[1:] or real_logits.dim() != fake_logits.dim():
        raise ValueError(
            f"fake_logits have shape {list(fake_logits.shape)} and real_logits {list(real_logits.shape)},"
            " but those of one discriminator differ at most in the number of samples"
        )
