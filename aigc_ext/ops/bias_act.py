"""Bias, per-pixel noise and activation in one pass: ``clamp(gain * act(x + b + strength * noise))``.

What the backward keeps: two bits per element (branch, clamp) for the piecewise-linear activations, x itself
for the smooth ones. Orders of differentiation: the first two are kernels, from the third on it is plain
PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, promoted_dtype, shape_of
from aigc_ext.ops._autograd import (
    eager,
    empty_dense_like,
    is_channels_last,
    reference_gradients,
    register_autograd,
)
from aigc_ext.ops._mode import decomposed, weight_gradients
from aigc_ext.ops.activations import ACTIVATIONS, resolve_activation

_bias_act = torch.ops.aigc.bias_act.default
_backward = torch.ops.aigc.bias_act_backward.default
_double_backward = torch.ops.aigc.bias_act_double_backward.default


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """``clamp(gain * act(x + b), -clamp, clamp)`` in one pass.

    Args:
        x: any shape, any strides; float64, float32, float16 or bfloat16 (half types are computed in float32).
        b: bias of shape ``[x.shape[dim]]``, or None. If dtypes differ, both are promoted to the wider one.
        dim: the dimension of ``x`` that ``b`` belongs to; not looked at without ``b``.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: slope of lrelu below 0 (default 0.2); other activations have none.
        gain: factor after the activation; default sqrt(2) for relu, lrelu and swish, else 1.
        clamp: limit of the result's magnitude, at least 0; None for no limit. The gradient is 1 on the limit.

    Returns:
        A tensor of x's shape, channels-last if ``x`` is, else contiguous. Differentiable to every order in x
        and b.

    Raises:
        ValueError: unknown ``act``; ``alpha`` or ``gain`` not finite; ``clamp`` negative or NaN.
        TypeError: a tensor is no tensor, or a number no Python number.
        RuntimeError: ``b`` doesn't fit ``x``; dtype or device not supported.
    """
    activation, alpha, gain = resolve_activation(act, alpha, gain, clamp)
    if not (isinstance(x, Tensor) and (b is None or isinstance(b, Tensor))):
        raise no_tensor("bias_act", optional=("b",), x=x, b=b)
    if decomposed():
        return bias_act_ref(x, b, dim, act, alpha, gain, clamp)
    if b is not None and b.dtype != x.dtype:
        dtype = promoted_dtype("bias_act", x=x, b=b)
        x, b = x.to(dtype), b.to(dtype)
    save = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    call = _bias_act_eager if eager() else _bias_act
    y: Tensor = call(x, b, None, None, dim, activation.name, alpha, gain, clamp, save)[0]
    return y


def bias_act_ref(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`bias_act` in plain PyTorch."""
    activation, alpha, gain = resolve_activation(act, alpha, gain, clamp)
    if b is not None:
        shape = [1] * x.dim()
        shape[dim] = -1
        x = x + b.reshape(shape)
    y = activation.function(x, alpha)
    if gain != 1:
        y = y * gain
    if clamp is not None:
        # torch.clamp's gradient on the limit was 1 up to torch 2.13 and is 0 in 2.15; ours is 1.
        y = torch.where((y >= -clamp) & (y <= clamp), y, y.clamp(-clamp, clamp))
    return y


def noise_bias_act(
    x: Tensor,
    noise: Tensor,
    strength: Tensor,
    b: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """``clamp(gain * act(x + strength * noise + b))``: the epilogue of a StyleGAN2 synthesis layer
    (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 2).

    Args:
        x: ``[N, C, ...]``, contiguous or channels-last without a copy.
        noise: ``[N, 1, ...]`` or ``[1, 1, ...]`` with x's spatial sizes.
        strength: one number, as a tensor.
        b: ``[C]`` or None.
        act, alpha, gain, clamp: as for :func:`bias_act`.

    Returns and raises as :func:`bias_act`; differentiable to every order in x, strength, b and noise.
    """
    activation, alpha, gain = resolve_activation(act, alpha, gain, clamp)
    inputs = [t for t in (x, noise, strength, b) if t is not None]
    if len(inputs) < 3 + (b is not None) or not all(isinstance(t, Tensor) for t in inputs):
        raise no_tensor("noise_bias_act", optional=("b",), x=x, noise=noise, strength=strength, b=b)
    if decomposed():
        return noise_bias_act_ref(x, noise, strength, b, act, alpha, gain, clamp)
    if any(t.dtype != x.dtype for t in inputs):
        dtype = promoted_dtype("noise_bias_act", x=x, noise=noise, strength=strength, b=b)
        x, noise, strength = x.to(dtype), noise.to(dtype), strength.to(dtype)
        b = None if b is None else b.to(dtype)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    call = _bias_act_eager if eager() else _bias_act
    y: Tensor = call(x, b, noise, strength, 1, activation.name, alpha, gain, clamp, save)[0]
    return y


def noise_bias_act_ref(
    x: Tensor,
    noise: Tensor,
    strength: Tensor,
    b: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`noise_bias_act` in plain PyTorch."""
    return bias_act_ref(x + strength.reshape(()) * noise, b, 1, act, alpha, gain, clamp)


# ---- registration ------------------------------------------------------------------------------------------


def mask_size(x: Tensor, b: Tensor | None, has_noise: bool, dim: int, act: str, clamp: float | None) -> int:
    """Bytes of the mask, as csrc/bias_act/bias_act.cpp lays it out: whole bytes per row, or merged rows."""
    planes = int(act in ("relu", "lrelu")) + int(clamp is not None)
    channels, inner = 1, 1
    if b is not None or has_noise:
        dim %= x.dim()
        order = list(range(x.dim()))
        if is_channels_last(x):
            order = [0, *order[2:], 1]
        for d in order[order.index(dim) + 1 :]:
            inner *= x.size(d)
        channels = x.size(dim)
    if has_noise:
        row = channels if is_channels_last(x) else inner
    elif inner >= 8 and channels > 1:
        row = inner
    else:
        return planes * ((x.numel() + 7) // 8)
    return planes * (x.numel() // max(row, 1)) * ((row + 7) // 8)


def _check_fake(
    op: str, x: Tensor, b: Tensor | None, noise: Tensor | None, strength: Tensor | None, dim: int
) -> None:
    check_fake(op, x=x, b=b, noise=noise, strength=strength)
    if (b is not None or noise is not None) and not -x.dim() <= dim < x.dim():
        raise RuntimeError(f"{op}: dim is {dim}, but x has shape {shape_of(x)}")
    if b is not None and (b.dim() != 1 or b.size(0) != x.size(dim)):
        raise RuntimeError(
            f"{op}: b has shape {shape_of(b)}, but must be [{x.size(dim)}] for an x of shape {shape_of(x)} "
            f"and dim {dim}"
        )
    if noise is not None:
        fits = noise.dim() == x.dim() and noise.shape[2:] == x.shape[2:] and noise.size(1) == 1
        if not (fits and (noise.size(0) == 1 or noise.size(0) == x.size(0))):
            raise RuntimeError(
                f"{op}: noise has shape {shape_of(noise)}, but for an x of shape {shape_of(x)} it must be "
                "[N or 1, 1, ...] with x's spatial sizes"
            )


@torch.library.register_fake("aigc::bias_act")
def _(x, b, noise, strength, dim, act, alpha, gain, clamp, save):  # type: ignore[no-untyped-def]
    _check_fake("bias_act" if noise is None else "noise_bias_act", x, b, noise, strength, dim)
    y = empty_dense_like(x)
    saves_mask = save and ACTIVATIONS[act].piecewise_linear
    size = mask_size(y, b, noise is not None, dim, act, clamp) if saves_mask else 0
    return y, x.new_empty(size, dtype=torch.uint8)


@torch.library.register_fake("aigc::bias_act_backward")
def _(  # type: ignore[no-untyped-def]
    dy, x, b, noise, strength, mask, dim, act, alpha, gain, clamp, channels_last, need_b, need_strength
):
    check_fake("bias_act_backward", dy=dy, x=x, b=b, noise=noise, strength=strength)
    return (
        _empty_in_format(dy, channels_last),
        dy.new_empty(b.size(0) if need_b else 0),
        dy.new_empty(1 if need_strength else 0),
    )


@torch.library.register_fake("aigc::bias_act_double_backward")
def _(  # type: ignore[no-untyped-def]
    u, dy, x, b, noise, strength, dim, act, alpha, gain, clamp, channels_last, need_b, need_strength
):
    check_fake("bias_act_double_backward", x=x, u=u, dy=dy, b=b, noise=noise, strength=strength)
    return (
        _empty_in_format(x, channels_last),
        _empty_in_format(x, channels_last),
        x.new_empty(b.size(0) if need_b else 0),
        x.new_empty(1 if need_strength else 0),
    )


def _empty_in_format(like: Tensor, channels_last: bool) -> Tensor:
    if not channels_last:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    order = [0, *range(2, like.dim()), 1]
    back = [order.index(d) for d in range(like.dim())]
    return like.new_empty([like.size(d) for d in order]).permute(back)


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    shape = [1] * like.dim()
    shape[dim] = -1
    return values.reshape(shape)


def _noise_gradient(dz: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    return dz.sum((0, 1) if noise.size(0) == 1 else 1, keepdim=True) * scale.reshape(())


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, b, noise, strength, *ctx.arguments, save = inputs
    y, mask = output
    act, clamp = ctx.arguments[1], ctx.arguments[4]
    smooth = not ACTIVATIONS[act].piecewise_linear
    if not (save or smooth or (act == "linear" and clamp is None)):
        raise RuntimeError(f"bias_act: a gradient through act {act!r} with clamp {clamp} needs save=True")
    ctx.smooth, ctx.channels_last = smooth, not y.is_contiguous()
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if smooth else None, b, noise, strength, mask)


def _forward_gradients(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 10
    x, b, noise, strength, mask = ctx.saved_tensors
    need_x, need_b, need_noise, need_strength = ctx.needs_input_grad[:4]
    if not weight_gradients():
        need_b = need_strength = False
    dx, db, dstrength = bias_act_backward(
        dy, x, b, noise, strength, mask, *ctx.arguments, ctx.channels_last, need_b, need_strength
    )
    return (
        dx if need_x else None,
        db if need_b else None,
        _noise_gradient(dx, noise, strength) if need_noise else None,
        dstrength.reshape(strength.shape) if need_strength else None,
        *(None,) * 6,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, b, noise, strength, mask, *ctx.arguments, ctx.channels_last, ctx.has_db, ctx.has_dstrength = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, x, b, noise, strength, mask)


def _backward_gradients(
    ctx: Any, g_dx: Tensor | None, g_db: Tensor | None, g_dstrength: Tensor | None
) -> tuple[Tensor | None, ...]:
    dy, x, b, noise, strength, mask = ctx.saved_tensors
    need_dy, need_x, need_b, need_noise, need_strength = ctx.needs_input_grad[:5]
    if not weight_gradients():
        need_b = need_strength = False
    dim, act = ctx.arguments[:2]
    # u is the cotangent of dz, of which dx is a copy and db and dstrength are sums.
    u = g_dx
    if g_db is not None and ctx.has_db:  # an output that was not asked for is empty, and so is its cotangent
        g = _along(g_db, dim, dy)
        u = g.expand_as(dy) if u is None else u + g
    if g_dstrength is not None and ctx.has_dstrength:
        g = g_dstrength.reshape(()) * noise
        u = g.expand_as(dy) if u is None else u + g
    if u is None:
        return (None,) * 14

    def dz_from(cotangent: Tensor) -> Tensor:
        flags = (ctx.channels_last, False, False)
        dz: Tensor = bias_act_backward(cotangent, x, b, noise, strength, mask, *ctx.arguments, *flags)[0]
        return dz

    grad_dy = grad_x = grad_b = grad_noise = grad_strength = None
    if ACTIVATIONS[act].piecewise_linear:
        grad_dy = dz_from(u) if need_dy else None
    else:
        grad_dy, grad_x, grad_b, grad_strength = _double_backward(
            u, dy, x, b, noise, strength, *ctx.arguments, ctx.channels_last, need_b, need_strength
        )
        grad_strength = grad_strength.reshape(strength.shape) if need_strength else None
        if need_noise:
            grad_noise = _noise_gradient(grad_x, noise, strength)
    if need_noise and g_dstrength is not None and ctx.has_dstrength:
        direct = _noise_gradient(dz_from(dy), noise, g_dstrength)
        grad_noise = direct if grad_noise is None else grad_noise + direct
    return (
        grad_dy if need_dy else None,
        grad_x if need_x else None,
        grad_b if need_b else None,
        grad_noise,
        grad_strength,
        *(None,) * 9,
    )


def _setup_double_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dim, ctx.act, ctx.alpha, ctx.gain, ctx.clamp, _, ctx.need_b, ctx.need_strength = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _double_backward_gradients(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    def reference(
        u: Tensor,
        dy: Tensor,
        x: Tensor,
        b: Tensor | None,
        noise: Tensor | None,
        strength: Tensor | None,
    ) -> tuple[Tensor, ...]:
        z = x if b is None else x + _along(b, ctx.dim, x)
        if noise is not None and strength is not None:
            z = z + strength.reshape(()) * noise
        y = bias_act_ref(z, None, ctx.dim, ctx.act, ctx.alpha, ctx.gain, ctx.clamp)
        z, dy = (t if t.requires_grad else t.detach().requires_grad_() for t in (z, dy))
        if not y.requires_grad:
            y = bias_act_ref(z, None, ctx.dim, ctx.act, ctx.alpha, ctx.gain, ctx.clamp)
        (dz,) = torch.autograd.grad(y, z, dy, create_graph=True)
        grad_dy, grad_z = torch.autograd.grad(dz, (dy, z), u, create_graph=True)
        grad_b = x.new_empty(0)
        if ctx.need_b:
            grad_b = grad_z.movedim(ctx.dim, 0).flatten(1).sum(1) if x.dim() > 1 else grad_z
        grad_strength = x.new_empty(0)
        if ctx.need_strength and noise is not None:
            grad_strength = (grad_z * noise).sum().reshape(1)
        return grad_dy, grad_z, grad_b, grad_strength

    gradients = reference_gradients(reference, ctx.saved_tensors, ctx.needs_input_grad[:6], grad_outputs)
    return (*gradients, *(None,) * 8)


_bias_act_eager = register_autograd(_bias_act, _forward_gradients, _setup_forward)
_backward_eager = register_autograd(_backward, _backward_gradients, _setup_backward)
_double_backward_eager = register_autograd(
    _double_backward, _double_backward_gradients, _setup_double_backward
)


def bias_act_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The backward op, for other ops' formulas."""
    call = _backward_eager if eager() else _backward
    result: tuple[Tensor, Tensor, Tensor] = call(*arguments)
    return result
