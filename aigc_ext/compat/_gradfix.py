"""The API of several projects for convolutions that can leave out weight gradients in gradient penalties."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from aigc_ext import ops

Sizes = int | tuple[int, ...] | list[int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv2d``."""
    return ops.conv2d_act(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """``torch.nn.functional.conv_transpose2d``."""
    return ops.conv_transpose2d_act(input, weight, bias, stride, padding, output_padding, groups, dilation)


@contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """:func:`aigc_ext.no_weight_gradients`, or nothing."""
    if not disable:
        yield
        return
    with ops.no_weight_gradients():
        yield


MODULE = {
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "no_weight_gradients": no_weight_gradients,
    "enabled": True,  # projects set it; it has no effect, ours is always correct
    "weight_gradients_disabled": False,
}
