"""How what `fuse_` has taken runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from aigc_ext.nn import _gains
from aigc_ext.nn._deferred import (
    Activation,
    Plan,
    WithParameters,
    deferred,
    must_run_now,
    planned_class,
    unplanned,
)
from aigc_ext.nn._fusible import (
    BATCH_NORMS,
    GROUP_NORMS,
    LAYERS,
    fusion_of,
    is_observed,
    is_plain,
    layer_type,
    torch_class,
)


class Fused(nn.Sequential):
    """The mixin that `fuse_` adds to a container's class."""

    _unfused_class: type[nn.Sequential]

    # The name `input` keeps keyword calls working.
    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # TorchScript compiles this branch only
            for module in self:
                input = module(input)
            return input
        return _run(self, input)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Pickle finds classes by name, and this one is made at run time: name the original class instead.
        reduced: Any = super().__reduce_ex__(protocol)
        constructor, arguments, *state = reduced
        constructor, *arguments = (
            self._unfused_class if part is type(self) else part for part in (constructor, *arguments)
        )
        return _reconstruct, (constructor, arguments), *state


_fused_classes: dict[type[nn.Sequential], type[Fused]] = {}


def fused_class(base: type[nn.Sequential]) -> type[Fused]:
    if base not in _fused_classes:
        # Whatever shows the name of the class (repr, error messages, torch.export) should show the user's.
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        _fused_classes[base] = type(base.__name__, (Fused, base), {"_unfused_class": base, **names})
    return _fused_classes[base]


def _reconstruct(constructor: Callable[..., nn.Sequential], arguments: list[Any]) -> nn.Sequential:
    module = constructor(*arguments)
    module.__class__ = fused_class(type(module))
    return module


def _run(container: Fused, x: Tensor) -> Tensor:
    """Applies the children to `x` in order, in as few ops as pays."""
    names, modules = list(container._modules), list(container)
    # no annotation, which TorchScript would read
    choices = vars(container).get("_choices", {})
    position = 0
    while position < len(modules):
        module = modules[position]
        sure = choices.get(names[position], ())
        # Cheap questions first: asked of every layer in every forward, they cost a small network 5 %.
        # The value passed through a Sequential may be anything, such as an fx.Proxy or a tuple.
        if (
            sure is not False
            and isinstance(x, Tensor)
            and (torch.is_grad_enabled() in sure or _gains.pays(module, x))
        ):
            follower = modules[position + 1] if position + 1 < len(modules) else None
            fusion = fusion_of(module, follower)
            if (
                not isinstance(fusion, str)
                and is_plain(x)
                and not fusion.splits_under_autocast(x.device.type)
            ):
                x = fusion.layer(module, x, fusion.act, fusion.alpha)
                position += 2
                continue
        x = module(x)
        position += 1
    return x


# ---- layers in a forward that is not ours ----------------------------------------------------------------


def set_class(layer: nn.Module, cls: type[nn.Module]) -> None:
    if "parametrizations" in layer._modules:  # its class is its own, made by register_parametrization
        type(layer).__bases__ = (cls,)
    else:
        layer.__class__ = cls


def _reconstruct_layer(constructor: Callable[..., nn.Module], arguments: list[Any]) -> nn.Module:
    layer = constructor(*arguments)
    layer.__class__ = planned_layer(type(layer))
    return layer


def planned_layer(base: type[nn.Module]) -> type[nn.Module]:
    return planned_class(base, _run_planned, _reconstruct_layer)


def _run_planned(original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a layer with a plan; `original` is PyTorch's."""
    if torch.compiler.is_compiling() or kwargs or len(args) != 1:
        return original(layer, *args, **kwargs)
    (x,) = args
    plan: Plan | None = layer.__dict__.get("_plan")
    if plan is None or not is_plain(x) or must_run_now(x):
        return original(layer, x)
    # Whether a convolution alone runs as another kernel depends on each input.
    depends = plan.act is None and not isinstance(layer, GROUP_NORMS)
    if (depends or torch.is_grad_enabled() not in plan.sure) and not _gains.pays(layer, x, plan.act is None):
        return original(layer, x)
    own = WithParameters(layer) if "parametrizations" in layer._modules else layer
    if not all(p is None or is_plain(p) for p in (own.weight, own.bias)):
        return original(own, x)
    run = LAYERS[layer_type(layer)]
    if plan.act is None:
        return run(own, x, "linear", None)
    if (
        layer._forward_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or _has_any_global_hook()
        or any(map(is_observed, plan.followers))
        or (plan.act == "softplus" and torch.is_autocast_enabled(x.device.type))
    ):
        return original(own, x)
    act, alpha = plan.act, plan.alpha

    def apart(again: bool) -> Tensor:
        if again and isinstance(layer, BATCH_NORMS) and (layer.training or layer.running_mean is None):
            # The running statistics have this batch already.
            return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
        y: Tensor = original(own, x)
        return y

    autocast = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None

    def together(*residual: Tensor) -> Tensor:
        same = torch.is_autocast_enabled(x.device.type) == (autocast is not None)
        with nullcontext() if same else torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            return run(own, x, act, alpha, *residual)

    return deferred(Activation(act, alpha, residual=plan.residual), apart, together, x)


def undo(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, Fused) and "_unfused_class" in vars(type(child)):
            vars(child).pop("_choices", None)
            child.__class__ = child._unfused_class  # type: ignore[assignment]
        elif vars(child).pop("_plan", None) is not None:
            set_class(child, unplanned(torch_class(child)))
