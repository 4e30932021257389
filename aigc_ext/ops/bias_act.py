"""Bias, per-pixel noise and activation in one pass: ``clamp(gain * act(x + b + strength * noise))``.

For the backward, two bits per element (branch, clamp) are saved for the piecewise-linear activations, x
itself for the smooth ones. The first two orders of differentiation are kernels, higher orders plain PyTorch.
"""

from __future__ import annotations

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
from aigc_ext.ops._layout import empty_dense_like, is_channels_last, new_in_format
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native
from aigc_ext.ops.activations import ACTIVATIONS, check_activation, has_corners, resolve_activation


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
        dim: the dimension of ``x`` that ``b`` belongs to; ignored without ``b``.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: slope of lrelu below 0 (default 0.2); other activations have none.
        gain: factor after the activation; default sqrt(2) for relu, lrelu and swish, else 1.
        clamp: limit of the result's magnitude, at least 0; None for no limit. The gradient is 1 on the limit.

    Returns:
        A tensor of x's shape, channels-last if ``x`` is, else contiguous. Differentiable to every order in x
        and b.

    Raises:
        ValueError: unknown ``act``; ``alpha`` or ``gain`` not finite; ``clamp`` negative or NaN.
        TypeError: an argument is not a tensor, or not a Python number, where one is required.
        RuntimeError: ``b`` doesn't match ``x``; dtype or device not supported.
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
    y: Tensor = _bias_act(x, b, None, None, dim, activation.name, alpha, gain, clamp, save)[0]
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
        strength: a tensor of one element.
        b: ``[C]`` or None.
        act, alpha, gain, clamp: as for :func:`bias_act`.

    Result and errors are as for :func:`bias_act`; differentiable to every order in x, strength, b and noise.
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
    y: Tensor = _bias_act(x, b, noise, strength, 1, activation.name, alpha, gain, clamp, save)[0]
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


# ---- native ops --------------------------------------------------------------------------------------------


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


def _is_smooth(act: str) -> bool:
    return not ACTIVATIONS[act].piecewise_linear


def _check(
    op: str, x: Tensor, b: Tensor | None, noise: Tensor | None, strength: Tensor | None, dim: int
) -> None:
    check_same_kind(op, x=x)
    if b is not None or noise is not None:
        dim = wrap_dim(op, x, dim)
    check_same_kind(op, x=x, b=b)
    if b is not None and (b.dim() != 1 or b.size(0) != x.size(dim)):
        raise RuntimeError(
            f"{op}: b has shape {shape_of(b)}, but must be [{x.size(dim)}] for an x of shape {shape_of(x)} "
            f"and dim {dim}"
        )
    if (noise is None) != (strength is None):
        raise RuntimeError(f"{op}: noise and strength must be given together")
    if noise is None or strength is None:
        return
    if x.dim() < 2 or dim != 1:
        raise RuntimeError(
            f"{op}: noise needs an x of shape [N, C, ...] and dim 1, but x has shape {shape_of(x)} and dim "
            f"is {dim}"
        )
    check_same_kind(op, x=x, noise=noise, strength=strength)
    if strength.numel() != 1:
        raise RuntimeError(f"{op}: strength has shape {shape_of(strength)}, but must be one number")
    fits = noise.dim() == x.dim() and noise.shape[2:] == x.shape[2:] and noise.size(1) == 1
    if not (fits and (noise.size(0) == 1 or noise.size(0) == x.size(0))):
        raise RuntimeError(
            f"{op}: noise has shape {shape_of(noise)}, but for an x of shape {shape_of(x)} it must be "
            "[N or 1, 1, ...] with x's spatial sizes"
        )


def _fake(  # type: ignore[no-untyped-def]
    x, b, noise, strength, dim, act, alpha, gain, clamp, save
) -> tuple[Tensor, Tensor]:
    op = "bias_act" if noise is None and strength is None else "noise_bias_act"
    check_same_kind(op, x=x)
    check_activation(op, act, alpha, gain, clamp)
    _check(op, x, b, noise, strength, dim)
    y = empty_dense_like(x)
    saves_mask = save and not _is_smooth(act)
    size = mask_size(y, b, noise is not None, dim, act, clamp) if saves_mask else 0
    return y, x.new_empty(size, dtype=torch.uint8)


def _fake_backward(  # type: ignore[no-untyped-def]
    dy, x, b, noise, strength, mask, dim, act, alpha, gain, clamp, channels_last, need_b, need_strength
) -> tuple[Tensor, Tensor, Tensor]:
    op = "bias_act_backward"
    check_same_kind(op, dy=dy)
    check_activation(op, act, alpha, gain, clamp)
    _check_format(op, "dy", dy, channels_last)
    _check(op, dy, b, noise, strength, dim)
    if need_b and b is None:
        raise RuntimeError(f"{op}: the gradient of b is asked for, but b is not given")
    if need_strength and noise is None:
        raise RuntimeError(f"{op}: the gradient of strength is asked for, but noise is not given")
    dz = new_in_format(dy, dy.shape, channels_last)
    if _is_smooth(act):
        if x is None:
            raise RuntimeError(f"{op}: act is '{act}', whose backward needs x")
        check_same_kind(op, dy=dy, x=x)
        check_same_shape(op, dy=dy, x=x)
    else:
        size = mask_size(dz, b, noise is not None, dim, act, clamp)
        needs_mask = clamp is not None or act != "linear"
        fits = (
            mask is not None and mask.dtype == torch.uint8 and mask.is_contiguous() and mask.numel() == size
        )
        if needs_mask and not fits:
            raise RuntimeError(
                f"{op}: the backward of '{act}' needs the mask that bias_act(..., save=True) returned for a "
                f"tensor of shape {shape_of(dy)} in this memory format"
            )
    return dz, dy.new_empty(dy.size(dim) if need_b else 0), dy.new_empty(1 if need_strength else 0)


def _fake_double_backward(  # type: ignore[no-untyped-def]
    u, dy, x, b, noise, strength, dim, act, alpha, gain, clamp, channels_last, need_b, need_strength
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "bias_act_double_backward"
    check_same_kind(op, x=x)
    check_activation(op, act, alpha, gain, clamp)
    if not _is_smooth(act):
        raise RuntimeError(f"{op}: act is '{act}', whose second derivative is zero")
    check_same_kind(op, x=x, u=u, dy=dy)
    check_same_shape(op, x=x, u=u, dy=dy)
    _check_format(op, "x", x, channels_last)
    _check(op, x, b, noise, strength, dim)
    if (need_b and b is None) or (need_strength and noise is None):
        raise RuntimeError(f"{op}: a gradient is asked for of what is not given")
    return (
        new_in_format(x, x.shape, channels_last),
        new_in_format(x, x.shape, channels_last),
        x.new_empty(x.size(dim) if need_b else 0),
        x.new_empty(1 if need_strength else 0),
    )


def _check_format(op: str, name: str, x: Tensor, channels_last: bool) -> None:
    if channels_last and x.dim() < 3:
        raise RuntimeError(f"{op}: channels_last needs 3 dimensions or more, {name} has shape {shape_of(x)}")


def _kept(  # type: ignore[no-untyped-def]
    x, b, noise, strength, dim, act, alpha, gain, clamp, save, out
) -> tuple[Tensor | None, bool]:
    smooth = _is_smooth(act)
    if not (save or smooth or (act == "linear" and clamp is None)):
        raise RuntimeError(f"bias_act: a gradient through act {act!r} with clamp {clamp} needs save=True")
    return x if smooth else None, not out[0].is_contiguous()


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    shape = [1] * like.dim()
    shape[dim] = -1
    return values.reshape(shape)


def _noise_gradient(dz: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    return dz.sum((0, 1) if noise.size(0) == 1 else 1, keepdim=True) * scale.reshape(())


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, db, dstrength = bias_act_backward(
        *(dy, a.x, a.b, a.noise, a.strength, a.mask, *a.plain[:5], a.channels_last, needs.b, needs.strength)
    )
    return (
        dx,
        db if needs.b else None,
        _noise_gradient(dx, a.noise, a.strength) if needs.noise else None,
        dstrength.reshape(a.strength.shape) if needs.strength else None,
    )


def _backward_gradients(
    a: Any, needs: Any, g_dx: Tensor | None, g_db: Tensor | None, g_dstrength: Tensor | None
) -> tuple[Tensor | None, ...]:
    options = a.plain[:6]
    # An output that was not asked for is empty, and so is its cotangent.
    g_db, g_dstrength = g_db if a.need_b else None, g_dstrength if a.need_strength else None
    # u is the cotangent of dz; dx is a copy of dz, db and dstrength are sums over it.
    u = g_dx
    if g_db is not None:
        g = _along(g_db, a.dim, a.dy)
        u = g.expand_as(a.dy) if u is None else u + g
    if g_dstrength is not None:
        g = g_dstrength.reshape(()) * a.noise
        u = g.expand_as(a.dy) if u is None else u + g
    if u is None:
        return (None,) * 5

    def dz_from(cotangent: Tensor) -> Tensor:
        inputs = (cotangent, a.x, a.b, a.noise, a.strength, a.mask)
        dz: Tensor = bias_act_backward(*inputs, *options, False, False)[0]
        return dz

    grad_dy = grad_x = grad_b = grad_noise = grad_strength = None
    if not _is_smooth(a.act):
        grad_dy = dz_from(u) if needs.dy else None
    else:
        inputs = (u, a.dy, a.x, a.b, a.noise, a.strength)
        grad_dy, grad_x, grad_b, grad_strength = _double_backward(*inputs, *options, needs.b, needs.strength)
        grad_b = grad_b if needs.b else None
        grad_strength = grad_strength.reshape(a.strength.shape) if needs.strength else None
        grad_noise = _noise_gradient(grad_x, a.noise, a.strength) if needs.noise else None
    if needs.noise and g_dstrength is not None:
        direct = _noise_gradient(dz_from(a.dy), a.noise, g_dstrength)
        grad_noise = direct if grad_noise is None else grad_noise + direct
    if has_corners(a.act):  # zeros, as with_zeros has them
        grad_b = torch.zeros_like(a.b) if needs.b else None
        grad_strength = torch.zeros_like(a.strength) if needs.strength else None
        grad_noise = torch.zeros_like(a.noise) if needs.noise and grad_noise is None else grad_noise
    return grad_dy, grad_x, grad_b, grad_noise, grad_strength


def _double_backward_ref(  # type: ignore[no-untyped-def]
    u, dy, x, b, noise, strength, dim, act, alpha, gain, clamp, channels_last, need_b, need_strength
) -> tuple[Tensor, ...]:
    z = x if b is None else x + _along(b, dim, x)
    if noise is not None:
        z = z + strength.reshape(()) * noise
    z, dy = leaf(z), leaf(dy)
    y = bias_act_ref(z, None, dim, act, alpha, gain, clamp)
    (dz,) = torch.autograd.grad(y, z, dy, create_graph=True)
    grad_dy, grad_z = torch.autograd.grad(dz, (dy, z), u, create_graph=True)
    grad_b = grad_strength = x.new_empty(0)
    if need_b:
        grad_b = grad_z.movedim(dim, 0).flatten(1).sum(1) if x.dim() > 1 else grad_z
    if need_strength:
        grad_strength = (grad_z * noise).sum().reshape(1)
    return grad_dy, grad_z, grad_b, grad_strength


_double_backward = native(
    "bias_act_double_backward", fake=_fake_double_backward, reference=_double_backward_ref
)
bias_act_backward = native(  # linear_act uses it too
    "bias_act_backward",
    fake=_fake_backward,
    gradients=_backward_gradients,
    wrt=("dy", "x", "b", "noise", "strength"),
    weights=("b", "strength"),
)
_bias_act = native(
    "bias_act",
    fake=_fake,
    gradients=_gradients,
    weights=("b", "strength"),
    save=("b", "noise", "strength", "mask"),
    keep=("x", "channels_last"),
    kept=_kept,
    constants=("mask",),
)

OPS = [
    Op(bias_act, bias_act_ref, {"x": (2, 3, 4, 4), "b": (3,), "act": "lrelu"}),
    Op(
        noise_bias_act,
        noise_bias_act_ref,
        {"x": (2, 3, 4, 4), "noise": (2, 1, 4, 4), "strength": (), "b": (3,), "act": "lrelu"},
    ),
]
