"""The API of several projects for ``fused_leaky_relu``, its module and ``upfirdn2d``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aigc_ext import ops


def fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """``scale * leaky_relu(input + bias)``; ``input`` is ``[N, C, ...]``, ``bias`` ``[C]``."""
    return ops.bias_act(input, bias, dim=1, act="lrelu", alpha=negative_slope, gain=scale)


class FusedLeakyReLU(nn.Module):
    """:func:`fused_leaky_relu` with a learned bias of ``channel`` numbers, which starts at 0."""

    def __init__(
        self, channel: int, bias: bool = True, negative_slope: float = 0.2, scale: float = 2**0.5
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope = negative_slope
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)


class FusedBiasLeakyReLU(FusedLeakyReLU):
    """The same with a bias that is not optional."""

    def __init__(self, num_channels: int, negative_slope: float = 0.2, scale: float = 2**0.5) -> None:
        super().__init__(num_channels, True, negative_slope, scale)


def upfirdn2d(
    input: Tensor,
    kernel: Tensor,
    up: int | tuple[int, int] = 1,
    down: int | tuple[int, int] = 1,
    pad: tuple[int, ...] = (0, 0),
) -> Tensor:
    """``pad`` is (before, after) for both axes, or (left, right, top, bottom)."""
    padding = [*pad, *pad] if len(pad) == 2 else list(pad)
    return ops.upfirdn2d(input, kernel, up=up, down=down, padding=padding)
