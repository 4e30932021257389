"""Layers whose result waits for the activation behind them.

In a module whose `forward` calls its layers itself, nothing is known of what will happen to a layer's result.
`fuse_` changes the class of such a layer to a subclass that either runs another kernel (`Plan.act` None), or
returns a `Deferred`: a tensor that is computed when it is first used. If that use is the expected one, an
activation or a sum with another tensor, both run as one op; if it is anything else, the layer runs by itself,
and the program sees what it always saw. So no control flow is frozen: whatever path a forward takes, the
result is right. Where an activation is expected behind the sum, the sum is a `Deferred` too, and where SiLU
is expected, so is a sigmoid, since many write `x * torch.sigmoid(x)`.

The parameters are read, and the hooks before the layer run, when the layer is called. A `Deferred` is not
made under torch.compile, tracing, scripting, torch.func or forward-mode differentiation, nor where a hook
would see it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.ops._mode import decomposed


class Activation(NamedTuple):
    """A call of an activation function: the name of the kernels', its slope, and whether it is in place. With
    a residual, a tensor of the same shape is added before; then the activation may be `linear`."""

    act: str
    alpha: float | None
    inplace: bool = False
    residual: bool = False


@dataclass(frozen=True)
class Plan:
    """What a layer does.

    Attributes:
        act: the activation that is expected behind it, or None if the layer alone runs as our op.
        alpha: its slope.
        residual: whether a tensor is expected to be added before it.
        sure: the modes, with gradients or without, in which it was measured to pay; in others a rule decides
            for each input.
        followers: the modules that call the activation. PyTorch shows a module's inputs to its hooks in ways
            that a `Deferred` does not survive, so none is made while they have hooks.
    """

    act: str | None
    alpha: float | None
    sure: tuple[bool, ...] = ()
    followers: tuple[nn.Module, ...] = ()
    residual: bool = False


# ---- activation functions --------------------------------------------------------------------------------


def activation_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Activation | None:
    """The activation that this call of a function of PyTorch computes of its first argument, if any."""
    read = _FUNCTIONS.get(func)
    return None if read is None else read(*args[1:], **{k: v for k, v in kwargs.items() if k != "input"})


def _named(act: str, inplace: bool = False) -> Callable[..., Activation]:
    return lambda inplace=inplace: Activation(act, None, inplace)


def _leaky(negative_slope: float = 0.01, inplace: bool = False) -> Activation:
    return Activation("lrelu", negative_slope, inplace)


def _leaky_in_place(negative_slope: float = 0.01) -> Activation:
    return Activation("lrelu", negative_slope, True)


def _elu(alpha: float = 1.0, inplace: bool = False) -> Activation | None:
    return Activation("elu", None, inplace) if alpha == 1 else None


def _softplus(beta: float = 1, threshold: float = 20) -> Activation | None:
    return Activation("softplus", None) if beta == 1 and threshold >= 20 else None


_FUNCTIONS: dict[Any, Callable[..., Activation | None]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _named("relu")),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _named("relu", True)),
    F.leaky_relu: _leaky,
    F.leaky_relu_: _leaky_in_place,
    **dict.fromkeys((torch.tanh, Tensor.tanh, F.tanh), _named("tanh")),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid), _named("sigmoid")),
    F.silu: _named("swish"),
    F.elu: _elu,
    F.selu: _named("selu"),
    F.softplus: _softplus,
}


SIGMOIDS = (torch.sigmoid, Tensor.sigmoid, F.sigmoid)
_PRODUCTS = (torch.mul, Tensor.mul, operator.mul)  # the last is what torch.fx sees


def factors_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """What this call of a function of PyTorch multiplies, if that is what it does, and not in place."""
    return (args[0], args[1]) if func in _PRODUCTS and len(args) == 2 and not kwargs else None


_SUMS = {torch.add: False, Tensor.add: False, Tensor.add_: True}


class Sum(NamedTuple):
    """A call that adds two tensors, and whether in place of the first."""

    first: Tensor
    second: Tensor
    inplace: bool

    def other_than(self, one: Tensor) -> Tensor | None:
        """What is added to `one`, which a sum in place must replace."""
        if self.first is one and self.second is not one:
            return self.second
        return self.first if self.second is one and not self.inplace and self.first is not one else None


def sum_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sum | None:
    """This call of a function of PyTorch, if it is a sum of two tensors and nothing else."""
    if func in _SUMS and len(args) == 2 and not kwargs and all(isinstance(t, Tensor) for t in args):
        return Sum(*args, _SUMS[func])
    return None


# ---- the tensor that waits -------------------------------------------------------------------------------


class _Call:
    """The call of a layer: computed at most once each way.

    `apart` is told whether `together` has run all the same; `together` gets what is added, if that is
    expected.
    """

    __slots__ = (
        *("apart", "expected", "gate_of", "grad_mode", "ran", "reads", "together", "value", "versions"),
    )

    def __init__(
        self,
        expected: Activation,
        apart: Callable[[bool], Tensor],
        together: Callable[..., Tensor],
        reads: tuple[Tensor, ...],
    ) -> None:
        self.expected, self.apart, self.together = expected, apart, together
        self.reads, self.versions = reads, [t._version for t in reads]
        self.grad_mode = torch.is_grad_enabled()
        self.value: Tensor | None = None
        self.ran = False
        self.gate_of: _Call | None = None  # whose sigmoid it is

    def activated(self, activation: Activation) -> Tensor | None:
        """The result with this activation as one op, or None if that is not what was expected."""
        if not self._expects(activation):
            return None
        y = self.together()
        self.ran = True
        if activation.inplace:
            self.value = y
        return y

    def with_residual(self, other: Tensor, inplace: bool) -> Tensor | None:
        """The sum with this tensor, or None if that is not what was expected."""
        act, alpha = self.expected[:2]
        like = self.reads[0]
        if (
            not self._expects(Activation(act, alpha, residual=True))
            or type(other) not in (Tensor, nn.Parameter)
            or other.is_inference()
            or _kind(other) != _kind(like)
        ):
            return None
        apart, together = self.apart, self.together
        if act == "linear":
            y = together(other)
            self.ran = True
        else:

            def of_parts(again: bool) -> Tensor:
                return self.result() + other

            def of_changed(again: bool) -> Tensor:  # knows not `self`, whose value it is
                return apart(again) + other

            parts = of_changed if inplace else of_parts
            y = deferred(Activation(act, alpha), parts, lambda: together(other), *self.reads, other)
        if inplace:
            self.value = y
        return y

    def sigmoid(self) -> Tensor | None:
        """The sigmoid, to wait for its product with the result, or None if SiLU is not expected."""
        if not self._expects(Activation("swish", None)):
            return None
        gate = deferred(
            Activation("product", None),
            lambda again: torch.sigmoid(self.result()),
            self.together,
            *self.reads,
        )
        gate._aigc_call.gate_of = self
        return gate

    def result(self) -> Tensor:
        """The layer's own result."""
        if self.value is None:
            self._check_reads()
            with torch.set_grad_enabled(self.grad_mode):
                self.value = self.apart(self.ran)
        value: Tensor = _computed(self.value)  # a sum in place of it may still wait
        return value

    def _expects(self, activation: Activation) -> bool:
        same = activation[:2] == self.expected[:2] and activation.residual == self.expected.residual
        if self.value is not None or not same or torch.is_grad_enabled() != self.grad_mode:
            return False
        self._check_reads()
        return True

    def _check_reads(self) -> None:
        if [t._version for t in self.reads] != self.versions:
            raise RuntimeError(
                "fuse_: the input of a layer was changed in place before the layer's result was used; call "
                "unfuse_ on this module"
            )


def _kind(t: Tensor) -> Any:
    return t.shape, t.dtype, t.device, t.layout


class Deferred(Tensor):
    """The result of a layer that has not run yet.

    To C++ code it is a leaf without elements that requires a gradient: should it reach code that does not
    know `__torch_function__`, such as a custom `autograd.Function`, its backward is an error of the shape,
    and not a gradient that is lost without a word.
    """

    _aigc_call: _Call

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("input")
        y: Tensor | None = None
        if type(first) is Deferred and (activation := activation_of(func, args, kwargs)) is not None:
            y = first._aigc_call.activated(activation)
            if y is None and func in SIGMOIDS:
                y = first._aigc_call.sigmoid()
        elif (factors := factors_of(func, args, kwargs)) is not None:
            y = _product(*factors)
        elif (added := sum_of(func, args, kwargs)) is not None:
            y = _sum(added)
        if y is not None:
            return y
        return func(*_computed(args), **_computed(kwargs))


def deferred(
    expected: Activation,
    apart: Callable[[bool], Tensor],
    together: Callable[..., Tensor],
    *reads: Tensor,
) -> Deferred:
    """A tensor that `together` computes if `expected` is its first use, and else `apart`: see `_Call`.
    `reads` are what both read; the first has the result's shape if a sum is expected."""
    made: Deferred = Tensor._make_subclass(Deferred, _NOTHING, torch.is_grad_enabled())
    made._aigc_call = _Call(expected, apart, together, reads)
    return made


def _product(first: Any, second: Any) -> Tensor | None:
    if type(first) is Deferred and type(second) is Deferred:
        for one, other in ((first._aigc_call, second._aigc_call), (second._aigc_call, first._aigc_call)):
            if other.gate_of is one:
                return one.activated(Activation("swish", None))
    return None


def _sum(added: Sum) -> Tensor | None:
    for one in added[:2]:
        other = added.other_than(one)
        if type(one) is Deferred and other is not None and one._aigc_call.expected.residual:
            return one._aigc_call.with_residual(_computed(other), added.inplace)
    return None


_NOTHING = torch.empty(0)


def _computed(value: Any) -> Any:
    """The value with each `Deferred` in it computed."""
    if type(value) is Deferred:
        return value._aigc_call.result()
    if type(value) in (tuple, list):
        return type(value)(map(_computed, value))
    if type(value) is dict:
        return {key: _computed(item) for key, item in value.items()}
    return value


# ---- the layer -------------------------------------------------------------------------------------------

_classes: dict[type[nn.Module], type[nn.Module]] = {}


def planned_class(
    base: type[nn.Module], run: Callable[..., Any], reconstruct: Callable[..., nn.Module]
) -> type[nn.Module]:
    """The subclass of a PyTorch layer that calls `run(original_forward, layer, *arguments)`."""
    if base not in _classes:
        original = base.forward

        # TorchScript reads the source of what is wrapped.
        @functools.wraps(original)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return run(original, self, *args, **kwargs)

        def __reduce_ex__(self: Any, protocol: Any) -> Any:
            # Pickle finds classes by name, and this one is made at run time.
            reduced: Any = nn.Module.__reduce_ex__(self, protocol)
            constructor, arguments, *state = reduced
            constructor, *arguments = (base if p is made else p for p in (constructor, *arguments))
            return reconstruct, (constructor, arguments), *state

        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        members = {"forward": forward, "__reduce_ex__": __reduce_ex__, "_unplanned_class": base, **names}
        made: type[nn.Module] = type(base.__name__, (base,), members)
        _classes[base] = made
    return _classes[base]


def unplanned(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that `planned_class` was given, or the class itself."""
    return vars(cls).get("_unplanned_class", cls)


def must_run_now(x: Tensor) -> bool:
    """Is this no ordinary eager call?"""
    return torch._C._get_tracing_state() is not None or x.is_inference() or decomposed()


class WithParameters:
    """A layer with its parametrized tensors as they were when it was called: each evaluation of a spectral
    norm is a power iteration."""

    def __init__(self, layer: nn.Module) -> None:
        self.__dict__.update({name: getattr(layer, name) for name in ("weight", "bias")})
        self.__dict__["_layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)
