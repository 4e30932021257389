"""Whether bfloat16 is worth its rounding for a run, by measurement."""

from __future__ import annotations

import statistics
import time
from typing import Literal

import torch
from torch import Tensor, nn

from aigc_ext.nn._gains import now
from aigc_ext.tasks.likelihood.step import likelihood
from aigc_ext.training.parts import random_numbers, trained

SHORT = 120.0  # a run that takes less in float32 is not worth measuring (seconds)
_WORTH = 1.1  # how much faster bfloat16 must be
_ROUNDS, _SECONDS = 5, 10.0  # at most


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

    seconds(None)
    if seconds(None) * passes < SHORT:
        return None
    seconds(torch.bfloat16)
    plain: list[float] = []
    rounded: list[float] = []
    began = time.perf_counter()
    while len(plain) < _ROUNDS and (not plain or time.perf_counter() - began < _SECONDS):
        plain.append(seconds(None))
        rounded.append(seconds(torch.bfloat16))
    before, after = statistics.median(plain), statistics.median(rounded)
    chosen: Literal["float32", "bfloat16"] = "bfloat16" if before > _WORTH * after else "float32"
    return chosen, f"{chosen} (float32 {1000 * before:,.1f} ms, bfloat16 {1000 * after:,.1f} ms)"
