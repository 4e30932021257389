"""The periodic activation ``x + sin(alpha * x)**2 / alpha`` with a frequency for each channel (Ziyin, Hartwig
and Ueda 2020, "Neural Networks Fail to Learn Periodic Functions and How to Fix It").

The first two orders of differentiation are kernels, from the third on it is plain PyTorch.
"""

from __future__ import annotations

from math import factorial
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import (
    check_same_kind,
    check_same_shape,
    no_tensor,
    promoted_dtype,
    shape_of,
    wrap_dim,
)
from aigc_ext.ops._gradients import leaf
from aigc_ext.ops._layout import empty_dense_like
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native


def snake(x: Tensor, alpha: Tensor, dim: int = 1) -> Tensor:
    """``x + sin(alpha * x)**2 / alpha`` in one pass; its limit, x, where ``alpha`` is 0.

    Args:
        x: one dimension or more, contiguous or channels-last without a copy; float64, float32, float16 or
            bfloat16 (half types are computed in float32).
        alpha: the frequencies, of shape ``[x.shape[dim]]``. If dtypes differ, both are promoted to the wider
            one.
        dim: the dimension of ``x`` that ``alpha`` belongs to.

    Returns:
        A tensor of x's shape, channels-last if ``x`` is, else contiguous; x itself where ``alpha * x``
        overflows. Differentiable to every order in x and alpha.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: ``alpha`` doesn't fit ``x``; ``dim`` out of range; dtype or device not supported.
    """
    if not (isinstance(x, Tensor) and isinstance(alpha, Tensor)):
        raise no_tensor("snake", x=x, alpha=alpha)
    if decomposed():
        return snake_ref(x, alpha, dim)
    if alpha.dtype != x.dtype:
        dtype = promoted_dtype("snake", x=x, alpha=alpha)
        x, alpha = x.to(dtype), alpha.to(dtype)
    y: Tensor = _snake(x, alpha, dim)
    return y


def snake_ref(x: Tensor, alpha: Tensor, dim: int = 1) -> Tensor:
    """:func:`snake` in plain PyTorch, as ``x * (1 + u * sinc(u)**2)`` with ``u = alpha * x``, where nothing
    divides by alpha."""
    return _value(x, _along(alpha, dim, x))


# ---- native ops --------------------------------------------------------------------------------------------

# Of sin(u)/u, by u^2. On |u| < 1 the rest is below float64's rounding, in the first four derivatives too.
_SERIES = [(-1) ** i / factorial(2 * i + 1) for i in range(13)]


def _sinc(u: Tensor) -> Tensor:
    """``sin(u) / u``: at 0 with all derivatives, which ``torch.sinc`` has not."""
    near = u.abs() < 1
    square = torch.where(near, u, 0).square()
    series = torch.full_like(u, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series = series * square + coefficient
    far = torch.where(near, 1, u)
    return torch.where(near, series, far.sin() / far)


def _value(x: Tensor, alpha: Tensor) -> Tensor:
    product = alpha * x
    # Beyond the largest number, whose quotient vanishes beside 1, the value is x; and NaN keeps its gradient.
    u = torch.where(product.isinf(), torch.finfo(product.dtype).max, product)
    return x * (1 + u * _sinc(u).square())


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    shape = [1] * like.dim()
    shape[dim] = -1
    return values.reshape(shape)


def _check(op: str, x: Tensor, alpha: Tensor, dim: int, **others: Tensor) -> None:
    check_same_kind(op, x=x)
    dim = wrap_dim(op, x, dim)
    check_same_kind(op, x=x, alpha=alpha)
    if alpha.dim() != 1 or alpha.size(0) != x.size(dim):
        raise RuntimeError(
            f"{op}: alpha has shape {shape_of(alpha)}, but must be [{x.size(dim)}] for an x of shape "
            f"{shape_of(x)} and dim {dim}"
        )
    for name, other in others.items():
        check_same_kind(op, x=x, **{name: other})
        check_same_shape(op, x=x, **{name: other})


def _fake(x: Tensor, alpha: Tensor, dim: int) -> Tensor:
    _check("snake", x, alpha, dim)
    return empty_dense_like(x)


def _fake_backward(dy: Tensor, x: Tensor, alpha: Tensor, dim: int, need_alpha: bool) -> tuple[Tensor, Tensor]:
    _check("snake_backward", x, alpha, dim, dy=dy)
    return empty_dense_like(x), alpha.new_empty(alpha.numel() if need_alpha else 0)


def _fake_double_backward(  # type: ignore[no-untyped-def]
    v, w, dy, x, alpha, dim, need_alpha
) -> tuple[Tensor, Tensor, Tensor]:
    op = "snake_double_backward"
    _check(op, x, alpha, dim, dy=dy, v=v)
    if w is not None:
        check_same_kind(op, x=x, w=w)
        check_same_shape(op, alpha=alpha, w=w)
    return empty_dense_like(x), empty_dense_like(x), alpha.new_empty(alpha.numel() if need_alpha else 0)


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
    dx, dalpha = _backward(dy, a.x, a.alpha, a.dim, needs.alpha)
    return dx, dalpha if needs.alpha else None


def _backward_gradients(
    a: Any, needs: Any, v: Tensor | None, w: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    w = w if a.need_alpha else None  # else dalpha is empty, and so is its cotangent
    if v is None and w is None:
        return None, None, None
    v = torch.zeros_like(a.x) if v is None else v
    grad_dy, grad_x, grad_alpha = _double_backward(v, w, a.dy, a.x, a.alpha, a.dim, needs.alpha)
    return grad_dy, grad_x, grad_alpha if needs.alpha else None


def _double_backward_ref(  # type: ignore[no-untyped-def]
    v, w, dy, x, alpha, dim, need_alpha
) -> tuple[Tensor, Tensor, Tensor]:
    x, dy, alpha = leaf(x), leaf(dy), leaf(alpha)
    inputs = (dy, x, alpha)
    slopes = torch.autograd.grad(snake_ref(x, alpha, dim), (x, alpha), dy, create_graph=True)
    pairs = list(zip(slopes, (v, w), strict=True))[: 1 if w is None else 2]
    outputs, cotangents = zip(*pairs, strict=True)
    grad_dy, grad_x, grad_alpha = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True)
    return grad_dy, grad_x, grad_alpha if need_alpha else x.new_empty(0)


_double_backward = native("snake_double_backward", fake=_fake_double_backward, reference=_double_backward_ref)
_backward = native("snake_backward", fake=_fake_backward, gradients=_backward_gradients, weights=("alpha",))
_snake = native("snake", fake=_fake, gradients=_gradients, weights=("alpha",))

OPS = [Op(snake, snake_ref, {"x": (2, 3, 16), "alpha": (3,)})]
