"""What a run will cost, from a few of its steps."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from dataclasses import dataclass

from aigc_ext.training import recipe
from aigc_ext.training.loop import Trainer
from aigc_ext.training.progress import memory_size_gb, peak_memory_gb

_SECONDS = 10.0
_TRIAL = 4  # images of the first step


@dataclass(frozen=True)
class Cost:
    """Measured on this machine, by single steps: an estimate.

    Attributes:
        generator, discriminator: their parameters that are trained.
        memory_gb: the peak, as in `stats.jsonl`.
        seconds_per_kimg: of training alone, without grids, checkpoints and metrics.
        hours: of the whole run at this rate.
        too_large: what was not tried, because `memory_gb` is more than there is; None if it was.
    """

    generator: int
    discriminator: int
    memory_gb: float
    seconds_per_kimg: float
    hours: float
    too_large: str | None = None

    def __str__(self) -> str:
        text = (
            f"generator {self.generator:,} and discriminator {self.discriminator:,} parameters; "
            f"{self.memory_gb:.2f} GB; about {self.seconds_per_kimg:.3g} s/kimg, {self.hours:.3g} h in all"
        )
        return text if self.too_large is None else f"{text}\nWarning: {self.too_large}"


def probe(trainer: Trainer) -> Cost:
    """Takes a step of every kind that the recipe has (with penalty, with path lengths, ...), each once more
    while 10 seconds are not over, and weighs them as often as they occur. The trainer is of no use
    afterwards: its networks have moved.

    Steps of a few images come first, and of more of them until two in a row have raised the peak of memory,
    which reading the data may have set. If by these the whole ones would take more memory than there is,
    they are not tried, and the result says so."""
    images, available = recipe.part_size(trainer.config, 1), memory_size_gb(trainer.device)
    size, before, risen = _TRIAL, peak_memory_gb(trainer.device), False
    while size < images:
        trial = _measure(_with_batch(trainer, size), rounds=1)
        if risen and trial.memory_gb > before:
            per_image = (trial.memory_gb - before) / (size // 2)
            memory = trial.memory_gb + per_image * (images - size)
            if memory <= available:
                break
            reason = (
                f"{images} images at once would take about {memory:.3g} GB, but there are {available:.3g}; "
                f"--batch-gpu computes a batch in parts. The time is that of {size} images"
            )
            return dataclasses.replace(trial, memory_gb=memory, too_large=reason)
        size, before, risen = 2 * size, trial.memory_gb, trial.memory_gb > before
    return _measure(trainer, rounds=3)


def _with_batch(trainer: Trainer, batch: int) -> Trainer:
    config = dataclasses.replace(trainer.config, batch=batch, batch_gpu=None)
    return Trainer(trainer.state.generator, trainer.state.discriminator, trainer.data, config)


def _measure(trainer: Trainer, rounds: int) -> Cost:
    config = trainer.config
    steps = range(math.lcm(*recipe.intervals(config)))
    kinds = Counter(recipe.kind_of_step(config, step) for step in steps)
    first = {recipe.kind_of_step(config, step): step for step in reversed(steps)}
    best: dict[tuple[bool, ...], float] = {}
    begin = time.perf_counter()
    with trainer.prepared_step() as take:
        for _ in range(rounds):
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
