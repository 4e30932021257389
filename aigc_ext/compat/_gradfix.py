"""The API of several projects for convolutions that can leave out weight gradients in gradient penalties."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from aigc_ext.compat._recognition import Api
from aigc_ext.ops._apart import is_apart
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops.conv2d_act import is_pytorchs

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
    if _is_pytorchs(input, weight, stride, padding, dilation, 0, groups, False):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
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
    if _is_pytorchs(input, weight, stride, padding, dilation, output_padding, groups, True):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return ops.conv_transpose2d_act(input, weight, bias, stride, padding, output_padding, groups, dilation)


def _is_pytorchs(
    x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, extra: Any, groups: int, transposed: bool
) -> bool:
    """Would our op run PyTorch's convolution? Called directly, it is faster: today's PyTorch, too, computes
    only the gradients that ``torch.autograd.grad`` is asked for."""
    if isinstance(padding, str) or torch.compiler.is_compiling() or decomposed():
        return True
    if not (x.dim() == w.dim() == 4) or is_apart(x):
        return False
    sizes = [[n, n] if isinstance(n, int) else list(n) for n in (stride, padding, dilation, extra)]
    return is_pytorchs(x, w, (*sizes, groups, transposed))  # type: ignore[arg-type]


@contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """:func:`aigc_ext.no_weight_gradients`, or nothing. It saves work in our own ops; PyTorch's convolutions
    compute what ``torch.autograd.grad`` asks for."""
    if not disable:
        yield
        return
    with ops.no_weight_gradients():
        yield


API = Api(
    "conv2d_gradfix",
    "conv2d",
    {
        "conv2d": conv2d,
        "conv_transpose2d": conv_transpose2d,
        "no_weight_gradients": no_weight_gradients,
        "enabled": True,  # projects set it; it has no effect, ours is always correct
        "weight_gradients_disabled": False,
    },
    distinct=False,
)
