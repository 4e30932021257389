"""Checks of arguments and inputs that all networks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_COARSEST = 4  # smallest side of the coarsest images, in pixels


def channels_at(sides: int, channel_base: int, channel_max: int) -> int:
    """The number of channels of images whose longer side has `sides` pixels.

    Raises:
        ValueError: there would be none.
    """
    if channel_base < sides:
        raise ValueError(f"channel_base is {channel_base}, but must be at least the longer side, {sides}")
    return min(channel_base // sides, channel_max)


def halvings_of(image_shape: Sequence[int]) -> int:
    """How many times the sides can be halved and still have at least 4 pixels.

    Raises:
        ValueError: they cannot be halved.
    """
    height, width = image_shape[1:]
    halvings = 0
    while height % 2 == width % 2 == 0 and min(height, width) >= 2 * _COARSEST:
        height, width, halvings = height // 2, width // 2, halvings + 1
    if halvings == 0:
        raise ValueError(
            f"image_shape is {tuple(image_shape)}, but height and width must be even and at least "
            f"{2 * _COARSEST}"
        )
    return halvings


def check_input(name: str, x: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    if x.ndim != 1 + len(shape) or x.shape[1:] != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, but must be (N, {', '.join(map(str, shape))})")
    if x.dtype != weight.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise ValueError(f"{name} is {x.dtype}, but must be {weight.dtype}, like the weights")


def check_labels(c: Tensor | None, batch: int, num_classes: int) -> None:
    """Raises ValueError if labels are missing, not used or wrong.

    The range is checked only where that needs no device synchronisation and no graph break: on the CPU,
    outside torch.compile. On CUDA the embedding's device-side assertion catches labels out of range.
    """
    if num_classes == 0:
        if c is not None:
            raise ValueError("c was given, but this network is unconditional (num_classes is 0): pass c=None")
        return
    if c is None:
        raise ValueError(
            f"c is None, but this network is conditional: pass labels from 0 to {num_classes - 1}"
        )
    if c.shape != (batch,):
        raise ValueError(f"c has shape {tuple(c.shape)}, but must be ({batch},)")
    if c.dtype != torch.int64:
        raise ValueError(f"c is {c.dtype}, but must be torch.int64")
    # Not where a dispatch mode may be recording either, as `tasks.gan.program` does.
    recorded = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if c.device.type == "cpu" and c.numel() and not recorded:
        low, high = int(c.min()), int(c.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"c has labels from {low} to {high}, but they must be from 0 to {num_classes - 1}"
            )
