"""Conversion between stored bytes and the value range of a model."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalize(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Maps uint8 images of any shape to float32 so that 0 becomes `value_range[0]` and 255 `value_range[1]`.

    Raises:
        ValueError: `images` aren't uint8, or `value_range` isn't (low, high) with low < high.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, but must be torch.uint8")
    low, high = checked_range(value_range)
    # Dividing, not multiplying by the reciprocal: 255 and 127.5 are exact, so both ends of the range are
    # reached.
    return images.to(torch.float32).div_(255 / (high - low)).add_(low)


def to_uint8(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """The inverse of `normalize`: rounds to nearest, clamps values outside `value_range`, and maps NaN to 0.

    Takes any floating dtype and computes in at least float32.

    Raises:
        ValueError: `images` aren't floating point, or `value_range` isn't (low, high) with low < high.
    """
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, but must be floating point")
    low, high = checked_range(value_range)
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    # NaN must be replaced before the cast, whose result would be undefined.
    levels = (wide - low).mul_(255 / (high - low)).round_()
    return levels.nan_to_num_(nan=0.0).clamp_(0, 255).to(torch.uint8)


def checked_range(value_range: tuple[float, float]) -> tuple[float, float]:
    """`value_range`, or a ValueError if it isn't (low, high) with low < high."""
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range is {value_range}, but must be two finite numbers, the lower one first")
    return low, high
