"""One call of an op with its derivatives, as the tests of this folder repeat, capture and move it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from tests.ops.suite import OpCase, all_cases, outputs_of, prepare, seeded, total

T = TypeVar("T")

CASES = [case for case in all_cases() if not case.cpu_only]


class BoundCall:
    """The large call of a case on its device. All memory that it reads is prepared here, so that calling it
    only enqueues work: outputs, gradients, and for order 2 the gradients of a penalty of those."""

    def __init__(
        self,
        case: OpCase,
        order: int = 1,
        dtype: torch.dtype = torch.float32,
        layout: str = "contiguous",
    ) -> None:
        call = case.large_call()
        self._function, self._options, self._order = case.function, call.options, order
        self.inputs = prepare(call, case, dtype, layout)
        self.leaves = [t for t in self.inputs.values() if t is not None and t.requires_grad]
        outputs = outputs_of(self._function, self.inputs, self._options)
        self.cotangents = [
            seeded(y.shape, 50 + i).to(y) if y.requires_grad else None for i, y in enumerate(outputs)
        ]

    def __call__(self) -> list[Tensor]:
        outputs = outputs_of(self._function, self.inputs, self._options)
        used = [(y, dy) for y, dy in zip(outputs, self.cotangents, strict=True) if dy is not None]
        results = [y.detach() for y in outputs]
        gradients = torch.autograd.grad(
            [y for y, _ in used],
            self.leaves,
            [dy for _, dy in used],
            allow_unused=True,
            create_graph=self._order == 2,
        )
        results += [g.detach() for g in gradients if g is not None]
        if self._order == 2:
            slopes = [g for g in gradients if g is not None and g.requires_grad]
            if slopes:
                penalty = total(g.square().sum() for g in slopes)
                second = torch.autograd.grad(penalty, self.leaves, allow_unused=True)
                results += [g for g in second if g is not None]
        return results


def orders(case: OpCase) -> tuple[int, ...]:
    return (1, 2) if case.twice_differentiable else (1,)


def has_product(case: OpCase) -> bool:
    """Whether it contains a product of PyTorch's, which may choose another kernel for the same numbers."""
    return not {"w", "w0"}.isdisjoint(case.large_call().inputs)


def check_same(case: OpCase, ours: list[Tensor], expected: list[Tensor], what: str) -> None:
    """The same bits, or close where there is a product."""
    assert len(ours) == len(expected)
    for i, (one, other) in enumerate(zip(ours, expected, strict=True)):
        if not has_product(case):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)), f"{what}: result {i}"
        else:
            message = functools.partial("{}, {}: {}".format, what, i)
            torch.testing.assert_close(one, other, equal_nan=True, msg=message)


def captured(run: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """A CUDA graph of ``run`` and what it returns: memory that every replay overwrites."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


@contextmanager
def synchronisation_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on(case: OpCase, device: torch.device | str) -> OpCase:
    return replace(case, device=torch.device(device))
