"""Derivatives by PyTorch's own autograd, and the flat form of tensor lists that autograd needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def reference_gradients(
    reference: Callable[..., Any], inputs: Sequence[Any], needed: Sequence[Any], grad_outputs: Sequence[Any]
) -> list[Any]:
    """Gradients of ``reference(*inputs)`` by PyTorch's own autograd, for derivatives without a kernel.

    The result is itself differentiable to every order (if the caller's backward is), which closes the set of
    ops under differentiation. ``needed[i]`` asks for the gradient of ``inputs[i]``. Where an input or output
    is a list of tensors, the entries of ``needed``, ``grad_outputs`` and the result are lists too.
    """
    create_graph = torch.is_grad_enabled()
    sizes = sizes_of(inputs)
    flat = flattened(inputs)
    flags = flattened(
        [False] * n if n and need is False else need for n, need in zip(sizes, needed, strict=True)
    )
    wanted = [i for i, need in enumerate(flags) if need]
    with torch.enable_grad():
        for i in wanted:
            # A view, not the tensor itself: one input may be computed from another (the incoming gradient
            # from x). Partial derivatives must not follow that path; autograd follows it beyond the views.
            linked = create_graph and flat[i].requires_grad
            flat[i] = flat[i].view_as(flat[i]) if linked else flat[i].detach().requires_grad_()
        outputs = reference(*nested(flat, sizes))
        outputs = flattened(outputs) if isinstance(outputs, tuple) else [outputs]
        pairs = [
            (output, grad)
            for output, grad in zip(outputs, flattened(grad_outputs), strict=True)
            if grad is not None and output.requires_grad
        ]
        result: list[Tensor | None] = [None] * len(flat)
        if pairs and wanted:
            gradients = torch.autograd.grad(
                [output for output, _ in pairs],
                [flat[i] for i in wanted],
                [grad for _, grad in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
            for i, gradient in zip(wanted, gradients, strict=True):
                result[i] = gradient
    return nested(result, sizes)


class _WithZeros(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        pairs = zip(ctx.saved_tensors, needs, strict=True)
        return dx, *(torch.zeros_like(p) if need else None for p, need in pairs)


def with_zeros(x: Tensor, *parameters: Tensor | None) -> Tensor:
    """x, which will give the parameters a gradient of zero where they would otherwise have None.

    The derivative of an activation of straight pieces does not depend on what goes into it. PyTorch's own has
    zeros as its gradient: Adam decays the moments of a parameter with such a gradient, and would skip one
    without. Zeros for activations would cost a whole backward pass, so those have None.
    """
    return _marked(x, parameters, _WithZeros)


class _BeforeCorners(_WithZeros):
    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        return with_zeros(dx, *ctx.saved_tensors), *(None for _ in ctx.saved_tensors)


def before_corners(x: Tensor, *parameters: Tensor | None) -> Tensor:
    """x, which an activation of straight pieces follows, and in which the parameters are: ``with_zeros`` of
    its gradient."""
    return _marked(x, parameters, _BeforeCorners)


def _marked(x: Tensor, parameters: Sequence[Tensor | None], function: type[_WithZeros]) -> Tensor:
    needing = [p for p in parameters if p is not None and p.requires_grad]
    if not needing or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x
    y: Tensor = function.apply(x, *needing)
    return y


def leaf(t: Tensor) -> Tensor:
    """``t`` if it requires a gradient, else a detached alias that does."""
    return t if t.requires_grad else t.detach().requires_grad_()


def sizes_of(values: Iterable[Any]) -> list[int | None]:
    """For each value, its length if it is a list, else None."""
    return [len(value) if isinstance(value, (list, tuple)) else None for value in values]


def flattened(values: Iterable[Any]) -> list[Any]:
    """The values, with each list replaced by its elements."""
    result: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            result += value
        else:
            result.append(value)
    return result


def nested(flat: Sequence[Any], sizes: Iterable[int | None]) -> list[Any]:
    """The inverse of :func:`flattened`, for values with these :func:`sizes_of`."""
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
