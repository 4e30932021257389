"""Noise that belongs to a sample, whatever the part of the batch it is computed in.

A batch may be computed in parts: one after the other (gradient accumulation) or in several processes. What a
network draws inside, like the noise of StyleGAN's synthesis, is to be the same as for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# A plain module global, because Dynamo guards on it; it holds for the whole process, not for one thread.
_part: tuple[int, int] | None = None


@contextmanager
def split_batch(total: int, start: int) -> Iterator[None]:
    """Inside, :func:`batch_randn` takes its samples to be rows of a batch of `total`, from `start` on.

    For the same noise the random number generator must be in the same state before each part: in every
    process, or set back by the caller before the next part. It moves on as for the whole batch. Process-wide;
    when nested, the inner one holds.

    Raises:
        ValueError: `start` is negative or beyond `total`.
    """
    if not 0 <= start <= total:
        raise ValueError(f"start is {start}, but must be from 0 to total, {total}")
    global _part
    outside, _part = _part, (total, start)
    try:
        yield
    finally:
        _part = outside


def whole_batch(n: int) -> int:
    """Samples of the whole batch that these n are a part of; n outside :func:`split_batch`."""
    return n if _part is None else _part[0]


def batch_randn(
    n: int, *shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """(n, *shape) from N(0, 1), of PyTorch's global random number generator.

    Inside :func:`split_batch` these are n rows of the (total, *shape) that the whole batch would draw.

    Raises:
        ValueError: inside `split_batch`, `start + n` is more than `total`.
    """
    if _part is None:
        return torch.randn(n, *shape, device=device, dtype=dtype)
    total, start = _part
    if start + n > total:
        raise ValueError(
            f"n is {n}, but must be at most {total - start}: the batch has {total} samples, "
            f"and this part starts at {start}"
        )
    return torch.randn(total, *shape, device=device, dtype=dtype)[start : start + n]
