"""Group normalisation (Wu and He 2018), a scale and shift for each sample (AdaIN, FiLM), a residual and an
activation: ``clamp(gain * act(z))`` with ``z = (h * weight + bias) * scale + shift + residual`` and
``h = (x - mean) / sqrt(var + eps)`` in each group of a sample.

The first two orders of differentiation are kernels that recompute z from x and the statistics; from the third
on it is plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import (
    check_eps,
    check_same_kind,
    check_same_shape,
    dtype_name,
    no_tensor,
    promoted_dtype,
    shape_of,
)
from aigc_ext.ops._gradients import leaf
from aigc_ext.ops._layout import empty_dense_like
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native
from aigc_ext.ops.activations import check_activation, has_corners, resolve_activation
from aigc_ext.ops.bias_act import bias_act_ref


def group_norm_act(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.group_norm`, what modulates it, a residual and an activation in one op, with
    a double backward that is a kernel too.

    ``h = (x - mean) / sqrt(var + eps)`` with the mean and the biased variance of each group of channels of
    each sample, and ``y = clamp(gain * act((h * weight + bias) * scale + shift + residual), -clamp, clamp)``.
    As many groups as channels make it instance normalisation, one group makes it layer normalisation over
    (C, H, W), with parameters for each channel.

    ``scale`` and ``shift`` are those of AdaIN (Huang and Belongie 2017, equation 8; StyleGAN 2018) and FiLM
    (Perez et al. 2018). Where a network predicts a scale around 0, as in diffusion models and BigGAN, pass
    ``1 + scale``. The residual is added before the activation, as in ResNet (He et al. 2015) and, with
    ``act="linear"``, after the last normalisation of a block of CycleGAN's generator.

    Args:
        x: ``[N, C, ...]``, contiguous or channels-last without a copy; float64, float32, float16 or bfloat16
            (half types are computed in float32, the statistics joined in float64).
        num_groups: at least 1; it divides C. A group is ``C / num_groups`` neighbouring channels.
        weight, bias: ``[C]`` or None. They need not have x's dtype: with half types, float32 is usual.
        scale, shift: ``[N, C]`` or None, in any dtype too.
        residual: of x's shape, or None. If dtypes differ, x and residual are promoted to the wider one.
        eps: added to the variance; at least 0 and finite.
        act, alpha, gain, clamp: as for :func:`aigc_ext.ops.bias_act`, default gain included: sqrt(2) for
            relu, lrelu and swish (SiLU; with ``gain=1.0``).

    Returns:
        A tensor of x's shape and dtype, channels-last if ``x`` is, else contiguous. Differentiable to every
        order in x, weight, bias, scale, shift and residual. In a group of one element, h is 0.

    Raises:
        ValueError: an activation argument as for bias_act.
        TypeError: an argument is not a tensor, or not a Python number, where one is required.
        RuntimeError: shapes don't match; ``num_groups`` doesn't divide C; ``eps`` out of range; dtype or
            device not supported.
    """
    activation, alpha, gain = resolve_activation(act, alpha, gain, clamp)
    if not isinstance(num_groups, int):
        raise TypeError(f"group_norm_act: num_groups is {num_groups!r}, but must be an int")
    optional = {"weight": weight, "bias": bias, "scale": scale, "shift": shift, "residual": residual}
    if not (isinstance(x, Tensor) and all(t is None or isinstance(t, Tensor) for t in optional.values())):
        raise no_tensor("group_norm_act", optional=tuple(optional), x=x, **optional)
    if residual is not None and residual.dtype != x.dtype:
        dtype = promoted_dtype("group_norm_act", x=x, residual=residual)
        x, residual = x.to(dtype), residual.to(dtype)
    if decomposed():
        return group_norm_act_ref(
            x, num_groups, weight, bias, scale, shift, residual, eps, act, alpha, gain, clamp
        )
    y: Tensor = _group_norm_act(
        x, weight, bias, scale, shift, residual, num_groups, eps, activation.name, alpha, gain, clamp
    )[0]
    return y


def group_norm_act_ref(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`group_norm_act` in plain PyTorch."""
    z = x
    if x.numel() > 0:
        groups = x.reshape(x.size(0), num_groups, -1)
        var, mean = torch.var_mean(groups, 2, correction=0, keepdim=True)
        z = ((groups - mean) * (var + eps).rsqrt()).reshape(x.shape)

    def along(t: Tensor) -> Tensor:
        return t.reshape([*([1] if t.dim() == 1 else []), *t.shape, *[1] * (x.dim() - 2)])

    if weight is not None:
        z = z * along(weight)
    if bias is not None:
        z = z + along(bias)
    if scale is not None:
        z = z * along(scale)
    if shift is not None:
        z = z + along(shift)
    if residual is not None:
        z = z + residual
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    return bias_act_ref(z, None, 1, act, alpha, gain, clamp).to(dtype)


# ---- native ops --------------------------------------------------------------------------------------------

_PARAMETERS = ("weight", "bias", "scale", "shift")
_INPUTS = ("x", *_PARAMETERS, "residual")


def _check(  # type: ignore[no-untyped-def]
    op: str, x, num_groups, eps, act, alpha, gain, clamp, statistics=(), elements=None, **numbers
) -> None:
    """``numbers`` by name, ``elements``, the tensors like x, too, and ``statistics``: mean and rstd."""
    promoted_dtype(op, x=x)
    check_activation(op, act, alpha, gain, clamp)
    check_eps(op, eps)
    if x.dim() < 2:
        raise RuntimeError(f"{op}: x has shape {shape_of(x)}, but must be [N, C, ...]")
    samples, channels = x.shape[:2]
    if num_groups < 1 or channels % num_groups != 0:
        raise RuntimeError(
            f"{op}: num_groups is {num_groups}, but must be at least 1 and divide the {channels} "
            "channels of x"
        )
    for name, t in numbers.items():
        if t is None:
            continue
        wanted = [channels] if name.endswith(("weight", "bias")) else [samples, channels]
        if list(t.shape) != wanted:
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(t)}, but must be {wanted} for an x of shape {shape_of(x)}"
            )
        promoted_dtype(op, **{name: t})
    for name, t in (elements or {}).items():
        check_same_kind(op, x=x, **{name: t})
        check_same_shape(op, x=x, **{name: t})
    for name, t in zip(("mean", "rstd"), statistics, strict=False):
        if t.dtype != torch.float64:
            raise RuntimeError(f"{op}: {name} is {dtype_name(t.dtype)}, but must be float64")
        if list(t.shape) != [samples, num_groups]:
            raise RuntimeError(
                f"{op}: {name} has shape {shape_of(t)}, but must be {[samples, num_groups]} for an x of "
                f"shape {shape_of(x)}"
            )


def _empty_gradients(op: str, x: Tensor, needs: Any, **inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Of weight, bias, scale, shift and residual."""
    result = []
    for (name, t), need in zip(inputs.items(), needs, strict=True):
        if need and t is None:
            raise RuntimeError(f"{op}: the gradient of {name} is asked for, but {name} is not given")
        if name == "residual":
            result.append(empty_dense_like(x) if need else x.new_empty(0))
        else:
            result.append((x if t is None else t).new_empty(t.shape if need and t is not None else 0))
    return tuple(result)


def _fake(  # type: ignore[no-untyped-def]
    x, weight, bias, scale, shift, residual, num_groups, eps, act, alpha, gain, clamp
) -> tuple[Tensor, Tensor, Tensor]:
    numbers = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    options = (num_groups, eps, act, alpha, gain, clamp)
    _check("group_norm_act", x, *options, elements={"residual": residual}, **numbers)
    mean, rstd = (x.new_empty((x.size(0), num_groups), dtype=torch.float64) for _ in range(2))
    return empty_dense_like(x), mean, rstd


def _fake_backward(  # type: ignore[no-untyped-def]
    dy, x, weight, bias, scale, shift, residual, mean, rstd, num_groups, eps, act, alpha, gain, clamp, *needs
) -> tuple[Tensor, ...]:
    op = "group_norm_act_backward"
    numbers = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    options = (num_groups, eps, act, alpha, gain, clamp)
    _check(op, x, *options, (mean, rstd), {"residual": residual, "dy": dy}, **numbers)
    return empty_dense_like(x), *_empty_gradients(op, x, needs, **numbers, residual=residual)


def _fake_double_backward(  # type: ignore[no-untyped-def]
    v,
    v_weight,
    v_bias,
    v_scale,
    v_shift,
    v_residual,
    dy,
    x,
    weight,
    bias,
    scale,
    shift,
    residual,
    mean,
    rstd,
    num_groups,
    eps,
    act,
    alpha,
    gain,
    clamp,
    *needs,
) -> tuple[Tensor, ...]:
    op = "group_norm_act_double_backward"
    numbers = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    cotangents = {"v_weight": v_weight, "v_bias": v_bias, "v_scale": v_scale, "v_shift": v_shift}
    elements = {"residual": residual, "dy": dy, "v": v, "v_residual": v_residual}
    options = (num_groups, eps, act, alpha, gain, clamp)
    _check(op, x, *options, (mean, rstd), elements, **numbers, **cotangents)  # type: ignore[misc]
    of_inputs = _empty_gradients(op, x, needs, **numbers, residual=residual)
    return empty_dense_like(x), empty_dense_like(x), *of_inputs


def _asked(gradients: Any, needs: Any) -> tuple[Tensor | None, ...]:
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


def _gradients(a: Any, needs: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    inputs = (dy, a.x, a.weight, a.bias, a.scale, a.shift, a.residual, a.mean, a.rstd)
    return _asked(_backward(*inputs, *a.plain, *needs[1:]), (True, *needs[1:]))


def _backward_gradients(a: Any, needs: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    # An output that was not asked for is empty, and so is its cotangent.
    asked = (True, a.need_weight, a.need_bias, a.need_scale, a.need_shift, a.need_residual)
    v, v_weight, v_bias, v_scale, v_shift, v_residual = _asked(cotangents, asked)
    wanted = dict(zip(_INPUTS[1:], needs[2:], strict=True))
    if a.act == "linear":  # the gradients do not depend on all inputs
        wanted["weight"] &= v is not None or v_scale is not None
        wanted["bias"] &= v_scale is not None
        wanted["scale"] &= v is not None or v_weight is not None or v_bias is not None
        wanted["shift"] = wanted["residual"] = False
    of_residual = None
    if has_corners(a.act) and wanted["residual"]:  # no kernel need write zeros, which with_zeros speaks of
        of_residual = a.residual.new_zeros(()).expand(a.residual.shape)
        wanted["residual"] = False
    v = torch.zeros_like(a.x) if v is None else v
    gradients = _double_backward(
        *(v, v_weight, v_bias, v_scale, v_shift, v_residual),
        *(a.dy, a.x, a.weight, a.bias, a.scale, a.shift, a.residual, a.mean, a.rstd),
        *a.plain[:6],
        *wanted.values(),
    )
    gradients = _asked(gradients, (True, True, *wanted.values()))
    return gradients if of_residual is None else (*gradients[:-1], of_residual)


def _double_backward_ref(  # type: ignore[no-untyped-def]
    v,
    v_weight,
    v_bias,
    v_scale,
    v_shift,
    v_residual,
    dy,
    x,
    weight,
    bias,
    scale,
    shift,
    residual,
    mean,
    rstd,
    num_groups,
    eps,
    act,
    alpha,
    gain,
    clamp,
    *needs,
) -> tuple[Tensor, ...]:
    dy = leaf(dy)
    x, weight, bias, scale, shift, residual = (
        None if t is None else leaf(t) for t in (x, weight, bias, scale, shift, residual)
    )
    y = group_norm_act_ref(x, num_groups, weight, bias, scale, shift, residual, eps, act, alpha, gain, clamp)
    cotangents = (v, v_weight, v_bias, v_scale, v_shift, v_residual)
    others = (weight, bias, scale, shift, residual)
    pairs = [(t, w) for t, w in zip((x, *others), cotangents, strict=True) if t is not None and w is not None]
    slopes = torch.autograd.grad(y, [t for t, _ in pairs], dy, create_graph=True)
    wanted = [dy, x, *(t for t, need in zip(others, needs, strict=True) if need)]
    gradients = torch.autograd.grad(
        slopes, wanted, [w for _, w in pairs], create_graph=True, allow_unused=True
    )
    found = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)]
    of_others = iter(found[2:])
    return *found[:2], *(next(of_others) if need else x.new_empty(0) for need in needs)


_double_backward = native(
    "group_norm_act_double_backward",
    fake=_fake_double_backward,
    reference=_double_backward_ref,
    wrt=("v", *(f"v_{name}" for name in _INPUTS[1:]), "dy", *_INPUTS),
)
_backward = native(
    "group_norm_act_backward",
    fake=_fake_backward,
    gradients=_backward_gradients,
    wrt=("dy", *_INPUTS),
    weights=("weight", "bias"),
)
_group_norm_act = native(
    "group_norm_act",
    fake=_fake,
    gradients=_gradients,
    wrt=_INPUTS,
    weights=("weight", "bias"),
    save=(*_INPUTS, "mean", "rstd"),
    constants=("mean", "rstd"),
)

OPS = [
    Op(
        group_norm_act,
        group_norm_act_ref,
        {
            "x": (2, 4, 5, 5),
            "num_groups": 2,
            "weight": (4,),
            "bias": (4,),
            "scale": (2, 4),
            "shift": (2, 4),
            "residual": (2, 4, 5, 5),
            "act": "swish",
        },
    )
]
