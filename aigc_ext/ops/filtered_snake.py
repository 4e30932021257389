"""snake at twice the rate of a signal, between two low-pass filters: the alias-free periodic activation of
BigVGAN (Lee et al. 2023, "BigVGAN: A Universal Neural Vocoder with Large-Scale Training", arXiv:2206.04658,
section 3.2).

The sine makes frequencies above the signal's band, which would fold back into it. At twice the rate there is
room for them, and the second filter removes them.

It is one pass: the signal at twice the rate stays in cache, and nothing but the arguments is saved for the
backward. The first two orders of differentiation are kernels, from the third on it is plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import (
    check_same_kind,
    check_same_shape,
    dtype_name,
    no_tensor,
    promoted_dtype,
    shape_of,
)
from aigc_ext.ops._gradients import leaf
from aigc_ext.ops._layout import empty_dense_like, is_channels_last, wide_dtype
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native
from aigc_ext.ops._route import Route, take
from aigc_ext.ops.snake import snake, snake_ref
from aigc_ext.ops.upfirdn2d import upfirdn2d, upfirdn2d_ref

_MOST_TAPS = 128  # of the native op


def filtered_snake(
    x: Tensor, alpha: Tensor, fu: Tensor, fd: Tensor, beta: Tensor | None = None, log_scale: bool = False
) -> Tensor:
    """``x`` at twice the rate by the filter ``fu``, ``x + sin(alpha * x)**2 / beta``, and back by ``fd``.

    The filters convolve and are centred, and ``fu`` is multiplied by 2, to make up for the inserted zeros.
    Both continue what they filter by its first and last value (replicate padding), so that a constant stays
    one. With ``Ku`` and ``Kd`` taps, ``pu = (Ku - 1) // 2`` and ``pd = Kd // 2``::

        z[j] = 2 * sum(fu[k] * x[(j + pu - k) / 2])   over the k for which it is an integer; j < 2 * L
        y[i] = sum(fd[k] * snake(z)[2 * i + pd - k])

    Where both have an even number of taps, or both an odd one, and are symmetric, y is in time with x.

    Args:
        x: ``[N, C, L]`` with an L of at least 1, contiguous or channels-last; float64, float32, float16 or
            bfloat16 (half types are computed in float32).
        alpha: the frequencies, ``[C]``; may be 0, where the sine's part vanishes.
        fu, fd: the low-pass filters, of one dimension; BigVGAN's have 12 taps, which is fastest. In one pass
            to 128 taps and without a gradient of the filters, else by :func:`upfirdn2d` and :func:`snake`.
        beta: what divides the sine's square, ``[C]``, not 0; ``alpha`` if it is None.
        log_scale: ``alpha`` and ``beta`` are the logarithms of these numbers.

    Returns:
        A tensor of x's shape, channels-last if ``x`` is, else contiguous, of the widest dtype of ``x``,
        ``alpha`` and ``beta``. Differentiable to every order in all tensors.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: shapes do not match; dtype or device not supported.
    """
    op = "filtered_snake"
    if not all(isinstance(t, Tensor) for t in (x, alpha, fu, fd)) or not (
        beta is None or isinstance(beta, Tensor)
    ):
        raise no_tensor(op, ("beta",), x=x, alpha=alpha, fu=fu, fd=fd, beta=beta)
    for name, f in (("fu", fu), ("fd", fd)):
        if f.dim() != 1 or f.numel() < 1:
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(f)}, but must have one dimension and at least one tap"
            )
        promoted_dtype(op, **{name: f})
    dtype = promoted_dtype(op, x=x, alpha=alpha, beta=beta)
    x = x if x.dtype == dtype else x.to(dtype)
    # In a decomposed program upfirdn2d and snake are decomposed too. torch.export takes that form with any
    # length of the signal, but not the reference's, which reshapes a batch to signals of one channel.
    if decomposed() or take(op, _route(fu, fd)) == "composition":
        _check(op, x, alpha.to(wide_dtype(x)), beta if beta is None else beta.to(wide_dtype(x)))
        y = _composed(upfirdn2d, snake, x, alpha, fu, fd, beta, log_scale)
        return y.movedim(1, -1).contiguous().movedim(-1, 1) if is_channels_last(x) else y
    wide = wide_dtype(x)
    alpha, fu, fd = alpha.to(wide), fu.to(wide), fd.to(wide)
    beta = None if beta is None else beta.to(wide)
    if log_scale:
        alpha, beta = alpha.exp(), None if beta is None else beta.exp()
    result: Tensor = _filtered_snake(x, alpha, beta, fu, fd)
    return result


def _route(fu: Tensor, fd: Tensor) -> Route:
    if torch.is_grad_enabled() and (fu.requires_grad or fd.requires_grad):
        return Route("composition", "one pass has no gradient of the filters")
    if max(fu.numel(), fd.numel()) > _MOST_TAPS:
        return Route("composition", f"one pass takes filters to {_MOST_TAPS} taps")
    return Route("one pass", "the signal at twice the rate stays in cache")


def filtered_snake_ref(
    x: Tensor, alpha: Tensor, fu: Tensor, fd: Tensor, beta: Tensor | None = None, log_scale: bool = False
) -> Tensor:
    """:func:`filtered_snake` in plain PyTorch."""
    return _composed(upfirdn2d_ref, snake_ref, x, alpha, fu, fd, beta, log_scale)


def _composed(
    resample: Callable[..., Tensor],
    activation: Callable[..., Tensor],
    x: Tensor,
    alpha: Tensor,
    fu: Tensor,
    fd: Tensor,
    beta: Tensor | None,
    log_scale: bool,
) -> Tensor:
    """By upfirdn2d and snake, or by their references: a signal is an image of one row."""
    if log_scale:
        alpha, beta = alpha.exp(), None if beta is None else beta.exp()
    dtype = promoted_dtype("filtered_snake", x=x, alpha=alpha, beta=beta)
    x, alpha, beta = x.to(dtype), alpha.to(dtype), None if beta is None else beta.to(dtype)
    taps, pad = fu.numel(), (fu.numel() - 1) // 2
    more = taps // 4 + 1  # elements, of which inserted zeros make twice as many
    crop = [taps - 1 - pad - 2 * more, pad - 2 * more, 0, 0]
    x = _continued(x, more, more).unsqueeze(2)
    z = resample(x, fu[None], up=(2, 1), padding=crop, gain=2).squeeze(2)
    t = activation(z, alpha) if beta is None else _with_beta(z, alpha[:, None], beta[:, None])
    taps, pad = fd.numel(), fd.numel() // 2
    t = _continued(t, taps - 1 - pad, pad).unsqueeze(2)
    return resample(t, fd[None], down=(2, 1)).squeeze(2)


def _continued(x: Tensor, before: int, after: int) -> Tensor:
    """By its first and last value."""
    first, last = x[..., :1], x[..., -1:]
    return torch.cat([first.expand(*x.shape[:-1], before), x, last.expand(*x.shape[:-1], after)], -1)


def _with_beta(z: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    product = alpha * z
    # Where it overflows, its sine has no digits, and is taken to be 0; NaN keeps its gradient.
    return z + torch.where(product.isinf(), 0, product).sin().square() / beta


# ---- native ops --------------------------------------------------------------------------------------------


def _check_wide(op: str, x: Tensor, name: str, values: Tensor) -> None:
    if values.dtype != wide_dtype(x):
        raise RuntimeError(
            f"{op}: {name} is {dtype_name(values.dtype)}, but must be {dtype_name(wide_dtype(x))} for an x "
            f"of {dtype_name(x.dtype)}"
        )


def _check_channel_values(op: str, x: Tensor, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is None:
            continue
        _check_wide(op, x, name, value)
        if value.dim() != 1 or value.size(0) != x.size(1):
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(value)}, but must be [{x.size(1)}] for an x of shape "
                f"{shape_of(x)}"
            )


def _check(op: str, x: Tensor, alpha: Tensor, beta: Tensor | None) -> None:
    if x.dim() != 3 or x.size(2) < 1:
        raise RuntimeError(f"{op}: x has shape {shape_of(x)}, but must be [N, C, L] with an L of at least 1")
    check_same_kind(op, x=x)
    _check_channel_values(op, x, alpha=alpha, beta=beta)


def _check_all(
    op: str, x: Tensor, alpha: Tensor, beta: Tensor | None, fu: Tensor, fd: Tensor, **others: Tensor
) -> None:
    _check(op, x, alpha, beta)
    for name, f in (("fu", fu), ("fd", fd)):
        if f.dim() != 1 or not 1 <= f.numel() <= _MOST_TAPS:
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(f)}, but must have one dimension of 1 to {_MOST_TAPS} taps"
            )
        _check_wide(op, x, name, f)
    for name, other in others.items():
        check_same_kind(op, x=x, **{name: other})
        check_same_shape(op, x=x, **{name: other})


def _fake(x, alpha, beta, fu, fd) -> Tensor:  # type: ignore[no-untyped-def]
    _check_all("filtered_snake", x, alpha, beta, fu, fd)
    return empty_dense_like(x)


def _channel_gradients(alpha: Tensor, beta: Tensor | None, needed: bool) -> tuple[Tensor, Tensor]:
    size = alpha.numel() if needed else 0
    return alpha.new_empty(size), alpha.new_empty(0 if beta is None else size)


def _fake_backward(  # type: ignore[no-untyped-def]
    dy, x, alpha, beta, fu, fd, need_parameters
) -> tuple[Tensor, Tensor, Tensor]:
    _check_all("filtered_snake_backward", x, alpha, beta, fu, fd, dy=dy)
    return empty_dense_like(x), *_channel_gradients(alpha, beta, need_parameters)


def _fake_double_backward(  # type: ignore[no-untyped-def]
    v, w_alpha, w_beta, dy, x, alpha, beta, fu, fd, need_parameters
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "filtered_snake_double_backward"
    _check_all(op, x, alpha, beta, fu, fd, dy=dy, v=v)
    _check_channel_values(op, x, w_alpha=w_alpha)
    if beta is None and w_beta is not None:
        raise RuntimeError(f"{op}: w_beta is a tensor, but must be None, as beta is")
    _check_channel_values(op, x, w_beta=w_beta)
    return empty_dense_like(x), empty_dense_like(x), *_channel_gradients(alpha, beta, need_parameters)


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    need_parameters = needs.alpha or needs.beta
    dx, dalpha, dbeta = _backward(dy, a.x, a.alpha, a.beta, a.fu, a.fd, need_parameters)
    return dx, dalpha if needs.alpha else None, dbeta if needs.beta else None


def _backward_gradients(
    a: Any, needs: Any, v: Tensor | None, w_alpha: Tensor | None, w_beta: Tensor | None
) -> tuple[Tensor | None, ...]:
    # A result that was not asked for is empty, and so is its cotangent.
    w_alpha = w_alpha if a.need_parameters else None
    w_beta = w_beta if a.need_parameters and a.beta is not None else None
    if v is None and w_alpha is None and w_beta is None:
        return None, None, None, None
    v = torch.zeros_like(a.x) if v is None else v
    need_parameters = needs.alpha or needs.beta
    grad_dy, grad_x, grad_alpha, grad_beta = _double_backward(
        v, w_alpha, w_beta, a.dy, a.x, a.alpha, a.beta, a.fu, a.fd, need_parameters
    )
    return grad_dy, grad_x, grad_alpha if needs.alpha else None, grad_beta if needs.beta else None


def _double_backward_ref(  # type: ignore[no-untyped-def]
    v, w_alpha, w_beta, dy, x, alpha, beta, fu, fd, need_parameters
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, dy, alpha, beta = leaf(x), leaf(dy), leaf(alpha), None if beta is None else leaf(beta)
    leaves = (x, alpha) if beta is None else (x, alpha, beta)
    y = filtered_snake_ref(x, alpha.to(x.dtype), fu, fd, None if beta is None else beta.to(x.dtype))
    slopes = torch.autograd.grad(y, leaves, dy, create_graph=True)
    cotangents = (v, w_alpha, w_beta)[: len(leaves)]
    pairs = [(s, c) for s, c in zip(slopes, cotangents, strict=True) if c is not None]
    outputs, given = zip(*pairs, strict=True)
    grad_dy, grad_x, *gradients = torch.autograd.grad(outputs, (dy, *leaves), given, create_graph=True)
    empty = alpha.new_empty(0)
    if not need_parameters:
        return grad_dy, grad_x, empty, empty
    return grad_dy, grad_x, gradients[0], empty if beta is None else gradients[1]


_double_backward = native(
    "filtered_snake_double_backward",
    fake=_fake_double_backward,
    reference=_double_backward_ref,
    wrt=("v", "w_alpha", "w_beta", "dy", "x", "alpha", "beta"),
)
_backward = native(
    "filtered_snake_backward",
    fake=_fake_backward,
    gradients=_backward_gradients,
    wrt=("dy", "x", "alpha", "beta"),
    weights=("alpha", "beta"),
)
_filtered_snake = native(
    "filtered_snake", fake=_fake, gradients=_gradients, wrt=("x", "alpha", "beta"), weights=("alpha", "beta")
)

OPS = [
    Op(
        filtered_snake,
        filtered_snake_ref,
        {"x": (2, 3, 16), "alpha": (3,), "fu": (12,), "fd": (12,), "log_scale": True},
    )
]
