"""The estimated cost of a run, measured on a few of its steps."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from aigc_ext.training.loop import Loop
from aigc_ext.training.parts import part_size
from aigc_ext.training.progress import memory_size_gb, peak_memory_gb

_SECONDS = 10.0
_TRIAL = 4  # images of the first step


@dataclass(frozen=True)
class Cost:
    """An estimate from single steps, measured on this machine."""

    parameters: Mapping[str, int]  # number of trained parameters of each network
    memory_gb: float  # the peak, as in `stats.jsonl`
    seconds_per_kimg: float  # training only, without previews, checkpoints and metrics
    hours: float  # of the whole run at this rate
    too_large: str | None = None  # what was not tried, since `memory_gb` exceeds the available memory

    def __str__(self) -> str:
        networks = " and ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        text = (
            f"{networks} parameters; {self.memory_gb:.2f} GB; about {self.seconds_per_kimg:.3g} s/kimg, "
            f"{self.hours:.3g} h in all"
        )
        return text if self.too_large is None else f"{text}\nWarning: {self.too_large}"


def probe(loop: Loop) -> Cost:
    """Takes a step of every kind that the task has, repeats them for up to 10 seconds, and weights them by
    how often they occur. The loop cannot be used afterwards, since its networks have been trained.

    It first takes steps of a few images, then of more, until two in a row have raised the peak memory, which
    reading the data may have set. If these predict that whole steps need more memory than available, whole
    steps are not tried, and the result says so."""
    images, available = part_size(loop.config, 1), memory_size_gb(loop.device)
    size, before, risen = _TRIAL, peak_memory_gb(loop.device), False
    while size < images:
        config = dataclasses.replace(loop.config, batch=size, batch_gpu=None)
        trial = _measure(Loop(loop.task.with_config(config)), rounds=1)
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
    return _measure(loop, rounds=3)


def _measure(loop: Loop, rounds: int) -> Cost:
    config, steps = loop.config, loop.task.kinds_of_steps()
    kinds, first = Counter(steps), {kind: steps.index(kind) for kind in steps}
    best: dict[Hashable, float] = {}
    begin = time.perf_counter()
    with loop.prepared_step() as take:
        for _ in range(rounds):
            for kind, step in first.items():
                loop.state.step = step
                start = time.perf_counter()
                take()
                seconds = time.perf_counter() - start
                best[kind] = min(best.get(kind, math.inf), seconds)
            if time.perf_counter() - begin > _SECONDS:
                break
    mean = sum(best[kind] * count for kind, count in kinds.items()) / kinds.total()
    per_kimg = mean * 1000 / config.batch
    trained = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in loop.state.modules().items()
    }
    return Cost(
        {name: count for name, count in trained.items() if count},
        memory_gb=peak_memory_gb(loop.device),
        seconds_per_kimg=per_kimg,
        hours=per_kimg * config.kimg / 3600,
    )
