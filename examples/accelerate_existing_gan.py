"""An existing PyTorch GAN, made faster in three places.

    python examples/accelerate_existing_gan.py            # with aigc_ext
    python examples/accelerate_existing_gan.py --plain    # without

Both compute the same, up to rounding; compare the printed loss and time. The speed-up depends on the network:
on the CPU, `fuse_` times each pair of layers on example images and takes those that gain, such as 3x3
convolutions and batch norms of large images.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.losses import r1_penalty
from aigc_ext.nn import fuse_
from aigc_ext.optim import AdamEMA

Z_DIM, GAMMA, EMA_DECAY = 64, 1.0, 0.99


def generator() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(Z_DIM, 64, 4),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 3, 3, padding=1),
        nn.Tanh(),
    )


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Conv2d(64, 1, 4),
        nn.Flatten(),
    )


def plain_r1(D: nn.Module, real: Tensor) -> Tensor:
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(D(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def real_images(count: int) -> Tensor:
    """Discs of random positions and colours, 32x32, in place of your data."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    cy, cx = torch.rand(2, count, 1, 1) * 16 + 8
    disc = torch.sigmoid(8 - ((y - cy) ** 2 + (x - cx) ** 2).sqrt())[:, None]
    return disc * (torch.rand(count, 3, 1, 1) * 2 - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()

    torch.manual_seed(0)
    G, D = generator(), discriminator()
    average = copy.deepcopy(G).requires_grad_(False)
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer
    r1: Callable[[nn.Module, Tensor], Tensor]
    if options.plain:
        g_optimizer = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999))
        d_optimizer = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
        r1 = plain_r1
    else:
        # 1. layer + activation become one op where that is faster; parameters and state_dict stay as they are
        fuse_(G, torch.zeros(options.batch, Z_DIM, 1, 1)), fuse_(D, torch.zeros(options.batch, 3, 32, 32))
        g_optimizer = AdamEMA(  # 2. Adam and the average of the weights in one pass
            G.parameters(),
            lr=2e-4,
            betas=(0.5, 0.999),
            ema_params=average.parameters(),
            ema_decay=EMA_DECAY,
        )
        d_optimizer = AdamEMA(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
        r1 = r1_penalty  # 3. computes no unused weight gradients

    start = time.perf_counter()
    for _ in range(options.steps):
        real = real_images(options.batch)
        z = torch.randn(options.batch, Z_DIM, 1, 1)
        fake = G(z)
        d_loss = F.softplus(-D(real)).mean() + F.softplus(D(fake.detach())).mean()
        d_loss = d_loss + GAMMA / 2 * r1(D, real)
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()

        g_loss = F.softplus(-D(fake)).mean()
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        if options.plain:
            with torch.no_grad():
                for mean, parameter in zip(average.parameters(), G.parameters(), strict=True):
                    mean.lerp_(parameter, 1 - EMA_DECAY)
    per_step = (time.perf_counter() - start) / options.steps
    newest, averaged = (nn.utils.parameters_to_vector(network.parameters()) for network in (G, average))
    lag = float((newest - averaged).detach().norm())
    print(f"D loss {float(d_loss.detach()):.4f}; the averaged weights lag behind the newest by {lag:.4f}")
    print(f"{1000 * per_step:.2f} ms a step")


if __name__ == "__main__":
    main()
