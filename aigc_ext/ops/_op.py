"""The record of an op: its public functions, their references, and the native ops behind them.

An op is a file of this folder. It declares each native op with :func:`native`, which derives from the schema
how the op is called, differentiated, traced and cast, and each public function with an :class:`Op`, which the
exports, the README's table, the benchmarks and the tests read.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from aigc_ext._native import autograd
from aigc_ext.ops._arguments import check_same_device
from aigc_ext.ops._gradients import flattened, nested, reference_gradients, sizes_of
from aigc_ext.ops._mode import weight_gradients
from aigc_ext.ops._route import LOG

_library = torch.library.Library("aigc", "FRAGMENT")
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_logging = LOG.isEnabledFor
_DEBUG = logging.DEBUG
_is_compiling = torch.compiler.is_compiling
_is_autocast_enabled = torch._C._is_any_autocast_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead  # for tensors that outlived their transform


@dataclass(frozen=True)
class Op:
    """A public function and the reference that it must equal.

    Attributes:
        public: the function that users call.
        ref: the same in plain PyTorch.
        example: the arguments of a small call, in which a tuple stands for a tensor of that shape, and a list
            of tuples for a list of tensors; or a function that makes the arguments.
    """

    public: Callable[..., Any]
    ref: Callable[..., Any]
    example: Mapping[str, Any] | Callable[[], Mapping[str, Any]]

    def arguments(self) -> dict[str, Any]:
        """The arguments of the example, with normally distributed tensors."""

        def made(value: Any) -> Any:
            if isinstance(value, list):
                return [made(item) for item in value]
            return torch.randn(value) if isinstance(value, tuple) else value

        if callable(self.example):
            return dict(self.example())
        return {name: made(value) for name, value in self.example.items()}

    @property
    def name(self) -> str:
        return self.public.__name__

    @property
    def natives(self) -> list[Native]:
        """The native ops declared in the same file."""
        return [op for op in NATIVES.values() if op.module == self.public.__module__]


@dataclass(frozen=True)
class Native:
    """The record of a native op.

    Attributes:
        name: the name in its schema.
        module: the module that declares it.
        overload: ``torch.ops.aigc.<name>.<overload>``.
        wrt: the arguments that have a gradient.
        cuda: whether it has a CUDA kernel.
    """

    name: str
    module: str
    overload: Any
    wrt: tuple[str, ...]
    cuda: bool


NATIVES: dict[str, Native] = {}
"""By name."""


def records() -> list[Op]:
    """The public functions of all ops, sorted by name: the lists ``OPS`` of the files in this folder."""
    names = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    return sorted((op for m in modules for op in getattr(m, "OPS", ())), key=lambda op: op.name)


def native(
    name: str,
    *,
    fake: Callable[..., Any],
    gradients: Callable[..., Sequence[Any]] | None = None,
    reference: Callable[..., Any] | None = None,
    wrt: Sequence[str] | None = None,
    weights: Sequence[str] = (),
    save: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    kept: Callable[..., tuple[Any, ...]] | None = None,
    constants: Sequence[str] = (),
    recorded: str | None = None,
    autocast: bool = False,
    cuda: bool = True,
) -> Callable[..., Any]:
    """Declares a native op and returns the function that calls it with the schema's arguments by position.

    The call goes through the dispatcher while a graph is traced or where autocast casts, and otherwise
    straight to the op, which takes less than half the time. The gradient is the same either way.

    Args:
        name: the op's, with ``.overload`` if it has one. Its schema is the native library's.
        fake: maps the schema's arguments to results without values. It rejects what the op rejects, with the
            same messages; except for what any op rejects, None and tensors on different devices.
        gradients: the derivative. ``gradients(a, needs, *grad_outputs)`` returns a gradient or None for each
            argument in ``wrt``, and None for one that was not given. ``a`` has the op's arguments and what
            was saved, ``needs`` says which gradients are needed, both by name; ``a.plain`` holds all
            arguments that are not tensors. A result without a gradient has None in ``grad_outputs``. Where
            the op takes or returns a list of tensors, so does this function.
        reference: instead of ``gradients``: the op in plain PyTorch, which autograd differentiates.
        wrt: the arguments that have a gradient, which must be the first tensors; by default all tensors.
            Requesting the gradient of another tensor is an error.
        weights: those of ``wrt`` whose gradients :func:`no_weight_gradients` leaves out.
        save: the tensors that the derivative reads, arguments or results; by default all tensor arguments.
            Other arguments are always available.
        keep: the names of further values that it reads, tensors first. A tensor's name must be that of an
            argument or result, which it replaces.
        kept: the function that returns these values, given the schema's arguments and, last, the results.
        constants: results that have no gradient.
        recorded: the native op that runs instead of this one when a gradient may be needed. Its first results
            are the same, and the derivative may read the others.
        autocast: whether autocast casts floating-point tensors other than float64, as for ``F.linear``. By
            default an op computes in the dtypes of its arguments.
        cuda: whether it has a CUDA kernel.

    An op without ``gradients`` and ``reference`` has no derivative and is transparent to autograd.
    """
    overload = _overload(name)
    torch.library.register_fake(f"aigc::{name}")(_with_checks(fake, overload))
    if autocast:
        _register_autocast(overload)
    NATIVES[name] = Native(
        *(name, sys._getframe(1).f_globals["__name__"], overload),
        wrt=tuple(_tensors(overload) if wrt is None else wrt) if gradients or reference else (),
        cuda=cuda,
    )
    if gradients or reference:
        formula = gradients or _by_reference(reference, overload)
        run = _overload(recorded) if recorded else overload
        function = _function(NATIVES[name], run, formula, weights, save, keep, kept, constants, autocast)
        _library.impl(name, function(False), "Autograd")
        return function(True)
    if not overload._schema.is_mutable:
        _library.impl(name, torch.library.fallthrough_kernel, "Autograd")

    def call(*values: Any) -> Any:
        if _is_compiling() or (autocast and _is_autocast_enabled()):
            return overload(*values)
        if _is_logging(_DEBUG):
            _log_run(NATIVES[name], values)
        with _BelowAutograd():
            return overload(*values)

    return call


def _with_checks(fake: Callable[..., Any], overload: Any) -> Callable[..., Any]:
    """The fake kernel, which PyTorch calls for real tensors too if only one of a call's tensors is on the
    ``meta`` device: what it then returned would be memory that nobody wrote."""
    op = overload._schema.name.partition("::")[2]
    tensors = [(i, a.name) for i, a in enumerate(overload._schema.arguments) if "Tensor" in str(a.type)]
    needed = [(i, a.name) for i, a in enumerate(overload._schema.arguments) if str(a.type) == "Tensor"]

    def checked(*values: Any) -> Any:
        for i, name in needed:
            if values[i] is None:
                raise RuntimeError(f"{op}: {name} is None, but must be a tensor")
        named: dict[str, Any] = {}
        for i, name in tensors:
            if isinstance(values[i], (list, tuple)):
                named |= {f"{name}[{k}]": t for k, t in enumerate(values[i])}
            else:
                named[name] = values[i]
        check_same_device(op, **named)
        return fake(*values)

    return checked


def _function(
    op: Native,
    run: Any,
    formula: Callable[..., Sequence[Any]],
    weights: Sequence[str],
    save: Sequence[str] | None,
    keep: Sequence[str],
    kept: Callable[..., tuple[Any, ...]] | None,
    constants: Sequence[str],
    autocast: bool,
) -> Callable[[bool], Callable[..., Any]]:
    """Makes the function that calls the op with its derivative: ``function(True)`` for Python callers,
    ``function(False)`` for the dispatcher, which must not be entered again.

    ``torch.library.register_autograd`` does the same, but its calls take twice as long at small sizes.
    Therefore everything that follows from the schema is computed here, once, and a call does only the work
    that its op needs. For ops without lists of tensors, csrc/autograd does the same again in C++ where its
    library fits this torch: then this Python form serves graphs, transforms and tensor subclasses only.
    """
    overload, below, is_grad_enabled = op.overload, _BelowAutograd, torch.is_grad_enabled
    schema, tensors = run._schema, _tensors(run)
    arguments, count, wanted = [a.name for a in schema.arguments], len(tensors), len(op.wrt)
    assert arguments[:count] == tensors, f"{op.name}: the tensors must come first in the schema"
    assert tensors[:wanted] == list(op.wrt), f"{op.name}: wrt must be the first tensors"
    results = [r.name or f"result{i}" for i, r in enumerate(schema.returns)]
    returned = len(overload._schema.returns)
    visible = [i for i in range(returned) if results[i] not in constants]
    first, one_visible, one_result = visible[0], len(visible) == 1, len(results) == 1
    has_lists = any("List" in str(a.type) for a in (*schema.arguments[:count], *schema.returns))

    saved_names = [t for t in (tensors if save is None else save) if t not in keep]
    places = {name: i for i, name in reversed(list(enumerate([*tensors, *results])))}
    kept_tensors = sum(name in places for name in keep)
    assert all(name in places for name in keep[:kept_tensors]), f"{op.name}: keep must have tensors first"
    saves_all, saves_result = saved_names == tensors, not set(saved_names) <= set(tensors)
    pick_saved = _picker([places[name] for name in saved_names])
    keeps_more = bool(keep[kept_tensors:])
    available_names = [*saved_names, *keep, *arguments[count:], "plain"]
    Available: Any = None  # named tuples; making their classes is slow, so it waits for the first backward
    Needs: Any = None
    named = tuple.__new__
    left_out = [t in weights for t in tensors]
    no_gradients = (None,) * (count - wanted)

    # Most ops need little of what follows, and in a call of 8 us, half a microsecond is noticeable.
    simple = one_result and not (has_lists or saves_result or keep)

    def simple_forward(ctx: Any, plain: tuple[Any, ...], *values: Any) -> Any:
        with below():
            out = run(*values, *plain)
        ctx.save_for_backward(*(values if saves_all else pick_saved(values)))
        ctx.plain = plain
        return out

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: list[Any], *inputs: Any) -> Any:
            plain, sizes = call
            values = tuple(nested(inputs, sizes)) if has_lists else inputs
            with below():
                out = run(*values, *plain)
            saved = values if saves_all else pick_saved((*values, *out) if saves_result else values)
            ctx.plain = plain
            if kept is not None:
                more = kept(*values, *plain, out)
                saved += more[:kept_tensors]
                ctx.more = more[kept_tensors:]
            if has_lists:
                ctx.sizes = sizes, sizes_of(saved), sizes_of(out[i] for i in visible)
            ctx.save_for_backward(*(flattened(saved) if has_lists else saved))
            if one_result:
                return out
            call.append(out)
            if one_visible:
                return out[first]
            ctx.set_materialize_grads(False)
            return tuple(flattened(out[i] for i in visible))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            asked, more = ctx.needs_input_grad[1:], ctx.more if keeps_more else ()
            sizes = ctx.sizes if has_lists else None
            return None, *gradients_of(asked, ctx.saved_tensors, more, ctx.plain, grads, sizes)

    def gradients_of(
        asked: Sequence[Any],
        saved: Sequence[Any],
        more: Sequence[Any],
        plain: tuple[Any, ...],
        grads: Sequence[Any],
        all_sizes: Any = None,
    ) -> Sequence[Any]:
        nonlocal Available, Needs
        if forward_ad._current_level >= 0 and (duals := _unpacked(op.name, grads)):
            # It is linear in the gradients, and what was saved has no tangents: with one, the op had run in
            # its decomposed form.
            values, tangents = (gradients_of(asked, saved, more, plain, side, all_sizes) for side in duals)
            return tuple(map(_dual, values, tangents))
        if Needs is None:  # it is set last: another thread may be here too
            Available, Needs = namedtuple("Available", available_names), namedtuple("Needs", op.wrt)
        if grads[0] is None and all(grad is None for grad in grads):
            return (None,) * len(asked)
        needs, given = asked, grads
        if has_lists:
            sizes, saved_sizes, result_sizes = all_sizes
            needs, saved = nested(asked, sizes), nested(saved, saved_sizes)
            given = nested(grads, result_sizes)
        if weights and not weight_gradients():
            needs = [_none_of(n) if leave else n for n, leave in zip(needs, left_out, strict=True)]
        if no_gradients:
            if True in (flattened(needs[wanted:]) if has_lists else needs[wanted:]):
                names = ", ".join(tensors[wanted:])
                raise RuntimeError(f"{op.name}: there is no gradient with respect to {names}")
            needs = needs[:wanted]
        a = named(Available, (*saved, *more, *plain, plain))
        result = formula(a, named(Needs, needs), *given)
        if no_gradients:
            result = *result, *no_gradients
        if has_lists:
            pairs = zip(result, sizes, strict=True)
            result = flattened([None] * n if n and gradient is None else gradient for gradient, n in pairs)
        return result

    if simple:
        Formula.forward = staticmethod(simple_forward)  # type: ignore[method-assign, assignment]
    Formula.__name__ = Formula.__qualname__ = f"aigc_{op.name}"
    apply_directly = super(torch.autograd.Function, Formula).apply

    def apply(call: Any, inputs: Sequence[Tensor | None]) -> Any:
        """``Formula.apply`` without the work per call that our functions don't need."""
        if _are_transforms_active():
            return Formula.apply(call, *inputs)  # raises: torch.func needs the decomposed form
        return apply_directly(call, *[t if t is None else _unwrap_if_dead(t) for t in inputs])

    def recorded(values: tuple[Any, ...], inputs: Sequence[Tensor | None]) -> Any:
        call: list[Any] = [values[count:], sizes_of(values[:count]) if has_lists else None]
        shown = apply(call, inputs)
        if one_result:
            return shown
        out = list(call[-1][:returned])
        if one_visible:
            out[first] = shown
        else:
            shown = nested(shown, sizes_of(out[i] for i in visible)) if has_lists else shown
            for i, value in zip(visible, shown, strict=True):
                out[i] = value
        return tuple(out) if returned > 1 else out[0]

    def by_python(*values: Any) -> Any:
        if is_grad_enabled():
            inputs = flattened(values[:count]) if has_lists else values[:count]
            for t in inputs:
                if t is not None and t.requires_grad:
                    return apply(values[count:], inputs) if simple else recorded(values, inputs)
        with below():
            return overload(*values)

    execute = by_python
    if autograd is not None and not has_lists:
        execute = autograd.make(
            op.name,
            *("aigc::" + op.name.partition(".")[0], overload._schema.overload_name),
            *(run._schema.name, run._schema.overload_name),
            *(count, returned, visible, [places[name] for name in saved_names], kept_tensors),
            *(kept, by_python, gradients_of),
        )

    def asking(*values: Any) -> Any:
        if _is_compiling() or (autocast and _is_autocast_enabled()):
            return overload(*values)
        if _is_logging(_DEBUG):
            _log_run(op, values)
            return by_python(*values)  # whose backward says which ops it runs
        return execute(*values)

    def dispatched(*values: Any) -> Any:
        if _is_logging(_DEBUG):
            _log_run(op, values)
        if forward_ad._current_level >= 0:
            inputs = flattened(values[:count])
            if not (is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)):
                _unpacked(op.name, inputs, refuses=True)
        return by_python(*values) if _is_compiling() else execute(*values)

    return lambda asks: asking if asks else dispatched


def _unpacked(
    op: str, tensors: Sequence[Tensor | None], refuses: bool = False
) -> tuple[list[Tensor | None], list[Tensor | None]] | None:
    """Values and tangents of dual numbers; None if there are no tangents."""
    pairs = [(None, None) if t is None else tuple(forward_ad.unpack_dual(t)) for t in tensors]
    if all(tangent is None for _, tangent in pairs):
        return None
    if refuses:
        raise RuntimeError(
            f"{op}: a tensor has a tangent (torch.autograd.forward_ad), which the native op would lose; the "
            "functions of aigc_ext.ops keep it"
        )
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op}: a gradient has a tangent (torch.autograd.forward_ad), which a second derivative "
            "(create_graph=True) would lose; run the forward inside aigc_ext.decompose()"
        )
    values, tangents = zip(*pairs, strict=True)
    return list(values), list(tangents)


def _dual(value: Tensor | None, tangent: Tensor | None) -> Tensor | None:
    if value is None or tangent is None:
        return value
    return forward_ad.make_dual(value, tangent)


def _log_run(op: Native, values: Sequence[Any]) -> None:
    tensor = next((t for t in flattened(values) if isinstance(t, Tensor)), None)
    if _is_compiling() or tensor is None:
        return
    kernel = f"its {tensor.device.type} kernel"
    if tensor.device.type == "cpu":
        kernel += f" for {torch.ops.aigc.instruction_set()}"
    LOG.debug("%s runs %s: its tensors are on %s", op.name, kernel, tensor.device)


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function that returns the values at these places as a tuple."""
    if list(places) == list(range(len(places))):
        return itemgetter(slice(len(places)))
    if len(places) == 1:
        (place,) = places
        return itemgetter(slice(place, place + 1))
    return itemgetter(*places)


def _none_of(need: Any) -> Any:
    return [False] * len(need) if isinstance(need, list) else False


def _overload(name: str) -> Any:
    base, _, which = name.partition(".")
    return getattr(getattr(torch.ops.aigc, base), which or "default")


def _tensors(overload: Any) -> list[str]:
    return [a.name for a in overload._schema.arguments if "Tensor" in str(a.type)]


def _by_reference(reference: Any, overload: Any) -> Callable[..., Sequence[Any]]:
    arguments = [a.name for a in overload._schema.arguments]

    def gradients(a: Any, needs: Any, *grad_outputs: Any) -> list[Any]:
        inputs = [getattr(a, name) for name in arguments]
        needed = [getattr(needs, name, False) for name in arguments]
        result = reference_gradients(reference, inputs, needed, grad_outputs)
        return [result[arguments.index(name)] for name in needs._fields]

    return gradients


def cast_by_autocast(tensors: list[Any]) -> list[Any]:
    """The tensors as autocast gives them to ``F.linear``, if it is on for the first one's device."""
    device_type = tensors[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return tensors
    cast: list[Any] = _cast(tensors, torch.get_autocast_dtype(device_type))
    return cast


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def _register_autocast(overload: Any) -> None:
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _library.impl(overload.name(), _autocast_kernel(overload, device_type, key), key)


def _autocast_kernel(overload: Any, device_type: str, key: str) -> Callable[..., Any]:
    below_autocast = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*arguments: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(below_autocast):
            return overload(*(_cast(value, dtype) for value in arguments))

    return kernel
