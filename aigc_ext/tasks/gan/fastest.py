"""Which mode of the adversarial step, and which precision, is the fastest for a run, by measurement."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from aigc_ext.config import ConfigError
from aigc_ext.tasks.gan.objective import StepInputs
from aigc_ext.tasks.gan.program import undone
from aigc_ext.tasks.gan.step import AdversarialStep

Mode = Literal["eager", "traced", "compiled"]
Kind = tuple[bool, bool, bool]  # as of `recipe.kind_of_step`


class Way(NamedTuple):
    """A way to take a step."""

    mode: Mode
    autocast: torch.dtype | None = None

    def __str__(self) -> str:
        return self.mode if self.autocast is None else f"{self.mode} in {str(self.autocast)[6:]}"


SHORT = 120.0  # a run that takes less by eager steps is not worth measuring (seconds)
_ROUNDS, _SECONDS = 5, 10.0  # at most, for measuring two modes
_OPERATION = 0.015  # seconds to compile one, as measured (docs/lab-book.md)
_WAIT = 0.02  # the fraction of a run that compiling may take
_WORTH = 1.1  # how much faster bfloat16 must be, which rounds more


def fastest(
    step: AdversarialStep,
    inputs: StepInputs,
    kinds: Sequence[Kind],
    steps: int,
    *,
    modes: bool = True,
    precisions: bool = False,
) -> tuple[Way, str] | None:
    """The fastest way for a run of so many steps, and what was measured; None if that isn't worth while.

    It takes steps of every kind on `inputs`, and undoes them. A mode must repay what it costs once, recording
    and compiling. Compiling is tried only if it should take at most a fiftieth of the run.

    Args:
        kinds: of the steps in one period.
        modes: choose between eager, traced and compiled steps; False keeps the step's mode.
        precisions: choose between the step's precision and bfloat16, which must be faster by a tenth.
    """
    device, counts = inputs.z.device, Counter(kinds)
    before = Way(step.mode, step.objective.autocast)  # type: ignore[arg-type]
    samples: dict[tuple[Way, Kind], list[float]] = defaultdict(list)
    once: dict[Way, float] = {}
    operations: dict[Way, int] = {}

    def take(way: Way, kind: Kind) -> float:
        step.mode, step.objective.autocast = way
        return _seconds(step, inputs, kind)

    def measure(*ways: Way, rounds: int = _ROUNDS) -> None:
        """In turns, after a first round for each way, which records or compiles."""
        for way in ways:
            if way not in once:
                recorded = step.operations
                once[way] = sum(take(way, kind) for kind in counts)
                operations[way] = step.operations - recorded
        began = time.perf_counter()
        for done in range(rounds):
            if done and time.perf_counter() - began > _SECONDS:
                break
            for way in ways:
                for kind in counts:
                    samples[way, kind].append(take(way, kind))

    def mean(way: Way) -> float:
        """Of the steps of a period."""
        medians = {kind: statistics.median(samples[way, kind]) for kind in counts}
        return sum(medians[kind] * count for kind, count in counts.items()) / counts.total()

    plain = Way("eager", before.autocast) if modes else before
    notes: list[str] = []
    try:
        with undone(step.state().tensors, device):
            measure(plain, rounds=1)
            if mean(plain) * steps < SHORT:
                return None
            best = plain
            if modes:
                try:
                    measure(plain, traced := plain._replace(mode="traced"))
                    best = min(plain, traced, key=mean)
                except ConfigError as error:  # such as a hook
                    modes = False
                    notes.append(str(error))
            if precisions:
                measure(best, rounded := best._replace(autocast=torch.bfloat16))
                if mean(best) > _WORTH * mean(rounded):
                    best = rounded
                else:
                    once.pop(rounded)
                    notes.append(f"{rounded} only {_ms(mean(rounded))}")
            if modes:
                compiled = best._replace(mode="compiled")
                compiling = operations[best._replace(mode="traced")] * _OPERATION
                if step.refusal(inputs, mode="compiled") is not None:
                    notes.append("nothing here can compile")
                elif compiling > _WAIT * mean(best) * steps:
                    notes.append(f"compiling would take about {compiling:,.0f} s")
                else:
                    try:
                        measure(best, compiled)
                        notes.append(f"after {once[compiled]:,.0f} s of compiling")
                    except Exception as error:  # whatever Inductor or the compiler stumbles over
                        once.pop(compiled, None)
                        message = str(error).partition("\n")[0]
                        notes.append(f"compiling failed, {type(error).__name__}: {message}")
    finally:
        step.mode, step.objective.autocast = before
    costs = {way: mean(way) * steps + seconds for way, seconds in once.items()}
    chosen = _chosen(costs)
    faster = f", {costs[plain] / costs[chosen]:.2f} times as fast as {plain} over the run"
    text = ", ".join(f"{way} {_ms(mean(way))}" for way in once)
    return chosen, f"{chosen}{faster if chosen != plain else ''} (a step: {'; '.join([text, *notes])})"


def seconds_per_step(
    step: AdversarialStep, inputs: StepInputs, kinds: Sequence[Kind], *, warm: bool = False
) -> float:
    """The mean over the steps of a period, in the step's own mode: of one step of each kind, after another
    one unless `fastest` has taken some (`warm`). They are undone. Of processes that share a batch, each has
    to call it."""
    counts, device = Counter(kinds), inputs.z.device
    with undone(step.state().tensors, device):
        for kind in () if warm else counts:
            _seconds(step, inputs, kind)
        total = sum(_seconds(step, inputs, kind) * count for kind, count in counts.items())
    return total / counts.total()


def _seconds(step: AdversarialStep, inputs: StepInputs, kind: Kind) -> float:
    """How long a step takes."""
    penalize, train_generator, stretch = kind
    options: dict[str, Any] = {"mixing": inputs.mixing, "seed": inputs.seed, "blur_sigma": 0.0}
    began = _now(inputs.z.device)
    step(
        *(inputs.real, inputs.z, inputs.labels),
        **options,
        penalize=penalize,
        train_generator=train_generator,
        stretch=stretch,
    )
    return _now(inputs.z.device) - began


def _chosen(costs: dict[Way, float]) -> Way:
    return min(costs, key=lambda way: costs[way])


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
