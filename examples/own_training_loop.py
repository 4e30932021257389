"""The adversarial step and its penalties in your own training loop, without our Trainer.

    python examples/own_training_loop.py --steps 500

The networks are plain PyTorch. `AdversarialStep` does one update of both: the losses, R1 every fourth step,
and gradients of a batch in parts; a non-finite step changes nothing. The data, the schedule and the output
are up to you.
"""

from __future__ import annotations

import argparse
import copy
import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from aigc_ext.data import normalize, open_dataset
from aigc_ext.losses import AdversarialLoss
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan import STATISTICS, AdaAugment, AdversarialStep, Objective

Z_DIM, R1_INTERVAL = 32, 4


def generator() -> nn.Module:
    layers = nn.Linear(Z_DIM, 256), nn.LeakyReLU(0.2), nn.Linear(256, 64), nn.Tanh()
    return nn.Sequential(*layers, nn.Unflatten(1, (1, 8, 8)))


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--part", type=int, help="images computed at once")
    options = parser.parse_args()

    torch.manual_seed(0)
    data = open_dataset("digits")
    images, labels = data.read(range(len(data)))
    loader = DataLoader(TensorDataset(images, labels), options.batch, shuffle=True, drop_last=True)
    endless = itertools.chain.from_iterable(itertools.repeat(loader))

    G, D = generator(), discriminator()
    average = copy.deepcopy(G).requires_grad_(False)
    objective = Objective(
        D,
        AdversarialLoss("logistic"),
        gamma=0.5,
        r1_interval=R1_INTERVAL,
        augment=AdaAugment(p=0.1, geometric=False, color=False),
    )
    step = AdversarialStep(
        G,
        D,
        objective,
        AdamEMA(G.parameters(), lr=2e-3, betas=(0.0, 0.99), ema_params=average.parameters(), ema_decay=0.995),
        AdamEMA(D.parameters(), lr=2e-3, betas=(0.0, 0.99)),
        part_size=options.part,
    )
    for i, (real, _) in enumerate(itertools.islice(endless, options.steps)):
        statistics = step(
            normalize(real, (-1.0, 1.0)),
            torch.randn(len(real), Z_DIM),
            penalize=i % R1_INTERVAL == 0,
            blur_sigma=max(0.0, 1 - 4 * i / options.steps),  # for this step; gamma=... likewise
            seed=i,
        )
        if (i + 1) % max(1, options.steps // 5) == 0:
            shown = dict(zip(STATISTICS, statistics.tolist(), strict=True))
            figures = ", ".join(
                f"{name} {shown[name]:.3f}" for name in ("loss_d", "loss_g", "d_real", "d_fake")
            )
            print(f"step {i + 1}: {figures}")

    with torch.no_grad():
        made = average(torch.randn(256, Z_DIM))
    mean = F.mse_loss(made.mean(0), normalize(images, (-1.0, 1.0)).mean(0)).item()
    print(f"the mean of 256 samples is {mean:.4f} (mean square) from that of the digits")


if __name__ == "__main__":
    main()
