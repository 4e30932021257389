"""What does `fuse_` do for networks as they are published (`benchmarks/zoo.py`)? Forward and backward, in
training mode, of the network as it is and of the same after `fuse_(network, example_inputs)`, channels first
and, for images, last.

What is not faster is not taken, so a network in which nothing is taken has a ratio of 1 up to noise; the case
names how many layers were.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from aigc_ext.nn import fuse_
from benchmarks import zoo
from benchmarks.harness import Case, Setting


def cases(setting: Setting) -> Iterable[Case]:
    for name in zoo.NETWORKS:
        for channels_last in (False, True):
            case = case_of(name, channels_last, setting)
            if case is not None:
                yield case
            gc.collect()


def case_of(name: str, channels_last: bool, setting: Setting) -> Case | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the norms by hooks, on purpose
        (plain, inputs), (fused, _) = (zoo.make(name, setting.quick) for _ in range(2))
    inputs = [x.to(setting.device) for x in inputs]
    if channels_last:
        if not any(x.ndim == 4 and x.size(2) > 1 for x in inputs):
            return None
        inputs = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]
        for network in (plain, fused):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    report = fuse_(fused.to(setting.device), inputs)
    print(f"\n{name}: {report}")
    total = len(report.fused) + len(report.skipped)
    return Case(
        "fuse",
        f"{name}{', channels last' if channels_last else ''}, {len(report.fused)} of {total} layers",
        {
            "eager": partial(train, plain.to(setting.device), inputs),
            "aigc_ext, fuse_": partial(train, fused, inputs),
        },
        outputs=close_enough,
        rtol=1e-3,
        atol=1e-3,
    )


def train(network: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    y = network(*inputs)
    return (y, *torch.autograd.grad(y, list(network.parameters()), torch.ones_like(y)))


def close_enough(results: tuple[Tensor, ...]) -> list[Tensor]:
    """Relative to the largest number of each: rounding grows on the way through a deep network."""
    return [t / (t.abs().max() + 1e-3 * max(g.abs().max() for g in results)) for t in results[:1]]
