"""Whether bfloat16 is worth its rounding for a run, by measurement."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from aigc_ext.nn._gains import now, ratio
from aigc_ext.tasks.likelihood.step import likelihood
from aigc_ext.training.parts import random_numbers, trained

SHORT = 120.0  # a run that takes less in float32 is not worth measuring (seconds)
_WORTH = 1.1  # how much faster bfloat16 must be
_SECONDS = 2.0  # for measuring


def faster_precision(
    network: nn.Module, items: Tensor, labels: Tensor | None, passes: float
) -> tuple[Literal["float32", "bfloat16"], str] | None:
    """The precision of a run that computes the likelihood of as many items, and its gradient, so many times,
    and what was measured; None if the run is too short. Nothing of the network changes."""

    def seconds(autocast: torch.dtype | None) -> float:
        began = now(items)
        with random_numbers(0, items.device, 0, len(items)):
            likelihood(network, items, labels, autocast)[0].backward()
        taken = now(items) - began
        for parameter in trained(network):
            parameter.grad = None
        return taken

    seconds(None)  # warms up
    if seconds(None) * passes < SHORT:
        return None
    gain = ratio(lambda: seconds(None), lambda: seconds(torch.bfloat16), _SECONDS, rounds=3)
    return ("bfloat16" if gain > _WORTH else "float32"), f"bfloat16 takes {1 / gain:.2f} of float32's time"
