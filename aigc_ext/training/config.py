"""The settings that all runs share; a task's config adds its own keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from aigc_ext.config import Config, Count, Positive, Range


@dataclass(frozen=True)
class DataConfig(Config):
    source: str = "mnist5k"
    """The name of an embedded data set, or a path; see `aigc_ext.data.open_dataset`."""
    cond: bool = False
    """Train conditionally: the networks get the class labels."""
    class_folders: bool = False
    """Take the classes from the data's top-level folders instead of from its `dataset.json`."""
    renumber_classes: bool = False
    """Number the classes that have images 0, 1, 2, ...; otherwise the labels are their numbers."""
    many_empty_classes: bool = False
    """Accept labels with so large gaps that most classes have no image."""
    mirror: bool = False
    """Flip each image horizontally with probability 1/2."""
    balance: bool = False
    """Show each class as often as any other, however many items it has, so that small ones are repeated. The
    networks need not get the labels."""
    resolution: tuple[Count, Count] | None = None
    """Width and height to which all images are cropped and scaled; null: they have one shape already."""
    transform: Literal["center-crop", "center-crop-wide", "letterbox"] | None = None
    """How to treat images of another aspect ratio than the resolution's, which are left out without it. The
    option --resolution sets center-crop too."""
    enlarge: bool = False
    """Also use images that are smaller than the resolution."""
    white: Annotated[int, Range(ge=1, le=65535)] | None = None
    """The value of 16-bit grey that is white, such as 4095 for values of 12 bits; null: 65535."""
    segment: Count | None = None
    """Samples of an item of recordings; null: those of the longest recording, each of which is an item."""
    sample_rate: Annotated[int, Range(ge=1, le=1_536_000)] | None = None
    """Samples a second to which recordings of another rate are resampled; null: they have one rate."""
    follow_links: bool = False
    """Also read what symbolic links out of a data folder lead to."""
    max_left_out: Annotated[float, Range(ge=0, le=1)] = 0.1
    """The largest fraction of the images that may be left out, because they are broken or of another shape;
    above it a run does not begin."""
    licence: str = ""
    """The licence of the data, which is also written beside the model; a data set that knows its own fills it
    in."""


@dataclass(frozen=True)
class RunConfig(Config):
    """Stored as `config.json` by `to_json` and `from_json`.

    Lengths in `kimg` count thousands of training images shown, the field's usual unit.
    """

    fixed: ClassVar[tuple[str, ...]] = ("preset", "seed", "data")
    """Keys that cannot change when a run is resumed, because the old state would mean something else."""
    measured: ClassVar[tuple[str, ...]] = ()
    """Keys whose value "auto" a new run replaces by what it has measured, and which is refused on resume."""
    before: ClassVar[Mapping[str, Any]] = {
        "data": {"max_left_out": 1.0, "many_empty_classes": True, "follow_links": True}
    }
    """What runs did before a key existed, if not its default; a run without the key keeps to it."""

    preset: str = "mlp"
    """The recipe on which the run is based; part of its directory's name."""
    seed: Annotated[int, Range(ge=0, lt=2**63)] = 0
    """The seed of all random numbers."""
    data: DataConfig = field(default_factory=DataConfig)
    batch: Count = 64
    """Images per step, over all processes."""
    batch_gpu: Count | None = None
    """Images that a process computes at once; the gradients of several such parts are accumulated. null: its
    whole share of the batch."""
    kimg: Positive = 1000.0
    """Length of the run in thousands of images, rounded up to whole batches."""
    tick: Positive = 10.0
    """Interval in thousands of images between rows of statistics."""
    snap: Count = 10
    """Interval in ticks between snapshots: a preview of samples, a checkpoint and the model."""
    keep: Count = 3
    """How many of the newest checkpoints stay on disk, in addition to the best one by the metrics."""
    nonfinite_limit: Count = 100
    """The run stops with a dump after this many consecutive steps of one network without a finite
    gradient."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Further destinations of statistics and previews; see `training.loggers`."""
    workers: Annotated[int, Range(ge=0, le=256)] = 0
    """Threads that prefetch images; 0 suits data that is held in memory."""
    device: str = "auto"
    """'auto' (CUDA if available), 'cpu', 'cuda' or 'cuda:N'."""
    threads: Annotated[int, Range(ge=1, le=1024)] | None = None
    """PyTorch's number of CPU threads; null keeps PyTorch's choice. Equal numbers give bit-identical
    results."""
    deterministic: bool = False
    """Use PyTorch's deterministic algorithms (matters on CUDA only: CPU runs are bit-identical either
    way)."""
    malloc: Literal["default", "keep"] = "default"
    """'keep' tells glibc not to return freed memory to the system; see `training.malloc`."""

    @property
    def total_images(self) -> int:
        return _images(self.kimg)

    @property
    def snapshots(self) -> int:
        """How many the run has, at its end at least."""
        return max(1, math.ceil(self.total_images / (self.tick_images * self.snap)))

    @property
    def tick_images(self) -> int:
        return _images(self.tick)


def _images(kimg: float) -> int:
    """The number of images, rounded up; 16.1 gives 16,100, although the floating-point product is slightly
    more."""
    return max(1, math.ceil(round(kimg * 1000, 6)))
