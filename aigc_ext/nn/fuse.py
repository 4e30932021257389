"""Fusing the layers of an existing model in place: `fuse_` and `unfuse_`.

In a `torch.nn.Sequential` it is certain, without running anything, that the output of one child goes to the
next child and nowhere else. There `fuse_` changes only the class of the container, to a subclass whose
`forward` passes a layer and the activation after it to one op. The children are not modified, so parameters,
`state_dict`, `repr`, indexing, calling a single child, and tools that inspect the modules work as before.
Each forward decides anew which neighbours run as one op, so hooks, parametrizations and children added after
`fuse_` are respected.

A module with a `forward` of its own may do anything with a layer's result. There the class of the layer is
changed: its result waits for the activation (`aigc_ext.nn._deferred`), or the layer alone runs as another
kernel.

On the CPU, PyTorch's own layers are often as fast, so there a layer is taken only where that was measured to
be faster: by `fuse_` on example inputs, where the whole network is timed too, or else by the rule of `_pays`.

To add a layer (an op for a norm with its activation, say): a function in `_LAYERS`, and a rule in `_RULES`
and `_pays`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
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
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from aigc_ext import ops
from aigc_ext.nn._deferred import (
    Activation,
    Plan,
    WithParameters,
    deferred,
    must_run_now,
    planned_class,
    unplanned,
)
from aigc_ext.nn._usage import (
    Reading,
    Usage,
    arguments_of,
    put_back,
    read_forward,
    run_on_examples,
    tensors_in,
)
from aigc_ext.nn.normalization import batch_norm_act
from aigc_ext.ops._layout import HALF
from aigc_ext.ops.conv2d_act import is_pytorchs


@dataclass(frozen=True)
class FusedRun:
    """A layer that runs as one of our ops, alone or with the activation behind it.

    Attributes:
        path: name of the layer, as in `named_modules()`, e.g. `"main.0"`.
        kind: what runs as one op, e.g. `"Conv2d+LeakyReLU"`, or `"Conv2d"` if it is the layer alone.
        when: where it does, in words.
        gain: how many times as fast it was measured, forward and, in training mode, backward; None without
            examples.
    """

    path: str
    kind: str
    when: str = field(default="", compare=False)
    gain: float | None = field(default=None, compare=False)


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
    """The result of `fuse_`: each linear, convolution or batch norm layer is in one of the two lists.

    Attributes:
        fused: the layers that were taken.
        skipped: the layers that were left, and why.
        gain: how many times as fast the whole module was measured on the examples; None without examples, 1.0
            if nothing was taken.
    """

    fused: list[FusedRun]
    skipped: list[SkippedRun]
    gain: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        whole = "" if self.gain is None else f"; the module is {self.gain:.2f} times as fast"
        lines = [f"{len(self.fused)} fused, {len(self.skipped)} left as they are{whole}"]
        lines += [f"  fused    {run.path}: {run.kind}, {run.when}" for run in self.fused]
        lines += [f"  skipped  {run.path or '(the module itself)'}: {run.reason}" for run in self.skipped]
        return "\n".join(lines)


def fuse_(module: nn.Module, example_inputs: Tensor | Sequence[Any] | None = None) -> FusionReport:
    """Makes linear, convolution and batch norm layers run as one op with the activation that follows them,
    and 3x3 convolutions by a faster algorithm, where that pays.

    The module's results and its derivatives of every order stay the same up to rounding, and so do its
    parameter objects: an existing optimizer keeps working. Nothing else about it changes; the top of this
    file describes how. Calling it again decides anew and reports the current state. To fuse only a part of a
    model, or to bisect a difference, pass that part.

    The layers are `Linear`, `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d` and `BatchNorm1d/2d/3d`, parametrized or
    not; the activations `ReLU`, `LeakyReLU`, `Tanh`, `Sigmoid`, `ELU` (alpha 1), `SELU`, `Softplus` (beta 1,
    threshold >= 20) and `SiLU`, as modules or functions, `inplace` or not. A layer and its activation are
    found

    - in a `Sequential`, as neighbours;
    - in a module with a `forward` of its own, by running it on `example_inputs`, or without them by
      `torch.fx`, where it can trace that `forward`. Should another call do something else with the layer's
      result, that is what happens.

    Subclasses of the layers are not taken, since their behaviour is unknown, nor are modules with hooks that
    would be bypassed. The hook-based `torch.nn.utils.weight_norm` and `spectral_norm` run as before, with
    their power iterations; layers that have them are taken if there are `example_inputs`. `Softplus` is not
    fused under autocast, where PyTorch may compute it in float32.

    On the CPU a layer is taken only where that is faster. With `example_inputs`, the candidates are timed
    here and now, each on what it gets of them: in training mode with the gradients, in eval mode without.
    What does not win by more than 3 % is left as it is, and the report has the figure. Then the whole module
    is timed with and without what was taken; if it does not win, everything is left.
    Without them, a rule takes what won in measurements: convolutions by Winograd's algorithm (see
    `aigc_ext.ops.conv2d_act`), half types that the CPU has no instructions for, and batch norm from 131,072
    numbers on. On a card, which is not measured yet, all pairs run as one op; in `torch.compile`, those in a
    `Sequential`.

    A pickled or `torch.save`d fused module can be loaded only where aigc_ext is installed, and exporters that
    do not know its ops (ONNX) cannot write it: call `unfuse_` first, or save the `state_dict`, which is the
    same.

    Args:
        module: any module, of any depth; changed in place.
        example_inputs: arguments for `module`, a tensor or a sequence, as large as those to come. It runs on
            them several times; its buffers and the random numbers to come are put back, and its parameters
            get no gradients.

    Returns:
        What was taken and what was left, with the reasons.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
    """
    _check_module(module)
    _undo(module)
    report = FusionReport([], [])
    found = list(_layers(module, report.skipped))
    usages: dict[nn.Module, Usage] = {}
    arguments = None
    if example_inputs is not None:
        arguments = arguments_of(example_inputs)
        layers = list(dict.fromkeys(place.layer for place in found))
        usages = run_on_examples(module, layers, arguments, _is_plain, _activation_of_module)
    chooser = _Chooser()
    decisions = _Decisions(module)
    for place in found:
        if place.layer in decisions.plans:  # it is in several places
            continue
        choice = chooser.choose(place, usages.get(place.layer))
        if isinstance(choice, str):
            report.skipped.append(SkippedRun(place.path, choice))
            if place.container and usages:
                decisions.leave(place)
        else:
            decisions.take(place, choice)
    gain = None
    if arguments is None:
        decisions.apply()
    else:
        gain = _decide_as_a_whole(decisions, arguments, report.skipped)
    return FusionReport(list(decisions.runs.values()), report.skipped, gain)


def unfuse_(module: nn.Module) -> None:
    """Undoes `fuse_`: `module` and every container below it get their original classes back.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
        RuntimeError: a fused container's class has since been subclassed by something else (e.g. FSDP).
    """
    _check_module(module)
    for path, child in module.named_modules():
        cls = type(child)
        derived = isinstance(child, _Fused) and "_unfused_class" not in vars(cls)
        if derived or (hasattr(child, "_unplanned_class") and _layer_type(child) not in _LAYERS):
            raise RuntimeError(
                f"{path or 'module'} is a {cls.__name__}, made from a fused module after fuse_(); "
                "undo that first"
            )
    _undo(module)


def _undo(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, _Fused) and "_unfused_class" in vars(type(child)):
            vars(child).pop("_choices", None)
            child.__class__ = child._unfused_class  # type: ignore[assignment]
        elif vars(child).pop("_plan", None) is not None:
            _set_class(child, unplanned(_torch_class(child)))


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
    # what was measured; no annotation, which TorchScript would read
    choices = vars(container).get("_choices", {})
    position = 0
    while position < len(modules):
        module = modules[position]
        choice = choices.get(names[position])
        # Cheap questions first: asked of every layer in every forward, they cost a small network 5 %.
        # The value passed through a Sequential may be anything, such as an fx.Proxy or a tuple.
        if choice is not False and isinstance(x, Tensor) and (choice or _pays(module, x)):
            follower = modules[position + 1] if position + 1 < len(modules) else None
            fusion = _fusion(module, follower)
            if (
                not isinstance(fusion, str)
                and _is_plain(x)
                and not fusion.splits_under_autocast(x.device.type)
            ):
                x = fusion.layer(module, x, fusion.act, fusion.alpha)
                position += 2
                continue
        x = module(x)
        position += 1
    return x


# ---- layers in a forward that is not ours ----------------------------------------------------------------


def _torch_class(layer: nn.Module) -> type[nn.Module]:
    """The layer's class without its parametrization."""
    # The functions of torch.nn.utils.parametrize for this take longer than everything else here.
    cls = type(layer)
    return cls.__bases__[0] if "parametrizations" in layer._modules else cls


def _layer_type(layer: nn.Module) -> type[nn.Module]:
    """PyTorch's class of a layer, before `fuse_` and before its parametrization."""
    return unplanned(_torch_class(layer))


def _set_class(layer: nn.Module, cls: type[nn.Module]) -> None:
    if "parametrizations" in layer._modules:  # its class is its own, made by register_parametrization
        type(layer).__bases__ = (cls,)
    else:
        layer.__class__ = cls


def _reconstruct_layer(constructor: Callable[..., nn.Module], arguments: list[Any]) -> nn.Module:
    layer = constructor(*arguments)
    layer.__class__ = _planned_class(type(layer))
    return layer


def _planned_class(base: type[nn.Module]) -> type[nn.Module]:
    return planned_class(base, _run_planned, _reconstruct_layer)


def _run_planned(original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a layer with a plan; `original` is PyTorch's."""
    if torch.compiler.is_compiling() or kwargs or len(args) != 1:
        return original(layer, *args, **kwargs)
    (x,) = args
    plan: Plan | None = layer.__dict__.get("_plan")
    if plan is None or not _is_plain(x) or must_run_now(x):
        return original(layer, x)
    if (plan.act is None or not plan.sure) and not _pays(layer, x):
        return original(layer, x)
    own = WithParameters(layer) if "parametrizations" in layer._modules else layer
    if not all(p is None or _is_plain(p) for p in (own.weight, own.bias)):
        return original(own, x)
    run = _LAYERS[_layer_type(layer)]
    if plan.act is None:
        return run(own, x, "linear", None)
    if (
        layer._forward_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or _has_any_global_hook()
        or any(map(_is_observed, plan.followers))
        or (plan.act == "softplus" and torch.is_autocast_enabled(x.device.type))
    ):
        return original(own, x)
    act, alpha = plan.act, plan.alpha

    def apart(again: bool) -> Tensor:
        if again and isinstance(layer, _BATCH_NORMS) and (layer.training or layer.running_mean is None):
            # The running statistics have this batch already.
            return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
        y: Tensor = original(own, x)
        return y

    autocast = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None

    def together() -> Tensor:
        same = torch.is_autocast_enabled(x.device.type) == (autocast is not None)
        with nullcontext() if same else torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            return run(own, x, act, alpha)

    return deferred(Activation(act, alpha), apart, together, x)


# ---- what pays -------------------------------------------------------------------------------------------

_NOISE = 1.03  # a measured gain up to this may be none
_NOISE_OF_MODULE = 1.01
_CLEARLY = 1.1
_SECONDS = 0.1  # for the measurement of a layer
_SECONDS_OF_MODULE = 1.0
_AS_A_WHOLE = "with it the whole module is not faster"
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
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return False
    if not _may_be_ours(layer) and x.dtype not in HALF and not torch.is_autocast_enabled("cpu"):
        return False
    if x.ndim != 4 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    transposed = isinstance(layer, nn.ConvTranspose2d)
    stride, padding, dilation, extra = (
        [int(n) for n in size]
        for size in (layer.stride, layer.padding, layer.dilation, layer.output_padding)  # zeros of a Conv2d
    )
    geometry = stride, padding, dilation, extra, layer.groups, transposed
    if "parametrizations" in layer._modules:  # to read its weight would be a step of a spectral norm
        channels = [layer.out_channels, layer.in_channels]
        channels[0 if transposed else 1] //= layer.groups
        weight = x.new_empty(1).expand(*(channels[::-1] if transposed else channels), *layer.kernel_size)
    else:
        weight = layer.weight
    return not is_pytorchs(x, weight, geometry)


def _may_be_ours(layer: nn.Module) -> bool:
    """Are there inputs for which a convolution without activation runs as our own kernel?"""
    return (
        isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _measured_gain(
    layer: nn.Module, apart: Callable[[], Tensor], together: Callable[[], Tensor], x: Tensor
) -> float:
    """How many times as fast `together` is as `apart`, which are the same function of x and the layer."""
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
    with_gradients = layer.training and bool(wanted)

    def duration(forward: Callable[[], Tensor]) -> float:
        start = _now(x)
        with torch.set_grad_enabled(with_gradients):
            y = forward()
            if with_gradients:
                torch.autograd.grad(y, wanted, ones)
        return _now(x) - start

    with put_back(layer):
        ones = torch.ones_like(apart())
        return _ratio(lambda: duration(apart), lambda: duration(together), _SECONDS)


def _ratio(before: Callable[[], float], after: Callable[[], float], seconds: float, rounds: int = 4) -> float:
    """Of two durations, measured in turn. The first of each warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < rounds or time.perf_counter() < end:
        times[0].append(before())
        times[1].append(after())
    return min(times[0][1:]) / min(times[1][1:])


def _now(x: Tensor) -> float:
    """Seconds. On one thread, those that it ran: what else a machine does then matters little."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


# ---- what is taken ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a layer is: its full path, and its name in its parent. In a container, which runs as a
    `Sequential`, the follower is called next. The owner is the module whose `forward` calls it."""

    path: str
    name: str
    layer: nn.Module
    parent: nn.Module
    owner: nn.Module
    container: bool
    follower: nn.Module | None


class _Choice(NamedTuple):
    """How a layer runs: by a plan, or, without one, together with its neighbour in the container. It is sure
    if it was measured."""

    run: FusedRun
    plan: Plan | None
    sure: bool


class _Decisions:
    """What is taken in a module, so that it can be put into effect and taken back as a whole."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.runs: dict[_Place, FusedRun] = {}
        self.plans: dict[nn.Module, Plan] = {}
        self.choices: dict[nn.Module, dict[str, bool | None]] = {}  # by container and name; None is the rule

    def take(self, place: _Place, choice: _Choice) -> None:
        self.runs[place] = choice.run
        if choice.plan is not None:
            self.plans[place.layer] = choice.plan
            if place.container:
                self.choices.setdefault(place.parent, {})[place.name] = False
        else:
            self.choices.setdefault(place.parent, {})[place.name] = True if choice.sure else None

    def leave(self, place: _Place) -> None:
        self.runs.pop(place, None)
        self.plans.pop(place.layer, None)
        if place.container:
            self.choices.setdefault(place.parent, {})[place.name] = False

    def apply(self) -> None:
        for parent, choices in self.choices.items():
            if any(choice is not False for choice in choices.values()):
                parent.__class__ = _fused_class(type(parent))  # type: ignore[arg-type]
                vars(parent)["_choices"] = {k: v for k, v in choices.items() if v is not None}
        for layer, plan in self.plans.items():
            vars(layer)["_plan"] = plan
            _set_class(layer, _planned_class(_layer_type(layer)))

    def take_back(self) -> None:
        _undo(self.module)


class _Chooser:
    """Chooses for one layer after the other; equal layers with equal inputs are measured once."""

    def __init__(self) -> None:
        self._readings: dict[nn.Module, Reading | str] = {}
        self._gains: dict[Any, float] = {}

    def choose(self, place: _Place, usage: Usage | None) -> _Choice | str:
        """How a layer is to run, or why as before."""
        if usage is not None and usage.input is not None:
            return self._by_measurement(place, usage, usage.input)
        return self._by_rule(place, usage)

    def _by_measurement(self, place: _Place, usage: Usage, x: Tensor) -> _Choice | str:
        layer, activation = place.layer, usage.activation
        reason = activation if isinstance(activation, str) else ""
        choices: list[_Choice] = []

        def offer(what: str, plan: Plan | None, how: Any, measure: Callable[[], float]) -> None:
            key = _kind_of_call(layer, x), how
            if key not in self._gains:
                self._gains[key] = measure()
            gain = self._gains[key]
            run = FusedRun(place.path, what, f"measured {gain:.2f} times as fast", gain)
            choices.append(_Choice(run, plan, True))

        if place.container:
            fusion, follower = _fusion(layer, place.follower), place.follower
            if isinstance(fusion, str):
                reason = fusion.format(layer=_name(layer), follower=_describe(follower))
            else:
                what = f"{_name(layer)}+{_name(follower)}"
                offer(what, None, repr(follower), lambda: _gain_of_pair(layer, follower, x, fusion))
        refusal = _refuses_plan(layer, measured=True)
        if refusal is None and isinstance(activation, Activation) and not choices:
            waits = Plan(*activation[:2], True, tuple(usage.followers))
            what = f"{_name(layer)}+{_ACT_NAMES[activation.act]}"
            offer(what, waits, activation, lambda: _gain_of_plan(layer, usage, waits))
        if refusal is None and _may_be_ours(layer) and _pays(layer, x):
            alone = Plan(None, None, True)
            offer(_name(layer), alone, (None, activation), lambda: _gain_of_plan(layer, usage, alone))
        if not choices:
            return reason or str(refusal)
        best = max(choices, key=lambda choice: choice.run.gain or 0)
        assert best.run.gain is not None
        return best if best.run.gain > _NOISE else f"as one op it is {best.run.when}"

    def _by_rule(self, place: _Place, usage: Usage | None) -> _Choice | str:
        layer = place.layer
        rule = "on the CPU " + _RULES.get(_layer_type(layer), "never")
        followed: tuple[Activation, tuple[nn.Module, ...]] | None = None
        if place.container:
            fusion = _fusion(layer, place.follower)
            if not isinstance(fusion, str):
                what = f"{_name(layer)}+{_name(place.follower)}"
                return _Choice(FusedRun(place.path, what, rule), None, False)
            reason = fusion.format(layer=_name(layer), follower=_describe(place.follower))
        elif usage is not None:
            return str(usage.activation)
        else:
            if place.owner not in self._readings:
                self._readings[place.owner] = read_forward(place.owner, _activation_of_module)
            reading = self._readings[place.owner]
            reason = f"{_name(place.parent)}, which holds it, has a forward() of its own"
            if isinstance(reading, str):
                reason += f", and {reading}; give example_inputs"
            elif (followed := reading.get(layer)) is None:
                reason += ", in which no activation alone is seen to follow; example_inputs would show it"
        if refusal := _refuses_plan(layer, measured=False):
            return reason if place.container else refusal
        if followed is not None:
            activation, followers = followed
            what = f"{_name(layer)}+{_ACT_NAMES[activation.act]}"
            if _layer_type(layer) in _RULES or _off_cpu(layer):
                plan = Plan(*activation[:2], False, followers)
                return _Choice(FusedRun(place.path, what, rule), plan, False)
            reason = f"{what} is taken on the CPU only if example_inputs show a gain"
        if _may_be_ours(layer):
            return _Choice(FusedRun(place.path, _name(layer), rule), Plan(None, None, False), False)
        return reason


def _kind_of_call(layer: nn.Module, x: Tensor) -> Any:
    """Equal for calls that take equally long."""
    norms = repr(layer._modules.get("parametrizations")), [type(h) for h in layer._forward_pre_hooks.values()]
    needs = tuple(p.requires_grad for p in layer.parameters()), x.requires_grad, layer.training
    tensor = x.shape, x.stride(), x.dtype, x.device
    return _layer_type(layer), layer.extra_repr(), str(norms), needs, tensor


def _off_cpu(layer: nn.Module) -> bool:
    return any(p.device.type != "cpu" for p in layer.parameters())


def _refuses_plan(layer: nn.Module, measured: bool) -> str | None:
    """Why a layer must keep its class, if so."""
    if _layer_type(layer) not in _LAYERS:
        return _no_layer(layer).format(layer=_name(layer))
    if (
        layer._forward_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl is not None
        or "forward" in vars(layer)
    ):
        return "it has hooks or a replaced forward, which would be bypassed"
    norms = [isinstance(hook, (WeightNorm, SpectralNorm)) for hook in layer._forward_pre_hooks.values()]
    if not all(norms) or (norms and not measured):
        return "it has hooks, which would be bypassed"
    if not all(_is_plain(p) for p in layer.parameters()):
        return _NOT_PLAIN
    return None


def _gain_of_pair(layer: nn.Module, follower: Any, x: Tensor, fusion: _Fusion) -> float:
    def together() -> Tensor:
        return fusion.layer(layer, x, fusion.act, fusion.alpha)

    return _measured_gain(layer, lambda: follower(layer(x)), together, x)


def _gain_of_plan(layer: nn.Module, usage: Usage, plan: Plan) -> float:
    x, follow = usage.input, usage.apply or (lambda y: y)
    assert x is not None

    def run(plan: Plan | None) -> Tensor:
        vars(layer)["_plan"] = plan
        return follow(layer(x))

    _set_class(layer, _planned_class(_layer_type(layer)))
    try:
        return _measured_gain(layer, lambda: run(None), lambda: run(plan), x)
    finally:
        vars(layer)["_plan"] = plan
        _undo(layer)


def _decide_as_a_whole(decisions: _Decisions, arguments: Sequence[Any], skipped: list[SkippedRun]) -> float:
    """Puts the decisions into effect if with them the module is faster as a whole, or else with those that
    gain most."""
    if not decisions.runs:
        return 1.0
    for least in (0.0, _CLEARLY):
        for place, run in list(decisions.runs.items()):
            if run.gain is not None and run.gain < least:
                decisions.leave(place)
                skipped.append(SkippedRun(place.path, f"{_AS_A_WHOLE}; by itself it is {run.when}"))
        if not decisions.runs:
            break
        gain = _gain_of_module(decisions, arguments)
        if gain > _NOISE_OF_MODULE:
            decisions.apply()
            return gain
    for place, run in list(decisions.runs.items()):
        decisions.leave(place)
        skipped.append(SkippedRun(place.path, f"{_AS_A_WHOLE}; by itself it is {run.when}"))
    return 1.0


def _gain_of_module(decisions: _Decisions, arguments: Sequence[Any]) -> float:
    module = decisions.module
    given = [t for t in arguments if isinstance(t, Tensor)]
    wanted = [t for t in (*given, *module.parameters()) if t.requires_grad]
    some = next(iter((*given, *module.parameters())), torch.empty(0))

    def duration() -> float:
        start = _now(some)
        with torch.set_grad_enabled(module.training):
            results = [t for t in tensors_in(module(*arguments)) if t.requires_grad]
            if results and wanted:
                torch.autograd.grad(results, wanted, [torch.ones_like(t) for t in results], allow_unused=True)
        return _now(some) - start

    def with_decisions() -> float:
        decisions.apply()
        try:
            return duration()
        finally:
            decisions.take_back()

    with put_back(module):
        return _ratio(duration, with_decisions, _SECONDS_OF_MODULE, rounds=7)


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
_ACT_NAMES = {act: cls.__name__ for cls, act in _ACTS.items()}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NOT_PLAIN = "its parameters are not plain floating-point tensors on a device that has the kernels"
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
    parametrized = "parametrizations" in layer._modules
    run = _LAYERS.get(_layer_type(layer))
    if run is None:
        return _no_layer(layer)
    if follower is None:
        return "nothing follows it in its Sequential"
    act = _ACTS.get(type(follower))
    if act is None:
        return _NO_ACTIVATION
    if unknown := _unknown_setting(follower):
        return unknown
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
        return _NOT_PLAIN
    return _Fusion(run, act, follower.negative_slope if isinstance(follower, nn.LeakyReLU) else None)


def _no_layer(layer: nn.Module) -> str:
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


def _activation_of_module(follower: nn.Module) -> Activation | None:
    act = _ACTS.get(type(follower))
    if act is None or _is_observed(follower) or _unknown_setting(follower):
        return None
    alpha = follower.negative_slope if isinstance(follower, nn.LeakyReLU) else None
    return Activation(act, alpha, getattr(follower, "inplace", False))


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


def _layers(module: nn.Module, skipped: list[SkippedRun]) -> Iterator[_Place]:
    """The layers that may be taken, in every place where they are."""
    owners: dict[nn.Module, nn.Module] = {}  # of lists of modules, which have no forward
    for path, parent in _containers("", module, skipped, seen=set()):
        owner = owners.get(parent, parent)
        owners.update((c, owner) for c in parent.children() if isinstance(c, (nn.ModuleList, nn.ModuleDict)))
        prefix, container = f"{path}." if path else "", _runs_as_sequential(parent)
        for (name, child), (_, follower) in pairwise([*parent._modules.items(), ("", None)]):
            if child is not None and isinstance(child, tuple(_LAYERS)):
                yield _Place(
                    prefix + name,
                    name,
                    child,
                    parent,
                    owner,
                    container,
                    follower if container else None,
                )


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
