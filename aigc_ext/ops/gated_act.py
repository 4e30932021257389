"""The gated activation unit ``tanh(x1) * sigmoid(x2)`` with its bias (van den Oord et al. 2016, "Conditional
Image Generation with PixelCNN Decoders", equation 2; also WaveNet's).

Forward and backward are kernels; higher orders are plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_same_kind, no_tensor, promoted_dtype, shape_of
from aigc_ext.ops._layout import empty_dense_like, new_like_images
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native


def gated_act(x: Tensor, b: Tensor | None = None) -> Tensor:
    """``tanh(z1) * sigmoid(z2)`` in one pass, where z1 and z2 are the two halves of the channels of ``x +
    b``.

    Args:
        x: ``[N, 2C, ...]``, contiguous or channels-last without a copy; float64, float32, float16 or
            bfloat16 (half types are computed in float32).
        b: bias of shape ``[2C]``, or None. If dtypes differ, both are promoted to the wider one.

    Returns:
        ``[N, C, ...]``, channels-last if ``x`` is, else contiguous. Differentiable to every order in x and b.

    Raises:
        TypeError: an argument is not a tensor.
        RuntimeError: the number of channels is odd; ``b`` doesn't match ``x``; dtype or device not supported.
    """
    if not (isinstance(x, Tensor) and (b is None or isinstance(b, Tensor))):
        raise no_tensor("gated_act", optional=("b",), x=x, b=b)
    if decomposed():
        return gated_act_ref(x, b)
    if b is not None and b.dtype != x.dtype:
        dtype = promoted_dtype("gated_act", x=x, b=b)
        x, b = x.to(dtype), b.to(dtype)
    y: Tensor = _gated_act(x, b)
    return y


def gated_act_ref(x: Tensor, b: Tensor | None = None) -> Tensor:
    """:func:`gated_act` in plain PyTorch."""
    z1, z2 = _halves(x, b)
    return z1.tanh() * z2.sigmoid()


# ---- native ops --------------------------------------------------------------------------------------------


def _halves(x: Tensor, b: Tensor | None, op: str = "gated_act") -> tuple[Tensor, Tensor]:
    if x.dim() < 2 or x.size(1) % 2 != 0:
        raise RuntimeError(
            f"{op}: x has shape {shape_of(x)}, but must be [N, C, ...] with an even number of channels C"
        )
    if b is not None:
        x = x + b.reshape(-1, *[1] * (x.dim() - 2))
    half = x.size(1) // 2
    return x[:, :half], x[:, half:]


def _result_size(op: str, x: Tensor, b: Tensor | None) -> list[int]:
    check_same_kind(op, x=x)
    half, _ = _halves(x, None, op)
    check_same_kind(op, x=x, b=b)
    if b is not None and b.shape != x.shape[1:2]:
        raise RuntimeError(
            f"{op}: b has shape {shape_of(b)}, but must be [{x.size(1)}] for an x of shape {shape_of(x)}"
        )
    return list(half.shape)


def _fake(x: Tensor, b: Tensor | None) -> Tensor:
    return new_like_images(x, _result_size("gated_act", x, b))


def _fake_backward(dy: Tensor, x: Tensor, b: Tensor | None, need_b: bool) -> tuple[Tensor, Tensor]:
    op = "gated_act_backward"
    size = _result_size(op, x, b)
    if need_b and b is None:
        raise RuntimeError(f"{op}: the gradient of b is asked for, but b is not given")
    check_same_kind(op, x=x, dy=dy)
    if list(dy.shape) != size:
        raise RuntimeError(
            f"{op}: dy has shape {shape_of(dy)}, but must be that of x, {shape_of(x)}, with half the channels"
        )
    return empty_dense_like(x), x.new_empty(x.size(1) if need_b else 0)


def _backward_ref(dy: Tensor, x: Tensor, b: Tensor | None, need_b: bool) -> tuple[Tensor, Tensor]:
    z1, z2 = _halves(x, b)
    t, s = z1.tanh(), z2.sigmoid()
    dz = torch.cat([dy * s * (1 - t * t), dy * t * s * (1 - s)], 1)
    return dz, dz.movedim(1, 0).flatten(1).sum(1) if need_b else x.new_empty(0)


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
    dx, db = _backward(dy, a.x, a.b, needs.b)
    return dx, db if needs.b else None


_backward = native("gated_act_backward", fake=_fake_backward, reference=_backward_ref)
_gated_act = native("gated_act", fake=_fake, gradients=_gradients)

OPS = [Op(gated_act, gated_act_ref, {"x": (2, 6, 4, 4), "b": (6,)})]
