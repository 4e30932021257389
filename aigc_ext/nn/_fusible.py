"""What `fuse_` may take: the layers as ops, and the activations that the kernels know."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from aigc_ext import ops
from aigc_ext.nn._deferred import Activation, unplanned
from aigc_ext.nn.normalization import batch_norm_act
from aigc_ext.ops._layout import HALF

# ---- the layers ------------------------------------------------------------------------------------------


def _linear(module: nn.Linear, x: Tensor, act: str, alpha: float | None) -> Tensor:
    return ops.linear_act(x, module.weight, module.bias, act=act, alpha=alpha, gain=1.0)


def _conv(module: Any, x: Tensor, act: str, alpha: float | None) -> Tensor:
    return _bias_act(module, module._conv_forward(x, module.weight, None), act, alpha)


def _conv2d(module: nn.Conv2d, x: Tensor, act: str, alpha: float | None) -> Tensor:
    if x.ndim != 4 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return _conv(module, x, act, alpha)
    stride, padding, dilation = module.stride, module.padding, module.dilation
    return ops.conv2d_act(
        x, module.weight, module.bias, stride, padding, dilation, module.groups, act, alpha, gain=1.0
    )


def _conv_transpose2d(module: nn.ConvTranspose2d, x: Tensor, act: str, alpha: float | None) -> Tensor:
    if x.ndim != 4:
        return _conv_transpose(module, x, act, alpha)
    padding: Any = module.padding  # a tuple of numbers
    geometry = {"stride": module.stride, "padding": padding, "dilation": module.dilation}
    return ops.conv_transpose2d_act(
        *(x, module.weight, module.bias),
        output_padding=module.output_padding,
        groups=module.groups,
        act=act,
        alpha=alpha,
        gain=1.0,
        **geometry,
    )


def _conv_transpose(module: Any, x: Tensor, act: str, alpha: float | None) -> Tensor:
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(module.kernel_size) - 1]
    geometry = module.stride, module.padding, module.output_padding, module.groups, module.dilation
    y = convolve(x, module.weight, None, *geometry)
    return _bias_act(module, y, act, alpha)


def _bias_act(module: Any, y: Tensor, act: str, alpha: float | None) -> Tensor:
    bias = module.bias
    if bias is not None and bias.dtype != y.dtype:  # autocast: PyTorch would add the bias in y's dtype too
        bias = bias.to(y.dtype)
    channels = y.ndim - 1 - len(module.kernel_size)  # 0 without a batch dimension
    return ops.bias_act(y, bias, dim=channels, act=act, alpha=alpha, gain=1.0)


def _batch_norm(module: Any, x: Tensor, act: str, alpha: float | None) -> Tensor:
    return batch_norm_act(module, x, act, alpha, gain=1.0)


def _group_norm(
    module: Any, x: Tensor, act: str, alpha: float | None, residual: Tensor | None = None
) -> Tensor:
    # F.group_norm refuses groups of one number.
    if x.dim() < 2 or x.numel() <= module.num_groups or _float32_by_autocast(x) or not _fit(module, x):
        return _activated(nn.GroupNorm.forward(module, x), residual, act, alpha)
    return _normalized(module, x, module.num_groups, residual, act, alpha)


def _instance_norm(
    module: Any, x: Tensor, act: str, alpha: float | None, residual: Tensor | None = None
) -> Tensor:
    """F.instance_norm knows inputs without a batch, refuses planes of one number, and its result is
    contiguous whatever the input is."""
    batched = x.dim() == module._get_no_batch_dim() + 1 and x.size(1) == module.num_features
    if not batched or module.track_running_stats or x.numel() <= x.size(0) * x.size(1) or not _fit(module, x):
        return _activated(nn.InstanceNorm2d.forward(module, x), residual, act, alpha)
    return _normalized(module, x.contiguous(), x.size(1), residual, act, alpha)


def _layer_norm(module: Any, x: Tensor, act: str, alpha: float | None) -> Tensor:
    """One group of each row, of one channel: the op has weights only for channels."""
    size = module.normalized_shape
    if (
        module.elementwise_affine
        or x.shape[-len(size) :] != size
        or x.numel() == 0
        or _float32_by_autocast(x)
    ):
        return _activated(nn.LayerNorm.forward(module, x), None, act, alpha)
    rows = x.reshape(-1, 1, math.prod(size))
    return _normalized(module, rows, 1, None, act, alpha).view(x.shape)


def _normalized(
    module: Any, x: Tensor, groups: int, residual: Tensor | None, act: str, alpha: float | None
) -> Tensor:
    return ops.group_norm_act(
        *(x, groups, module.weight, module.bias),
        residual=residual,
        eps=module.eps,
        act=act,
        alpha=alpha,
        gain=1.0,
    )


def _activated(y: Tensor, residual: Tensor | None, act: str, alpha: float | None) -> Tensor:
    return ops.bias_act(y if residual is None else y + residual, act=act, alpha=alpha, gain=1.0)


def _fit(module: Any, x: Tensor) -> bool:
    """Does PyTorch take the parameters, too? Our op takes any dtype."""
    return all(
        p is None or p.dtype == x.dtype or (p.dtype == torch.float32 and x.dtype in HALF)
        for p in (module.weight, module.bias)
    )


def _float32_by_autocast(x: Tensor) -> bool:
    """On CUDA, autocast makes the result of group and layer norm float32."""
    return x.is_cuda and x.dtype in HALF and torch.is_autocast_enabled("cuda")


# Of the layer, x, the activation, its slope and, for those in TAKES_RESIDUAL, what is added before it.
_Layer = Callable[..., Tensor]
LAYERS: dict[type[nn.Module], _Layer] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv2d,
    nn.Conv3d: _conv,
    nn.ConvTranspose1d: _conv_transpose,
    nn.ConvTranspose2d: _conv_transpose2d,
    nn.ConvTranspose3d: _conv_transpose,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    nn.LayerNorm: _layer_norm,
}


# ---- what may be fused -----------------------------------------------------------------------------------


class Fusion(NamedTuple):
    """How a layer and the activation after it run as one op."""

    layer: _Layer
    act: str
    alpha: float | None

    def splits_under_autocast(self, device_type: str) -> bool:
        # On CUDA, autocast computes softplus in float32 and returns float32; the fused op would not.
        return self.act == "softplus" and torch.is_autocast_enabled(device_type)


ACTS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "lrelu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.Softplus: "softplus",
    nn.SiLU: "swish",
}
ACT_NAMES = {act: cls.__name__ for cls, act in ACTS.items()}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
GROUP_NORMS = (nn.GroupNorm, *INSTANCE_NORMS, nn.LayerNorm)  # which group_norm_act computes
TAKES_RESIDUAL = (nn.GroupNorm, *INSTANCE_NORMS)
NOT_PLAIN = "its parameters are not plain floating-point tensors on a device that has the kernels"
_NO_ACTIVATION = "what follows it ({follower}) is not one of " + ", ".join(act.__name__ for act in ACTS)
_LEARNED_SLOPE = "the slope of {follower} behind it is learned, and that of the kernels is a number"
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DEVICES = tuple(
    key.lower()
    for key in ("CPU", "CUDA", "Meta")
    if all(
        torch._C._dispatch_has_computed_kernel_for_dispatch_key(op, key)
        for op in ("aigc::linear_act", "aigc::bias_act", "aigc::batch_norm_act", "aigc::group_norm_act")
    )
)


def torch_class(layer: nn.Module) -> type[nn.Module]:
    """The layer's class without its parametrization."""
    # The functions of torch.nn.utils.parametrize for this take longer than everything else here.
    cls = type(layer)
    return cls.__bases__[0] if "parametrizations" in layer._modules else cls


def layer_type(layer: nn.Module) -> type[nn.Module]:
    """PyTorch's class of a layer, before `fuse_` and before its parametrization."""
    return unplanned(torch_class(layer))


def fusion_of(layer: nn.Module, follower: nn.Module | None) -> Fusion | str:
    """The fusion of two neighbours in a Sequential, or the reason against it, for `str.format`.

    It runs in every forward, also under torch.compile, so it must be cheap and the reason a constant.
    """
    parametrized = "parametrizations" in layer._modules
    run = LAYERS.get(layer_type(layer))
    if run is None:
        return no_layer(layer)
    if other := other_norm(layer):
        return other
    if follower is None:
        return "nothing follows it in its Sequential"
    act = ACTS.get(type(follower))
    if act is None:
        return _LEARNED_SLOPE if isinstance(follower, nn.PReLU) else _NO_ACTIVATION
    if unknown := _unknown_setting(follower):
        return unknown
    if _has_any_global_hook():
        return "a global module hook is registered, which would be bypassed"
    if forward_ad._current_level >= 0:
        return "the ops have no forward-mode derivative"
    if is_observed(layer):
        return "it has hooks or a replaced forward, which would be bypassed"
    if is_observed(follower):
        return "{follower} behind it has hooks or a replaced forward, which would be bypassed"
    parameters = layer.parameters() if parametrized else layer._parameters.values()
    if not all(p is None or is_plain(p) for p in parameters):
        return NOT_PLAIN
    return Fusion(run, act, follower.negative_slope if isinstance(follower, nn.LeakyReLU) else None)


def other_norm(layer: nn.Module) -> str | None:
    """Why group_norm_act does not compute this norm, for `str.format`, if its settings are the reason."""
    if isinstance(layer, INSTANCE_NORMS) and (layer.track_running_stats or layer.running_mean is not None):
        return "{layer} keeps running statistics, which group_norm_act does not know"
    if isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
        return "{layer} has a weight for each number of a row, group_norm_act one for each channel"
    return None


def no_layer(layer: nn.Module) -> str:
    if isinstance(layer, LazyModuleMixin):
        return "{layer} gets its shape from the first input; call fuse_ again after that"
    return "{layer} is a subclass, which may do more than its base class"


def _unknown_setting(act: nn.Module) -> str | None:
    """Why the kernels do not compute this activation, for `str.format`, if its settings are the reason."""
    if isinstance(act, nn.ELU) and act.alpha != 1:
        return "{follower} has an alpha other than 1, which the kernels do not know"
    if isinstance(act, nn.Softplus) and not (act.beta == 1 and act.threshold >= 20):
        return "{follower} has a beta other than 1 or a threshold below 20, which the kernels do not know"
    return None


def activation_of_module(follower: nn.Module) -> Activation | None:
    act = ACTS.get(type(follower))
    if act is None or is_observed(follower) or _unknown_setting(follower):
        return None
    alpha = follower.negative_slope if isinstance(follower, nn.LeakyReLU) else None
    return Activation(act, alpha, getattr(follower, "inplace", False))


def is_observed(module: nn.Module) -> bool:
    """Whether calling `module` does more than running the forward of its class."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )


def is_plain(x: object) -> bool:
    """Whether the kernels accept `x`: a tensor, but not a DTensor or a quantized, nested or sparse one."""
    return (
        isinstance(x, Tensor)
        and x.dtype in _DTYPES
        and x.device.type in _DEVICES
        and x.layout is torch.strided
        and not x.is_nested
        and (type(x) in (Tensor, nn.Parameter) or not is_traceable_wrapper_subclass(x))
    )


def name_of(module: object) -> str:
    return type(module).__name__


def describe(module: nn.Module | None) -> str:
    return "nothing" if module is None else f"{name_of(module)}({module.extra_repr()})"
