"""A kind of step as a program: the operations of the eager step in their order, recorded once, and then run
without autograd and without the Python around them.

Forward, backward, second backward, optimizers and averages are one graph of calls of native ops, ours and
PyTorch's. It may be run as it is, compiled, or, on a GPU, captured. Nothing in it waits for the device or
seeds a generator; numbers that change from step to step, and random numbers, are inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan.native import RefusedError
from aigc_ext.tasks.gan.objective import StepInputs

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Place(NamedTuple):
    """Where a tensor of the step's state, or a module, was found."""

    container: Any  # a dict or a list
    key: Any
    value: Any


class State:
    """All that a step reads and changes besides its inputs, and whether that is still the same."""

    def __init__(
        self, networks: Sequence[nn.Module], adams: Sequence[AdamEMA], more: Iterable[Place] = ()
    ) -> None:
        self._modules = [module for network in networks for module in network.modules()]
        self._adams = adams
        self._places = list(more)
        container: Any
        for module in self._modules:
            for container in (module._parameters, module._buffers, module._modules):
                self._places += [Place(container, key, value) for key, value in container.items()]
        for adam in adams:
            own = vars(adam)
            self._places += [Place(own, key, own[key]) for key in ("skipped", "param_groups", "state")]
            for group, emas in zip(adam.param_groups, adam._emas, strict=True):
                for container in (emas, group["params"]):
                    self._places += [Place(container, k, tensor) for k, tensor in enumerate(container)]
            for p, state in adam.state.items():
                self._places.append(Place(adam.state, p, state))
                self._places += [Place(state, key, value) for key, value in state.items()]
        self._parameters = [p for network in networks for p in network.parameters()]
        tensors = (place.value for place in self._places if isinstance(place.value, Tensor))
        self.tensors = list({id(tensor): tensor for tensor in tensors}.values())
        self._settings = self._current()

    def is_current(self) -> bool:
        """Is every tensor and module still where it was, with the settings that it had?"""
        try:
            here = all(container[key] is value for container, key, value in self._places)
        except (KeyError, IndexError):
            return False
        return here and self._settings == self._current()

    def check(self) -> None:
        """Raises RefusedError for hooks, which would run only while the step is recorded."""
        for module in self._modules:
            if any(module.__dict__[hooks] for hooks in _HOOKS):
                raise RefusedError(f"a {type(module).__name__} has a hook")
        for p in self._parameters:
            if p._backward_hooks or p._post_accumulate_grad_hooks:
                raise RefusedError("a parameter has a hook")

    def _current(self) -> Hashable:
        return (
            tuple([module.training for module in self._modules]),
            tuple([p.requires_grad for p in self._parameters]),
            tuple([group["eps"] for adam in self._adams for group in adam.param_groups]),
            tuple([(adam.skip_nonfinite, len(adam.state)) for adam in self._adams]),
        )


@contextmanager
def undone(tensors: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Afterwards, tensors and PyTorch's random number generators are as before."""
    before = [tensor.detach().clone() for tensor in tensors]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for tensor, value in zip(tensors, before, strict=True):
                tensor.data.copy_(value)


class Program:
    """The program of one kind of step.

    Args:
        step: takes a step eagerly, given `numbers` and the tensors of `inputs`; returns tensors.
        inputs: of a step of this kind.
        numbers: float64 vector of the numbers that change, on the device.
        state: all that the step changes. It is as before when the program is made.

    Raises RefusedError if the step cannot be recorded.
    """

    def __init__(
        self, step: Callable[..., Sequence[Tensor]], inputs: StepInputs, numbers: Tensor, state: State
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

        draws = _Draws(inputs.seed)

        def recorded(*tensors: Tensor) -> Sequence[Tensor]:
            with draws:
                return step(*tensors)

        with undone(state.tensors, numbers.device):
            try:
                graph = make_fx(recorded)(numbers, *tensors_of(inputs))
            except RuntimeError as error:
                if "tracing tensor" not in str(error):
                    raise
                reason = "it cannot be recorded: something in it reads a number from a tensor"
                raise RefusedError(reason) from error
            self._last = draws.purpose()
        self._draws = draws.made
        self._held = _lift(graph)
        self._graph = graph.graph
        self._traced: Callable[..., Sequence[Tensor]] = fx.GraphModule({}, self._graph)
        self._compiled: tuple[int, Callable[..., Sequence[Tensor]]] | None = None  # for a number of threads
        self.operations = sum(node.op == "call_function" for node in self._graph.nodes)

    def __call__(self, inputs: StepInputs, numbers: Tensor, compiled: bool = False) -> Sequence[Tensor]:
        """Takes a step, with Inductor's code if `compiled`, which differs by rounding."""
        random: list[Tensor] = []
        last = None
        for purpose, draw in (*self._draws, (self._last, None)):  # the last one leaves PyTorch's generator
            if purpose != last and inputs.seed is not None:
                with inputs.random(purpose):  # seeds
                    last = purpose
            if draw is not None:
                random.append(draw())
        arguments = [*self._held, *random, numbers, *tensors_of(inputs)]
        run = self._compile(arguments) if compiled else self._traced
        with torch.no_grad():
            return run(*arguments)

    def _compile(self, arguments: list[Any]) -> Callable[..., Sequence[Tensor]]:
        threads = torch.get_num_threads()  # a constant in the code that Inductor writes
        if self._compiled is None or self._compiled[0] != threads:
            from torch._inductor import compile as compile_graph  # slow to import

            check_compiler(arguments[0].device)
            graph = fx.GraphModule({}, copy.deepcopy(self._graph))  # Inductor changes it
            with torch.no_grad():
                self._compiled = threads, compile_graph(graph, arguments)
        return self._compiled[1]


class _Draws(TorchDispatchMode):
    """Collects the draws of random numbers: the purpose of each, as in `StepInputs.random`, and a function
    that draws anew."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self._seed = seed or 0
        self.made: list[tuple[int, Callable[[], Tensor]]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_random(op):
            first, *others = args
            if any(isinstance(value, Tensor) for value in (*others, *kwargs.values())):
                raise RefusedError(f"it cannot be recorded: {op} draws random numbers that depend on others")
            draw = partial(op, *args, **kwargs)
            if isinstance(first, Tensor):
                if not op._schema.name.endswith("_"):
                    raise RefusedError(f"it cannot be recorded: {op} draws random numbers for given ones")
                draw = partial(
                    _filled, op, torch.empty_like(first, device="meta"), first.device, *others, **kwargs
                )
            self.made.append((self.purpose(), draw))
        return op(*args, **kwargs)

    def purpose(self) -> int:
        return torch.default_generator.initial_seed() - self._seed


def _filled(op: Any, like: Tensor, device: torch.device, *args: Any, **kwargs: Any) -> Tensor:
    filled: Tensor = op(torch.empty_like(like, device=device), *args, **kwargs)
    return filled


def _is_random(op: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(op, "tags", ())


def _lift(graph: fx.GraphModule) -> list[Tensor]:
    """Makes inputs of the tensors that the graph holds, which are returned, and of its random numbers, in
    this order before the others, and removes what matters to autograd only."""
    nodes = graph.graph
    first = next(iter(nodes.nodes))
    held: list[Tensor] = []
    lifted: dict[int, fx.Node] = {}
    random: list[fx.Node] = []
    for node in list(nodes.nodes):
        if node.op == "get_attr":
            tensor = getattr(graph, str(node.target))
            if id(tensor) not in lifted:
                with nodes.inserting_before(first):
                    lifted[id(tensor)] = nodes.placeholder(f"held{len(held)}")
                held.append(tensor)
            new: Any = lifted[id(tensor)]
        elif _is_random(node.target):
            with nodes.inserting_before(first):
                new = nodes.placeholder(f"random{len(random)}")
            random.append(new)
        elif node.target is torch.ops.aten.detach.default:
            new = node.args[0]
        else:
            continue
        node.replace_all_uses_with(new)
        nodes.erase_node(node)
    for node in random:
        first.prepend(node)
    nodes.eliminate_dead_code()
    nodes.lint()
    return held


def tensors_of(inputs: StepInputs) -> list[Tensor]:
    mixing = inputs.mixing or ()
    return [tensor for tensor in (inputs.real, inputs.z, inputs.labels, *mixing) if tensor is not None]


def with_tensors(inputs: StepInputs, tensors: Sequence[Tensor]) -> StepInputs:
    """The same inputs with other tensors, in the order of `tensors_of`."""
    real, z, *rest = tensors
    labels = None if inputs.labels is None else rest.pop(0)
    mixing = inputs.mixing and type(inputs.mixing)(*rest)
    return inputs._replace(real=real, fake=z, z=z, labels=labels, mixing=mixing)


def check_compiler(device: torch.device) -> None:
    """Raises RefusedError if there is nothing that compiles for this device."""
    instead = "or set step to 'traced', which needs none"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise RefusedError(f"there is no Triton, which compiles for GPUs: pip install triton, {instead}")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        what = "install g++ or clang++, set the environment variable CXX to another one"
        raise RefusedError(f"there is no C++ compiler: {what}, {instead}") from None


def numbers_of(adams: Sequence[AdamEMA]) -> list[float]:
    """The rates of the optimizers, which change from step to step."""
    return [
        float(number)
        for adam in adams
        for group in adam.param_groups
        for number in (group["lr"], *group["betas"], group["weight_decay"], adam.ema_decay)
    ]


@contextmanager
def with_numbers(adams: Sequence[AdamEMA], numbers: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the optimizers read their rates, in the order of `numbers_of`, from tensors."""
    names = ("lr", "betas", "weight_decay")
    before = [(a.ema_decay, [{name: g[name] for name in names} for g in a.param_groups]) for a in adams]
    given = iter(numbers)
    try:
        for adam in adams:
            for group in adam.param_groups:
                group["lr"], *betas, group["weight_decay"], adam.ema_decay = (next(given) for _ in range(5))
                group["betas"] = tuple(betas)
        yield
    finally:
        for adam, (ema_decay, rates) in zip(adams, before, strict=True):
            adam.ema_decay = ema_decay
            for group, values in zip(adam.param_groups, rates, strict=True):
                group.update(values)
