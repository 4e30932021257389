"""Batch normalisation (Ioffe and Szegedy 2015) and activation: ``clamp(gain * act(z))`` with
``z = (x - mean) / sqrt(var + eps) * weight + bias`` in each channel.

The first derivative is a kernel that computes z again from x, which is all that the backward keeps; from the
second on it is plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, promoted_dtype, shape_of
from aigc_ext.ops._autograd import eager, empty_dense_like, reference_gradients, register_autograd
from aigc_ext.ops._mode import decomposed, weight_gradients
from aigc_ext.ops.activations import resolve_activation
from aigc_ext.ops.bias_act import bias_act_ref

_batch_norm_act = torch.ops.aigc.batch_norm_act.default
_backward = torch.ops.aigc.batch_norm_act_backward.default


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
    (in two where the statistics are given).

    Args:
        x: ``[N, C, ...]``, contiguous or channels-last without a copy; float64, float32, float16 or bfloat16
            (half types are computed in float32).
        running_mean, running_var: ``[C]``. Where ``training``, they are moved in place towards the batch's
            mean and unbiased variance, and may be None; else they are what x is normalised by.
        weight, bias: ``[C]`` or None. They need not be of x's dtype: float32 beside half types is usual.
        training: whether to normalise by the statistics of the batch.
        momentum: how far the running statistics move, from 0 to 1.
        eps: is added to the variance; at least 0 and finite.
        act, alpha, gain, clamp: as for :func:`aigc_ext.ops.bias_act`, default gain included: sqrt(2) for
            relu, lrelu and swish.

    Returns:
        A tensor of x's shape and dtype, channels-last if ``x`` is, else contiguous. Differentiable to every
        order in x, weight and bias. A batch of size 0 leaves the running statistics alone.

    Raises:
        ValueError: one element per channel alone where ``training``; no running statistics where not;
            ``momentum`` out of range; an activation argument as for bias_act.
        TypeError: a tensor is no tensor, or a number no Python number.
        RuntimeError: shapes don't fit; ``eps`` out of range; dtype or device not supported.
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
    call = _batch_norm_act_eager if eager() else _batch_norm_act
    statistics = (None, None) if training else (running_mean, running_var)
    y: Tensor
    y, mean, var = call(x, weight, bias, *statistics, eps, activation.name, alpha, gain, clamp)
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


# ---- registration ------------------------------------------------------------------------------------------


def _check_fake(op: str, x: Tensor, **channels: Tensor | None) -> None:
    check_fake(op, x=x)
    if x.dim() < 2:
        raise RuntimeError(f"{op}: x has shape {shape_of(x)}, but must be [N, C, ...]")
    for name, t in channels.items():
        if t is None:
            continue
        promoted_dtype(op, **{name: t})
        if t.device != x.device:
            raise RuntimeError(f"{op}: {name} is on {t.device}, but must be on {x.device}, as x is")
        if t.dim() != 1 or t.size(0) != x.size(1):
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(t)}, but must be [{x.size(1)}] for an x of shape "
                f"{shape_of(x)}"
            )


@torch.library.register_fake("aigc::batch_norm_act")
def _(x, weight, bias, mean, var, eps, act, alpha, gain, clamp):  # type: ignore[no-untyped-def]
    _check_fake("batch_norm_act", x, weight=weight, bias=bias, mean=mean, var=var)
    channels = x.size(1) if mean is None else 0
    statistics = (x.new_empty(channels, dtype=torch.float64) for _ in range(2))
    return empty_dense_like(x), *statistics


@torch.library.register_fake("aigc::batch_norm_act_backward")
def _(  # type: ignore[no-untyped-def]
    dy, x, weight, bias, mean, var, of_batch, eps, act, alpha, gain, clamp, need_weight, need_bias
):
    _check_fake("batch_norm_act_backward", x, weight=weight, bias=bias, mean=mean, var=var)
    check_fake("batch_norm_act_backward", x=x, dy=dy)
    return (
        empty_dense_like(x),
        weight.new_empty(x.size(1)) if need_weight else (x if weight is None else weight).new_empty(0),
        bias.new_empty(x.size(1)) if need_bias else (x if bias is None else bias).new_empty(0),
    )


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, mean, var, *ctx.arguments = inputs
    _, batch_mean, batch_var = output
    ctx.of_batch = mean is None
    ctx.mark_non_differentiable(batch_mean, batch_var)
    ctx.set_materialize_grads(False)
    statistics = (batch_mean, batch_var) if ctx.of_batch else (mean, var)
    ctx.save_for_backward(x, weight, bias, *statistics)


def _forward_gradients(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 10
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    if not weight_gradients():
        need_weight = need_bias = False
    call = _backward_eager if eager() else _backward
    dx, dweight, dbias = call(dy, *ctx.saved_tensors, ctx.of_batch, *ctx.arguments, need_weight, need_bias)
    return (
        dx if need_x else None,
        dweight if need_weight else None,
        dbias if need_bias else None,
        *(None,) * 7,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.of_batch, ctx.eps, ctx.act, ctx.alpha, ctx.gain, ctx.clamp, ctx.has_w, ctx.has_b = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward_gradients(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    def reference(
        dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, ...]:
        def leaf(t: Tensor) -> Tensor:
            return t if t.requires_grad else t.detach().requires_grad_()

        x = leaf(x)
        weight, bias = (None if t is None else leaf(t) for t in (weight, bias))
        running_mean, running_var = (None, None) if ctx.of_batch else (mean, var)  # the batch's depend on x
        y = batch_norm_act_ref(
            *(x, running_mean, running_var, weight, bias, ctx.of_batch, 0.0),
            *(ctx.eps, ctx.act, ctx.alpha, ctx.gain, ctx.clamp),
        )
        leaves = [x]
        if ctx.has_w and weight is not None:
            leaves.append(weight)
        if ctx.has_b and bias is not None:
            leaves.append(bias)
        gradients = list(torch.autograd.grad(y, leaves, dy, create_graph=True))
        empty = x.new_empty(0)
        dx = gradients.pop(0)
        return dx, gradients.pop(0) if ctx.has_w else empty, gradients.pop(0) if ctx.has_b else empty

    needed = list(ctx.needs_input_grad[:6])
    if not weight_gradients():
        needed[2] = needed[3] = False
    gradients = reference_gradients(reference, ctx.saved_tensors, needed, grad_outputs)
    return (*gradients, *(None,) * 8)


_batch_norm_act_eager = register_autograd(_batch_norm_act, _forward_gradients, _setup_forward)
_backward_eager = register_autograd(_backward, _backward_gradients, _setup_backward)
