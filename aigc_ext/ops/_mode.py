"""Two switches that ops read: decomposed execution, and penalties that need no parameter gradients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad

from aigc_ext.ops._route import Route, is_debugging, take

# Plain module globals, because Dynamo guards on them; process-wide, not per thread.
_decompose_depth = 0
_no_weight_gradients_depth = 0
_peek_interpreter_stack = torch._C._functorch.peek_interpreter_stack


def decomposed() -> bool:
    """Inside :func:`decompose`, a ``torch.func`` transform (eager or compiled) or forward-mode
    differentiation? In the last two a custom op's autograd formula does not apply, and only plain PyTorch is
    correct (with torch 2.13 the transform raises, and a dual number silently loses its tangent).
    """
    if _decompose_depth > 0:
        because = "it is inside decompose()"
    elif _inside_transform():
        because = "it is inside a torch.func transform"
    elif forward_ad._current_level >= 0:
        because = "it is inside forward-mode differentiation"
    else:
        return False
    if is_debugging():
        take(sys._getframe(1).f_code.co_name.lstrip("_"), Route("plain PyTorch", because))
    return True


def _inside_transform() -> bool:
    return _peek_interpreter_stack() is not None


# Makes Dynamo call it while tracing, inside the transforms entered so far; if traced, it would always be
# true. torch.compiler.assume_constant_result does the same, but imports Dynamo, which takes seconds.
_inside_transform._dynamo_marked_constant = True  # type: ignore[attr-defined]


def weight_gradients() -> bool:
    """Outside :func:`no_weight_gradients`, or while tracing a graph, which may later run outside."""
    if _no_weight_gradients_depth == 0 or torch.compiler.is_compiling():
        return True
    return torch._guards.TracingContext.try_get() is not None  # torch 2.10, while it traces a backward


@contextmanager
def decompose() -> Iterator[None]:
    """Inside, every op runs in plain PyTorch: as its ``*_ref`` or, if it resamples or modulates, in a faster
    equivalent form that is the same program for any number of samples.

    For what custom kernels cannot do: a double backward inside one compiled graph, devices without a kernel,
    export to other runtimes. It is always on inside ``torch.func`` transforms and forward-mode
    differentiation. Process-wide; may be nested.
    """
    global _decompose_depth
    _decompose_depth += 1
    try:
        yield
    finally:
        _decompose_depth -= 1


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Inside, the backward of our linear and convolution ops computes no gradient of weights and biases.

    For gradient penalties: ``autograd.grad(D(x).sum(), x, create_graph=True)`` needs none, but PyTorch
    computes them and throws them away. Inside, only call ``autograd.grad`` with respect to activations or
    inputs; a ``backward()`` would leave the parameters of our ops without a gradient. The gradient of the
    penalty itself, taken outside, is complete. Process-wide; may be nested.
    """
    global _no_weight_gradients_depth
    _no_weight_gradients_depth += 1
    try:
        yield
    finally:
        _no_weight_gradients_depth -= 1
