"""Argument checks that the ops' Python sides share. Each error names op, argument, value and what is allowed.

The native code checks what it is given. Here is what never gets there: objects that are no tensors,
promotion, and the fake kernels, which also answer for a call that mixes ``meta`` tensors with real ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def no_tensor(op: str, optional: tuple[str, ...] = (), **arguments: object) -> TypeError:
    """The error for the first of the arguments that is not a tensor (nor None, where it is optional)."""
    for name, value in arguments.items():
        if not (isinstance(value, Tensor) or (value is None and name in optional)):
            allowed = "a tensor or None" if name in optional else "a tensor"
            return TypeError(f"{op}: {name} is {_short(value)}, but must be {allowed}")
    raise AssertionError("all of them are tensors")


def promoted_dtype(op: str, **tensors: Tensor | None) -> torch.dtype:
    """The widest dtype of the tensors, each of which must be of a dtype that the ops know."""
    dtypes = []
    for name, tensor in tensors.items():
        if tensor is not None:
            if tensor.dtype not in DTYPES:
                allowed = "float64, float32, float16 or bfloat16"
                raise RuntimeError(f"{op}: {name} is {_dtype_name(tensor.dtype)}, but must be {allowed}")
            dtypes.append(tensor.dtype)
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype


def check_fake(op: str, **tensors: Tensor | None) -> None:
    """All on the first one's device and of its dtype, as the native code checks for real tensors."""
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first, like = given[0]
    promoted_dtype(op, **{first: like})
    for name, tensor in given[1:]:
        if tensor.device != like.device:
            raise RuntimeError(
                f"{op}: {name} is on {tensor.device}, but must be on {like.device}, as {first} is"
            )
        if tensor.dtype != like.dtype:
            dtype, wanted = _dtype_name(tensor.dtype), _dtype_name(like.dtype)
            raise RuntimeError(f"{op}: {name} is {dtype}, but must be {wanted}, as {first} is")


def shape_of(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short(value: object) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if value is None else f"{text} ({type(value).__name__})"
