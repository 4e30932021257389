"""The statistics and progress line of a run."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

_LINE = "{{percentage:3.0f}}%|{bar}| {{n:.1f}}/{{total:g}} kimg [{{elapsed}}<{{remaining}}{postfix}]"
_SHORTEST_BAR, _LONGEST_BAR = 4, 20
_SECONDS = 0.5
_SECONDS_IN_A_FILE = 10.0


class RunningMeans:
    """Means of the steps' statistics: `sums` of the finite values and their `counts`, on the device."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = names
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)

    def add(self, statistics: Tensor) -> None:
        finite = statistics.isfinite()
        self.sums += torch.where(finite, statistics, 0.0)
        self.counts += finite

    def read(self) -> dict[str, float | None]:
        """The means by name, None where there was no finite value. Waits for the device."""
        means = zip(self._names, self.sums.tolist(), self.counts.tolist(), strict=True)
        return {name: total / count if count else None for name, total, count in means}

    def reset(self) -> None:
        self.sums.zero_()
        self.counts.zero_()


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in gigabytes (1e9 bytes): the allocator's on CUDA, otherwise the process's resident
    size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def memory_size_gb(device: torch.device) -> float:
    """Total memory of the device or the machine in gigabytes (1e9 bytes), in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def available_memory_gb(device: torch.device) -> float:
    """Memory of the device or the machine that can be had now, in gigabytes (1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    sizes = [_meminfo_available(), *(limit - used for limit, used in _cgroup_memory())]
    known = [size for size in sizes if size is not None]
    return max(0, min(known)) / 1e9 if known else memory_size_gb(device)


def _meminfo_available() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:  # another system than Linux
        return None
    return int(found[1]) * 1024 if found else None


def _cgroup_memory() -> Iterator[tuple[int, int]]:
    """The limit of this process's containers, and what they use of it that cannot be taken back."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    names = {
        "": ("memory.max", "memory.current"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    }
    for line in groups:
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in names:
            continue
        root = Path("/sys/fs/cgroup", kind)
        for folder in dict.fromkeys(
            (root / path.lstrip("/"), root)
        ):  # a container may see its own as the root
            try:
                limit, used = ((folder / name).read_text().strip() for name in names[kind])
                stat = (folder / "memory.stat").read_text()
            except OSError:
                continue
            cache = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
            if limit.isdigit():
                yield int(limit), int(used) - (int(cache[1]) if cache else 0)


def fitting(parts: Sequence[str], room: int) -> tuple[list[str], int]:
    """The parts of a line that fit into `room` columns, and the width that is left for a bar, at most 20.
    The rate, which comes first, and the first two statistics matter most, and the memory, the last part, more
    than the others."""
    places = range(len(parts))
    by_weight = sorted(places, key=lambda i: (i > 2) + (i > 2 and i != places[-1]))
    kept: list[int] = []
    for i in by_weight:
        needed = len(parts[i]) + 2  # with its comma
        if room - needed < _SHORTEST_BAR:
            break
        kept.append(i)
        room -= needed
    return [parts[i] for i in sorted(kept)], min(_LONGEST_BAR, room) if room >= _SHORTEST_BAR else 0


class ProgressLine(AbstractContextManager["ProgressLine"]):
    """One live line on stderr: kimg, time left, images or other items per second, some statistics and memory.

    It is redrawn at fixed intervals, so that a step costs nothing, and leaves out what a narrow terminal has
    no room for, the last statistics first. If stderr is not a terminal, it prints a line now and then.

    Args:
        nimg, total: images so far, and at the end.
        shown: the statistics to show, by their names on the line.
        item: what is counted.
    """

    def __init__(
        self,
        nimg: int,
        total: int,
        device: torch.device,
        shown: Mapping[str, str],
        *,
        item: str = "image",
        enabled: bool,
    ) -> None:
        self._device = device
        self._unit = "img" if item == "image" else item
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        self._interval = _SECONDS if self._terminal else _SECONDS_IN_A_FILE
        self._last_time = time.perf_counter()
        self._last_nimg = nimg
        self._bar = tqdm(
            initial=min(nimg, total) / 1000,  # a run may have gone beyond its end, by part of a batch
            total=total / 1000,
            disable=not enabled,
            dynamic_ncols=True,
            leave=self._terminal,
            bar_format=_LINE.format(bar="{bar:20}", postfix="{postfix}"),
        )

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def due(self) -> bool:
        return not self._bar.disable and time.perf_counter() - self._last_time >= self._interval

    def show(self, nimg: int, means: dict[str, float | None]) -> None:
        if self._bar.disable:
            return
        now = time.perf_counter()
        rate = (nimg - self._last_nimg) / (now - self._last_time)
        self._last_time, self._last_nimg = now, nimg
        # tqdm drops the bar beyond its total, which the last batch can exceed.
        self._bar.n = min(nimg / 1000, self._bar.total)
        figures = ((name, means[statistic]) for name, statistic in self._shown.items())
        shown = [f"{name} {'-' if value is None else format(value, '.3f')}" for name, value in figures]
        parts = [f"{rate:.0f} {self._unit}/s", *shown, f"{peak_memory_gb(self._device):.2f} GB"]
        if self._terminal:
            plain = {**self._bar.format_dict, "bar_format": _LINE.format(bar="", postfix=""), "postfix": ""}
            room = (
                shutil.get_terminal_size().columns
                - 1
                - len(self._bar.format_meter(**{**plain, "ncols": None}))
            )
            parts, width = fitting(parts, room)
            self._bar.bar_format = _LINE.format(bar=f"{{bar:{width}}}" if width else "", postfix="{postfix}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.refresh()
        if not self._terminal:
            self._bar.fp.write("\n")
