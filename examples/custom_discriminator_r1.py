"""Your own networks in our training loop: any pair of modules, with R1 on the discriminator.

    python examples/custom_discriminator_r1.py --kimg 200

They contain nothing of ours. R1 differentiates through the discriminator twice, which both plain PyTorch
layers and the ops of `aigc_ext.ops` support.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.data import open_dataset
from aigc_ext.sampling import Sampler, readable_scale, save_grid
from aigc_ext.tasks.gan import TrainConfig, Trainer

Z_DIM = 32


class Generator(nn.Module):
    """Maps z (N, 32) to images (N, 1, 8, 8) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(Z_DIM, 64 * 4 * 4)
        self.conv = nn.Conv2d(64, 32, 3, padding=1)
        self.head = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.leaky_relu(self.start(z), 0.2).unflatten(1, (64, 4, 4))
        x = F.leaky_relu(self.conv(F.interpolate(x, scale_factor=2)), 0.2)
        return self.head(x).tanh()


class Discriminator(nn.Module):
    """Maps images (N, 1, 8, 8) to logits (N, 1), with a skip connection to show a network of your own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32 * 4 * 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(images), 0.2)
        x = x + F.leaky_relu(self.second(x), 0.2)
        return self.head(F.avg_pool2d(x, 2).flatten(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kimg", type=float, default=200.0, help="thousands of images to train on")
    parser.add_argument("--outdir", default="runs")
    options = parser.parse_args()

    config = (
        TrainConfig()
        .override("kimg", options.kimg)
        .override("loss.kind", "logistic")
        .override("loss.gamma", 0.5)
        .override("loss.r1_interval", 4)  # every fourth step, with four times the weight
        .override("g_optim", {"lr": 2e-3, "beta1": 0.0, "beta2": 0.99})
        .override("d_optim", {"lr": 2e-3, "beta1": 0.0, "beta2": 0.99})
        .override("ema.kimg", 5.0)
    )
    torch.manual_seed(0)  # the initial weights; everything else comes from config.seed
    trainer = Trainer(
        Generator(),
        Discriminator(),
        open_dataset("digits"),
        config,
        outdir=options.outdir,
        desc="custom",
        z_dim=Z_DIM,
        value_range=(-1.0, 1.0),
    )
    result = trainer.fit(progress=True)

    sampler = Sampler(trainer.state.ema, z_dim=Z_DIM, value_range=(-1.0, 1.0))
    images = sampler.sample(range(16))
    path = result.run_dir / "samples.png"
    save_grid(images, path, scale=readable_scale(*images.shape[1:3]), provenance={"seeds": list(range(16))})
    print(f"samples {path}")


if __name__ == "__main__":
    main()
