"""Random numbers of a batch that is computed in parts, by one process after another or by several.

A layer that draws noise for each sample calls :func:`batch_randn`. Inside :func:`split_batch` each part of a
batch then gets the very rows that the whole batch would have got, if every part starts from the same state of
PyTorch's generator: the whole batch's noise is drawn, and the part's rows are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# A plain module global, because Dynamo guards on it; it holds for the whole process, not for one thread.
_part: tuple[int, int] | None = None


@contextmanager
def split_batch(total: int, start: int) -> Iterator[None]:
    """Inside, a batch of n samples is the rows from ``start`` to ``start + n`` of one of ``total``.

    Raises:
        ValueError: ``start`` is not a row of the batch.
    """
    global _part
    if not 0 <= start < max(total, 1):
        raise ValueError(f"start is {start}, but must be from 0 to {total - 1}")
    before, _part = _part, (total, start)
    try:
        yield
    finally:
        _part = before


def batch_randn(
    n: int, *shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """``torch.randn(n, *shape)``, of which the first dimension is the batch.

    Raises:
        ValueError: inside :func:`split_batch`, the part does not lie in the batch.
    """
    return _draw(torch.randn, n, shape, device, dtype)


def batch_rand(
    n: int, *shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """``torch.rand(n, *shape)``, as :func:`batch_randn`."""
    return _draw(torch.rand, n, shape, device, dtype)


def _draw(
    draw: Callable[..., Tensor],
    n: int,
    shape: tuple[int, ...],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    total, start = _part or (n, 0)
    if start + n > total:
        raise ValueError(f"a part of {n} samples from {start} on does not lie in a batch of {total}")
    numbers = draw(total, *shape, device=device, dtype=dtype)
    return numbers if n == total else numbers[start : start + n]
