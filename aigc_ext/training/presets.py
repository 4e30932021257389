"""The recipes that users name: one `TrainConfig` for each."""

from __future__ import annotations

from aigc_ext.training.config import (
    AdamConfig,
    DCGANDiscriminatorConfig,
    DCGANGeneratorConfig,
    EMAConfig,
    LossConfig,
    SNGANDiscriminatorConfig,
    SNGANGeneratorConfig,
    TrainConfig,
)

# mlp: the reference text's recipe (Adam 1e-4, betas 0.9 and 0.999, no penalty) does not learn MNIST's 5,000
# digits in 25,000 steps: it ends in no or one class. Measured instead: momentum 0.5 and a light R1 keep all
# ten, and the higher rate makes them legible within 16,000 steps; a shorter memory of squares and a longer
# average of weights make more samples recognisable (docs/reference.md has the figures). One thread,
# because the layers are so small that each of a step's operations would wait for a second one: on busy cores
# that takes five times as long.
PRESETS: dict[str, TrainConfig] = {
    "mlp": TrainConfig(
        preset="mlp",
        loss=LossConfig(gamma=0.1, r1_interval=4),
        g_optim=AdamConfig(lr=2e-3, beta1=0.5, beta2=0.99),
        d_optim=AdamConfig(lr=2e-3, beta1=0.5, beta2=0.99),
        ema=EMAConfig(kimg=100.0, rampup=0.1),
        kimg=1024.0,
        tick=16.0,
        snap=16,
        threads=1,
    ),
    # The paper's optimiser and batch size.
    "dcgan": TrainConfig(
        preset="dcgan",
        generator=DCGANGeneratorConfig(),
        discriminator=DCGANDiscriminatorConfig(),
        g_optim=AdamConfig(lr=2e-4, beta1=0.5, beta2=0.999),
        d_optim=AdamConfig(lr=2e-4, beta1=0.5, beta2=0.999),
        batch=128,
    ),
    # The paper's for its residual networks.
    "sngan": TrainConfig(
        preset="sngan",
        generator=SNGANGeneratorConfig(),
        discriminator=SNGANDiscriminatorConfig(),
        loss=LossConfig(kind="hinge"),
        g_optim=AdamConfig(lr=2e-4, beta1=0.0, beta2=0.9),
        d_optim=AdamConfig(lr=2e-4, beta1=0.0, beta2=0.9),
        batch=64,
        n_dis=5,
    ),
}
