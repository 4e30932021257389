"""How the networks of all tasks are optimised: the settings, what changes during a run, and the average."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from aigc_ext.config import Config, Fraction, NonNegative, Positive, Range
from aigc_ext.optim import AdamEMA


@dataclass(frozen=True)
class AdamConfig(Config):
    lr: Positive = 1e-4
    """Adam's learning rate."""
    beta1: Fraction = 0.9
    """Decay of the running mean of the gradient."""
    beta2: Fraction = 0.999
    """Decay of the running mean of the squared gradient."""
    eps: Positive = 1e-8
    """Added to the root of the mean squared gradient."""
    weight_decay: NonNegative = 0.0
    """Weight decay, decoupled from the gradient as in AdamW."""
    lr_end: Positive | None = None
    """The value of lr at the end of the ramp; null: constant."""
    beta2_end: Fraction | None = None
    """The value of beta2 at the end of the ramp; null: constant."""
    weight_decay_end: NonNegative | None = None
    """The value of weight_decay at the end of the ramp; null: constant."""


@dataclass(frozen=True)
class EMAConfig(Config):
    """The averaged network. A half-life in images, unlike a decay, means the same for every batch size."""

    kimg: NonNegative | None = 10.0
    """Half-life in thousands of images; 0 makes the average equal to the network; null: 10/32 of the batch
    size."""
    kimg_start: NonNegative | None = None
    """The half-life at the start of the ramp; null: constant."""
    rampup: Annotated[float, Range(gt=0)] | None = 0.05
    """The half-life is at most this fraction of the images seen so far, to forget the start; null turns it
    off."""

    def decay(self, nimg: int, batch: int, ramp: float = 1.0) -> float:
        """The EMA decay of the step that ends at `nimg` images seen, at a point of the ramp from 0 to 1."""
        assert self.kimg is not None, "recipe.complete has not been called"
        start = self.kimg if self.kimg_start is None else self.kimg_start
        half_life = 1000 * (start + ramp * (self.kimg - start))
        if self.rampup is not None:
            half_life = min(half_life, nimg * self.rampup)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


def rates(config: AdamConfig, position: float, warm: float = 1.0) -> dict[str, Any]:
    """Learning rate, times `warm`, betas and weight decay at a point of the ramp, in the form of an
    optimizer's groups."""
    beta2 = between(config.beta2, config.beta2_end, position)
    return {
        "lr": warm * between(config.lr, config.lr_end, position),
        "betas": (config.beta1, beta2),
        "weight_decay": between(config.weight_decay, config.weight_decay_end, position),
    }


def ramp(kimg: float, nimg: int) -> float:
    """The position on a ramp of `kimg` thousand images after `nimg` images: from 0 to 1 along half a cosine;
    1 if there is no ramp."""
    if nimg >= kimg * 1000:
        return 1.0
    return (1 - math.cos(math.pi * nimg / (kimg * 1000))) / 2


def warm_up(kimg: float, nimg: int) -> float:
    """The factor of the learning rate in a step that ends at `nimg` images: it rises from 0 to 1 on a line of
    `kimg` thousand images."""
    return min(1.0, nimg / (kimg * 1000)) if kimg else 1.0


def between(start: float, end: float | None, position: float) -> float:
    """Interpolates from `start` to `end`; `start` if there is no `end`."""
    return start if end is None else start + position * (end - start)


def make_optimizer(module: nn.Module, config: AdamConfig, ema: nn.Module | None = None) -> AdamEMA:
    """Of what is trained of a network, with the rates of a run's start; it keeps the averages in `ema`."""
    pairs = zip((module if ema is None else ema).parameters(), module.parameters(), strict=True)
    averages = [average for average, current in pairs if current.requires_grad]
    return AdamEMA(
        [p for p in module.parameters() if p.requires_grad],
        **rates(config, 0.0),
        eps=config.eps,
        ema_params=averages if ema is not None else None,
    )


def copy_buffers(ema: nn.Module, module: nn.Module) -> None:
    """Parameters are averaged in each step; buffers, such as batch statistics or a codebook, are copied."""
    for average, current in zip(ema.buffers(), module.buffers(), strict=True):
        average.copy_(current)
