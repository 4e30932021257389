"""Errors as a user meets them: one line, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


class InputError(click.ClickException):
    """Something that the user gave is wrong."""

    exit_code = 2


class RunFailure(click.ClickException):
    """The work could not be finished."""

    exit_code = 1


@contextmanager
def input_errors() -> Iterator[None]:
    """Turns what this package and the system raise for wrong input into InputError.

    Only around code that reads and checks what the user gave: later a ValueError is a bug and deserves its
    traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error
