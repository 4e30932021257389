"""Times contenders in one run: interleaved, with medians, after comparing their outputs."""

from __future__ import annotations

import gc
import itertools
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

# By default glibc returns freed large blocks to the system, which slows eager PyTorch down by up to 8x. That
# would not be our merit, so it is turned off for all contenders.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """Where the contenders run."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    # Tiny sizes, few repeats and no code generation, to test the scripts. The figures are meaningless.
    quick: bool = False
    # Training steps that PyTorch compiles too, which takes minutes.
    compiled_steps: bool = True

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def compiled(self, function: Callable[..., Any], mode: str | None = None, **options: Any) -> Any:
        if self.quick:
            return torch.compile(function, backend="eager", **options)
        return torch.compile(function, mode=mode, **options)

    def compile_modes(self) -> dict[str, str | None]:
        """The modes of torch.compile to measure, by contender name."""
        modes: dict[str, str | None] = {"compile": None}
        return modes | ({"compile, reduce-overhead": "reduce-overhead"} if self.on_card else {})


@dataclass
class Case:
    """One question: the same work done by each contender. The first is the baseline of the printed ratios."""

    op: str
    case: str
    contenders: dict[str, Callable[[], Any]]
    dtype: str = "float32"
    bytes: int | None = None  # minimum memory traffic of the work, for GB/s
    # The tensors to compare in a contender's return value; None where results are inherently not comparable
    # (training steps change their weights), which the case's name must justify.
    outputs: Callable[[Any], Any] | None = field(default=lambda result: result)
    rtol: float = 1e-4
    atol: float = 1e-5
    turn: float = 0.002  # seconds per turn of a contender, at least one call
    memory: bool = False  # also measure the peak of what a call allocates
    # Contenders whose call is also captured in a CUDA graph, on a GPU. For those that change state, the
    # module makes the graph itself (`card.graphed`).
    graphs: tuple[str, ...] = ()


def those_that_work(contenders: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """The results by name. A contender that is not ours and fails (on a new GPU, say) is reported and left
    out; if ours fails, the benchmark stops."""
    results = {}
    for name, build in contenders.items():
        try:
            results[name] = build()
        except Exception as error:
            if name.startswith("aigc_ext"):
                raise
            print(f"{name} is left out: {type(error).__name__}: {error}", flush=True)
    return results


def check_outputs(case: Case) -> None:
    """Stops the benchmark unless every contender computes the same as the first."""
    if case.outputs is None:
        return
    names = list(case.contenders)
    expected = case.outputs(case.contenders[names[0]]())
    for name in names[1:]:
        got = case.outputs(case.contenders[name]())
        if got is None:  # a reference point (a copy, say) that computes something else
            continue
        message = partial("{}, {}: {}".format, case.op, name)
        torch.testing.assert_close(got, expected, rtol=case.rtol, atol=case.atol, msg=message)


def time_case(case: Case, seconds: float = 0.8, min_rounds: int = 15) -> dict[str, list[float]]:
    """Microseconds of each contender, in rounds in which every contender has a turn."""
    loops: dict[str, int] = {}
    for name, run in case.contenders.items():
        for _ in range(3):
            run()
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
        loops[name] = max(1, int(case.turn / max(once, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in case.contenders}
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds * len(case.contenders)
        while time.perf_counter() < deadline or len(samples[next(iter(samples))]) < min_rounds:
            for name, run in case.contenders.items():
                n = loops[name]
                start = time.perf_counter()
                for _ in range(n):
                    run()
                samples[name].append((time.perf_counter() - start) / n * 1e6)
    finally:
        gc.enable()
    return samples


def peak_mb(run: Callable[[], Any]) -> float:
    """The peak of what a call allocates by PyTorch on the CPU, beyond what is there before, in MB."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes), default=0) / 1e6


def processor() -> str:
    """With its family and model, since those of a cloud are called by their maker's name alone; and the
    instruction set that AIGC_EXT_ISA holds it to."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" in about:
        name = f"{about['model name']} ({about.get('cpu family')}-{about.get('model')})"
    forced = os.environ.get("AIGC_EXT_ISA")
    return f"{name}, {forced} only" if forced else name


def device_name(threads: int) -> str:
    return f"{processor()}; {threads} thread{'s' if threads > 1 else ''}"
