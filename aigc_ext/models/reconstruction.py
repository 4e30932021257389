"""What networks that give back the item they are given return to their training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from aigc_ext.nn.quantize import CodeStatistics


class Reconstruction(NamedTuple):
    """What `reconstruct(items, c=None)` returns, in training mode with its random numbers by row
    (`nn.split_batch`).

    Attributes:
        output: `[N, ...]`, before the network's `activate`, which makes items of it.
        target: the items that it should be: those given, or what was cut out of them.
        penalties: further losses, by name, 0-d: the mean over the items. Their weights are the keys of these
            names in a run's `loss`.
        codes: with a codebook, its use by these items, which `learn_codes` takes.
    """

    output: Tensor
    target: Tensor
    penalties: Mapping[str, Tensor]
    codes: CodeStatistics | None = None
