"""What every run is told, whatever it trains; a task's config has keys of its own beside these."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from aigc_ext.config import Config, Count, Positive, Range


@dataclass(frozen=True)
class DataConfig(Config):
    source: str = "mnist5k"
    """An embedded data set's name or a path; see `aigc_ext.data.open_dataset`."""
    cond: bool = False
    """Train on the labels: the networks are told the class."""
    mirror: bool = False
    """Flip every image from left to right half of the time."""


@dataclass(frozen=True)
class RunConfig(Config):
    """`to_json`/`from_json` are its form on disk (`config.json`).

    `kimg` counts thousands of the data's images that were learned from, the field's unit of training length.
    """

    fixed: ClassVar[tuple[str, ...]] = ("preset", "seed", "data")
    """Keys that cannot change when a run goes on: the old state would mean something else."""

    preset: str = "mlp"
    """The recipe that the run started from; part of its directory's name."""
    seed: Annotated[int, Range(ge=0, lt=2**63)] = 0
    """Of everything random."""
    data: DataConfig = field(default_factory=DataConfig)
    batch: Count = 64
    """Images of a step, over all processes."""
    batch_gpu: Count | None = None
    """Images that a process computes at once: gradients of several such parts are added up. null: its share
    of the batch."""
    kimg: Positive = 1000.0
    """Length of the run in thousands of images, rounded up to whole batches."""
    tick: Positive = 10.0
    """A row of figures is written every so many thousands of images."""
    snap: Count = 10
    """Every so many ticks: a preview of samples, a checkpoint and the model."""
    keep: Count = 3
    """How many of the newest checkpoints stay on disk, beside the best one by the metrics."""
    nonfinite_limit: Count = 100
    """After so many steps of one network in a row without a finite gradient the run stops with a dump."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where figures and previews go too; see `training.loggers`."""
    workers: Annotated[int, Range(ge=0)] = 0
    """Threads that read images ahead; 0 suits data that is held in memory."""
    device: str = "auto"
    """'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'."""
    threads: Count | None = None
    """CPU threads of PyTorch; null leaves PyTorch's choice. Results are the same bits for the same number."""
    deterministic: bool = False
    """Ask PyTorch for deterministic algorithms (a CUDA matter: CPU runs repeat bit for bit either way)."""
    malloc: Literal["default", "keep"] = "default"
    """'keep' tells glibc not to give freed memory back to the system; see `training.malloc`."""

    @property
    def total_images(self) -> int:
        return _images(self.kimg)

    @property
    def tick_images(self) -> int:
        return _images(self.tick)


def _images(kimg: float) -> int:
    """Rounded up; 16.1 are 16,100, although the product of the floats is a little more."""
    return max(1, math.ceil(round(kimg * 1000, 6)))
