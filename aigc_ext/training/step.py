"""One adversarial step: the discriminator learns from a batch, then the generator from the discriminator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext.losses import AdversarialLoss, LossStats, r1_of_logits

STATISTICS = ("loss_d", "loss_g", "d_real", "d_fake", "acc_real", "acc_fake", "r1")
"""The entries of the vector that a step returns. See `losses.LossStats`."""


class StepInputs(NamedTuple):
    """What the two losses of a step are computed from."""

    real: Tensor
    fake: Tensor
    z: Tensor
    labels: Tensor | None
    penalize: bool


class Objective:
    """What both networks of a pair minimise, down to the gradients of their parameters.

    Args:
        discriminator: maps (N, C, H, W) images, and (N,) int64 labels if there are any, to logits.
        loss: the adversarial loss.
        gamma: weight of R1; D's loss gets `gamma / 2 * mean |dD/dx|^2` (Mescheder et al., 2018).
        r1_interval: R1 is multiplied by this number, for callers who ask for it only every so many steps
            (lazy regularisation; Karras et al., 2020).
    """

    def __init__(
        self, discriminator: nn.Module, loss: AdversarialLoss, *, gamma: float = 0.0, r1_interval: int = 1
    ) -> None:
        self._discriminator = discriminator
        self._loss = loss
        self._r1_weight = gamma / 2 * r1_interval
        self._not_measured = torch.full((), torch.nan, device=next(discriminator.parameters()).device)

    def discriminator_backward(self, inputs: StepInputs) -> tuple[Tensor, LossStats, Tensor]:
        """Adds the gradient of D's loss; returns the loss, its statistics, and R1 (NaN if not taken)."""
        logits = with_labels(self._discriminator, inputs.labels)
        if not (inputs.penalize and self._r1_weight):
            loss, stats = self._loss.discriminator_backward(logits(inputs.real), logits(inputs.fake))
            return loss, stats, self._not_measured
        real = inputs.real.detach().requires_grad_()
        real_logits = logits(real)
        r1 = r1_of_logits(real_logits, real)
        # Gradients of the parameters alone: nobody reads the images'.
        loss, stats = self._loss.discriminator_backward(
            real_logits,
            logits(inputs.fake),
            penalty=self._r1_weight * r1,
            inputs=_trained(self._discriminator),
        )
        return loss, stats, r1.detach()

    def generator_backward(self, fake: Tensor, inputs: StepInputs) -> Tensor:
        """Adds the gradient of G's loss on `fake`, the images with G's graph; returns the loss."""
        logits = with_labels(self._discriminator, inputs.labels)
        real_logits = None
        if self._loss.relativistic:
            with torch.no_grad():
                real_logits = logits(inputs.real)
        return self._loss.generator_backward(logits(fake), real_logits, images=fake)


class AdversarialStep:
    """Updates a discriminator and then a generator, once per call.

    1. `fake = G(z)`; D's loss on `real` and on the detached `fake`, plus R1 when asked; D's optimiser steps.
    2. G's loss on D(fake) by the updated D, whose parameters are frozen meanwhile, so that no weight gradient
       of D is computed and thrown away; G's optimiser steps, which averages the weights too if it is an
       `AdamEMA`.

    The same latents serve both halves, so G runs forward once. Nothing waits for the device: losses and
    statistics come back as one tensor. If a loss is not finite, so is a gradient; `AdamEMA` refuses these,
    and neither weights nor moments change.

    Attributes:
        inputs: what the last call computed from, so that a failing step can be written down.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        objective: Objective,
        g_optimizer: torch.optim.Optimizer,
        d_optimizer: torch.optim.Optimizer,
    ) -> None:
        self._generator = generator
        self._objective = objective
        self._g_optimizer = g_optimizer
        self._d_optimizer = d_optimizer
        self._g_parameters = _trained(generator)
        self._d_parameters = _trained(discriminator)
        self.inputs: StepInputs | None = None

    def __call__(
        self,
        real: Tensor,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        penalize: bool = False,
        train_generator: bool = True,
    ) -> Tensor:
        """Takes one step on `real` images (N, C, H, W), latents `z` (N, z_dim) and labels (N,), if any;
        without `train_generator` the discriminator alone learns.

        Returns the float32 vector of `STATISTICS`, on the device; an entry that was not computed is NaN.
        """
        self.inputs = None  # frees the last images before these need memory
        with torch.set_grad_enabled(train_generator):
            fake = with_labels(self._generator, labels)(z)
        self.inputs = StepInputs(real, fake.detach(), z, labels, penalize)

        _clear(self._d_parameters)
        loss_d, stats, r1 = self._objective.discriminator_backward(self.inputs)
        _spoil_unless_finite(self._d_parameters, loss_d)
        self._d_optimizer.step()
        if not train_generator:
            return torch.stack((loss_d, torch.full_like(loss_d, torch.nan), *stats, r1))

        _clear(self._g_parameters)
        for parameter in self._d_parameters:
            parameter.requires_grad_(False)
        try:
            loss_g = self._objective.generator_backward(fake, self.inputs)
        finally:
            for parameter in self._d_parameters:
                parameter.requires_grad_(True)
        _spoil_unless_finite(self._g_parameters, loss_g)
        self._g_optimizer.step()

        return torch.stack((loss_d, loss_g, *stats, r1))


def with_labels(network: nn.Module, labels: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The network as a function of its first argument, told the labels if there are any."""
    if labels is None:
        return network
    return lambda x: network(x, labels)


def _trained(network: nn.Module) -> list[Tensor]:
    """The parameters that have gradients, the smallest first."""
    return sorted((p for p in network.parameters() if p.requires_grad), key=Tensor.numel)


def _clear(parameters: list[Tensor]) -> None:
    # `Optimizer.zero_grad` does the same for 20 times the price, which counts in a step of 2 ms.
    for parameter in parameters:
        parameter.grad = None


def _spoil_unless_finite(parameters: list[Tensor], loss: Tensor) -> None:
    """Makes one of the gradients NaN if the loss is not finite, without asking the device.

    An infinite loss can have finite gradients: softplus of an overflown logit has slope 1. Zero times the
    loss is NaN exactly when the loss is infinite or NaN.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.add_(loss * 0)
            return
