"""Progress of long work: those who do it report it, and those who want to see it listen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T", bound=Sized)

Listener = Callable[[str, int, int], object]
"""Called with what is done, how much of it, and how much it will be."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def tracked(what: str, parts: Iterable[T], total: int) -> Iterator[T]:
    """The parts, and a report before the first and after each; together they are `total` long."""
    listener, done = _listener.get(), 0
    if listener is None:
        yield from parts
        return
    listener(what, 0, total)
    for part in parts:
        yield part
        done += len(part)
        listener(what, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, in this thread, `listener` hears of the progress of long work."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def bars() -> Iterator[None]:
    """Inside, long work has a bar on stderr while it lasts, if that is a terminal."""
    shown: dict[str, tqdm] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in shown:
            shown[what] = tqdm(
                desc=what,
                total=total,
                leave=False,
                disable=None,
                dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {n}/{total} [{elapsed}<{remaining}]",
            )
        shown[what].update(done - shown[what].n)
        if done >= total:
            shown.pop(what).close()

    try:
        with listening(show):
            yield
    finally:
        for bar in shown.values():
            bar.close()
