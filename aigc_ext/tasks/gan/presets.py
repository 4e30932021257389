"""The presets: named recipes, one `TrainConfig` each."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any, NoReturn

from aigc_ext.models import (
    DCGANDiscriminatorConfig,
    DCGANGeneratorConfig,
    R3GANDiscriminatorConfig,
    R3GANGeneratorConfig,
    SNGANDiscriminatorConfig,
    SNGANGeneratorConfig,
    StyleGAN2DiscriminatorConfig,
    StyleGAN2GeneratorConfig,
    StyleGAN3GeneratorConfig,
)
from aigc_ext.tasks.gan.config import AugmentConfig, LossConfig, TrainConfig
from aigc_ext.tasks.optimization import AdamConfig, EMAConfig


class UnknownPresetError(KeyError):
    """A name that no preset has; the message names the nearest one."""

    def __init__(self, name: str) -> None:
        close = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"there is no preset {name!r}; {hint}there are {', '.join(PRESETS)}")

    def __str__(self) -> str:  # KeyError's own is the repr of the message
        return str(self.args[0])


class _Presets(dict[str, TrainConfig]):
    def __missing__(self, name: str) -> NoReturn:
        raise UnknownPresetError(name)


def _both(adam: AdamConfig) -> dict[str, Any]:
    return {"g_optim": adam, "d_optim": adam}


# Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" and "Training Generative
# Adversarial Networks with Limited Data".
_STYLEGAN2 = TrainConfig(
    preset="stylegan2",
    generator=StyleGAN2GeneratorConfig(),
    discriminator=StyleGAN2DiscriminatorConfig(),
    loss=LossConfig(gamma=None, path_weight=2.0, mixing=0.9),
    **_both(AdamConfig(lr=2.5e-3, beta1=0.0, beta2=0.99)),
    ema=EMAConfig(kimg=None),
    augment=AugmentConfig(kind="ada"),
    batch=32,
    kimg=25000.0,
    tick=4.0,
    snap=50,
)


def _stylegan3(preset: str, generator: StyleGAN3GeneratorConfig, **augment: Any) -> TrainConfig:
    """Karras et al. 2021, "Alias-Free Generative Adversarial Networks"; D and its penalty are StyleGAN2's."""
    return replace(
        _STYLEGAN2,
        preset=preset,
        generator=generator,
        loss=LossConfig(gamma=None),
        d_optim=AdamConfig(lr=2e-3, beta1=0.0, beta2=0.99),
        augment=AugmentConfig(kind="ada", **augment),
    )


# mlp: the reference text's recipe (Adam 1e-4, betas 0.9 and 0.999, no penalty) does not learn MNIST's 5,000
# digits in 25,000 steps: its samples are of one class or none. As measured, beta1 0.5 and a light R1 keep all
# ten classes, and the higher learning rate makes them legible within 24,000 steps; a smaller beta2 and a
# longer average of the weights make more samples recognisable, and so does a decay of the generator's
# weights, which must end, or else the digits stay grey (docs/reference.md has the figures). One thread,
# because the layers are so small that every operation would have to wait for a second one: on busy cores
# that takes five times as long.
_MLP_ADAM = AdamConfig(lr=2e-3, lr_end=1e-3, beta1=0.5, beta2=0.99)
PRESETS: dict[str, TrainConfig] = _Presets()
PRESETS |= {
    "mlp": TrainConfig(
        preset="mlp",
        loss=LossConfig(gamma=0.1, r1_interval=4),
        g_optim=replace(_MLP_ADAM, weight_decay=0.15, weight_decay_end=0.0),
        d_optim=_MLP_ADAM,
        ema=EMAConfig(kimg=200.0, rampup=0.3),
        ramp_kimg=1536.0,
        kimg=1536.0,
        tick=16.0,
        snap=16,
        threads=1,
    ),
    # The paper's optimiser and batch size.
    "dcgan": TrainConfig(
        preset="dcgan",
        generator=DCGANGeneratorConfig(),
        discriminator=DCGANDiscriminatorConfig(),
        **_both(AdamConfig(lr=2e-4, beta1=0.5, beta2=0.999)),
        batch=128,
    ),
    # The paper's settings for its residual networks.
    "sngan": TrainConfig(
        preset="sngan",
        generator=SNGANGeneratorConfig(),
        discriminator=SNGANDiscriminatorConfig(),
        loss=LossConfig(kind="hinge"),
        **_both(AdamConfig(lr=2e-4, beta1=0.0, beta2=0.9)),
        batch=64,
        n_dis=5,
    ),
    "stylegan2": _STYLEGAN2,
    "stylegan3-t": _stylegan3("stylegan3-t", StyleGAN3GeneratorConfig()),
    "stylegan3-r": _stylegan3(
        "stylegan3-r",
        StyleGAN3GeneratorConfig(variant="r", channel_base=65536, channel_max=1024),
        blur_sigma=None,
    ),
    # Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline"; gamma by resolution.
    "r3gan": TrainConfig(
        preset="r3gan",
        generator=R3GANGeneratorConfig(),
        discriminator=R3GANDiscriminatorConfig(),
        loss=LossConfig(kind="relativistic", gamma=None, r1_interval=1, r2=True),
        **_both(AdamConfig(lr=2e-4, lr_end=5e-5, beta1=0.0, beta2=0.9, beta2_end=0.99)),
        ema=EMAConfig(kimg=500.0, kimg_start=0.0),
        augment=AugmentConfig(kind="fixed", p=0.3, p_start=0.0),
        ramp_kimg=20000.0,
        batch=256,
        kimg=25000.0,
    ),
}
