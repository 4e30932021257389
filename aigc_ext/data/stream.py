"""An endless shuffled stream of batches that can be resumed at any item."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from aigc_ext.data.dataset import Dataset


class BatchStream(Iterator[tuple[Tensor, Tensor]]):
    """Iterator over (items B x ..., labels int64 B), as `Dataset.read` returns them, epoch after epoch, each
    in a new order.

    Batches cross the boundaries of epochs, so none is short, and `batch` may exceed the dataset. The order of
    an epoch and its mirror flips are a pure function of `seed` and the epoch's number; `position` is the
    complete state, and setting it resumes.

    With `world_size` > 1, `batch` is still the global batch and `position` counts over all ranks: rank r gets
    the r-th of `world_size` equal parts of the batch that a single process would get.

    Args:
        batch: items per batch, over all ranks together.
        seed: non-negative integer of any size.
        mirror: of images, flip each left to right with probability 1/2, independently in each epoch.
        balance: an epoch has as many items of each class that has some, up to one, instead of each item once:
            those of small classes are repeated, and of large ones others are left out in each epoch.
        rank, world_size: this process and the number of processes that share the batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch: int,
        seed: int,
        mirror: bool = False,
        rank: int = 0,
        world_size: int = 1,
        *,
        balance: bool = False,
    ) -> None:
        if mirror and dataset.kind != "images":
            raise ValueError(
                f"mirror is True, but {dataset.name} has no images: its {dataset.item}s stay as they are"
            )
        if balance and not dataset.num_classes:
            raise ValueError(f"balance is True, but {dataset.describe_unlabelled()}")
        if batch < 1:
            raise ValueError(f"batch is {batch}, but must be at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}, but must be at least 0")
        if world_size < 1:
            raise ValueError(f"world_size is {world_size}, but must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but must be from 0 to {world_size - 1}")
        if batch % world_size:
            raise ValueError(f"batch is {batch}, but must be a multiple of world_size, which is {world_size}")
        self.dataset = dataset
        self.batch = batch
        self.seed = seed
        self.mirror = mirror
        self.balance = balance
        self.rank = rank
        self.world_size = world_size
        self._position = 0
        self._epoch = -1  # the epoch of _order and _flips
        self._order: np.ndarray = np.empty(0, np.int64)
        self._flips: np.ndarray = np.empty(0, np.bool_)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.position}: batches of {self.batch} of {self.dataset!r}>"

    @property
    def position(self) -> int:
        """Items returned so far, over all ranks."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        if position < 0:
            raise ValueError(f"position is {position}, but must be at least 0")
        self._position = operator.index(position)

    def __next__(self) -> tuple[Tensor, Tensor]:
        share = self.batch // self.world_size
        start = self._position + self.rank * share
        indices, flips = self._draw(start, start + share)
        items, labels = self.dataset.read(indices)
        if self.mirror:
            rows = flips.nonzero().flatten()
            # Written through NumPy: PyTorch writes indexed uint8 element by element and takes 20 times as
            # long.
            items.numpy()[rows.numpy()] = items.index_select(0, rows).flip(-1).numpy()
        # Last, so that a failed read doesn't count.
        self._position += self.batch
        return items, labels

    def _draw(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Dataset indices (int64) and mirror flips (bool) of the items at stream positions [start, stop)."""
        orders, flips = [], []
        while start < stop:
            epoch, offset = divmod(start, len(self.dataset))
            self._enter(epoch)
            end = min(offset + stop - start, len(self.dataset))
            orders.append(self._order[offset:end])
            flips.append(self._flips[offset:end])
            start += end - offset
        return torch.from_numpy(np.concatenate(orders)), torch.from_numpy(np.concatenate(flips))

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        # A run must resume on later versions too. NumPy guarantees that a bit generator's raw output never
        # changes, but not `Generator.permutation`, nor does PyTorch guarantee `randperm`. 64-bit keys are
        # distinct except with probability N^2 / 2^65, and a stable sort is also exact for equal ones.
        bits = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
        self._order = _shuffled(np.arange(len(self.dataset)), bits)
        self._flips = bits.random_raw(len(self.dataset)) >> np.uint64(63) == 1
        if self.balance:
            self._order = _shuffled(self._balanced(bits), bits)
        self._epoch = epoch

    def _balanced(self, bits: np.random.PCG64) -> np.ndarray:
        """As many indices as there are items, and of each class as many as of another, up to one."""
        labels = self.dataset.labels.numpy()
        present = self.dataset.present_classes
        # Not always the same classes get the one more.
        ends = np.arange(len(present) + 1) * len(labels) // len(present)
        parts = []
        for label, share in zip(_shuffled(np.array(present), bits), np.diff(ends), strict=True):
            items = _shuffled(np.flatnonzero(labels == label), bits)
            parts.append(np.resize(items, share))
        return np.concatenate(parts)


def _shuffled(values: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
    return values[np.argsort(bits.random_raw(len(values)), kind="stable")]
