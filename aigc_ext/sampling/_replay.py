"""The operations of a network, recorded once and then run without the Python of its modules.

A small image is made in a few milliseconds, of which the Python around the operations is up to a half.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import getitem, is_
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_MOST = 32
"""Programs that are kept: of a few batch sizes and ways to truncate."""


class Replays:
    """Runs functions that call networks. What is called again with the same key, for networks in which
    nothing has been replaced meanwhile, is recorded then, and from the third call on replayed: the same
    operations on the same parameters and buffers, with the same bits.

    It is for networks whose every call of a shape takes the same operations, in evaluation mode, without
    gradients and hooks.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, _Known] = {}

    def __reduce__(self) -> tuple[type[Replays], tuple[()]]:  # a copy of a network has other tensors
        return Replays, ()

    def run(
        self, key: Hashable, modules: Sequence[nn.Module], function: Callable[..., Tensor], *given: Tensor
    ) -> Tensor:
        """``function(*given)``.

        Args:
            key: tells apart everything that `function` depends on beside `modules` and `given`.
            modules: all that `function` calls.
        """
        facts = _facts(modules)
        key = key, *((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in given)
        known = self._known.get(key)
        if known is None or not known.holds_for(facts):
            self._known.pop(key, None)
            # The oldest; another thread may be doing the same.
            for old in list(self._known)[: max(len(self._known) + 1 - _MOST, 0)]:
                self._known.pop(old, None)
            self._known[key] = _Known(facts)
            return function(*given)
        if known.program is not None:
            return known.program(*given)
        if known.refused:
            return function(*given)
        with _Recorder(given, facts) as recorder:
            made = function(*given)
        known.program = recorder.program(made)
        known.refused = known.program is None
        return made


class _Known:
    """One key: what the modules were, and the program if there is one."""

    def __init__(self, facts: list[object]) -> None:
        self._facts = facts
        self.program: Callable[..., Tensor] | None = None
        self.refused = False

    def holds_for(self, facts: list[object]) -> bool:
        return len(facts) == len(self._facts) and all(map(is_, facts, self._facts))


def _facts(modules: Sequence[nn.Module]) -> list[object]:
    """The modules' attributes, parameters and buffers, to be compared as objects."""
    facts: list[object] = []
    for module in modules:
        own = module.__dict__
        facts += own.values()
        facts += own["_parameters"].values()
        facts += own["_buffers"].values()
    return facts


class _Recorder(TorchDispatchMode):
    """Records the operations below autograd."""

    def __init__(self, given: Sequence[Tensor], facts: Sequence[object]) -> None:
        super().__init__()
        self._there = {id(fact) for fact in facts if isinstance(fact, Tensor)}
        self._graph = fx.Graph()
        self._held: list[Tensor] = []  # of what was there before
        # By id, with the tensors, whose ids would be given again.
        self._nodes: dict[int, tuple[fx.Node, Tensor]] = {}
        self._own: set[int] = set()  # storages
        self._refused = False
        for i, tensor in enumerate(given):
            self._nodes[id(tensor)] = self._graph.placeholder(f"given{i}"), tensor
        self._first: fx.Node | None = None  # before which what is held is declared

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = op(*args, **kwargs)
        tensors = any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs, made)))
        if torch.Tag.nondeterministic_seeded in op.tags or torch.Tag.data_dependent_output in op.tags:
            self._refused = True
        if self._refused or not tensors:  # as for which dtype two dtypes make
            return made
        node = self._graph.call_function(op, *tree_map(self._node_of, (args, kwargs)))
        self._first = self._first or node
        if op._schema.is_mutable:
            self._check_changes(op, args, kwargs)
        if isinstance(made, Tensor):
            self._name(made, node)
        elif isinstance(made, (tuple, list)) and all(isinstance(one, Tensor) for one in made):
            for i, one in enumerate(made):
                self._name(one, self._graph.call_function(getitem, (node, i)))
        elif made is not None:
            self._refused = True
        return made

    def program(self, made: Tensor) -> Callable[..., Tensor] | None:
        """What was recorded, as a function of what was given; None if it cannot be replayed."""
        if self._refused or id(made) not in self._nodes:
            return None
        self._graph.output(self._nodes[id(made)][0])
        run = fx.GraphModule({}, self._graph).forward
        held = self._held
        return lambda *given: run(*given, *held)

    def _node_of(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._nodes:
            if id(value) not in self._there:  # no operation made it: of NumPy, say, or of numbers
                self._refused = True
            # Placeholders come first, in their order.
            where = self._first or self._graph._root
            with self._graph.inserting_before(where):
                self._nodes[id(value)] = self._graph.placeholder(f"held{len(self._held)}"), value
            self._held.append(value)
        return self._nodes[id(value)][0]

    def _name(self, made: Tensor, node: fx.Node) -> None:
        self._nodes[id(made)] = node, made
        self._own.add(made.untyped_storage()._cdata)

    def _check_changes(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """A change of what was there before would be made again in every replay."""
        for i, argument in enumerate(op._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = kwargs.get(argument.name, args[i] if i < len(args) else None)
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._own:
                    self._refused = True
