"""Several of everything in one process, and in processes that come from it: each has the bits that it has
alone.

What one thread's mode does to another is in tests/ops/test_threads.py, two training runs in two threads are
in tests/tasks/gan/test_trainer.py."""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigc_ext.losses import r1_penalty
from aigc_ext.models import MLPGenerator, build_generator
from aigc_ext.models.stylegan2 import StyleGAN2GeneratorConfig
from aigc_ext.nn import fuse_
from aigc_ext.sampling import Sampler
from tests.ops.suite import OpCase, all_cases, prepare, values_and_gradients
from tests.ops.test_properties import draw_example
from tests.test_repository import ROOT


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """Threads take turns in the middle of everything."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(threads)


def result_of(case: OpCase) -> dict[str, Tensor]:
    call = draw_example(case.calls)
    inputs = prepare(call, case, torch.float32)
    return values_and_gradients(case.function, inputs, call.options, 1, torch.float32)


def check_equal(ours: dict[str, Tensor], alone: dict[str, Tensor], what: str) -> None:
    assert ours.keys() == alone.keys(), what
    for name, value in alone.items():
        assert torch.equal(ours[name].nan_to_num(7.0), value.nan_to_num(7.0)), f"{what}: {name}"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 36, 1)
    module = nn.Sequential(*layers)
    fuse_(module)
    return module


def penalty() -> dict[str, Tensor]:
    d = network()
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    r1_penalty(d, images).backward()
    return {name: p.grad for name, p in d.named_parameters() if p.grad is not None}


def test_every_op_in_16_threads_while_another_takes_penalties() -> None:
    cases = all_cases()
    alone = {case.name: result_of(case) for case in cases}
    expected, over = penalty(), threading.Event()
    done: set[str] = set()

    def penalties() -> None:
        while not over.is_set():
            check_equal(penalty(), expected, "the penalty")

    def a_third_of_all_ops(seed: int) -> None:
        for case in random.Random(seed).sample(cases, len(cases) // 3):
            check_equal(result_of(case), alone[case.name], case.name)
            done.add(case.name)

    with ThreadPoolExecutor(17) as pool:
        background = pool.submit(penalties)
        try:
            list(pool.map(a_third_of_all_ops, range(16)))  # or their errors would be lost
        finally:
            over.set()
    background.result()
    assert done == set(alone)


def test_two_samplers() -> None:
    torch.manual_seed(0)
    small = StyleGAN2GeneratorConfig((3, 8, 8), z_dim=8, w_dim=8, mapping_layers=2, channel_base=64)
    style = build_generator(replace(small, channel_max=8))
    samplers = [Sampler(MLPGenerator((1, 8, 8), z_dim=7, hidden=(16, 16))), Sampler(style)]
    seeds = list(range(40))
    alone = [sampler.sample(seeds) for sampler in samplers]
    # Two threads for each, since a sampler may be shared.
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(lambda sampler: sampler.sample(seeds), [*samplers, *samplers]))
            for ours, expected in zip(together, [*alone, *alone], strict=True):
                assert np.array_equal(ours, expected)


def test_replicas_in_threads_as_data_parallel_has_them() -> None:
    """Copies of one network's parameters in threads, whose outputs one backward goes through."""
    module = network()
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(2))

    def step(in_threads: bool) -> list[Tensor]:
        module.zero_grad()
        replicas = [{name: p * 1 for name, p in module.named_parameters()} for _ in range(2)]
        # functional_call puts the copies into the module that it calls: each thread has its own.
        modules = [copy.deepcopy(module) for _ in replicas]
        parts = list(zip(modules, replicas, images.chunk(2), strict=True))

        def forward(part: tuple[nn.Module, dict[str, Tensor], Tensor]) -> Tensor:
            y: Tensor = torch.func.functional_call(*part)
            return y

        if in_threads:
            with ThreadPoolExecutor(2) as pool:
                outputs = list(pool.map(forward, parts))
        else:
            outputs = [*map(forward, parts)]
        torch.cat(outputs).square().mean().backward()
        gradients = [p.grad for p in module.parameters()]
        assert all(g is not None for g in gradients)
        return [g.clone() for g in gradients if g is not None]

    alone = step(False)
    for _ in range(20):
        assert all(map(torch.equal, step(True), alone))


FORK = """
import os, sys, torch
import aigc_ext
from tests.test_together import penalty, check_equal
torch.set_num_threads(int(sys.argv[1]))
expected = penalty() if sys.argv[2] == "after use" else None
read, write = os.pipe()
child = os.fork()
torch.set_num_threads(1)  # as PyTorch's own workers do: OpenMP's threads are not forked
if child == 0:
    os.close(read)
    with os.fdopen(write, "wb") as file:
        torch.save(penalty(), file)
    os._exit(0)
os.close(write)
with os.fdopen(read, "rb") as file:
    import io
    ours = torch.load(io.BytesIO(file.read()), weights_only=True)
assert os.waitpid(child, 0)[1] == 0
check_equal(ours, penalty() if expected is None else expected, "after fork")
print("equal")
"""


@pytest.mark.parametrize("when", ["before use", "after use"])
def test_fork_after_import(when: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FORK, "1", when],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout == "equal\n", result.stderr


def test_spawn() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ours = pool.apply(penalty)
    check_equal(ours, penalty(), "after spawn")
