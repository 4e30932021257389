"""Noise that depends on the sample, not on the part of the batch in which it is computed.

A batch may be computed in parts, one after the other (gradient accumulation) or in several processes. Random
numbers drawn inside a network, like the noise of StyleGAN's synthesis, should be those of the whole batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _State(threading.local):
    """Per thread. Dynamo guards on the attribute, but only because it is the instance's, not the class's."""

    def __init__(self) -> None:
        self.part: tuple[int, int] | None = None


_state = _State()


@contextmanager
def split_batch(total: int, start: int) -> Iterator[None]:
    """Inside, :func:`batch_randn` treats its samples as rows of a batch of `total`, beginning at `start`.

    For the same noise, the random number generator must be in the same state before each part: equal in all
    processes, or restored by the caller before the next part. It advances as for the whole batch.
    It holds for the calling thread; when nested, the inner one applies.

    Raises:
        ValueError: `start` is negative or beyond `total`.
    """
    if not 0 <= start <= total:
        raise ValueError(f"start is {start}, but must be from 0 to total, {total}")
    outside, _state.part = _state.part, (total, start)
    try:
        yield
    finally:
        _state.part = outside


def whole_batch(n: int) -> int:
    """The size of the whole batch that these n samples are part of; n outside :func:`split_batch`."""
    return n if _state.part is None else _state.part[0]


def whole_batch_part(n: int) -> tuple[int, int]:
    """Where n samples begin in the whole batch, and its size; (0, n) outside :func:`split_batch`."""
    return (0, n) if _state.part is None else (_state.part[1], _state.part[0])


def batch_randn(
    n: int, *shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """(n, *shape) from N(0, 1), drawn from PyTorch's global random number generator.

    Inside :func:`split_batch`, these are n rows of the (total, *shape) that the whole batch would draw.

    Raises:
        ValueError: inside `split_batch`, `start + n` is more than `total`.
    """
    rows = _rows(n)
    numbers = torch.randn(whole_batch(n), *shape, device=device, dtype=dtype)
    return numbers if rows is None else numbers[rows]


def batch_rand(
    n: int, *shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """(n, *shape) from the uniform distribution on [0, 1), in every other respect as :func:`batch_randn`."""
    rows = _rows(n)
    numbers = torch.rand(whole_batch(n), *shape, device=device, dtype=dtype)
    return numbers if rows is None else numbers[rows]


def _rows(n: int) -> slice | None:
    """Where n samples are in the whole batch; None outside :func:`split_batch`."""
    if _state.part is None:
        return None
    total, start = _state.part
    if start + n > total:
        raise ValueError(
            f"n is {n}, but must be at most {total - start}: the batch has {total} samples, "
            f"and this part starts at {start}"
        )
    return slice(start, start + n)
