"""Batch normalisation (Ioffe and Szegedy 2015) and activation: ``clamp(gain * act(z))`` with
``z = (x - mean) / sqrt(var + eps) * weight + bias`` in each channel.

The first derivative is a kernel that recomputes z from x and the statistics; higher orders are plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import (
    check_eps,
    check_same_kind,
    check_same_shape,
    no_tensor,
    promoted_dtype,
    shape_of,
)
from aigc_ext.ops._gradients import leaf
from aigc_ext.ops._layout import empty_dense_like
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native
from aigc_ext.ops.activations import check_activation, resolve_activation
from aigc_ext.ops.bias_act import bias_act_ref


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.batch_norm` and an activation, in three passes over memory instead of four
    (in two if the statistics are given).

    Args:
        x: ``[N, C, ...]``, contiguous or channels-last without a copy; float64, float32, float16 or bfloat16
            (half types are computed in float32).
        running_mean, running_var: ``[C]``. If ``training``, they are moved in place towards the batch's mean
            and unbiased variance, and may be None; otherwise x is normalised by them.
        weight, bias: ``[C]`` or None. They need not have x's dtype: with half types, float32 is usual.
        training: whether to normalise by the statistics of the batch.
        momentum: how far the running statistics move, from 0 to 1.
        eps: added to the variance; at least 0 and finite.
        act, alpha, gain, clamp: as for :func:`aigc_ext.ops.bias_act`, default gain included: sqrt(2) for
            relu, lrelu and swish.

    Returns:
        A tensor of x's shape and dtype, channels-last if ``x`` is, else contiguous. Differentiable to every
        order in x, weight and bias. An empty batch leaves the running statistics unchanged.

    Raises:
        ValueError: only one element per channel with ``training``; no running statistics without it;
            ``momentum`` out of range; an activation argument as for bias_act.
        TypeError: an argument is not a tensor, or not a Python number, where one is required.
        RuntimeError: shapes don't match; ``eps`` out of range; dtype or device not supported.
    """
    activation, alpha, gain = resolve_activation(act, alpha, gain, clamp)
    optional = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    if not (isinstance(x, Tensor) and all(t is None or isinstance(t, Tensor) for t in optional.values())):
        raise no_tensor("batch_norm_act", optional=tuple(optional), x=x, **optional)
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm_act: running_mean and running_var must be given together")
    if not training and running_mean is None:
        raise ValueError("batch_norm_act: without training, running_mean and running_var must be given")
    if training and x.dim() >= 2 and 0 < x.numel() == x.size(1):
        raise ValueError(
            f"batch_norm_act: training needs more than one element per channel, but x has shape {shape_of(x)}"
        )
    if not 0 <= momentum <= 1:
        raise ValueError(f"batch_norm_act: momentum is {momentum}, but must be from 0 to 1")
    if decomposed():
        return batch_norm_act_ref(
            x, running_mean, running_var, weight, bias, training, momentum, eps, act, alpha, gain, clamp
        )
    statistics = (None, None) if training else (running_mean, running_var)
    y: Tensor
    y, mean, var = _batch_norm_act(x, weight, bias, *statistics, eps, activation.name, alpha, gain, clamp)
    if training and running_mean is not None and running_var is not None:
        _move_statistics(running_mean, running_var, mean, var, x, momentum)
    return y


def _move_statistics(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, x: Tensor, momentum: float
) -> None:
    count = x.numel() // max(x.size(1), 1)
    if count > 1:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)


def batch_norm_act_ref(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`batch_norm_act` in plain PyTorch. (F.batch_norm has no second derivative without a weight.)"""
    mean, var = (None, None) if training else (running_mean, running_var)
    if training and x.numel() > 0:
        var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
        if running_mean is not None and running_var is not None:
            _move_statistics(running_mean, running_var, mean, var, x, momentum)

    def per_channel(t: Tensor) -> Tensor:
        return t.reshape([1, -1] + [1] * (x.dim() - 2))

    z = x
    if mean is not None and var is not None:
        z = (x - per_channel(mean)) * per_channel((var + eps).rsqrt())
    if weight is not None:
        z = z * per_channel(weight)
    if bias is not None:
        z = z + per_channel(bias)
    return bias_act_ref(z, None, 1, act, alpha, gain, clamp).to(x.dtype)


# ---- native ops --------------------------------------------------------------------------------------------


def _check(  # type: ignore[no-untyped-def]
    op: str, x, mean, var, eps, act, alpha, gain, clamp, **channels: Tensor | None
) -> None:
    promoted_dtype(op, x=x)
    check_activation(op, act, alpha, gain, clamp)
    check_eps(op, eps)
    if x.dim() < 2:
        raise RuntimeError(f"{op}: x has shape {shape_of(x)}, but must be [N, C, ...]")
    for name, t in {**channels, "mean": mean, "var": var}.items():
        if t is None:
            continue
        if t.dim() != 1 or t.size(0) != x.size(1):
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(t)}, but must be [{x.size(1)}] for an x of shape "
                f"{shape_of(x)}"
            )
        promoted_dtype(op, **{name: t})
    if mean is None or var is None:
        if mean is not var:
            raise RuntimeError(f"{op}: mean and var must be given together")
    elif mean.dtype != var.dtype:
        raise RuntimeError(f"{op}: mean and var must be of one dtype")


def _fake(  # type: ignore[no-untyped-def]
    x, weight, bias, mean, var, eps, act, alpha, gain, clamp
) -> tuple[Tensor, Tensor, Tensor]:
    _check("batch_norm_act", x, mean, var, eps, act, alpha, gain, clamp, weight=weight, bias=bias)
    channels = x.size(1) if mean is None else 0
    return empty_dense_like(x), *(x.new_empty(channels, dtype=torch.float64) for _ in range(2))


def _fake_backward(  # type: ignore[no-untyped-def]
    dy, x, weight, bias, mean, var, of_batch, eps, act, alpha, gain, clamp, need_weight, need_bias
) -> tuple[Tensor, Tensor, Tensor]:
    op = "batch_norm_act_backward"
    _check(op, x, mean, var, eps, act, alpha, gain, clamp, weight=weight, bias=bias)
    if mean is None:
        raise RuntimeError(f"{op}: mean and var must be given")
    check_same_kind(op, x=x, dy=dy)
    check_same_shape(op, x=x, dy=dy)
    if (need_weight and weight is None) or (need_bias and bias is None):
        raise RuntimeError(f"{op}: the gradient of a parameter that there is none of")
    dweight, dbias = (
        (x if parameter is None else parameter).new_empty(x.size(1) if need else 0)
        for parameter, need in ((weight, need_weight), (bias, need_bias))
    )
    return empty_dense_like(x), dweight, dbias


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    inputs = (dy, a.x, a.weight, a.bias, a.mean, a.var)
    dx, dweight, dbias = _backward(*inputs, a.of_batch, *a.plain, needs.weight, needs.bias)
    return dx, dweight if needs.weight else None, dbias if needs.bias else None


def _backward_ref(  # type: ignore[no-untyped-def]
    dy, x, weight, bias, mean, var, of_batch, eps, act, alpha, gain, clamp, need_weight, need_bias
) -> tuple[Tensor, ...]:
    x, weight, bias = (None if t is None else leaf(t) for t in (x, weight, bias))
    mean, var = (None, None) if of_batch else (mean, var)  # the batch's depend on x
    y = batch_norm_act_ref(x, mean, var, weight, bias, of_batch, 0.0, eps, act, alpha, gain, clamp)
    asked = [x, *([weight] if need_weight else []), *([bias] if need_bias else [])]
    gradients = list(torch.autograd.grad(y, asked, dy, create_graph=True))
    dx, empty = gradients.pop(0), x.new_empty(0)
    return dx, gradients.pop(0) if need_weight else empty, gradients.pop(0) if need_bias else empty


_backward = native(
    "batch_norm_act_backward", fake=_fake_backward, reference=_backward_ref, weights=("weight", "bias")
)
_batch_norm_act = native(
    "batch_norm_act",
    fake=_fake,
    gradients=_gradients,
    wrt=("x", "weight", "bias"),
    weights=("weight", "bias"),
    save=("x", "weight", "bias"),
    keep=("mean", "var", "of_batch"),
    kept=lambda x, weight, bias, mean, var, *rest: (
        (*rest[-1][1:], True) if mean is None else (mean, var, False)
    ),
    constants=("batch_mean", "batch_var"),
)

OPS = [
    Op(
        batch_norm_act,
        batch_norm_act_ref,
        {"x": (2, 3, 4, 4), "weight": (3,), "bias": (3,), "training": True, "act": "lrelu"},
    )
]
