"""What a run will cost, from a few of its steps."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aigc_ext.training.progress import peak_memory_gb

if TYPE_CHECKING:
    from aigc_ext.training.loop import Trainer

_SECONDS = 10.0


@dataclass(frozen=True)
class Cost:
    """Measured on this machine, by single steps: an estimate.

    Attributes:
        generator, discriminator: their parameters that are trained.
        memory_gb: the peak so far, as in `stats.jsonl`.
        seconds_per_kimg: of training alone, without grids, checkpoints and metrics.
        hours: of the whole run at this rate.
    """

    generator: int
    discriminator: int
    memory_gb: float
    seconds_per_kimg: float
    hours: float

    def __str__(self) -> str:
        return (
            f"generator {self.generator:,} and discriminator {self.discriminator:,} parameters; "
            f"{self.memory_gb:.2f} GB; about {self.seconds_per_kimg:.3g} s/kimg, {self.hours:.3g} h in all"
        )


def probe(trainer: Trainer) -> Cost:
    """Takes a step of every kind that the recipe has (with penalty, with path lengths, ...), each once more
    while 10 seconds are not over, and weighs them as often as they occur. The trainer is of no use
    afterwards: its networks have moved."""
    config = trainer.config
    kinds = Counter(trainer.kind_of_step(step) for step in range(math.lcm(*trainer.intervals())))
    first = {trainer.kind_of_step(step): step for step in reversed(range(math.lcm(*trainer.intervals())))}
    best: dict[tuple[bool, ...], float] = {}
    begin = time.perf_counter()
    with trainer.prepared_step() as take:
        for _ in range(3):
            for kind, step in first.items():
                trainer.state.step = step
                start = time.perf_counter()
                take()
                seconds = time.perf_counter() - start
                best[kind] = min(best.get(kind, math.inf), seconds)
            if time.perf_counter() - begin > _SECONDS:
                break
    mean = sum(best[kind] * count for kind, count in kinds.items()) / kinds.total()
    per_kimg = mean * 1000 / config.batch
    generator, discriminator = (
        sum(p.numel() for p in network.parameters() if p.requires_grad)
        for network in (trainer.state.generator, trainer.state.discriminator)
    )
    return Cost(
        generator,
        discriminator,
        memory_gb=peak_memory_gb(trainer.device),
        seconds_per_kimg=per_kimg,
        hours=per_kimg * config.kimg / 3600,
    )
