"""Each pixel's feature vector, normalised to unit mean square (Karras et al. 2018, "Progressive Growing of
GANs", section 4.2).

The first two orders of differentiation are kernels, higher orders plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from aigc_ext.ops._arguments import check_eps, check_same_kind, check_same_shape, no_tensor, wrap_dim
from aigc_ext.ops._layout import empty_dense_like
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """``x * rsqrt(mean(x**2, dim) + eps)`` in one pass.

    Args:
        x: at least one dimension, contiguous or channels-last without a copy; float64, float32, float16 or
            bfloat16 (half types are computed in float32).
        dim: the dimension of the features.
        eps: at least 0 and finite.

    Returns:
        A tensor of x's shape, channels-last if ``x`` is, else contiguous. Differentiable to every order.

    Raises:
        TypeError: ``x`` is not a tensor.
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


# ---- native ops --------------------------------------------------------------------------------------------


def _double_backward_ref(u: Tensor, dy: Tensor, x: Tensor, dim: int, eps: float) -> Tensor:
    def mean(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).mean(dim, keepdim=True)

    r = (mean(x, x) + eps).rsqrt()
    x_dy, x_u = mean(x, dy), mean(x, u)
    return -(r**3) * (x_dy * u + x_u * dy + (mean(dy, u) - 3 * r**2 * x_dy * x_u) * x)


def _fake(op: str, x: Tensor, dim: int, eps: float, **others: Tensor) -> Tensor:
    check_same_kind(op, x=x)
    check_eps(op, eps)
    wrap_dim(op, x, dim)
    for name, other in others.items():
        check_same_kind(op, x=x, **{name: other})
        check_same_shape(op, x=x, **{name: other})
    return empty_dense_like(x)


_double_backward = native(
    "pixel_norm_double_backward",
    fake=lambda u, dy, x, dim, eps: _fake("pixel_norm_double_backward", x, dim, eps, dy=dy, u=u),
    reference=_double_backward_ref,
)
_backward: Callable[..., Tensor] = native(
    "pixel_norm_backward",
    fake=lambda dy, x, dim, eps: _fake("pixel_norm_backward", x, dim, eps, dy=dy),
    gradients=lambda a, needs, u: (  # as a map of dy it is symmetric
        _backward(u, a.x, *a.plain) if needs.dy else None,
        _double_backward(u, a.dy, a.x, *a.plain) if needs.x else None,
    ),
)
_pixel_norm = native(
    "pixel_norm",
    fake=lambda x, dim, eps: _fake("pixel_norm", x, dim, eps),
    gradients=lambda a, needs, dy: (_backward(dy, a.x, *a.plain),),
)

OPS = [Op(pixel_norm, pixel_norm_ref, {"x": (2, 3, 4, 4)})]
