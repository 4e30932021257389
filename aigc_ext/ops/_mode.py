"""Two switches that ops read: decomposed execution, and penalties that need no parameter gradients."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad

from aigc_ext.ops._route import Route, is_debugging, take


class _Depth(threading.local):
    """Per thread. Dynamo guards on the attribute, but only because it is the instance's, not the class's."""

    def __init__(self) -> None:
        self.decompose = 0


_depth = _Depth()
# How deep the thread is in no_weight_gradients() is among the state that autograd, like its grad mode, takes
# along from the thread that starts a backward pass to the threads that run it: for CUDA, one per device.
_DEPTH = "aigc_ext.no_weight_gradients"
_is_in_autograd_state = torch._C._is_key_in_tls
_get_autograd_state = torch._C._get_obj_in_tls
_set_autograd_state = torch._C._stash_obj_in_tls
_peek_interpreter_stack = torch._C._functorch.peek_interpreter_stack


def decomposed() -> bool:
    """Inside :func:`decompose`, a ``torch.func`` transform (eager or compiled) or forward-mode
    differentiation? In the last two a custom op's autograd formula does not apply, and only plain PyTorch is
    correct (with torch 2.13 the transform raises, and a dual number silently loses its tangent).
    """
    if _depth.decompose > 0:
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
    """For a backward: was it started outside :func:`no_weight_gradients`, or is it being traced, and may run
    outside later?"""
    if not (_is_in_autograd_state(_DEPTH) and _get_autograd_state(_DEPTH)) or torch.compiler.is_compiling():
        return True
    return torch._guards.TracingContext.try_get() is not None  # torch 2.10, while it traces a backward


@contextmanager
def decompose() -> Iterator[None]:
    """Inside, every op runs in plain PyTorch: as its ``*_ref`` or, if it resamples or modulates, in a faster
    equivalent form that is the same program for any number of samples.

    For what custom kernels cannot do: a double backward inside one compiled graph, devices without a kernel,
    export to other runtimes. It is always on inside ``torch.func`` transforms and forward-mode
    differentiation. It holds for the calling thread, and may be nested.
    """
    _depth.decompose += 1
    try:
        yield
    finally:
        _depth.decompose -= 1


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Inside, the backward of our linear and convolution ops computes no gradient of weights and biases.

    For gradient penalties: ``autograd.grad(D(x).sum(), x, create_graph=True)`` needs none, but PyTorch
    computes them and throws them away. Inside, only call ``autograd.grad`` with respect to activations or
    inputs; a ``backward()`` would leave the parameters of our ops without a gradient. The gradient of the
    penalty itself, taken outside, is complete.

    It holds for the backward passes that the calling thread starts inside, whichever threads run them (those
    of CUDA tensors run on threads of autograd's own), and may be nested.
    """
    if torch.compiler.is_compiling():  # a backward that is traced computes all gradients
        yield
        return
    depth = _get_autograd_state(_DEPTH) if _is_in_autograd_state(_DEPTH) else 0
    _set_autograd_state(_DEPTH, depth + 1)
    try:
        yield
    finally:
        _set_autograd_state(_DEPTH, depth)
