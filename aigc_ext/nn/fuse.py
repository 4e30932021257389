"""Fusing the layers of an existing model in place: `fuse_` and `unfuse_`.

Only for a `torch.nn.Sequential` is it certain, without running anything, that the output of one child goes to
the next child and nowhere else. `fuse_` therefore changes only the class of such containers, to a subclass
whose `forward` passes a layer and the activation after it to one op. The children are not modified, so
parameters, `state_dict`, `repr`, indexing, calling a single child, and tools that inspect the modules work as
before. Each forward decides anew which neighbours run as one op, so hooks, parametrizations and children
added after `fuse_` are respected.

On the CPU, PyTorch's own layers are often as fast, so there a pair runs as one op only where that was
measured to be faster: by `fuse_` on example inputs, or else by the rule of `_pays`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from aigc_ext import ops
from aigc_ext.nn.normalization import batch_norm_act
from aigc_ext.ops.conv2d_act import is_pytorchs


@dataclass(frozen=True)
class FusedRun:
    """A layer and its activation that run as one op.

    Attributes:
        path: name of the layer, as in `named_modules()`, e.g. `"main.0"`.
        kind: types of the two modules, e.g. `"Conv2d+LeakyReLU"`.
        when: where it does, in words.
    """

    path: str
    kind: str
    when: str = field(default="", compare=False)


@dataclass(frozen=True)
class SkippedRun:
    """A layer that is not fused, or a whole module that was not searched.

    Attributes:
        path: name of the module, as in `named_modules()`.
        reason: why it is not fused.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class FusionReport:
    """The result of `fuse_`: each linear, convolution or batch norm layer is in one of the two lists."""

    fused: list[FusedRun]
    skipped: list[SkippedRun]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} fused, {len(self.skipped)} left as they are"]
        lines += [f"  fused    {run.path}: {run.kind}, {run.when}" for run in self.fused]
        lines += [f"  skipped  {run.path or '(the module itself)'}: {run.reason}" for run in self.skipped]
        return "\n".join(lines)


def fuse_(module: nn.Module, example_inputs: Tensor | Sequence[Any] | None = None) -> FusionReport:
    """Makes linear, convolution and batch norm layers run as one op with the activation that follows them.

    The module's results and its derivatives of every order stay the same up to rounding, and so do its
    parameter objects: an existing optimizer keeps working. Nothing else about it changes; the top of this
    file describes how. Calling it again changes nothing and reports the current state. To fuse only a part of
    a model, or to bisect a difference, pass that part.

    `Linear`, `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d` and `BatchNorm1d/2d/3d`, parametrized or not, are fused
    if they are directly followed in a `Sequential` by `ReLU`, `LeakyReLU`, `Tanh`, `Sigmoid`, `ELU` (alpha
    1), `SELU`, `Softplus` (beta 1, threshold >= 20) or `SiLU`, `inplace` or not. Subclasses of these are not
    fused, since their behaviour is unknown, nor are modules with hooks, which would be bypassed. The
    hook-based `torch.nn.utils.weight_norm` and `spectral_norm` have hooks; those of
    `torch.nn.utils.parametrizations` don't. `Softplus` is not fused under autocast, where PyTorch may compute
    it in float32.

    On the CPU a pair runs as one op only where that is faster. With `example_inputs`, the pairs are timed
    here and now, each on what it gets of them: in training mode with the gradients of input and parameters,
    in eval mode without. A pair that does not win by more than 3 % is left as it is, and the report has the
    figure.
    Without them, a rule takes what won in measurements: convolutions by Winograd's algorithm (see
    `aigc_ext.ops.conv2d_act`), half types that the CPU has no instructions for, and batch norm from 131,072
    numbers on. On a card, which is not measured yet, and in `torch.compile`, all pairs run as one op.

    A pickled or `torch.save`d fused module can be loaded only where aigc_ext is installed, and exporters that
    do not know its ops (ONNX) cannot write it: call `unfuse_` first, or save the `state_dict`, which is the
    same.

    Args:
        module: any module, of any depth; changed in place.
        example_inputs: arguments for `module`, a tensor or a sequence, as large as those to come. It runs on
            them once, without gradients; its buffers and PyTorch's random numbers are put back.

    Returns:
        Which layers are fused and which are not, with the reasons.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
    """
    _check_module(module)
    report = FusionReport([], [])
    inputs = None if example_inputs is None else _inputs_of_layers(module, example_inputs)
    for path, parent in _containers("", module, report.skipped, seen=set()):
        prefix = f"{path}." if path else ""
        fused_before = len(report.fused)
        choices = {}  # by the layer's name
        for (name, child), (_, follower) in pairwise([*parent._modules.items(), ("", None)]):
            if child is None or not isinstance(child, tuple(_LAYERS)):
                continue
            if not _runs_as_sequential(parent):
                reason = f"{_name(parent)}, which holds it, has a forward() of its own"
                report.skipped.append(SkippedRun(prefix + name, reason))
            elif isinstance(fusion := _fusion(child, follower), str):
                reason = fusion.format(layer=_name(child), follower=_describe(follower))
                report.skipped.append(SkippedRun(prefix + name, reason))
            else:
                when = "on the CPU " + _RULES.get(type(child), "never")
                if inputs is not None and (x := inputs.get(child)) is not None:
                    assert follower is not None
                    gain = _measured_gain(child, follower, x, fusion)
                    choices[name] = gain > _NOISE
                    when = f"measured {gain:.2f} times as fast"
                    if not choices[name]:
                        report.skipped.append(SkippedRun(prefix + name, f"as one op it is {when}"))
                        continue
                report.fused.append(FusedRun(prefix + name, f"{_name(child)}+{_name(follower)}", when))
        if isinstance(parent, _Fused):
            vars(parent)["_choices"] = choices
        elif len(report.fused) > fused_before:
            parent.__class__ = _fused_class(type(parent))  # type: ignore[arg-type]
            vars(parent)["_choices"] = choices
    return report


def unfuse_(module: nn.Module) -> None:
    """Undoes `fuse_`: `module` and every container below it get their original classes back.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
        RuntimeError: a fused container's class has since been subclassed by something else (e.g. FSDP).
    """
    _check_module(module)
    fused = [(path, child) for path, child in module.named_modules() if isinstance(child, _Fused)]
    for path, child in fused:
        if "_unfused_class" not in vars(type(child)):
            raise RuntimeError(
                f"{path or 'module'} is a {type(child).__name__}, made from a fused container after fuse_(); "
                "undo that first"
            )
    for _, child in fused:
        child.__dict__.pop("_choices", None)
        child.__class__ = child._unfused_class  # type: ignore[assignment]


class _Fused(nn.Sequential):
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


_fused_classes: dict[type[nn.Sequential], type[_Fused]] = {}


def _fused_class(base: type[nn.Sequential]) -> type[_Fused]:
    if base not in _fused_classes:
        # Whatever shows the name of the class (repr, error messages, torch.export) should show the user's.
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        _fused_classes[base] = type(base.__name__, (_Fused, base), {"_unfused_class": base, **names})
    return _fused_classes[base]


def _reconstruct(constructor: Callable[..., nn.Sequential], arguments: list[Any]) -> nn.Sequential:
    module = constructor(*arguments)
    module.__class__ = _fused_class(type(module))
    return module


def _run(container: _Fused, x: Tensor) -> Tensor:
    """Applies the children to `x` in order, in as few ops as pays."""
    names, modules = list(container._modules), list(container)
    choices = vars(container).get(
        "_choices", {}
    )  # what was measured; no annotation, which TorchScript would read
    position = 0
    while position < len(modules):
        module = modules[position]
        follower = modules[position + 1] if position + 1 < len(modules) else None
        fusion = _fusion(module, follower)
        # The value passed through a Sequential may be anything, such as an fx.Proxy or a tuple.
        if isinstance(fusion, str) or not _is_plain(x) or fusion.splits_under_autocast(x.device.type):
            taken = False
        elif (choice := choices.get(names[position])) is not None:
            taken = choice
        else:
            taken = _pays(module, x)
        if taken:
            assert not isinstance(fusion, str)
            x = fusion.layer(module, x, fusion.act, fusion.alpha)
            position += 2
        else:
            x = module(x)
            position += 1
    return x


# ---- what pays -------------------------------------------------------------------------------------------

_NOISE = 1.03  # a measured gain up to this may be none
_SECONDS = 0.1  # for the measurement of a pair
_BATCH_NORM_PAYS = 1 << 17  # numbers
_RULES = dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d), "where Winograd's algorithm pays")
_RULES |= dict.fromkeys(
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), f"from {_BATCH_NORM_PAYS:,} numbers on"
)


def _pays(layer: nn.Module, x: Tensor) -> bool:
    """Is the layer with its activation faster as one op, forward and backward together?

    Measured on one core of an AMD EPYC of family 26, with LeakyReLU in place: linear layers were 0.74 to 0.99
    times as fast; convolutions that are PyTorch's 0.72 to 1.1, most below 1; by Winograd's algorithm up to
    1.65; batch norm 0.65 with 8,192 numbers and 1.0 to 2.4 from 131,072 on.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return x.numel() >= _BATCH_NORM_PAYS
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) or x.ndim != 4:
        return False
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    transposed = isinstance(layer, nn.ConvTranspose2d)
    stride, padding, dilation, extra = (
        [int(n) for n in size]
        for size in (layer.stride, layer.padding, layer.dilation, layer.output_padding)  # zeros of a Conv2d
    )
    geometry = stride, padding, dilation, extra, layer.groups, transposed
    return not is_pytorchs(x, layer.weight, geometry)


def _inputs_of_layers(module: nn.Module, example_inputs: Tensor | Sequence[Any]) -> dict[nn.Module, Tensor]:
    """What each layer gets if `module` runs on the examples; the last, if it runs more than once."""
    arguments = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    inputs: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) == 1 and _is_plain(arguments[0]):
            inputs[layer] = arguments[0].detach().clone()

    layers = [layer for layer in module.modules() if isinstance(layer, tuple(_LAYERS))]
    buffers = {buffer: buffer.clone() for buffer in module.buffers()}
    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]  # so that no layer is bypassed either
    try:
        with torch.no_grad(), torch.random.fork_rng():
            module(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, before in buffers.items():
            buffer.copy_(before)
    return inputs


def _measured_gain(layer: nn.Module, follower: nn.Module, x: Tensor, fusion: _Fusion) -> float:
    """How many times as fast the two are as one op, on copies."""
    layer, follower = copy.deepcopy((layer, follower))
    with_gradients = layer.training
    x = x.detach().requires_grad_(with_gradients)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def duration(forward: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(with_gradients):
            y = forward()
            if with_gradients:
                torch.autograd.grad(y, wanted, ones)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    apart, together = lambda: follower(layer(x)), lambda: fusion.layer(layer, x, fusion.act, fusion.alpha)
    with torch.random.fork_rng():
        ones = torch.ones_like(apart())
        times: tuple[list[float], list[float]] = ([], [])
        end = time.perf_counter() + _SECONDS
        while len(times[0]) < 4 or time.perf_counter() < end:  # the first of each warms up
            times[0].append(duration(apart))
            times[1].append(duration(together))
    return min(times[0][1:]) / min(times[1][1:])


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


_Layer = Callable[[Any, Tensor, str, "float | None"], Tensor]
_LAYERS: dict[type[nn.Module], _Layer] = {
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
}


# ---- what may be fused -----------------------------------------------------------------------------------


class _Fusion(NamedTuple):
    """How a layer and the activation after it run as one op."""

    layer: _Layer
    act: str
    alpha: float | None

    def splits_under_autocast(self, device_type: str) -> bool:
        # On CUDA, autocast computes softplus in float32 and returns float32; the fused op would not.
        return self.act == "softplus" and torch.is_autocast_enabled(device_type)


_ACTS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "lrelu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.Softplus: "softplus",
    nn.SiLU: "swish",
}
_NO_ACTIVATION = "what follows it ({follower}) is not one of " + ", ".join(act.__name__ for act in _ACTS)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DEVICES = tuple(
    key.lower()
    for key in ("CPU", "CUDA", "Meta")
    if all(
        torch._C._dispatch_has_computed_kernel_for_dispatch_key(op, key)
        for op in ("aigc::linear_act", "aigc::bias_act", "aigc::batch_norm_act")
    )
)


def _fusion(layer: nn.Module, follower: nn.Module | None) -> _Fusion | str:
    """The fusion of two neighbours in a Sequential, or the reason against it, for `str.format`.

    It runs in every forward, also under torch.compile, so it must be cheap and the reason a constant.
    """
    # The functions of torch.nn.utils.parametrize for this take longer than everything else here.
    parametrized = "parametrizations" in layer._modules
    run = _LAYERS.get(type(layer).__bases__[0] if parametrized else type(layer))
    if run is None:
        if isinstance(layer, LazyModuleMixin):
            return "{layer} gets its shape from the first input; call fuse_ again after that"
        return "{layer} is a subclass, which may do more than its base class"
    if follower is None:
        return "nothing follows it in its Sequential"
    act = _ACTS.get(type(follower))
    if act is None:
        return _NO_ACTIVATION
    if isinstance(follower, nn.ELU) and follower.alpha != 1:
        return "{follower} has an alpha other than 1, which the kernels do not know"
    if isinstance(follower, nn.Softplus) and not (follower.beta == 1 and follower.threshold >= 20):
        return "{follower} has a beta other than 1 or a threshold below 20, which the kernels do not know"
    if _has_any_global_hook():
        return "a global module hook is registered, which would be bypassed"
    if forward_ad._current_level >= 0:
        return "the ops have no forward-mode derivative"
    if _is_observed(layer):
        return "it has hooks or a replaced forward, which would be bypassed"
    if _is_observed(follower):
        return "{follower} behind it has hooks or a replaced forward, which would be bypassed"
    parameters = layer.parameters() if parametrized else layer._parameters.values()
    if not all(p is None or _is_plain(p) for p in parameters):
        return "its parameters are not plain floating-point tensors on a device that has the kernels"
    return _Fusion(run, act, follower.negative_slope if isinstance(follower, nn.LeakyReLU) else None)


def _is_observed(module: nn.Module) -> bool:
    """Whether calling `module` does more than running the forward of its class."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )


def _is_plain(x: object) -> bool:
    """Whether the kernels accept `x`: a tensor, but not a DTensor or a quantized, nested or sparse one."""
    return (
        isinstance(x, Tensor)
        and x.dtype in _DTYPES
        and x.device.type in _DEVICES
        and x.layout is torch.strided
        and not x.is_nested
        and (type(x) in (Tensor, nn.Parameter) or not is_traceable_wrapper_subclass(x))
    )


# ---- walking over the module -----------------------------------------------------------------------------


def _check_module(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}, but must be a torch.nn.Module")


def _containers(
    path: str, module: nn.Module, skipped: list[SkippedRun], seen: set[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """`module` and all modules below it, each once; those that must not be searched go to `skipped`."""
    if module in seen:
        return
    seen.add(module)
    if isinstance(module, torch.jit.ScriptModule):
        skipped.append(SkippedRun(path, "it is a TorchScript module; fuse before scripting or tracing"))
    elif type(module).__module__.startswith("torch.ao."):
        skipped.append(SkippedRun(path, f"{_name(module)} belongs to torch.ao.quantization"))
    else:
        yield path, module
        for name, child in module._modules.items():
            if child is not None:
                yield from _containers(f"{path}.{name}" if path else name, child, skipped, seen)


def _runs_as_sequential(module: nn.Module) -> bool:
    own = module._unfused_class if isinstance(module, _Fused) else type(module)
    return (
        isinstance(module, nn.Sequential)
        and own.forward is nn.Sequential.forward
        and "forward" not in vars(module)
        and not is_parametrized(module)
    )


def _name(module: object) -> str:
    return type(module).__name__


def _describe(module: nn.Module | None) -> str:
    return "nothing" if module is None else f"{_name(module)}({module.extra_repr()})"
