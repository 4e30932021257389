"""Memory formats and dtypes of results, for fake kernels and for ops written in Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of arithmetic on x and of sums over it: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Is dimension 1 innermost in memory and the rest in order? Any rank; torch names only ranks 4 and 5."""
    if x.dim() < 3 or x.is_contiguous():
        return False
    expected = 1
    for d in (1, *range(x.dim() - 1, 1, -1), 0):
        if x.size(d) > 1 and x.stride(d) != expected:
            return False
        expected *= max(x.size(d), 1)
    return True


def new_in_format(like: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """An uninitialised tensor of ``size``, in the memory format asked for, with like's dtype and device."""
    if not channels_last:
        return like.new_empty(size)
    return like.new_empty([size[0], *size[2:], size[1]]).movedim(-1, 1)


def new_like_images(like: Tensor, size: Sequence[int]) -> Tensor:
    """The same, channels-last if ``like`` is, else contiguous."""
    return new_in_format(like, size, is_channels_last(like))


def empty_dense_like(x: Tensor) -> Tensor:
    """An uninitialised result of x's size: channels-last if ``x`` is, else contiguous."""
    if x.is_contiguous() or is_channels_last(x):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
