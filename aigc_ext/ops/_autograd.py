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

    _library.impl(overload.name(), call, "Autograd")
    return call


def eager() -> bool:
    """Nothing captures a graph and nothing casts: an op may be called without the dispatcher."""
    return not (torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled())
