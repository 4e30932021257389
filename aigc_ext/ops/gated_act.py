"""The gated activation unit ``tanh(x1) * sigmoid(x2)`` with its bias (van den Oord et al. 2016, "Conditional
Image Generation with PixelCNN Decoders", equation 2; also WaveNet's).

Forward and backward are kernels, from the second order on it is plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, promoted_dtype, shape_of
from aigc_ext.ops._autograd import empty_dense_like, is_channels_last, reference_gradients
from aigc_ext.ops._mode import decomposed

_gated_act = torch.ops.aigc.gated_act.default
_backward = torch.ops.aigc.gated_act_backward.default


def gated_act(x: Tensor, b: Tensor | None = None) -> Tensor:
    """``tanh(z1) * sigmoid(z2)`` in one pass, z1 and z2 being the two halves of the channels of ``x + b``.

    Args:
        x: ``[N, 2C, ...]``, contiguous or channels-last without a copy; float64, float32, float16 or
            bfloat16 (half types are computed in float32).
        b: bias of shape ``[2C]``, or None. If dtypes differ, both are promoted to the wider one.

    Returns:
        ``[N, C, ...]``, channels-last if ``x`` is, else contiguous. Differentiable to every order in x and b.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: the number of channels is odd; ``b`` doesn't fit ``x``; dtype or device not supported.
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


# ---- registration ------------------------------------------------------------------------------------------


def _halves(x: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    if x.dim() < 2 or x.size(1) % 2 != 0:
        raise RuntimeError(
            f"gated_act: x has shape {shape_of(x)}, but must be [N, C, ...] with an even number of channels C"
        )
    if b is not None:
        x = x + b.reshape(-1, *[1] * (x.dim() - 2))
    half = x.size(1) // 2
    return x[:, :half], x[:, half:]


def _check_fake(op: str, x: Tensor, b: Tensor | None) -> None:
    check_fake(op, x=x, b=b)
    _halves(x, None)
    if b is not None and b.shape != x.shape[1:2]:
        raise RuntimeError(f"{op}: b has shape {shape_of(b)}, but must be [{x.size(1)}]")


@torch.library.register_fake("aigc::gated_act")
def _(x, b):  # type: ignore[no-untyped-def]
    _check_fake("gated_act", x, b)
    shape = [x.size(0), x.size(1) // 2, *x.shape[2:]]
    if not is_channels_last(x):
        return x.new_empty(shape)
    return x.new_empty([shape[0], *shape[2:], shape[1]]).movedim(-1, 1)


@torch.library.register_fake("aigc::gated_act_backward")
def _(dy, x, b, need_b):  # type: ignore[no-untyped-def]
    _check_fake("gated_act_backward", x, b)
    check_fake("gated_act_backward", x=x, dy=dy)
    return empty_dense_like(x), x.new_empty(x.size(1) if need_b else 0)


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _forward_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, b = ctx.saved_tensors
    need_x, need_b = ctx.needs_input_grad
    dx, db = _backward(dy, x, b, need_b)
    return dx if need_x else None, db if need_b else None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dy, x, b, ctx.need_b = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, x, b)


def _backward_gradients(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    def reference(dy: Tensor, x: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        z1, z2 = _halves(x, b)
        t, s = z1.tanh(), z2.sigmoid()
        dz = torch.cat([dy * s * (1 - t * t), dy * t * s * (1 - s)], 1)
        return dz, dz.movedim(1, 0).flatten(1).sum(1) if ctx.need_b else x.new_empty(0)

    return *reference_gradients(reference, ctx.saved_tensors, ctx.needs_input_grad[:3], grad_outputs), None


torch.library.register_autograd("aigc::gated_act", _forward_gradients, setup_context=_setup_forward)
torch.library.register_autograd(
    "aigc::gated_act_backward", _backward_gradients, setup_context=_setup_backward
)
