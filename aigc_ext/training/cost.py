"""The estimated cost of a run, measured on a few of its steps.

`probe` measures in this process. `measure` has another process do it, which must not take more memory than is
free, and whose answer is awaited for about a minute only; whatever has been measured by then is the estimate.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aigc_ext.training.loop import Loop
from aigc_ext.training.parts import part_size
from aigc_ext.training.progress import available_memory_gb, peak_memory_gb

_SECONDS = 40.0  # for all steps together
_ROUNDS = 3  # of the whole steps
_TRIAL = 4  # images of the first step
_LARGE = 160 * 160  # pixels of an image of which the first step has only one
_METRIC_SHARE = 0.1  # of the training's time that metrics may take by default
_PATIENCE = 8.0  # seconds by which a step may exceed its time
_OPENING = 120.0  # seconds in which another process must have opened the data
_SHARE = 0.95  # of the free memory that another process may take


@dataclass(frozen=True)
class Cost:
    """An estimate from single steps, measured on this machine."""

    parameters: Mapping[str, int]  # number of trained parameters of each network
    memory_gb: float  # the peak, as in `stats.jsonl`
    seconds_per_kimg: float  # training only, without previews, checkpoints and metrics
    hours: float  # of the whole run at this rate, with its metrics
    too_large: str | None = None  # what was not tried, since `memory_gb` exceeds the available memory
    metric_hours: float = 0.0  # the part of `hours` that the metrics take
    remark: str | None = None  # on how it was found

    def __str__(self) -> str:
        networks = " and ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        time_needed = "time not measured"
        if math.isfinite(self.hours):
            whole = duration(3600 * self.hours)
            time_needed = f"about {self.seconds_per_kimg:.3g} s/kimg, {whole} in all"
        memory = f"{self.memory_gb:.2f} GB" if math.isfinite(self.memory_gb) else "memory not measured"
        text = f"{networks} parameters; {memory}; {time_needed}"
        if self.metric_hours:
            text += f", {duration(3600 * self.metric_hours)} of it for metrics"
        notes = (("Note", self.remark), ("Warning", self.too_large))
        return "\n".join([text, *(f"{kind}: {note}" for kind, note in notes if note)])


def duration(seconds: float) -> str:
    """For people: `12 s`, `3.5 min`, `2 h`, `1.5 days`, `10 years`."""
    for unit, length, limit in (
        ("s", 1, 100),
        ("min", 60, 7200),
        ("h", 3600, 48 * 3600),
        ("days", 86400, 700 * 86400),
    ):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / (365.25 * 86400):,.3g} years" if seconds < 1e12 else "more than 30,000 years"


@dataclass
class Trials:
    """What has been measured so far; JSON values but for the methods."""

    parameters: dict[str, int]
    kinds: list[int]  # how often each kind of step occurs in a period
    images: int  # that a process computes at once
    batch: int
    kimg: float
    available_gb: float
    before_gb: float  # the peak before the first step
    # Of each size, in images: the seconds of its kinds of steps that were measured, and the peak afterwards.
    seconds: dict[int, dict[int, float]] = field(default_factory=dict)
    memory_gb: dict[int, float] = field(default_factory=dict)
    trying: int = 0  # the size, in images at once, of the step that was begun last
    failed: bool = False  # did it want more memory than there is?
    metric_seconds: float = 0.0  # of the whole run
    metrics_by_default: bool = False  # only where they take little of it

    def predicted_gb(self, images: int) -> float:
        """The peak of steps of so many images: on the line through the two largest sizes."""
        sizes = sorted(self.memory_gb)
        if not sizes:
            return math.inf if self.failed else self.before_gb
        last = sizes[-1]
        if sizes[1:]:
            earlier, before = sizes[-2], self.memory_gb[sizes[-2]]
        else:  # the first step also made the gradients and the optimizers' two moments, in float32
            earlier, before = 0, self.before_gb + 12e-9 * sum(self.parameters.values())
        slope = max(0.0, self.memory_gb[last] - before) / (last - earlier)
        return self.memory_gb[last] + slope * (images - last)

    def cost(self) -> Cost:
        """The estimate."""
        complete = [size for size, kinds in self.seconds.items() if len(kinds) == len(self.kinds)]
        size = max(complete or self.seconds, default=0)
        seconds, remark = self.seconds.get(size, {}), None
        mean = math.nan
        if seconds:
            weighted = sum(seconds[kind] * self.kinds[kind] for kind in seconds)
            mean = weighted / sum(self.kinds[kind] for kind in seconds) / size
        if not seconds:
            remark = f"no step of {self.trying} images was done in time"
        elif not complete:
            remark = (
                f"only {len(seconds)} of {len(self.kinds)} kinds of steps, with {size} images, were measured"
                " in time; the others take longer"
            )
        elif size < self.batch and size != self.images:
            remark = f"measured with {size} images at once, for lack of time"
        memory = self.predicted_gb(self.images)
        too_large = None
        if memory > self.available_gb or self.failed:
            wanted = "more memory than is free" if math.isinf(memory) else f"about {memory:.3g} GB"
            at_once = self.trying if self.failed and memory <= self.available_gb else self.images
            too_large = (
                f"{at_once} images at once would take {wanted}, but there are {self.available_gb:.3g}; "
                f"--batch-gpu computes a batch in parts. The time is that of {size} images"
            )
            remark = None
        training = mean * self.kimg * 1000
        metrics = self.metric_seconds
        if self.metrics_by_default and not affordable(metrics, training):
            metrics = 0.0
        return Cost(
            self.parameters,
            memory_gb=memory,
            seconds_per_kimg=mean * 1000,
            hours=(training + metrics) / 3600,
            too_large=too_large,
            metric_hours=metrics / 3600,
            remark=remark,
        )


def affordable(metrics: float, training: float) -> bool:
    """Are metrics that take so many seconds on by default in a run whose training takes so many?"""
    return metrics < _METRIC_SHARE * training


def probe(loop: Loop, *, seconds: float = _SECONDS) -> Cost:
    """Takes a step of every kind that the task has, repeats them, and weights them by how often they occur.
    The loop cannot be used afterwards, since its networks have been trained.

    It first takes steps of a few images, then of more, as long as these predict that the next ones fit into
    the free memory and the time. Otherwise they are not tried, and the result says so.
    """
    *_, trials = trying(loop, seconds=seconds)
    return trials.cost()


def trying(loop: Loop, *, seconds: float, available_gb: float = 0.0) -> Iterator[Trials]:
    """The trials of `probe`, after each step. What this process has taken so far is part of the memory that
    is available."""
    end = time.perf_counter() + seconds
    config, images = loop.config, part_size(loop.config, 1)
    steps = loop.task.kinds_of_steps()
    # The most frequent kind first, in case that there is time for no other.
    counts = dict(Counter(steps).most_common())
    first = {kind: steps.index(kind) for kind in counts}
    trained = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad)
        for name, module in loop.state.modules().items()
    }
    trials = Trials(
        {name: count for name, count in trained.items() if count},
        kinds=[counts[kind] for kind in first],
        images=images,
        batch=config.batch,
        kimg=config.kimg,
        available_gb=available_gb or available_memory_gb(loop.device) + peak_memory_gb(loop.device),
        before_gb=peak_memory_gb(loop.device),
    )
    yield trials
    size = _TRIAL if math.prod(loop.data.item_shape[-2:]) < _LARGE else 1
    while size < images:
        begin = time.perf_counter()
        small = dataclasses.replace(config, batch=size, batch_gpu=None)
        yield from _measure(trials, Loop(loop.task.with_config(small)), size, first, 1, end)
        taken, following = time.perf_counter() - begin, min(2 * size, images)
        out_of_time = time.perf_counter() + taken * following / size > end
        # One size does not tell what an image takes.
        too_large = len(trials.memory_gb) > 1 and trials.predicted_gb(following) > trials.available_gb
        if trials.failed or out_of_time or too_large:
            break
        size *= 2
    else:
        yield from _measure(trials, loop, images, first, _ROUNDS, end)
    if not trials.failed and (metrics := loop.task.metric_seconds()):
        trials.metric_seconds, trials.metrics_by_default = metrics, loop.task.metrics_by_default
        yield trials


def _measure(
    trials: Trials, loop: Loop, at_once: int, first: Mapping[Hashable, int], rounds: int, end: float
) -> Iterator[Trials]:
    """Steps of a loop's batch, of which `at_once` images are computed at once."""
    images = loop.config.batch
    trials.trying = at_once
    yield trials
    with loop.prepared_step() as take:
        for _ in range(rounds):
            for kind, step in enumerate(first.values()):
                if trials.seconds and time.perf_counter() > end:
                    return
                loop.state.step = step
                begin = time.perf_counter()
                try:
                    take()
                except (MemoryError, RuntimeError) as error:
                    if not _is_of_memory(error):
                        raise
                    trials.failed = True
                    yield trials
                    return
                seconds = time.perf_counter() - begin
                best = trials.seconds.setdefault(images, {})
                best[kind] = min(best.get(kind, math.inf), seconds)
                trials.memory_gb[at_once] = peak_memory_gb(loop.device)
                yield trials


def _is_of_memory(error: Exception) -> bool:
    # PyTorch's and oneDNN's allocators, and C++'s.
    words = ("memory", "alloc")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


# ---- in another process ------------------------------------------------------------------------------------


def measure(command: Sequence[str], given: str, available_gb: float | None) -> Cost:
    """The estimate of another process, with a bar on stderr.

    Args:
        command: starts a process that calls `answer` with a loop.
        given: what it reads from stdin.
        available_gb: the memory of this machine that it may take; None for any, since a GPU's allocator has
            its own limit.

    Raises:
        RuntimeError: it ended with an error, in the words of the error's last line.
    """
    limit = 0 if available_gb is None else int(available_gb * _SHARE * 1e9)
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*command, str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        ) as child,
    ):
        assert child.stdin is not None
        try:
            with suppress(BrokenPipeError):  # it has ended already, and said why
                child.stdin.write(given.encode())
                child.stdin.close()
            *_, (trials, ended) = _answers(child)
        finally:
            child.kill()
            child.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    if trials is None or (ended and child.returncode > 0):
        reason = lines[-1] if lines else f"it ended with exit status {child.returncode}"
        if trials is None and not ended:
            reason = "the data were not opened in time"
        raise RuntimeError(f"the cost could not be measured: {reason}")
    if ended and child.returncode < 0:  # killed: by the system, for want of memory, or by its allocator
        trials.failed = True
    return trials.cost()


def _answers(child: subprocess.Popen[bytes]) -> Iterator[tuple[Trials | None, bool]]:
    """What the process has measured so far, and whether it has ended by itself."""
    assert child.stdout is not None
    begin, opened, trials, unread = time.perf_counter(), False, None, b""
    with tqdm(
        total=_SECONDS,
        desc="trying steps",
        bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}",
        leave=False,
        disable=None,
    ) as bar:
        while True:
            seconds = time.perf_counter() - begin
            if seconds > (_SECONDS + _PATIENCE if opened else _OPENING):
                yield trials, False
                return
            bar.n = min(seconds, _SECONDS) if opened else 0
            bar.set_description_str(
                f"trying steps of {trials.trying} images" if trials and trials.trying else "opening the data"
            )
            if not select.select([child.stdout], [], [], 0.5)[0]:
                continue
            data = os.read(child.stdout.fileno(), 1 << 16)
            *lines, unread = (unread + data).split(b"\n")
            if lines:
                if not opened:
                    begin, opened = time.perf_counter(), True
                trials = _from_json(json.loads(lines[-1]))
                yield trials, False
            if not data:
                child.wait()
                yield trials, True
                return


def _from_json(values: dict[str, Any]) -> Trials:
    seconds = {
        int(size): {int(kind): value for kind, value in kinds.items()}
        for size, kinds in values.pop("seconds").items()
    }
    memory = {int(size): value for size, value in values.pop("memory_gb").items()}
    return Trials(**values, seconds=seconds, memory_gb=memory)


def answer(make_loop: Callable[[str], Loop]) -> None:
    """The other end of `measure`: reads what was given, and prints what is measured."""
    limit, given = int(sys.argv[-1]), sys.stdin.read()
    if sys.platform == "linux":
        # If memory runs out all the same, this process is the one to be killed.
        Path("/proc/self/oom_score_adj").write_text("1000")
        if limit:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    for trials in trying(make_loop(given), seconds=_SECONDS, available_gb=limit / 1e9):
        print(json.dumps(dataclasses.asdict(trials)), flush=True)
