"""Each pixel's feature vector, normalised to unit mean square (Karras et al. 2018, "Progressive Growing of
GANs", section 4.2).

The first two orders of differentiation are kernels, from the third on it is plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor
from aigc_ext.ops._autograd import empty_dense_like, reference_gradients
from aigc_ext.ops._mode import decomposed

_pixel_norm = torch.ops.aigc.pixel_norm.default
_backward = torch.ops.aigc.pixel_norm_backward.default
_double_backward = torch.ops.aigc.pixel_norm_double_backward.default


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """``x * rsqrt(mean(x**2, dim) + eps)`` in one pass.

    Args:
        x: one dimension or more, contiguous or channels-last without a copy; float64, float32, float16 or
            bfloat16 (half types are computed in float32).
        dim: the dimension of the features.
        eps: at least 0 and finite.

    Returns:
        A tensor of x's shape, channels-last if ``x`` is, else contiguous. Differentiable to every order.

    Raises:
        TypeError: ``x`` is no tensor.
        RuntimeError: ``dim`` or ``eps`` out of range; dtype or device not supported.
    """
    if not isinstance(x, Tensor):
        raise no_tensor("pixel_norm", x=x)
    if decomposed():
        return pixel_norm_ref(x, dim, eps)
    y: Tensor = _pixel_norm(x, dim, eps)
    return y


def pixel_norm_ref(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """:func:`pixel_norm` in plain PyTorch."""
    return x * (x.square().mean(dim, keepdim=True) + eps).rsqrt()


# ---- registration ------------------------------------------------------------------------------------------


def _check_dim(op: str, x: Tensor, dim: int) -> None:
    if not -x.dim() <= dim < x.dim():
        raise RuntimeError(f"{op}: dim is {dim}, but x has {x.dim()} dimensions")


@torch.library.register_fake("aigc::pixel_norm")
def _(x, dim, eps):  # type: ignore[no-untyped-def]
    check_fake("pixel_norm", x=x)
    _check_dim("pixel_norm", x, dim)
    return empty_dense_like(x)


@torch.library.register_fake("aigc::pixel_norm_backward")
def _(dy, x, dim, eps):  # type: ignore[no-untyped-def]
    check_fake("pixel_norm_backward", x=x, dy=dy)
    return empty_dense_like(x)


@torch.library.register_fake("aigc::pixel_norm_double_backward")
def _(u, dy, x, dim, eps):  # type: ignore[no-untyped-def]
    check_fake("pixel_norm_double_backward", x=x, dy=dy, u=u)
    return empty_dense_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dim, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _forward_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return _backward(dy, x, ctx.dim, ctx.eps), None, None


def _backward_gradients(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    dy, x = ctx.saved_tensors
    need_dy, need_x = ctx.needs_input_grad[:2]
    return (
        _backward(u, x, ctx.dim, ctx.eps) if need_dy else None,
        _double_backward(u, dy, x, ctx.dim, ctx.eps) if need_x else None,
        None,
        None,
    )


def _double_backward_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    def reference(u: Tensor, dy: Tensor, x: Tensor) -> Tensor:
        def mean(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).mean(ctx.dim, keepdim=True)

        r = (mean(x, x) + ctx.eps).rsqrt()
        x_dy, x_u = mean(x, dy), mean(x, u)
        return -(r**3) * (x_dy * u + x_u * dy + (mean(dy, u) - 3 * r**2 * x_dy * x_u) * x)

    return *reference_gradients(reference, ctx.saved_tensors, ctx.needs_input_grad[:3], [grad]), None, None


torch.library.register_autograd("aigc::pixel_norm", _forward_gradient, setup_context=_save)
torch.library.register_autograd("aigc::pixel_norm_backward", _backward_gradients, setup_context=_save)
torch.library.register_autograd(
    "aigc::pixel_norm_double_backward", _double_backward_gradients, setup_context=_save
)
