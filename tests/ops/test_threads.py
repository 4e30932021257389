"""What one thread does changes nothing in another: modes, derivatives, what is compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_ext import decompose, no_weight_gradients, ops
from aigc_ext.losses import r1_penalty


def in_a_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


@contextmanager
def meanwhile(function: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Runs ``function(pause)`` in a thread; inside, that thread stands where it calls ``pause()`` first."""
    reached, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        reached.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(function, pause)
        try:
            assert reached.wait(60), running.exception()
            yield
        finally:
            go_on.set()
            running.result(timeout=60)


class Paused(torch.autograd.Function):
    """The identity, whose backward pauses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pause: Callable[[], None]) -> Tensor:
        ctx.pause = pause
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        ctx.pause()
        return dy * 1, None


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (6, 3, 3, 3), (6,), (1, 6 * 16), (1,)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def discriminator(x: Tensor, parameters: list[Tensor]) -> Tensor:
    w1, b1, w2, b2 = parameters
    h = ops.conv2d_act(x, w1, b1, padding=1, act="lrelu").flatten(1)
    return ops.linear_act(h, w2, b2)


def images() -> Tensor:
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(2))


def gradients() -> tuple[Tensor, ...]:
    """Of a loss, all there; an error if one is missing."""
    own = parameters()
    return torch.autograd.grad(discriminator(images(), own).square().sum(), own)


def test_a_penalty_in_another_thread_takes_no_gradients_away() -> None:
    alone = gradients()

    def penalty(pause: Callable[[], None]) -> None:
        own = parameters()
        r1_penalty(lambda x: discriminator(Paused.apply(x, pause), own), images()).backward()
        assert own[0].grad is not None

    with meanwhile(penalty):
        together = gradients()
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other)


def test_threads_that_take_penalties_and_train_get_what_they_get_alone() -> None:
    def steps(with_penalty: bool) -> list[Tensor]:
        own = parameters()
        optimizer = torch.optim.Adam(own, 1e-2)
        for _ in range(40):
            loss = discriminator(images(), own).square().mean()
            if with_penalty:
                loss = loss + r1_penalty(lambda x: discriminator(x, own), images())
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None for p in own)
            optimizer.step()
        return [p.detach() for p in own]

    jobs = (True, False, True)
    alone = [steps(job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(steps, jobs))
    for one, other in zip(together, alone, strict=True):
        assert all(map(torch.equal, one, other))


def test_no_weight_gradients_is_of_the_thread_that_starts_the_backward() -> None:
    """Not of the one that built the graph, and not of the one that runs it."""
    x, w = torch.randn(4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)

    def weight_gradient(y: Tensor) -> Tensor | None:
        return torch.autograd.grad(y.sum(), (x, w), allow_unused=True)[1]

    with no_weight_gradients():
        y = ops.linear_act(x, w)
        assert in_a_thread(lambda: weight_gradient(y)) is not None
    y = ops.linear_act(x, w)

    def inside() -> Tensor | None:
        with no_weight_gradients():
            return weight_gradient(y)

    assert in_a_thread(inside) is None
    assert weight_gradient(ops.linear_act(x, w)) is not None


class Nested(torch.autograd.Function):
    """The identity, whose backward runs another backward and notes its thread, ``depth`` times deep."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, depth: int, run: Callable[[], None]) -> Tensor:
        ctx.depth, ctx.run = depth, run
        return x.view_as(x)

    @staticmethod
    @torch.enable_grad()
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        if ctx.depth == 0:
            ctx.run()
        else:
            x = torch.zeros((), requires_grad=True)
            torch.autograd.grad(Nested.apply(x, ctx.depth - 1, ctx.run), x)
        return dy, None, None


@pytest.mark.parametrize("inside", [False, True])
def test_a_backward_on_a_thread_of_autograd_s_own_knows_the_mode(inside: bool) -> None:
    """As those of CUDA tensors. On the CPU, autograd takes one of its own for backward passes that are nested
    more than 60 deep."""
    x, w = torch.randn(4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    threads, found = set[int](), list[Tensor | None]()

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            threads.add(threading.get_ident())
            return dy

    def run() -> None:
        y = Noted.apply(ops.linear_act(x, w))
        found.append(torch.autograd.grad(y.sum(), (x, w), allow_unused=True)[1])

    leaf = torch.zeros((), requires_grad=True)
    y = Nested.apply(leaf, 100, run)
    if inside:
        with no_weight_gradients():
            torch.autograd.grad(y, leaf)
    else:
        torch.autograd.grad(y, leaf)
    assert threads.isdisjoint({threading.get_ident()})
    assert (found[0] is None) == inside


def test_decompose_does_not_reach_another_thread() -> None:
    x = torch.randn(4, 5, requires_grad=True)

    def node() -> str:
        return type(ops.bias_act(x, act="lrelu").grad_fn).__name__

    ours = node()
    with decompose():
        plain = node()
        assert in_a_thread(node) == ours != plain

    def decomposing(pause: Callable[[], None]) -> None:
        with decompose():
            pause()

    with meanwhile(decomposing):
        assert node() == ours
    assert node() == ours


def test_compiled_code_knows_the_thread_s_mode() -> None:
    """And does not compile anew for a mode that it has seen."""
    graphs: list[bool] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(any("aigc" in str(node.target) for node in graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.bias_act(x, act="tanh"), fullgraph=True, backend=backend)
    x = torch.randn(4, 5)
    compiled(x)
    assert graphs == [True]
    with decompose():
        compiled(x)
        assert graphs == [True, False]
        in_a_thread(lambda: compiled(x))
    compiled(x)
    assert graphs == [True, False]


def test_decompose_inside_compiled_code_ends_there() -> None:
    def both(x: Tensor) -> Tensor:
        with decompose():
            y = ops.bias_act(x, act="tanh")
        return ops.bias_act(y, act="tanh")

    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(sum("aigc" in str(node.target) for node in graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    x = torch.randn(4, 5)
    torch.testing.assert_close(torch.compile(both, fullgraph=True, backend=backend)(x), both(x))
    assert graphs == [1]
    after = ops.bias_act(x.requires_grad_(), act="tanh").grad_fn
    assert type(after).__name__ != "TanhBackward0"
