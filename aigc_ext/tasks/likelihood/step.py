"""One step of maximum likelihood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext.tasks.likelihood.config import TrainConfig
from aigc_ext.training.distributed import Processes
from aigc_ext.training.parts import random_numbers, split, trained

STATISTICS = ("loss",)


class LikelihoodStep:
    """Learns from a batch, whole or in parts: the loss is the nats of all targets of the whole batch by their
    number, whichever parts and processes they are in. A step without a finite gradient changes nothing.

    Args:
        network: its `loss(items, labels)` returns the sum of nats and the number of targets.
        optimizer: `AdamEMA`, which passes over a gradient that is not finite.
        part_size: items that are computed at once; None for all.
        autocast: the dtype of the network's arithmetic; None for that of the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        part_size: int | None = None,
        processes: Processes | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.network: Any = network
        self.optimizer = optimizer
        self.part_size = part_size
        self.processes = processes or Processes()
        self.autocast = autocast
        self._parameters = trained(network)

    def __call__(self, items: Tensor, labels: Tensor | None, seed: int) -> Tensor:
        """The float32 vector of `STATISTICS`, on the device.

        Args:
            items, labels: this process's share of the batch; all shares have the same size.
            seed: of the network's random numbers.
        """
        parameters = self._parameters
        for parameter in parameters:
            parameter.grad = None
        sums = torch.zeros(2, device=items.device)
        for part in split(len(items), self.part_size, self.processes):
            with random_numbers(seed, items.device, part.start, part.total):
                nats, count = likelihood(
                    self.network,
                    items[part.rows],
                    None if labels is None else labels[part.rows],
                    self.autocast,
                )
            nats.backward()
            sums += torch.stack((nats.detach(), count)).to(sums.dtype)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.processes.average([*gradients, sums])
        loss = sums[0] / sums[1]
        # Of sums, and only here divided: the number of targets differs between parts.
        torch._foreach_div_(gradients, sums[1])
        # An infinite loss can have finite gradients; zero times it is NaN, and the optimizer skips the step.
        gradients[0].add_(loss * 0)
        self.optimizer.step()
        return loss[None]


def arithmetic(config: TrainConfig) -> torch.dtype | None:
    """The dtype of `LikelihoodStep`'s autocast."""
    return torch.bfloat16 if config.precision == "bfloat16" else None


def likelihood(
    network: Any, items: Tensor, labels: Tensor | None, autocast: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """`network.loss`, in the dtype of `autocast`."""
    with torch.autocast(items.device.type, autocast, enabled=autocast is not None):
        nats, count = network.loss(items, labels)
    return nats, count
