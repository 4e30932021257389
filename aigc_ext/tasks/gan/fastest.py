"""Which mode of the adversarial step is the fastest for a run, by measurement."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch

from aigc_ext.tasks.gan.objective import StepInputs
from aigc_ext.tasks.gan.program import undone
from aigc_ext.tasks.gan.step import AdversarialStep

Mode = Literal["eager", "traced", "compiled"]
Kind = tuple[bool, bool, bool]  # as of `recipe.kind_of_step`

SHORT = 120.0  # a run that takes less by eager steps is not worth measuring (seconds)
_SECONDS = 6.0  # for measuring a mode, not counting what is done once
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
    device, mode = inputs.z.device, step.mode
    counts = Counter(kinds)

    def seconds(mode: Mode, kind: Kind) -> float:
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

    def mean(mode: Mode, rounds: int = 4) -> tuple[float, float]:
        """Seconds of a mean step, and of the first steps beyond those of later ones."""
        first = {kind: seconds(mode, kind) for kind in counts}
        best, began = {kind: seconds(mode, kind) for kind in counts}, time.perf_counter()
        for _ in range(rounds):
            if time.perf_counter() - began > _SECONDS:
                break
            best = {kind: min(best[kind], seconds(mode, kind)) for kind in counts}
        once = sum(first[kind] - best[kind] for kind in counts)
        return sum(best[kind] * count for kind, count in counts.items()) / counts.total(), max(once, 0.0)

    try:
        with undone(step.state().tensors, device):
            if mean("eager", rounds=0)[0] * steps < SHORT:
                return None
            traced, once = mean("traced")
            eager, _ = mean("eager")
            costs = {"eager": eager * steps, "traced": traced * steps + once}
            text = f"eager {_ms(eager)}, traced {_ms(traced)}"
            operations = step.operations
            if step.refusal(inputs, mode="compiled") is not None:
                text += "; nothing here can compile"
            elif operations * _OPERATION > _WAIT * costs["traced"]:
                text += f"; compiling would take about {operations * _OPERATION:,.0f} s"
            else:
                compiled, once = mean("compiled")
                costs["compiled"] = compiled * steps + once
                text += f", compiled {_ms(compiled)} after {once:,.0f} s of compiling"
    finally:
        step.mode = mode
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
