"""Per-sample sums of squares, for gradient penalties.

Every order of differentiation has a kernel: ``sample_dot`` and ``sample_scale``, from which it is built, are
each other's derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from aigc_ext.ops._arguments import (
    check_same_kind,
    check_same_shape,
    dtype_name,
    no_tensor,
    shape_of,
)
from aigc_ext.ops._layout import empty_dense_like, wide_dtype
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native


def sample_sqnorm(g: Tensor) -> Tensor:
    """The sum of squares of each sample, ``sum of g[n]**2``, in one pass.

    Args:
        g: ``[N, ...]``, contiguous or channels-last without a copy; float64, float32, float16 or bfloat16.

    Returns:
        ``[N]``, float64 for float64, else float32 (a half type could not hold the sums); the same bits for
        any number of threads. Differentiable to every order.

    Raises:
        TypeError: ``g`` is not a tensor.
        RuntimeError: ``g`` has no dimensions; dtype or device not supported.
    """
    if not isinstance(g, Tensor):
        raise no_tensor("sample_sqnorm", g=g)
    if decomposed():
        return sample_sqnorm_ref(g)
    result: Tensor = _sqnorm(g)
    return result


def sample_sqnorm_ref(g: Tensor) -> Tensor:
    """:func:`sample_sqnorm` in plain PyTorch."""
    return g.reshape(g.size(0), g[:1].numel()).to(wide_dtype(g)).square().sum(1)


# ---- native ops --------------------------------------------------------------------------------------------


def _new_sums(op: str, name: str, x: Tensor) -> Tensor:
    check_same_kind(op, **{name: x})
    if x.dim() == 0:
        raise RuntimeError(f"{op}: {name} has no dimensions, but must have shape [N, ...]")
    return x.new_empty(x.size(0), dtype=wide_dtype(x))


def _fake_dot(a: Tensor, b: Tensor) -> Tensor:
    sums = _new_sums("sample_dot", "a", a)
    check_same_kind("sample_dot", a=a, b=b)
    check_same_shape("sample_dot", a=a, b=b)
    return sums


def _fake_scale(a: Tensor, s: Tensor) -> Tensor:
    sums = _new_sums("sample_scale", "a", a)
    if s.shape != sums.shape or s.dtype != sums.dtype:
        raise RuntimeError(
            f"sample_scale: s is {dtype_name(s.dtype)} of shape {shape_of(s)}, but must be "
            f"{dtype_name(sums.dtype)} of shape {shape_of(sums)}"
        )
    return empty_dense_like(a)


_dot: Callable[..., Tensor] = native(
    "sample_dot",
    fake=_fake_dot,
    gradients=lambda a, needs, g: (_scale(a.b, g) if needs.a else None, _scale(a.a, g) if needs.b else None),
)
_scale: Callable[..., Tensor] = native(
    "sample_scale",
    fake=_fake_scale,
    gradients=lambda a, needs, g: (_scale(g, a.s) if needs.a else None, _dot(g, a.a) if needs.s else None),
)
_sqnorm = native(
    "sample_sqnorm",
    fake=lambda g: _new_sums("sample_sqnorm", "g", g),
    gradients=lambda a, needs, g: (_scale(a.g, 2 * g),),
)

OPS = [Op(sample_sqnorm, sample_sqnorm_ref, {"g": (2, 3, 4, 4)})]
