"""Argument checks shared by the Python side of the ops. Each error names op, argument, value and what is
allowed.

The native code checks its own arguments. These checks are for what never reaches it: objects that are not
tensors, type promotion, and the fake kernels, which also run for calls that mix ``meta`` and real tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def no_tensor(op: str, optional: tuple[str, ...] = (), **arguments: object) -> TypeError:
    """The error for the first argument that is not a tensor (or None, if it is optional)."""
    for name, value in arguments.items():
        if not (isinstance(value, Tensor) or (value is None and name in optional)):
            allowed = "a tensor or None" if name in optional else "a tensor"
            return TypeError(f"{op}: {name} is {_short(value)}, but must be {allowed}")
    raise AssertionError("all of them are tensors")


def promoted_dtype(op: str, **tensors: Tensor | None) -> torch.dtype:
    """The widest dtype of the tensors; each must have a dtype that the ops support."""
    dtypes = []
    for name, tensor in tensors.items():
        if tensor is not None:
            if tensor.dtype not in DTYPES:
                allowed = "float64, float32, float16 or bfloat16"
                raise RuntimeError(f"{op}: {name} is {dtype_name(tensor.dtype)}, but must be {allowed}")
            dtypes.append(tensor.dtype)
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """All must be on the first one's device, kind and index. Every fake kernel asks for it (``native``), as
    csrc/glue/errors.h does for every native op."""
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    for name, tensor in given[1:]:
        first, like = given[0]
        if tensor.device != like.device:
            raise RuntimeError(
                f"{op}: {name} is on {tensor.device}, but must be on {like.device}, as {first} is"
            )


def check_same_kind(op: str, **tensors: Tensor | None) -> None:
    """All must have the first one's dtype, one that the ops support."""
    (first, like), *others = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    promoted_dtype(op, **{first: like})
    for name, tensor in others:
        if tensor.dtype != like.dtype:
            dtype, wanted = dtype_name(tensor.dtype), dtype_name(like.dtype)
            raise RuntimeError(f"{op}: {name} is {dtype}, but must be {wanted}, as {first} is")


def check_same_shape(op: str, **tensors: Tensor | None) -> None:
    """All must have the first one's shape."""
    (first, like), *others = tensors.items()
    assert like is not None
    for name, tensor in others:
        if tensor is not None and tensor.shape != like.shape:
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(tensor)}, but {first} has shape {shape_of(like)}"
            )


def check_finite(op: str, **numbers: float) -> None:
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise RuntimeError(f"{op}: {name} is {number:g}, but must be finite")


def check_eps(op: str, eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise RuntimeError(f"{op}: eps is {eps:g}, but must be at least 0 and finite")


def size_product(op: str, *factors: int) -> int:
    """Like csrc/glue/errors.h, which refuses sizes that 64 bits do not hold."""
    return _size_if_fits(op, math.prod(factors), factors, " * ")


def size_sum(op: str, *terms: int) -> int:
    return _size_if_fits(op, sum(terms), terms, " + ")


def _size_if_fits(op: str, size: int, operands: tuple[int, ...], operation: str) -> int:
    # A size that a trace leaves open is no int; a comparison would set it a limit.
    if isinstance(size, int) and not -(1 << 63) <= size < 1 << 63:
        formula = operation.join(map(str, operands))
        raise RuntimeError(f"{op}: the sizes are too large: {formula} is more than 64 bits hold")
    return size


def wrap_dim(op: str, x: Tensor, dim: int) -> int:
    """``dim`` as a non-negative index of a dimension of ``x``."""
    if x.dim() == 0:
        raise RuntimeError(f"{op}: dim is {dim}, but a tensor of shape [] has no dimensions")
    if not -x.dim() <= dim < x.dim():
        raise RuntimeError(
            f"{op}: dim is {dim}, but must be from {-x.dim()} to {x.dim() - 1} for a tensor of shape "
            f"{shape_of(x)}"
        )
    return dim % x.dim()


def shape_of(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short(value: object) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if value is None else f"{text} ({type(value).__name__})"
