"""Where and when an op's work runs: on the current stream and device, in a CUDA graph, without waiting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_ext import ops
from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import MLPDiscriminator, MLPGenerator
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan import AdversarialStep, Objective
from tests.cuda.calls import (
    CASES,
    BoundCall,
    captured,
    check_same,
    on,
    orders,
    synchronisation_is_an_error,
)
from tests.ops.adam_ema.test_adam_ema import NUMBERS, arguments
from tests.ops.suite import OpCase

pytestmark = pytest.mark.cuda

per_case_and_order = pytest.mark.parametrize(
    ("case", "order"),
    [(case, order) for case in CASES for order in orders(case)],
    ids=lambda value: getattr(value, "name", f"order{value}"),
    indirect=["case"],
)
per_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name, indirect=True)


# ---- every op, forward and backward ------------------------------------------------------------------------


@per_case_and_order
def test_work_waits_for_the_stream_it_is_enqueued_on(case: OpCase, order: int) -> None:
    run = BoundCall(case, order)
    expected = run()
    values = [t.detach().clone() for t in run.leaves]
    with torch.no_grad():
        for leaf in run.leaves:
            leaf.fill_(float("nan"))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some 10 ms, in which work on any other stream would read NaN
        with torch.no_grad():
            for leaf, value in zip(run.leaves, values, strict=True):
                leaf.copy_(value)
        got = run()
    stream.synchronize()
    check_same(case, got, expected, "on a side stream")


@per_case_and_order
def test_a_cuda_graph_replays_it(case: OpCase, order: int) -> None:
    run = BoundCall(case, order)
    graph, results = captured(run)
    with torch.no_grad():  # other values in the memory that the graph reads
        for tensor in (*run.leaves, *(dy for dy in run.cotangents if dy is not None)):
            tensor.mul_(0.75)
    expected = run()
    for _ in range(2):
        for result in results:
            result.fill_(77.0)
        graph.replay()
        torch.cuda.synchronize()
        check_same(case, results, expected, "replayed")


@per_case_and_order
def test_nothing_waits_for_the_device(case: OpCase, order: int) -> None:
    run = BoundCall(case, order)
    run()  # what is done only once may wait
    with synchronisation_is_an_error():
        run()


@per_case_and_order
def test_the_same_bits_every_time(case: OpCase, order: int) -> None:
    run = BoundCall(case, order)
    expected = run()
    for _ in range(5):
        torch.empty(1 << 22, device=case.device).fill_(float("nan"))  # for the allocator to give out again
        check_same(case, run(), expected, "repeated")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_work_runs_on_the_device_of_its_tensors() -> None:
    for case in CASES:
        for order in orders(case):
            expected = BoundCall(on(case, "cuda:0"), order)()
            with torch.cuda.device(0):
                got = BoundCall(on(case, "cuda:1"), order)()
                assert torch.cuda.current_device() == 0
            assert all(t.device.index == 1 for t in got)
            check_same(case, [t.to("cuda:0") for t in got], expected, f"{case.name} on the second device")


# ---- the optimizer -----------------------------------------------------------------------------------------


def adam_state(device: torch.device) -> dict[str, Any]:
    """What adam_ema_ takes, every number in a tensor."""
    with device:
        args = arguments([(300, 41), (7,), (70_001,)], seed=3)
        for name in ("lr", "beta1", "beta2", "ema_decay"):
            args[name] = torch.tensor(NUMBERS[name], dtype=torch.float64)
        return {**args, "skipped": torch.tensor(0), "skip_nonfinite": True}


def written(args: dict[str, Any]) -> list[Tensor]:
    return [t for name in ("params", "exp_avgs", "exp_avg_sqs", "emas", "steps") for t in args[name]]


def test_adam_ema_in_a_cuda_graph_reads_its_numbers_when_it_runs(device: torch.device) -> None:
    ours, expected = adam_state(device), adam_state(device)
    start = [t.clone() for t in written(ours)]
    graph, _ = captured(lambda: ops.adam_ema_(**ours))
    for t, value in zip(written(ours), start, strict=True):  # takes the warm-up's steps back
        t.copy_(value)
    for step in range(4):
        for args in (ours, expected):
            args["lr"].fill_(1e-2 / (step + 1))
            for grad in args["grads"]:
                grad.mul_(-0.7)
            if step == 2:
                args["grads"][1][3] = float("inf")
        graph.replay()
        ops.adam_ema_(**expected)
        if step == 2:
            for args in (ours, expected):
                args["grads"][1][3] = 1.0
    torch.cuda.synchronize()
    for one, other in zip(written(ours), written(expected), strict=True):
        assert torch.equal(one, other)
    assert ours["steps"][0] == 3 + 3
    assert ours["skipped"] == 1


def test_adam_ema_waits_for_nothing(device: torch.device) -> None:
    args = adam_state(device)
    numbers = {**args, **{name: NUMBERS[name] for name in ("lr", "beta1", "beta2", "ema_decay")}}
    for given in (args, numbers):
        ops.adam_ema_(**given)
        with synchronisation_is_an_error():
            ops.adam_ema_(**given)


def test_adam_ema_waits_for_the_stream_it_is_enqueued_on(device: torch.device) -> None:
    ours, expected = adam_state(device), adam_state(device)
    ops.adam_ema_(**expected)
    grads = [g.clone() for g in ours["grads"]]
    for grad in ours["grads"]:
        grad.fill_(float("nan"))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for grad, value in zip(ours["grads"], grads, strict=True):
            grad.copy_(value)
        ops.adam_ema_(**ours)
    stream.synchronize()
    for one, other in zip(written(ours), written(expected), strict=True):
        assert torch.equal(one, other)


# ---- a whole training step ---------------------------------------------------------------------------------


def training_step(device: torch.device) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    generator, discriminator = MLPGenerator().to(device), MLPDiscriminator().to(device)
    ema = [p.detach().clone() for p in generator.parameters()]
    g_adam = AdamEMA(generator.parameters(), 1e-3, (0.5, 0.99), ema_params=ema)
    d_adam = AdamEMA(discriminator.parameters(), 1e-3, (0.5, 0.99))
    objective = Objective(discriminator, AdversarialLoss("logistic"), gamma=0.3)
    step = AdversarialStep(generator, discriminator, objective, g_adam, d_adam)
    real, z = torch.rand(64, 1, 28, 28).to(device), torch.randn(64, 100).to(device)
    return lambda: step(real, z, penalize=True), [*generator.parameters(), *discriminator.parameters(), *ema]


def test_a_whole_training_step_in_a_cuda_graph(device: torch.device) -> None:
    step, ours = training_step(device)
    graph, statistics = captured(step)  # three steps to warm up; the capture itself takes none
    for _ in range(4):
        graph.replay()
    eager, expected = training_step(device)
    for _ in range(7):
        expected_statistics = eager()
    torch.testing.assert_close(statistics, expected_statistics, rtol=1e-3, atol=1e-5)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_whole_training_step_waits_for_nothing(device: torch.device) -> None:
    step, _ = training_step(device)
    step()
    with synchronisation_is_an_error():
        step()
