"""A variational autoencoder as a task: what the engine asks for, and no more.

torchrun --nproc-per-node 2 -m tests.training.vae OUTDIR [--resume]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from aigc_ext.data import TensorImages
from aigc_ext.nn.split_batch import batch_randn
from aigc_ext.optim import AdamEMA
from aigc_ext.sampling import save_grid
from aigc_ext.training import Batch, Learner, Loop, Progress, RunConfig, Task
from aigc_ext.training.parts import descend, part_size, random_numbers, running_buffers, split, trained
from aigc_ext.training.run import resume_point

CODE = 4
CONFIG = RunConfig(
    preset="vae", batch=100, kimg=2.0, tick=0.5, snap=1, keep=9, device="cpu", threads=1, nonfinite_limit=3
)


def images() -> TensorImages:
    """As many as mnist5k has, each with noise around one of two patterns."""
    rng = torch.Generator().manual_seed(0)
    patterns = (torch.rand(2, 1, 28, 28, generator=rng) > 0.5).float()
    kinds = torch.randint(2, (5000,), generator=rng)
    noise = torch.rand(5000, 1, 28, 28, generator=rng)
    return TensorImages("noise", ((patterns[kinds] * 0.8 + noise * 0.2) * 255).to(torch.uint8), kinds)


class VAE(Task):
    statistics = ("loss", "reconstruction", "divergence")
    shown = {"loss": "loss"}  # noqa: RUF012
    preview_file = "samples{}.png"

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.data, self.device = config, images(), torch.device("cpu")
        self.encoder = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 2 * CODE))
        self.decoder = nn.Sequential(nn.Linear(CODE, 32), nn.ReLU(), nn.Linear(32, 784))
        self.network = nn.ModuleList([self.encoder, self.decoder])
        self.optimizer = AdamEMA(self.network.parameters(), lr=5e-3, eps=1e-3)
        self.learners = (Learner("autoencoder", "vae", self.optimizer),)

    def state(self):
        return {"network": self.network, "optimizer": self.optimizer}

    def step(self, batch: Batch, at: Progress) -> torch.Tensor:
        assert batch.images is not None
        parts = split(len(batch.images), part_size(self.config, self.processes.count), self.processes)

        def backward(part) -> torch.Tensor:
            images = batch.rows(part.rows).images
            assert images is not None
            x = images.flatten(1) / 255
            with random_numbers(at.seed, self.device, part.start, part.total):
                mean, log_variance = self.encoder(x).chunk(2, dim=1)
                made = self.decoder(mean + (log_variance / 2).exp() * batch_randn(len(x), CODE))
            reconstruction = F.binary_cross_entropy_with_logits(made, x, reduction="sum") / len(x)
            divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum() / 2 / len(x)
            loss = reconstruction + divergence
            loss.backward()
            return torch.stack((loss, reconstruction, divergence)).detach()

        return descend(
            *(self.optimizer, trained(self.network), parts, backward, self.processes),
            averaged=running_buffers(self.network),
        )

    def preview(self, path: Path, nimg: int, files) -> None:
        codes = torch.randn(8, CODE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            made = (self.decoder(codes).sigmoid() * 255).to(torch.uint8).view(8, 28, 28, 1)
        save_grid(made.numpy(), path, columns=4)


def resumed(run_dir: Path, config: RunConfig = CONFIG) -> Loop:
    loop = Loop(VAE(config))
    loop.restore(resume_point(str(run_dir), run_dir.parent, RunConfig))
    return loop


if __name__ == "__main__":
    outdir = Path(sys.argv[1])
    loop = resumed(next(outdir.iterdir())) if "--resume" in sys.argv else Loop(VAE(CONFIG), outdir=outdir)
    loop.fit()
