"""What becomes of the results of a model's layers: seen in a run on examples, or read by torch.fx.

Either is only a hint, since another call may take another path: see `aigc_ext.nn._deferred`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from aigc_ext.nn._deferred import SIGMOIDS, Activation, activation_of, factors_of, sum_of
from aigc_ext.nn._fusible import TAKES_RESIDUAL, activation_of_module, is_plain

NOTHING = "nothing is known of what follows it"
IN_ANOTHER_MODULE = ", in another module"


@dataclass
class Usage:
    """What was seen of a layer.

    Attributes:
        input: what it got, with `requires_grad` as it was; None if it did not run on a plain tensor.
        activation: the activation that all its results went to and nowhere else, perhaps by a sum; or why
            there is none.
        added: what was added to the result before that, if anything.
        apply: the same call, as a function of the layer's result.
        followers: the modules that make this call, if it is not made by a function in the same `forward`.
        calls: how often it ran.
    """

    input: Tensor | None = None
    activation: Activation | str = NOTHING
    added: Tensor | None = None
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
) -> dict[nn.Module, Usage]:
    """Runs the module once and watches its layers."""
    watch = _Watch(layers)
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


class _Result(NamedTuple):
    """Of a layer, or of a sum with what was added to it; and the module that called the layer."""

    layer: nn.Module
    tensor: Tensor
    caller: nn.Module | None
    added: Tensor | None = None


def _swish(y: Tensor) -> Tensor:
    return y * torch.sigmoid(y)


def where_it_goes(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return f"its {func.__self__.__name__} is read"
    return f"it goes to {name}" + (", whose slope is learned" if name == "prelu" else "")


class _Watch(TorchFunctionMode):
    """Sees every function of PyTorch that is called, in order."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._usage = {layer: Usage() for layer in layers}
        self._results: dict[int, _Result] = {}  # by id; they are kept, so that ids are unique
        self._last: _Result | None = None  # the result that nothing has followed yet
        self._running: list[nn.Module] = []  # modules, outermost first
        self._called_with: dict[nn.Module, tuple[Tensor, int]] = {}  # and its version
        self._gate: Tensor | None = None  # the sigmoid of the last result, if that was the last call
        self._added: list[tuple[nn.Module, Tensor, int]] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)

    def exit(self, module: nn.Module, args: Any, result: Any) -> None:
        self._running.pop()

    def _inner(self) -> nn.Module | None:
        """The module whose forward runs."""
        return self._running[-1] if self._running else None

    def before(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        usage = self._usage[layer]
        usage.calls += 1
        if len(args) == 1 and is_plain(args[0]):
            if not args[0].is_inference():
                self._called_with[layer] = args[0], args[0]._version
            x = args[0].detach().clone()
            usage.input = x.requires_grad_(args[0].requires_grad)

    def after(self, layer: nn.Module, args: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            self._last = _Result(layer, result, self._inner())
            self._results[id(result)] = self._last

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        last, self._last = self._last, None
        gate, self._gate = self._gate, None
        factors = factors_of(func, args, kwargs) if gate is not None else None
        if last is not None and factors is not None and {*map(id, factors)} == {id(gate), id(last.tensor)}:
            usage, added = self._usage[last.layer], last.added
            if isinstance(usage._seen[-1], Activation):
                usage._seen[-1] = usage._seen[-1]._replace(act="swish")
            usage.apply = lambda y: _swish(y if added is None else y + added)
            return func(*args, **kwargs)
        if gate is not None:
            last = None
        first = args[0] if args else kwargs.get("input")
        activation = activation_of(func, args, kwargs)
        if last is not None and first is last.tensor and activation is not None:
            usage, inner = self._usage[last.layer], self._inner()
            outer = self._running[-2] if len(self._running) > 1 else None
            called_by_module = outer is last.caller and inner is not None and activation_of_module(inner)
            if last.added is not None:
                usage._seen.pop()  # the sum alone
                activation = activation._replace(residual=True)
            if inner is last.caller or called_by_module:
                usage._seen.append(activation)
                if inner is not None and called_by_module and inner not in usage.followers:
                    usage.followers.append(inner)
            else:
                usage._seen.append("its activation is called in another module")
            rest, options = args[1:], {k: v for k, v in kwargs.items() if k != "input"}
            added = last.added
            usage.apply = lambda y: func(y if added is None else y + added, *rest, **options)
            self._results.pop(id(first), None)
            if not activation.inplace:
                self._results[id(first)] = last  # to see whether it is used again
            if func in SIGMOIDS:
                self._last, self._gate = last, func(*args, **kwargs)
                return self._gate
        elif self._results and (summed := self._sum(func, args, kwargs)) is not None:
            self._last = summed
            return summed.tensor
        elif self._results:
            for value in tensors_in((args, kwargs)):
                if (known := self._results.get(id(value))) is not None:
                    elsewhere = sum_of(func, args, kwargs) is not None and known.caller is not self._inner()
                    where = where_it_goes(func) + IN_ANOTHER_MODULE * elsewhere
                    self._usage[known.layer]._seen.append(where)
        return func(*args, **kwargs)

    def _sum(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Result | None:
        """This call, if it adds something to the result of a layer whose op can do that."""
        added = sum_of(func, args, kwargs)
        if added is None:
            return None
        for one in added[:2]:
            known, other = self._results.get(id(one)), added.other_than(one)
            if known is None or other is None or known.added is not None:
                continue
            x, version = self._called_with.get(known.layer, (None, 0))
            if (
                not isinstance(known.layer, TAKES_RESIDUAL)
                or known.caller is not self._inner()
                or x is None
                or x._version != version
                or type(other) not in (Tensor, nn.Parameter)
                or other.is_inference()
                or (other.shape, other.dtype) != (one.shape, one.dtype)
            ):
                continue
            result, usage = func(*args, **kwargs), self._usage[known.layer]
            if (term := self._results.get(id(other))) is not None:
                self._usage[term.layer]._seen.append(where_it_goes(func))
            usage.added = other.detach().clone().requires_grad_(other.requires_grad)
            usage.apply = usage.added.add
            usage._seen.append(Activation("linear", None, added.inplace, residual=True))
            self._added.append((known.layer, other, other._version))
            if added.inplace:
                del self._results[id(one)]
            return _Result(known.layer, result, known.caller, usage.added)
        return None

    def result(self) -> dict[nn.Module, Usage]:
        for layer, other, version in self._added:
            if other._version != version:  # the op keeps it for its backward
                self._usage[layer]._seen.append("what is added to it is changed in place afterwards")
        for usage in self._usage.values():
            kinds = list(
                dict.fromkeys((*s[:2], s.residual) if isinstance(s, Activation) else s for s in usage._seen)
            )
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


def read_forward(parent: nn.Module) -> Reading | str:
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
    found: Reading = {}
    for node in calls:
        child = parent.get_submodule(node.target)
        if sum(other.target == node.target for other in calls) != 1:
            continue
        if _is_swish(node):
            found[child] = Activation("swish", None), ()
        if len(node.users) != 1:
            continue
        (user,) = node.users
        if user is not node.next or not user.args or user.args[0] is not node:
            continue
        activation: Activation | None = None
        followers: tuple[nn.Module, ...] = ()
        if user.op == "call_module":
            follower = parent.get_submodule(user.target)
            activation, followers = activation_of_module(follower), (follower,)
        else:
            activation = activation_of(*_call_of(user))
        if activation is not None:
            found[child] = activation, followers
    return found


def _call_of(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function of PyTorch that a node calls, and its arguments."""
    func = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
    return func, tuple(node.args), dict(node.kwargs)


def _is_swish(node: fx.Node) -> bool:
    """Is all that becomes of it the product with its sigmoid?"""
    if len(node.users) != 2 or len(node.next.users) != 1:
        return False
    gate, product = node.next, node.next.next
    func, args, _ = _call_of(gate)
    factors = factors_of(*_call_of(product))
    return func in SIGMOIDS and args == (node,) and factors in ((node, gate), (gate, node))
