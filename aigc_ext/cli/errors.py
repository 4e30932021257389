"""Errors as shown to users: one line, and an exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import click

from aigc_ext import _files


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
    except OSError as error:
        raise InputError(_files.describe_os_error(error)) from error
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error


def lack_of_memory(error: Exception) -> str | None:
    """What to say if an exception means that an allocation failed; None for another.

    PyTorch raises a RuntimeError on the CPU, which only its text distinguishes.
    """
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError):
        if not re.search(
            "(can't|cannot) allocate memory|not enough memory|bad_alloc|CUDA out of memory", text
        ):
            return None
        # The place in PyTorch where it was noticed helps nobody.
        text = re.sub(r"\[enforce fail at \S+\] \S+ == \S+\. ", "", text)
    elif not isinstance(error, MemoryError):
        return None
    return f"there is not enough memory{f' ({text})' if text else ''}"
