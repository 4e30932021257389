"""What `fuse_` takes of a module, by measurement or by rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from aigc_ext.nn import _gains
from aigc_ext.nn._deferred import Activation, Plan
from aigc_ext.nn._fusible import (
    ACT_NAMES,
    GROUP_NORMS,
    INSTANCE_NORMS,
    LAYERS,
    NOT_PLAIN,
    Fusion,
    describe,
    fusion_of,
    is_plain,
    layer_type,
    name_of,
    no_layer,
    other_norm,
)
from aigc_ext.nn._report import FusedRun, SkippedRun
from aigc_ext.nn._running import Fused, fused_class, planned_layer, set_class, undo
from aigc_ext.nn._usage import IN_ANOTHER_MODULE, Reading, Usage, put_back, read_forward, tensors_in

_NOISE = 1.01  # a gain of the module up to this may be none
_CLEARLY = 1.1
_SECONDS = 1.0  # for the measurement of the module
_AS_A_WHOLE = "with it the whole module is not faster"


@dataclass(frozen=True)
class Place:
    """Where a layer is: its full path, and its name in its parent. In a container, which runs as a
    `Sequential`, the follower is called next. The owner is the module whose `forward` calls it."""

    path: str
    name: str
    layer: nn.Module
    parent: nn.Module
    owner: nn.Module
    container: bool
    follower: nn.Module | None


class Choice(NamedTuple):
    """How a layer runs: by a plan, or, without one, together with its neighbour in the container. `sure` as
    in `Plan`."""

    run: FusedRun
    plan: Plan | None
    sure: tuple[bool, ...] = ()


class Decisions:
    """What is taken in a module, so that it can be put into effect and taken back as a whole."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.runs: dict[Place, FusedRun] = {}
        self.plans: dict[nn.Module, Plan] = {}
        # by container and name: whether it is sure, or False if it is left
        self.choices: dict[nn.Module, dict[str, tuple[bool, ...] | bool]] = {}

    def take(self, place: Place, choice: Choice) -> None:
        self.runs[place] = choice.run
        if choice.plan is not None:
            self.plans[place.layer] = choice.plan
            if place.container:
                self.choices.setdefault(place.parent, {})[place.name] = False
        else:
            self.choices.setdefault(place.parent, {})[place.name] = choice.sure

    def leave(self, place: Place) -> None:
        self.runs.pop(place, None)
        self.plans.pop(place.layer, None)
        if place.container:
            self.choices.setdefault(place.parent, {})[place.name] = False

    def apply(self) -> None:
        for parent, choices in self.choices.items():
            if any(choice is not False for choice in choices.values()):
                parent.__class__ = fused_class(type(parent))  # type: ignore[arg-type]
                vars(parent)["_choices"] = {k: v for k, v in choices.items() if v != ()}
        for layer, plan in self.plans.items():
            vars(layer)["_plan"] = plan
            set_class(layer, planned_layer(layer_type(layer)))

    def take_back(self) -> None:
        undo(self.module)


class Chooser:
    """Chooses for one layer after the other; equal layers with equal inputs are measured once."""

    def __init__(self) -> None:
        self._readings: dict[nn.Module, Reading | str] = {}
        self._gains: dict[Any, float] = {}

    def choose(self, place: Place, usage: Usage | None) -> Choice | str:
        """How a layer is to run, or why as before."""
        if other := other_norm(place.layer):
            return other.format(layer=name_of(place.layer))
        if usage is not None and usage.input is not None:
            return self._by_measurement(place, usage, usage.input)
        return self._by_rule(place, usage)

    def _by_measurement(self, place: Place, usage: Usage, x: Tensor) -> Choice | str:
        layer, activation = place.layer, usage.activation
        reason = activation if isinstance(activation, str) else ""
        choices: list[Choice] = []
        sure: tuple[bool, ...] = (True, False)
        is_norm = isinstance(layer, GROUP_NORMS)
        if is_norm:  # forward alone it may be slower where it is faster with gradients
            sure = (layer.training and any(t.requires_grad for t in (x, *layer.parameters())),)

        def offer(
            what: str, plan: Plan | None, how: Any, measure: Callable[[], float], why: str = ""
        ) -> None:
            key = _kind_of_call(layer, x), how
            if key not in self._gains:
                self._gains[key] = measure()
            gain = self._gains[key]
            run = FusedRun(place.path, what, f"measured {gain:.2f} times as fast{why}", gain)
            choices.append(Choice(run, plan, sure))

        if place.container:
            fusion, follower = fusion_of(layer, place.follower), place.follower
            if isinstance(fusion, str):
                sums = follower is None and reason.endswith(IN_ANOTHER_MODULE)
                where = f", and {reason}" if sums else ""
                reason = fusion.format(layer=name_of(layer), follower=describe(follower)) + where
            else:
                reason, what = "", f"{name_of(layer)}+{name_of(follower)}"
                offer(what, None, repr(follower), lambda: _gain_of_pair(layer, follower, x, fusion))
        refusal = _refuses_plan(layer, measured=True)
        if refusal is None and isinstance(activation, Activation) and not choices:
            waits = _plan_of(activation, sure, usage.followers)
            what = _what(layer, activation)
            offer(what, waits, activation, lambda: _gain_of_plan(layer, usage, waits))
        if refusal is None and (is_norm or (_gains.may_be_ours(layer) and _gains.pays(layer, x))):
            alone = Plan(None, None, sure)
            why = f"; alone, since {reason}" if reason else ""
            offer(name_of(layer), alone, (None, activation), lambda: _gain_of_plan(layer, usage, alone), why)
        if not choices:
            return reason or str(refusal)
        best = max(choices, key=lambda choice: choice.run.gain or 0)
        assert best.run.gain is not None
        if best.run.gain > _gains.NOISE:
            return best
        return f"as one op it is {best.run.when}"

    def _by_rule(self, place: Place, usage: Usage | None) -> Choice | str:
        layer = place.layer
        rule = "on the CPU " + (_gains.rule_of(layer) or "never")
        followed: tuple[Activation, tuple[nn.Module, ...]] | None = None
        if place.container:
            fusion = fusion_of(layer, place.follower)
            if not isinstance(fusion, str):
                what = f"{name_of(layer)}+{name_of(place.follower)}"
                return Choice(FusedRun(place.path, what, rule), None)
            reason = fusion.format(layer=name_of(layer), follower=describe(place.follower))
        elif usage is not None:
            return str(usage.activation)
        else:
            if place.owner not in self._readings:
                self._readings[place.owner] = read_forward(place.owner)
            reading = self._readings[place.owner]
            reason = f"{name_of(place.parent)}, which holds it, has a forward() of its own"
            if isinstance(reading, str):
                reason += f", and {reading}; give example_inputs"
            elif (followed := reading.get(layer)) is None:
                reason += ", in which no activation alone is seen to follow; example_inputs would show it"
        if refusal := _refuses_plan(layer, measured=False):
            return reason if place.container else refusal
        if followed is not None:
            activation, followers = followed
            what = _what(layer, activation)
            if _gains.rule_of(layer) or _off_cpu(layer):
                plan = _plan_of(activation, (), followers)
                return Choice(FusedRun(place.path, what, rule), plan)
            reason = f"{what} is taken on the CPU only if example_inputs show a gain"
        if _gains.may_be_ours(layer) or (isinstance(layer, INSTANCE_NORMS) and not _off_cpu(layer)):
            rule = f"on the CPU {_gains.rule_of(layer, alone=True)}; alone, since {reason}"
            return Choice(FusedRun(place.path, name_of(layer), rule), Plan(None, None))
        return reason


def _plan_of(activation: Activation, sure: tuple[bool, ...], followers: Sequence[nn.Module]) -> Plan:
    return Plan(activation.act, activation.alpha, sure, tuple(followers), activation.residual)


def _what(layer: nn.Module, activation: Activation) -> str:
    parts = [name_of(layer), *["sum"] * activation.residual]
    return "+".join(parts + [ACT_NAMES[a] for a in [activation.act] if a != "linear"])


def _kind_of_call(layer: nn.Module, x: Tensor) -> Any:
    """Equal for calls that take equally long."""
    norms = repr(layer._modules.get("parametrizations")), [type(h) for h in layer._forward_pre_hooks.values()]
    needs = tuple(p.requires_grad for p in layer.parameters()), x.requires_grad, layer.training
    tensor = x.shape, x.stride(), x.dtype, x.device
    return layer_type(layer), layer.extra_repr(), str(norms), needs, tensor


def _off_cpu(layer: nn.Module) -> bool:
    return any(p.device.type != "cpu" for p in layer.parameters())


def _refuses_plan(layer: nn.Module, measured: bool) -> str | None:
    """Why a layer must keep its class, if so."""
    if layer_type(layer) not in LAYERS:
        return no_layer(layer).format(layer=name_of(layer))
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
    if not all(is_plain(p) for p in layer.parameters()):
        return NOT_PLAIN
    return None


def _gain_of_pair(layer: nn.Module, follower: Any, x: Tensor, fusion: Fusion) -> float:
    def together() -> Tensor:
        return fusion.layer(layer, x, fusion.act, fusion.alpha)

    return _gains.measured(layer, lambda: follower(layer(x)), together, x)


def _gain_of_plan(layer: nn.Module, usage: Usage, plan: Plan) -> float:
    x, follow = usage.input, usage.apply or (lambda y: y)
    assert x is not None

    def run(plan: Plan | None) -> Tensor:
        vars(layer)["_plan"] = plan
        return follow(layer(x))

    set_class(layer, planned_layer(layer_type(layer)))
    try:
        inputs = (x,) if usage.added is None else (x, usage.added)
        return _gains.measured(layer, lambda: run(None), lambda: run(plan), *inputs)
    finally:
        vars(layer)["_plan"] = plan
        undo(layer)


def decide_as_a_whole(decisions: Decisions, arguments: Sequence[Any], skipped: list[SkippedRun]) -> float:
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
        if gain > _NOISE:
            decisions.apply()
            return gain
    for place, run in list(decisions.runs.items()):
        decisions.leave(place)
        skipped.append(SkippedRun(place.path, f"{_AS_A_WHOLE}; by itself it is {run.when}"))
    return 1.0


def _gain_of_module(decisions: Decisions, arguments: Sequence[Any]) -> float:
    module = decisions.module
    given = [t for t in arguments if isinstance(t, Tensor)]
    wanted = [t for t in (*given, *module.parameters()) if t.requires_grad]
    some = next(iter((*given, *module.parameters())), torch.empty(0))

    def duration() -> float:
        start = _gains.now(some)
        with torch.set_grad_enabled(module.training):
            results = [t for t in tensors_in(module(*arguments)) if t.requires_grad]
            if results and wanted:
                torch.autograd.grad(results, wanted, [torch.ones_like(t) for t in results], allow_unused=True)
        return _gains.now(some) - start

    def with_decisions() -> float:
        decisions.apply()
        try:
            return duration()
        finally:
            decisions.take_back()

    with put_back(module):
        return _gains.ratio(duration, with_decisions, _SECONDS, rounds=7)


# ---- walking over the module -----------------------------------------------------------------------------


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
        skipped.append(SkippedRun(path, f"{name_of(module)} belongs to torch.ao.quantization"))
    else:
        yield path, module
        for name, child in module._modules.items():
            if child is not None:
                yield from _containers(f"{path}.{name}" if path else name, child, skipped, seen)


def places(module: nn.Module, skipped: list[SkippedRun]) -> Iterator[Place]:
    """The layers that may be taken, in every place where they are."""
    owners: dict[nn.Module, nn.Module] = {}  # of lists of modules, which have no forward
    for path, parent in _containers("", module, skipped, seen=set()):
        owner = owners.get(parent, parent)
        owners.update((c, owner) for c in parent.children() if isinstance(c, (nn.ModuleList, nn.ModuleDict)))
        prefix, container = f"{path}." if path else "", _runs_as_sequential(parent)
        for (name, child), (_, follower) in pairwise([*parent._modules.items(), ("", None)]):
            if child is not None and isinstance(child, tuple(LAYERS)):
                yield Place(
                    prefix + name,
                    name,
                    child,
                    parent,
                    owner,
                    container,
                    follower if container else None,
                )


def _runs_as_sequential(module: nn.Module) -> bool:
    own = module._unfused_class if isinstance(module, Fused) else type(module)
    return (
        isinstance(module, nn.Sequential)
        and own.forward is nn.Sequential.forward
        and "forward" not in vars(module)
        and not is_parametrized(module)
    )
