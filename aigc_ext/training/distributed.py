"""Several processes that train the same networks: each computes a part of every batch.

`torchrun --nproc-per-node=2 -m aigc_ext.cli train ...` starts them. Gradients are summed after the backward,
all in one tensor, not by hooks during it, which a penalty's double backward would run twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aigc_ext.config import ConfigError

# The others wait while the main process writes and computes metrics, also those of the real data; NCCL's
# default of 10 minutes can be too short. If a process dies, torchrun ends the others at once.
_PATIENCE = timedelta(hours=6)


class Processes:
    """The processes of a run, possibly only this one."""

    def __init__(self) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if active else 0  # this process's number, from 0; only 0 writes files
        self.count = dist.get_world_size() if active else 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces `tensors` by their means over all processes, with a single all-reduce."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat(
            [tensor.reshape(-1).to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
        )
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agreed_maximum(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.count == 1:
            return number
        value = torch.tensor(number, device=_device())
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def broadcast_text(self, text: str) -> str:
        """Returns the main process's `text`."""
        if self.count == 1:
            return text
        # Not broadcast_object_list, which uses pickle.
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
        size = torch.tensor(data.numel(), device=_device())
        dist.broadcast(size, 0)
        if not self.main:
            data = torch.empty(int(size), dtype=torch.uint8, device=_device())
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def check_equal(self, networks: Iterable[nn.Module]) -> None:
        """Raises RuntimeError, in every process, if the networks' weights are not the same everywhere."""
        if self.count == 1:
            return
        sums = torch.stack([_checksum(network) for network in networks])
        lowest, highest = sums.clone(), sums.clone()
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        if not torch.equal(lowest, highest):
            raise RuntimeError(
                f"the weights of the {self.count} processes have come apart; is their data or code different?"
            )


def processes_of_the_run() -> int:
    """How many processes will train, also before they have joined."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Joins the process group of torchrun, or of another launcher that sets the same environment variables;
    gloo on the CPU, NCCL on CUDA.

    Raises ConfigError if a variable is missing, or processes share a CUDA device.
    """
    if processes_of_the_run() == 1 or dist.is_initialized():
        yield Processes()
        return
    needed = ["RANK", "MASTER_ADDR", "MASTER_PORT", *(["LOCAL_RANK"] if device.type == "cuda" else [])]
    missing = [name for name in needed if name not in os.environ]
    if missing:
        # Otherwise each process would train its own run.
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set: start the "
            "processes by torchrun, or unset WORLD_SIZE"
        )
    if device.type == "cuda":
        local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= found:
            raise ConfigError(f"process {local} of this machine has no CUDA device: there are {found}")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _checksum(network: nn.Module) -> Tensor:
    """A checksum of the parameters' bits: equal for equal weights."""
    total = torch.zeros((), dtype=torch.int64, device=next(network.parameters()).device)
    for i, parameter in enumerate(network.parameters(), 1):
        words = parameter.detach().reshape(-1).view(torch.uint8).to(torch.int64)  # 0-d ones as well
        places = torch.arange(1, words.numel() + 1, device=words.device).view_as(words)
        total += (words * (places * 2_654_435_761 % 1_000_003)).sum() * i
    return total
