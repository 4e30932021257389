"""The public way to train a GAN: networks, data and a config, or the config alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from aigc_ext.data import ImageDataset, open_dataset
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.tasks.gan import recipe
from aigc_ext.tasks.gan.config import TrainConfig
from aigc_ext.tasks.gan.task import GANTask
from aigc_ext.training import run
from aigc_ext.training.loop import Loop
from aigc_ext.training.runtime import derive_seed


class Trainer(Loop):
    """Trains a generator and a discriminator against each other.

    Any pair of modules will do. The generator maps latents (N, z_dim) to images (N, C, H, W) of the data's
    shape, the discriminator maps images to logits; with `config.data.cond` both get int64 labels (N,) as a
    second argument. The networks are moved to `config.device` and trained in place.

    Every random number comes from `config.seed`: the initial weights (in `from_config`), the order of the
    data, the latents, and PyTorch's global generators during `fit` (which then gives the caller's back).
    All their states are in the checkpoints, so that a resumed run has the same bits as one that never
    stopped, on the CPU with the same number of threads.

    Args:
        data: the images; see `aigc_ext.data.open_dataset`.
        outdir: where `fit` makes the run directory.
        desc: added to the run directory's name.
        z_dim, value_range: by default the generator's attributes of these names.

    Attributes:
        state: the networks, the averaged generator `state.ema`, optimisers and counters.
        run_dir: the run directory, once there is one.

    Raises:
        ValueError: networks, data and config do not fit together.
    """

    task: GANTask
    config: TrainConfig

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        data: ImageDataset,
        config: TrainConfig,
        *,
        outdir: str | Path = "runs",
        desc: str = "",
        z_dim: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        task = GANTask(generator, discriminator, data, config, z_dim=z_dim, value_range=value_range)
        super().__init__(task, outdir=outdir, desc=desc)

    @classmethod
    def from_config(cls, config: TrainConfig, *, outdir: str | Path = "runs", desc: str = "") -> Trainer:
        """Opens the data and builds the networks that `config` describes, with weights from its seed. Files
        that are no part of the data are left out; `fit` reports them."""
        data = open_dataset(config.data.source, on_bad="skip")
        config = recipe.complete(config, data)
        shared = {
            "image_shape": data.image_shape,
            "num_classes": data.num_classes if config.data.cond else 0,
        }
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(config.seed, "weights"))
            generator = build_generator({**config.generator.to_dict(), **shared})
            discriminator = build_discriminator({**config.discriminator.to_dict(), **shared})
        return cls(generator, discriminator, data, config, outdir=outdir, desc=desc)


def find_resume_point(target: str, outdir: Path) -> run.ResumePoint:
    """What `--resume target` goes on from; see `training.run.resume_point`."""
    return run.resume_point(target, outdir, TrainConfig)
