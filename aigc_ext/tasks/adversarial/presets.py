"""The presets: named recipes, one `TrainConfig` each."""

from __future__ import annotations

from aigc_ext.models import (
    AutoencoderConfig,
    PatchDiscriminatorConfig,
    VocoderConfig,
    WaveDiscriminatorConfig,
)
from aigc_ext.tasks.adversarial.config import LossConfig, TrainConfig
from aigc_ext.tasks.optimization import AdamConfig, EMAConfig
from aigc_ext.training.config import DataConfig

PRESETS: dict[str, TrainConfig] = {
    "vae": TrainConfig(
        preset="vae",
        generator=AutoencoderConfig(
            channels=(16, 32), stem=2, bottleneck="kl", single_code=True, code_dim=24, output_act="sigmoid"
        ),
        # For loss.adversarial 400, whose gradient at the output is then as large as the likelihood's: D
        # judges samples, of which the likelihood says nothing.
        discriminator=PatchDiscriminatorConfig(channels=24, layers=3),
        loss=LossConfig(bernoulli=1.0, judged="samples", kind="logistic", gamma=0.1, r1_interval=4),
        g_optim=AdamConfig(lr=2e-3, lr_end=2e-4, beta2=0.99),
        # Without an end of its own, D's steps come to jump once its gradients are small.
        d_optim=AdamConfig(lr=2e-3, lr_end=2e-4, beta1=0.5, beta2=0.99),
        ema=EMAConfig(kimg=10.0),
        ramp_kimg=96.0,
        batch=64,
        kimg=96.0,
        tick=4.0,
        snap=8,
        threads=1,
    ),
    "vqgan": TrainConfig(
        preset="vqgan",
        data=DataConfig(source="emoji", resolution=(32, 32), transform="center-crop"),
        generator=AutoencoderConfig(
            channels=(32, 64), stem=2, bottleneck="vq", code_dim=16, num_codes=256, revive_below=1.0
        ),
        discriminator=PatchDiscriminatorConfig(channels=32, layers=2),
        # 0.02 is the norm of the gradient of L1 alone at 32x32 pixels, to which the commitment's weight fits.
        loss=LossConfig(l1=1.0, adversarial=0.3, balance=True, balance_norm=0.02, start_kimg=3.0),
        g_optim=AdamConfig(lr=2e-3, beta2=0.99),
        d_optim=AdamConfig(lr=2e-3, beta1=0.5, beta2=0.99),
        ema=EMAConfig(kimg=5.0),
        batch=32,
        kimg=32.0,
        tick=1.0,
        snap=8,
        threads=1,
    ),
    "vocoder": TrainConfig(
        preset="vocoder",
        data=DataConfig(source="speech", segment=4096),
        generator=VocoderConfig(),
        discriminator=WaveDiscriminatorConfig(periods=(2, 3, 5), windows=(128, 512), channels=8),
        loss=LossConfig(
            mel=1.0, stft=1.0, features=0.2, adversarial=0.2, balance=True, start_kimg=4.0, kind="lsgan"
        ),
        g_optim=AdamConfig(lr=1e-3, lr_end=5e-5, beta1=0.8, beta2=0.99),
        d_optim=AdamConfig(lr=5e-4, beta1=0.8, beta2=0.99),
        ema=EMAConfig(kimg=0.4),
        warmup_kimg=0.4,
        ramp_kimg=8.0,
        batch=4,
        kimg=8.0,
        tick=0.5,
        snap=5,
        grid=(4, 3),
        threads=1,
    ),
}
