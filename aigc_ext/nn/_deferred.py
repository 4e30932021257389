"""Layers whose result waits for the activation behind them.

In a module whose `forward` calls its layers itself, nothing is known of what will happen to a layer's result.
`fuse_` changes the class of such a layer to a subclass that either runs another kernel (`Plan.act` None), or
returns a `Deferred`: a tensor that is computed when it is first used. If that use is the expected activation,
both run as one op; if it is anything else, the layer runs by itself, and the program sees what it always saw.
So no control flow is frozen: whatever path a forward takes, the result is right.

The parameters are read, and the hooks before the layer run, when the layer is called. A `Deferred` is not
made under torch.compile, tracing, scripting, torch.func or forward-mode differentiation, nor where a hook
would see it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.ops._mode import decomposed


class Activation(NamedTuple):
    """A call of an activation function: the name of the kernels', its slope, and whether it is in place."""

    act: str
    alpha: float | None
    inplace: bool = False


@dataclass(frozen=True)
class Plan:
    """What a layer does.

    Attributes:
        act: the activation that is expected behind it, or None if the layer alone runs as our op.
        alpha: its slope.
        sure: whether it was measured to pay; otherwise a rule decides for each input.
        followers: the modules that call the activation. PyTorch shows a module's inputs to its hooks in ways
            that a `Deferred` does not survive, so none is made while they have hooks.
    """

    act: str | None
    alpha: float | None
    sure: bool
    followers: tuple[nn.Module, ...] = ()


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


# ---- the tensor that waits -------------------------------------------------------------------------------


class _Call:
    """The call of a layer: computed at most once each way."""

    __slots__ = ("apart", "expected", "grad_mode", "ran", "together", "value", "version", "x")

    def __init__(
        self,
        expected: Activation,
        apart: Callable[[bool], Tensor],
        together: Callable[[], Tensor],
        x: Tensor,
    ) -> None:
        self.expected, self.apart, self.together = expected, apart, together
        self.x, self.version, self.grad_mode = x, x._version, torch.is_grad_enabled()
        self.value: Tensor | None = None
        self.ran = False

    def activated(self, activation: Activation) -> Tensor | None:
        """The result with this activation as one op, or None if that is not what was expected."""
        if self.value is not None or activation[:2] != self.expected[:2]:
            return None
        if torch.is_grad_enabled() != self.grad_mode:
            return None
        self._check_x()
        y = self.together()
        self.ran = True
        if activation.inplace:
            self.value = y
        return y

    def result(self) -> Tensor:
        """The layer's own result."""
        if self.value is None:
            self._check_x()
            with torch.set_grad_enabled(self.grad_mode):
                self.value = self.apart(self.ran)
        return self.value

    def _check_x(self) -> None:
        if self.x._version != self.version:
            raise RuntimeError(
                "fuse_: the input of a layer was changed in place before the layer's result was used; call "
                "unfuse_ on this module"
            )


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
        if type(first) is Deferred and (activation := activation_of(func, args, kwargs)) is not None:
            y = first._aigc_call.activated(activation)
            if y is not None:
                return y
        return func(*_computed(args), **_computed(kwargs))


def deferred(
    expected: Activation, apart: Callable[[bool], Tensor], together: Callable[[], Tensor], x: Tensor
) -> Tensor:
    """A tensor that `together` computes if `expected` is its first use, and else `apart`, which is told
    whether `together` has run all the same. `x` is what both read."""
    made = Tensor._make_subclass(Deferred, _NOTHING, torch.is_grad_enabled())
    made._aigc_call = _Call(expected, apart, together, x)
    return made


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
