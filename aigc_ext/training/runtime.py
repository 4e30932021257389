"""Context managers for the process-wide settings of a training run, which they restore."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from aigc_ext._device import usable_device
from aigc_ext.config import ConfigError
from aigc_ext.training.config import RunConfig

_CUBLAS_WORK_SPACE = "CUBLAS_WORKSPACE_CONFIG"


def resolve_device(name: str) -> torch.device:
    """The device named by `config.device`; raises ConfigError if this process cannot use it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one GPU per process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    known = "'auto', 'cpu', 'cuda' or 'cuda:N'"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}, but must be {known}")
    try:
        return usable_device(name, known)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def derive_seed(seed: int, purpose: str) -> int:
    """An independent 63-bit seed for each purpose: equal seeds give equal numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


@contextmanager
def torch_settings(config: RunConfig) -> Iterator[None]:
    """Applies the config's number of CPU threads and choice of deterministic algorithms.

    With deterministic algorithms, PyTorch rejects cuBLAS unless an environment variable limits its workspace;
    if that is missing, it is set in the meantime.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    work_space = os.environ.get(_CUBLAS_WORK_SPACE)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
        os.environ.setdefault(_CUBLAS_WORK_SPACE, ":4096:8")
    try:
        yield
    finally:
        if work_space is None:
            os.environ.pop(_CUBLAS_WORK_SPACE, None)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Inside, each step seeds PyTorch's global generators; afterwards the caller's state is restored.

    The networks' own random numbers, such as for dropout, come from them.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class StopSignals:
    """Records SIGINT, SIGTERM and SIGHUP, a closed terminal's, instead of dying from them; the second one has
    its usual effect. Under nohup, SIGHUP stays ignored.

    It does nothing outside the main thread, where Python allows no signal handlers.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first one
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
