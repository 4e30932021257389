"""Errors as shown to users: one line, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


class InputError(click.ClickException):
    """The user's input is wrong."""

    exit_code = 2


class RunFailure(click.ClickException):
    """The command failed while working."""

    exit_code = 1


@contextmanager
def input_errors() -> Iterator[None]:
    """Turns the errors that this package and the system raise for wrong input into InputError.

    Use it only around code that reads and checks the user's input: later a ValueError is a bug and deserves
    its traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error
