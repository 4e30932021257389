"""Which mode of the adversarial step is the fastest for a run, by measurement."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch

from aigc_ext.config import ConfigError
from aigc_ext.tasks.gan.objective import StepInputs
from aigc_ext.tasks.gan.program import undone
from aigc_ext.tasks.gan.step import AdversarialStep

Mode = Literal["eager", "traced", "compiled"]
Kind = tuple[bool, bool, bool]  # as of `recipe.kind_of_step`

SHORT = 120.0  # a run that takes less by eager steps is not worth measuring (seconds)
_ROUNDS, _SECONDS = 5, 10.0  # at most, for measuring two modes
_OPERATION = 0.015  # seconds to compile one, as measured (docs/lab-book.md)
_WAIT = 0.02  # the fraction of a run that compiling may take


def fastest(
    step: AdversarialStep, inputs: StepInputs, kinds: Sequence[Kind], steps: int
) -> tuple[Mode, str] | None:
    """The fastest mode for a run of so many steps, and what was measured; None if that isn't worth while.

    It takes steps of every kind on `inputs`, and undoes them. A mode must repay what it costs once, recording
    and compiling. Compiling is tried only if it should take at most a fiftieth of the run.

    Args:
        kinds: of the steps in one period.
    """
    device, before, counts = inputs.z.device, step.mode, Counter(kinds)
    samples: dict[tuple[Mode, Kind], list[float]] = defaultdict(list)
    once: dict[Mode, float] = {}

    def take(mode: Mode, kind: Kind) -> float:
        step.mode = mode
        penalize, train_generator, stretch = kind
        options: dict[str, Any] = {"mixing": inputs.mixing, "seed": inputs.seed, "blur_sigma": 0.0}
        began = _now(device)
        step(
            *(inputs.real, inputs.z, inputs.labels),
            **options,
            penalize=penalize,
            train_generator=train_generator,
            stretch=stretch,
        )
        return _now(device) - began

    def measure(*modes: Mode, rounds: int = _ROUNDS) -> None:
        """In turns, after a first round for each mode, which records or compiles."""
        for mode in modes:
            if mode not in once:
                once[mode] = sum(take(mode, kind) for kind in counts)
        began = time.perf_counter()
        for done in range(rounds):
            if done and time.perf_counter() - began > _SECONDS:
                break
            for mode in modes:
                for kind in counts:
                    samples[mode, kind].append(take(mode, kind))

    def mean(mode: Mode) -> float:
        """Of the steps of a period."""
        medians = {kind: statistics.median(samples[mode, kind]) for kind in counts}
        return sum(medians[kind] * count for kind, count in counts.items()) / counts.total()

    try:
        with undone(step.state().tensors, device):
            measure("eager", rounds=1)
            if mean("eager") * steps < SHORT:
                return None
            try:
                measure("eager", "traced")
            except ConfigError as error:  # such as a hook
                return "eager", f"eager ({error})"
            text = f"eager {_ms(mean('eager'))}, traced {_ms(mean('traced'))}"
            compiling = step.operations * _OPERATION
            if step.refusal(inputs, mode="compiled") is not None:
                text += "; nothing here can compile"
            elif compiling > _WAIT * mean("traced") * steps:
                text += f"; compiling would take about {compiling:,.0f} s"
            else:
                try:
                    measure("traced", "compiled")
                    text += f", compiled {_ms(mean('compiled'))} after {once['compiled']:,.0f} s of compiling"
                except Exception as error:  # whatever Inductor or the compiler stumbles over
                    once.pop("compiled", None)
                    text += f"; compiling failed, {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    finally:
        step.mode = before
    costs = {mode: mean(mode) * steps + seconds for mode, seconds in once.items()}
    chosen = _chosen(costs)
    faster = f", {costs['eager'] / costs[chosen]:.2f} times as fast as eager over the run"
    return chosen, f"{chosen}{faster if chosen != 'eager' else ''} (a step: {text})"


def _chosen(costs: dict[Any, float]) -> Mode:
    chosen: Mode = min(costs, key=lambda mode: costs[mode])
    return chosen


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
