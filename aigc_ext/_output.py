"""Standard output that nobody reads any more."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UnreadOutput(SystemExit):
    """The reader has left; as SystemExit it ends a program with the status of SIGPIPE."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGPIPE)


def discard_output() -> None:
    """Gives up what is left in the buffers; else it would fail once more, loudly, when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


@contextmanager
def unread_output() -> Iterator[None]:
    """Raises UnreadOutput if the reader of what is printed has left, as `head` does when it has its lines."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        discard_output()
        raise UnreadOutput from error
