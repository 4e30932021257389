"""What the ops' autograd formulas share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def reference_gradients(
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of ``reference(*inputs)`` by PyTorch's own autograd: the formula of an op that has no
    kernel for it.

    The result is itself differentiable (where the caller's backward is), and so on to every order: this is
    how
    the set of our ops is closed. ``needed[i]`` asks for the gradient of ``inputs[i]``.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        arguments = list(inputs)
        for i, argument in enumerate(arguments):
            if isinstance(argument, Tensor) and needed[i]:
                # A view, not the tensor itself: one input may be computed from another (the incoming
                # gradient from x),
                # and the partial derivatives must not follow that path; autograd does, behind the views.
                linked = create_graph and argument.requires_grad
                arguments[i] = argument.view_as(argument) if linked else argument.detach().requires_grad_()
        outputs = reference(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [
            (output, grad)
            for output, grad in zip(outputs, grad_outputs, strict=True)
            if grad is not None and output.requires_grad
        ]
        wanted = [i for i, need in enumerate(needed) if need]
        result: list[Tensor | None] = [None] * len(arguments)
        if pairs and wanted:
            gradients = torch.autograd.grad(
                [output for output, _ in pairs],
                [arguments[i] for i in wanted],
                [grad for _, grad in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
            for i, gradient in zip(wanted, gradients, strict=True):
                result[i] = gradient
    return result


def empty_dense_like(x: Tensor) -> Tensor:
    """A fake kernel's output: contiguous or channels-last as ``x`` is, contiguous for any other layout."""
    if x.is_contiguous() or is_channels_last(x):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def is_channels_last(x: Tensor) -> bool:
    """Is dimension 1 innermost in memory and the rest in order? (Also for ranks that torch has no name
    for.)"""
    if x.dim() < 3 or x.is_contiguous():
        return False
    expected = 1
    for d in (1, *range(x.dim() - 1, 1, -1), 0):
        if x.size(d) > 1 and x.stride(d) != expected:
            return False
        expected *= max(x.size(d), 1)
    return True


_library = torch.library.Library("aigc", "FRAGMENT")


def register_autograd(
    overload: Any, backward: Callable[..., Any], setup_context: Callable[[Any, Any, Any], None]
) -> Callable[..., Any]:
    """``torch.library.register_autograd`` for an op of ours, at less than half of its overhead per call.

    Returns the op for eager calls, which need not pass through the dispatcher twice. It is not for graph
    capture and autocast: see :func:`eager`.
    """

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                outputs = overload(*arguments)
            setup_context(ctx, arguments, outputs)
            return outputs

    Formula.__name__ = Formula.__qualname__ = overload.name().split(".")[0].replace("::", "_")
    Formula.backward = staticmethod(backward)  # type: ignore[method-assign]

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            for argument in arguments:
                if isinstance(argument, Tensor) and argument.requires_grad:
                    return Formula.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*arguments)

    register_kernel(overload, call)
    return call


def register_kernel(overload: Any, kernel: Callable[..., Any]) -> None:
    """What the dispatcher calls in the op's place where a gradient may be wanted."""
    _library.impl(overload.name(), kernel, "Autograd")


def register_list_autograd(
    overload: Any, backward: Callable[..., Any], setup_context: Callable[[Any, Any, Any], None]
) -> Callable[..., Any]:
    """:func:`register_autograd` for an op with lists of tensors among its arguments and results.

    ``backward(ctx, needed, *grad_outputs)`` sees them as the op does: ``needed``, ``grad_outputs`` and the
    gradients that it returns have a list where the op has one.
    """

    class Formula(torch.autograd.Function):  # which follows only tensors that are arguments of their own
        @staticmethod
        def forward(ctx: Any, sizes: tuple[int | None, ...], *flat: Any) -> Any:
            arguments = _nested(flat, sizes)
            with torch._C._AutoDispatchBelowAutograd():
                outputs = overload(*arguments)
            ctx.sizes = sizes
            ctx.output_sizes = tuple(_size(output) for output in outputs)
            setup_context(ctx, arguments, outputs)
            return ctx.output_sizes, *_flat(outputs)

        @staticmethod
        def backward(ctx: Any, _: None, *grad_outputs: Tensor | None) -> Any:
            needed = _nested(ctx.needs_input_grad[1:], ctx.sizes)
            return None, *_flat(backward(ctx, needed, *_nested(grad_outputs, ctx.output_sizes)))

    Formula.__name__ = Formula.__qualname__ = overload.name().split(".")[0].replace("::", "_")

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            sizes = tuple(_size(argument) for argument in arguments)
            flat = _flat(arguments)
            for argument in flat:
                if isinstance(argument, Tensor) and argument.requires_grad:
                    output_sizes, *outputs = Formula.apply(sizes, *flat)
                    return tuple(_nested(outputs, output_sizes))
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*arguments)

    register_kernel(overload, call)
    return call


def _size(value: Any) -> int | None:
    return len(value) if isinstance(value, (list, tuple)) else None


def _flat(values: Sequence[Any]) -> list[Any]:
    result: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            result += value
        else:
            result.append(value)
    return result


def _nested(flat: Sequence[Any], sizes: Sequence[int | None]) -> list[Any]:
    result: list[Any] = []
    start = 0
    for size in sizes:
        if size is None:
            result.append(flat[start])
            start += 1
        else:
            result.append(list(flat[start : start + size]))
            start += size
    return result


def register_autocast(overload: Any) -> None:
    """Autocast casts as for ``F.linear``: floating-point tensors to the autocast dtype, except float64."""
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _library.impl(overload.name(), _autocast_kernel(overload, device_type, key), key)


def _autocast_kernel(overload: Any, device_type: str, key: str) -> Callable[..., Any]:
    below_autocast = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            return value.to(torch.get_autocast_dtype(device_type))
        return value

    def kernel(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(below_autocast):
            return overload(*map(cast, arguments))

    return kernel


def eager() -> bool:
    """Nothing captures a graph and nothing casts: an op may be called without the dispatcher."""
    return not (torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled())
