"""The activations that our ops know, and their default parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """``function(x, alpha)``; ``alpha`` is 0 where it is not used. ``gain`` keeps the variance of a unit normal input
    roughly unchanged (He et al. 2015 for the rectifiers)."""

    name: str
    function: Callable[[Tensor, float], Tensor]
    alpha: float
    gain: float
    piecewise_linear: bool


_SQRT2 = math.sqrt(2)

ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("linear", lambda x, _: x, 0.0, 1.0, True),
        Activation("relu", lambda x, _: F.relu(x), 0.0, _SQRT2, True),
        Activation("lrelu", lambda x, alpha: F.leaky_relu(x, alpha), 0.2, _SQRT2, True),
        Activation("tanh", lambda x, _: torch.tanh(x), 0.0, 1.0, False),
        Activation("sigmoid", lambda x, _: torch.sigmoid(x), 0.0, 1.0, False),
        Activation("elu", lambda x, _: F.elu(x), 0.0, 1.0, False),
        Activation("selu", lambda x, _: F.selu(x), 0.0, 1.0, False),
        Activation("softplus", lambda x, _: F.softplus(x, threshold=40.0), 0.0, 1.0, False),
        Activation("swish", lambda x, _: F.silu(x), 0.0, _SQRT2, False),
    )
}


def resolve_activation(
    act: str, alpha: float | None, gain: float | None, clamp: float | None
) -> tuple[Activation, float, float]:
    """The activation with ``alpha`` and ``gain`` filled in. Raises ValueError naming what is wrong."""
    activation = ACTIVATIONS.get(act)
    if activation is None:
        raise ValueError(f"act is {act!r}, but must be one of {', '.join(ACTIVATIONS)}")
    if alpha is None:
        alpha = activation.alpha
    elif not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}, but must be finite")
    if gain is None:
        gain = activation.gain
    elif not math.isfinite(gain):
        raise ValueError(f"gain is {gain}, but must be finite")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp is {clamp}, but must be None or at least 0")
    return activation, alpha, gain
