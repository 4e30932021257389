"""Measurements on a GPU: CUDA events, a warm and a cold L2 cache, launches, memory, CUDA graphs.

- L2 warm: the time between two events around many consecutive calls, as in a training loop, divided by their
  number. If launching a call takes longer than running it, this measures the launch.
- L2 cold: before each call, twice the cache's size is written; the two events enclose only the call. The
  launches of a short call are hidden by that write.
"""

from __future__ import annotations

import datetime
import functools
import gc
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks.harness import CARD_COLUMNS, Case, Setting, check_outputs, rows_of, those_that_work

WARM, COLD = "L2 warm", "L2 cold"
LAUNCHES = (
    *("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"),
    *("cudaMemcpyAsync", "cudaMemsetAsync"),
)
Run = Callable[[], Any]


def graphed(run: Run, warm_up: int = 3) -> Run:
    """The call captured in one CUDA graph, after some ordinary calls. Each replay overwrites the same
    results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


def called(run: Run) -> Run:
    run()
    return run


def measure(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Rows for every contender, with the cache warm and cold."""
    running = those_that_work({k: partial(called, run) for k, run in case.contenders.items()})
    graphs = {f"{k}, CUDA graph": partial(graphed, running[k]) for k in case.graphs if k in running}
    case.contenders = running | those_that_work(graphs)
    check_outputs(case)
    facts = {name: (*launches(run), peak(name, run)) for name, run in case.contenders.items()}
    copy = copy_bandwidth(setting.device)
    seconds = 0.01 if setting.quick else 0.3
    for cache, samples in (
        (WARM, time_warm(case, seconds)),
        (COLD, time_cold(case, seconds, setting.device)),
    ):
        print(f"\n{case.op}: {case.case}, {case.dtype}, {cache}")
        for row in rows_of(case, samples, f"{device_name(setting.device)}; {cache}"):
            fraction = f"{float(row['gbps']) / copy:.3f}" if row["gbps"] else ""
            values = (fraction, *facts[row["contender"]], datetime.date.today().isoformat())
            yield row | dict(zip(CARD_COLUMNS, values, strict=True))


def time_warm(case: Case, seconds: float, min_rounds: int = 15) -> dict[str, list[float]]:
    """Microseconds per call, in rounds in which every contender makes many calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def turn(run: Run, calls: int) -> float:
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / calls

    calls = {}
    for name, run in case.contenders.items():
        turn(run, 3)
        calls[name] = max(1, int(case.turn * 1e6 / turn(run, 3)))
    samples: dict[str, list[float]] = {name: [] for name in case.contenders}
    for _ in rounds(seconds * len(samples), min_rounds):
        for name, run in case.contenders.items():
            samples[name].append(turn(run, calls[name]))
    return samples


def time_cold(
    case: Case, seconds: float, device: torch.device, min_rounds: int = 3, calls: int = 5
) -> dict[str, list[float]]:
    """Microseconds of single calls with a cold cache."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    cache = torch.empty(size, dtype=torch.uint8, device=device)
    samples: dict[str, list[float]] = {name: [] for name in case.contenders}
    for _ in rounds(seconds * len(samples), min_rounds):
        for name, run in case.contenders.items():
            events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
            for start, end in events:
                cache.zero_()
                start.record()
                run()
                end.record()
            torch.cuda.synchronize()
            samples[name] += [start.elapsed_time(end) * 1e3 for start, end in events]
    return samples


def rounds(seconds: float, at_least: int) -> Iterator[int]:
    """Counts rounds until the time is up, with the garbage collector off."""
    gc.collect()
    gc.disable()
    try:
        deadline, count = time.perf_counter() + seconds, 0
        while count < at_least or time.perf_counter() < deadline:
            yield count
            count += 1
    finally:
        gc.enable()


def launches(run: Run) -> tuple[int, int]:
    """The numbers of launches by the host in a call, and of the kernels, copies and fills that run on the
    GPU."""
    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    events = profile.events() or []
    return (
        sum(event.name in LAUNCHES for event in events),
        sum(
            event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
            for event in events
        ),
    )


def peak(name: str, run: Run) -> str:
    """Peak megabytes that a call allocates, beyond what was allocated before."""
    if name.endswith(("CUDA graph", "reduce-overhead")):
        return ""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.1f}"


@functools.cache
def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a copy of 1 GiB, or of what fits into memory, counting bytes read and written."""
    size = min(1 << 30, torch.cuda.mem_get_info(device)[0] // 4)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    case = Case("copy", "", {"copy": lambda: target.copy_(source)})
    times = sorted(time_warm(case, 0.2)["copy"])
    return 2 * size / times[len(times) // 2] / 1e3


@functools.cache
def device_name(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, driver {driver()}"


@functools.cache
def driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return output.splitlines()[0].strip() if output.strip() else "unknown"
