"""Prefetched batches, in the same order for any number of reading threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import local

from torch import Tensor

from aigc_ext.data import BatchStream, Dataset

_AHEAD = 2


def batches(
    data: Dataset,
    batch: int,
    seed: int,
    *,
    mirror: bool,
    balance: bool = False,
    position: int,
    workers: int,
    rank: int = 0,
    processes: int = 1,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """An endless stream of (items, labels), starting after `position` items.

    Args:
        batch: items per batch over all processes; this one, `rank` of `processes`, gets its share.
        workers: threads that read and decode ahead, two batches each; 0 reads in the calling thread.
    """
    new_stream = partial(BatchStream, data, batch, seed, mirror, rank, processes, balance=balance)
    if workers == 0:
        stream = new_stream()
        stream.position = position
        yield from stream
        return
    # A batch is a pure function of its position, so each thread has its own stream and seeks in it.
    streams = local()

    def read(start: int) -> tuple[Tensor, Tensor]:
        if not hasattr(streams, "own"):
            streams.own = new_stream()
        streams.own.position = start
        return next(streams.own)

    pending: deque[Future[tuple[Tensor, Tensor]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="aigc-ext-data") as pool:
        try:
            while True:
                while len(pending) < _AHEAD * workers:
                    pending.append(pool.submit(read, position))
                    position += batch
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
