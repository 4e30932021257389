"""The activations that our ops support, and their default parameters."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._arguments import check_finite


@dataclass(frozen=True)
class Activation:
    """``function(x, alpha)``; ``alpha`` is 0 where it is not used. ``gain`` roughly preserves the variance of
    a unit normal input (He et al. 2015 for the rectifiers)."""

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
    """The activation with ``alpha`` and ``gain`` filled in. A ValueError or TypeError names what is wrong."""
    activation = ACTIVATIONS.get(act) if isinstance(act, str) else None
    if activation is None:
        raise ValueError(f"act is {act!r}, but must be one of {', '.join(ACTIVATIONS)}")
    alpha = activation.alpha if alpha is None else _finite("alpha", alpha)
    gain = activation.gain if gain is None else _finite("gain", gain)
    if clamp is not None and not _number("clamp", clamp) >= 0:
        raise ValueError(f"clamp is {clamp}, but must be None or at least 0")
    return activation, alpha, gain


def check_activation(op: str, act: str, alpha: float, gain: float, clamp: float | None) -> None:
    """The native code's checks of the resolved arguments."""
    if act not in ACTIVATIONS:
        raise RuntimeError(f"{op}: act is '{act}', but must be one of {', '.join(ACTIVATIONS)}")
    check_finite(op, alpha=alpha, gain=gain)
    if clamp is not None and not clamp >= 0:
        raise RuntimeError(f"{op}: clamp is {clamp:g}, but must be None or at least 0")


def has_corners(act: str) -> bool:
    """Is it made of several straight pieces?"""
    return act != "linear" and ACTIVATIONS[act].piecewise_linear


def activation_names(acts: str) -> list[str]:
    """The activations that a native op of several layers takes as one string."""
    names = acts.split(",")
    return names if names[-1] else names[:-1]


def _number(name: str, value: float) -> float:
    # A one-element tensor would convert too, but silently lose its gradient.
    if not isinstance(value, (float, int)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), but must be a float or an int")
    return value


def _finite(name: str, value: float) -> float:
    if not abs(_number(name, value)) <= sys.float_info.max:  # false for NaN too
        raise ValueError(f"{name} is {value}, but must be finite")
    return value
