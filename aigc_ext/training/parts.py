"""Takes the step of a whole batch in parts, one after another and in several processes.

The gradients are those of the whole batch up to rounding, if no layer mixes samples as batch norm does.
Buffers, such as a running mean, become the mean of their values after each part. A step whose loss is not
finite changes nothing. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.nn.split_batch import split_batch
from aigc_ext.training.config import RunConfig
from aigc_ext.training.distributed import Processes

T = TypeVar("T")


class Part(NamedTuple):
    """Some samples of a batch: their rows in this process's share, their start in the whole batch, and its
    size."""

    rows: slice
    start: int
    total: int


def split(size: int, part_size: int | None, processes: Processes) -> list[Part]:
    """The parts of this process's `size` samples, of `part_size` each; None for all at once.

    Raises ValueError if they cannot have equal sizes.
    """
    step = part_size or size
    if size % step:
        raise ValueError(f"part_size is {step}, but must divide the {size} samples of a process")
    first, total = size * processes.rank, size * processes.count
    return [Part(slice(start, start + step), first + start, total) for start in range(0, size, step)]


def part_size(config: RunConfig, processes: int) -> int:
    """Images that a process computes at once; raises ConfigError if the batch cannot be split evenly."""
    if config.batch % processes:
        raise ConfigError(f"batch is {config.batch}, but must be a multiple of the {processes} processes")
    share = config.batch // processes
    size = share if config.batch_gpu is None else config.batch_gpu
    if share % size:
        raise ConfigError(
            f"batch_gpu is {size}, but must divide the {share} images of a process ({config.batch} in all)"
        )
    return size


@contextmanager
def random_numbers(seed: int | None, device: torch.device, start: int, total: int) -> Iterator[None]:
    """Inside, samples from `start` on have the random numbers of their rows in the whole batch (see
    `nn.split_batch`), drawn from `seed`; None leaves PyTorch's global generators as they are."""
    if seed is not None:
        # Not torch.manual_seed, which first looks for every kind of device.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":  # not necessarily the current device
            torch.cuda.default_generators[device.index].manual_seed(seed)
    with split_batch(total, start):
        yield


def trained(network: nn.Module) -> list[Tensor]:
    """The parameters that require gradients, smallest first."""
    return sorted((p for p in network.parameters() if p.requires_grad), key=Tensor.numel)


def running_buffers(*networks: nn.Module) -> list[Tensor]:
    """The buffers that can be averaged."""
    return [b for network in networks for b in network.buffers() if b.is_floating_point()]


def descend(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    parts: Sequence[T],
    backward: Callable[[T], Tensor],
    processes: Processes,
    *,
    averaged: Sequence[Tensor] = (),
    restored: Sequence[Tensor] = (),
) -> Tensor:
    """Takes one step of an optimizer.

    Args:
        parameters: the optimizer's parameters, smallest first.
        backward: adds the gradient of a part's mean loss to them, and returns a vector of statistics, the
            loss first.
        averaged: buffers that become the mean of their values after each part.
        restored: buffers that are restored afterwards, if there is more than one part in all.

    Returns the mean of the statistics.
    """
    for parameter in parameters:
        # `Optimizer.zero_grad` does the same, but takes 20 times as long, which matters in a step of 2 ms.
        parameter.grad = None
    several = len(parts) * processes.count > 1
    buffers = [*averaged, *restored] if several else []
    before = [buffer.clone() for buffer in buffers]
    changes = [torch.zeros_like(buffer) for buffer in averaged] if several else []
    figures = []
    for part in parts:
        figures.append(backward(part))
        if several:
            for change, buffer, old in zip(changes, buffers, before):  # noqa: B905 (the averaged come first)
                change += buffer.detach() - old
            _put_back(buffers, before)
    mean = figures[0] if len(figures) == 1 else torch.stack(figures).mean(0)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if len(parts) > 1:
        torch._foreach_div_([*gradients, *changes], len(parts))
    processes.average([*gradients, *changes, mean])
    # As old + change, so that a constant keeps its bits.
    _put_back(averaged, [old + change for old, change in zip(before, changes)])  # noqa: B905
    if gradients:
        # An infinite loss can have finite gradients: softplus of an overflowed logit has slope 1. Zero times
        # the loss is NaN exactly when the loss is infinite or NaN, and then the optimizer skips the step.
        gradients[0].add_(mean[0] * 0)
    optimizer.step()
    return mean


@contextmanager
def kept(buffers: Sequence[Tensor], *, unless_finite: bool = False) -> Iterator[None]:
    """Restores buffers afterwards; with `unless_finite`, only those that are then not finite, and would never
    become finite again."""
    before = [buffer.clone() for buffer in buffers]
    yield
    if unless_finite:
        before = [torch.where(b.isfinite().all(), b, old) for b, old in zip(buffers, before, strict=True)]
    _put_back(buffers, before)


def _put_back(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values):  # noqa: B905
        buffer.data.copy_(value)  # .data, since a graph may still reference the buffer
