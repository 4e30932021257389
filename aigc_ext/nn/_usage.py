"""What becomes of the results of a model's layers: seen in a run on examples, or read by torch.fx.

Either is only a hint, since another call may take another path: see `aigc_ext.nn._deferred`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from aigc_ext.nn._deferred import Activation, activation_of

NOTHING = "nothing is known of what follows it"


@dataclass
class Usage:
    """What was seen of a layer.

    Attributes:
        input: what it got, with `requires_grad` as it was; None if it did not run on a plain tensor.
        activation: the activation that all its results went to and nowhere else; or why there is none.
        apply: the same call, as a function of the layer's result.
        followers: the modules that make this call, if it is not made by a function in the same `forward`.
        calls: how often it ran.
    """

    input: Tensor | None = None
    activation: Activation | str = NOTHING
    apply: Callable[[Tensor], Tensor] | None = None
    followers: list[nn.Module] = field(default_factory=list)
    calls: int = 0
    _seen: list[Activation | str] = field(default_factory=list)


@contextmanager
def put_back(module: nn.Module) -> Iterator[None]:
    """Afterwards, its buffers and the random numbers to come are what they were."""
    buffers = {buffer: buffer.detach().clone() for buffer in module.buffers()}
    python_state = random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)


def arguments_of(example_inputs: Tensor | Sequence[Any]) -> list[Any]:
    return [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)


def run_on_examples(
    module: nn.Module,
    layers: Sequence[nn.Module],
    arguments: Sequence[Any],
    is_plain: Callable[[Any], bool],
    activation_of_module: Callable[[nn.Module], Activation | None],
) -> dict[nn.Module, Usage]:
    """Runs the module once and watches its layers."""
    watch = _Watch(layers, is_plain, activation_of_module)
    hooks: list[Any] = [layer.register_forward_pre_hook(watch.before) for layer in layers]
    hooks += [layer.register_forward_hook(watch.after) for layer in layers]
    hooks.append(register_module_forward_pre_hook(watch.enter))
    hooks.append(register_module_forward_hook(watch.exit))
    try:
        with put_back(module), torch.set_grad_enabled(module.training), watch:
            module(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return watch.result()


class _Watch(TorchFunctionMode):
    """Sees every function of PyTorch that is called, in order."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        is_plain: Callable[[Any], bool],
        activation_of_module: Callable[[nn.Module], Activation | None],
    ) -> None:
        super().__init__()
        self._is_plain, self._activation_of_module = is_plain, activation_of_module
        self._usage = {layer: Usage() for layer in layers}
        self._results: dict[
            int, tuple[nn.Module, Tensor]
        ] = {}  # by id; they are kept, so that ids are unique
        self._last: tuple[nn.Module, Tensor] | None = None  # the result that nothing has followed yet
        self._running: list[nn.Module] = []  # modules, outermost first
        self._caller: nn.Module | None = None  # the module that called the last layer

    def enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)

    def exit(self, module: nn.Module, args: Any, result: Any) -> None:
        self._running.pop()

    def before(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        usage = self._usage[layer]
        usage.calls += 1
        if len(args) == 1 and self._is_plain(args[0]):
            x = args[0].detach().clone()
            usage.input = x.requires_grad_(args[0].requires_grad)

    def after(self, layer: nn.Module, args: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            self._last, self._caller = (layer, result), self._running[-1] if self._running else None
            self._results[id(result)] = self._last

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        last, self._last = self._last, None
        first = args[0] if args else kwargs.get("input")
        activation = activation_of(func, args, kwargs)
        if last is not None and first is last[1] and activation is not None:
            usage, running = self._usage[last[0]], self._running
            inner = running[-1] if running else None
            outer = running[-2] if len(running) > 1 else None
            if inner is self._caller:
                usage._seen.append(activation)
            elif (
                inner is not None and outer is self._caller and self._activation_of_module(inner) is not None
            ):
                usage._seen.append(activation)
                if inner not in usage.followers:
                    usage.followers.append(inner)
            else:
                usage._seen.append("its activation is called in another module")
            rest, options = args[1:], {k: v for k, v in kwargs.items() if k != "input"}
            usage.apply = lambda y: func(y, *rest, **options)
            del self._results[id(first)]
            if not activation.inplace:
                self._results[id(first)] = last  # to see whether it is used again
        elif self._results:
            for value in tensors_in((args, kwargs)):
                if (known := self._results.get(id(value))) is not None:
                    name = getattr(func, "__name__", str(func))
                    self._usage[known[0]]._seen.append(f"it goes to {name}")
        return func(*args, **kwargs)

    def result(self) -> dict[nn.Module, Usage]:
        for usage in self._usage.values():
            kinds = list(dict.fromkeys(s[:2] if isinstance(s, Activation) else s for s in usage._seen))
            others = [kind for kind in kinds if isinstance(kind, str)]
            if others:
                usage.activation = others[0]
            elif len(kinds) > 1:
                usage.activation = "different activations follow it"
            elif kinds and len(usage._seen) == usage.calls:
                usage.activation = usage._seen[0]
            elif usage.calls:
                usage.activation = "no activation follows it"
            else:
                usage.activation = "the examples do not reach it"
        return self._usage


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Those in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


Reading = dict[nn.Module, tuple[Activation, tuple[nn.Module, ...]]]


class _ChildrenAreLeaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def read_forward(
    parent: nn.Module, activation_of_module: Callable[[nn.Module], Activation | None]
) -> Reading | str:
    """By layer that the parent's own `forward` calls, the activation that alone gets its result, with the
    module that it is; or why the `forward` cannot be traced."""
    if "forward" in vars(parent):
        return "its forward is replaced"
    attributes = dict(vars(parent))
    try:
        with put_back(parent):
            graph = _ChildrenAreLeaves().trace(parent)
    except Exception as error:  # whatever somebody's forward does with values that are none
        first_line = (str(error) or repr(error)).splitlines()[0]
        return f"torch.fx cannot trace it ({first_line})"
    finally:
        vars(parent).clear()
        vars(parent).update(attributes)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    found: dict[nn.Module, tuple[Activation, tuple[nn.Module, ...]]] = {}
    for node in calls:
        child = parent.get_submodule(node.target)
        if len(node.users) != 1 or sum(other.target == node.target for other in calls) != 1:
            continue
        (user,) = node.users
        if user is not node.next or not user.args or user.args[0] is not node:
            continue
        activation: Activation | None = None
        followers: tuple[nn.Module, ...] = ()
        if user.op == "call_module":
            follower = parent.get_submodule(user.target)
            activation, followers = activation_of_module(follower), (follower,)
        elif user.op == "call_function":
            activation = activation_of(user.target, tuple(user.args), dict(user.kwargs))
        elif user.op == "call_method":
            function = getattr(Tensor, user.target, None)
            activation = activation_of(function, tuple(user.args), dict(user.kwargs))
        if activation is not None:
            found[child] = activation, followers
    return found
