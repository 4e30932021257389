"""Generators and discriminators, and functions that make one from its configuration.

Every network has `settings`, and `config`, the same as a dict of JSON values; from either, `build_generator`
and `build_discriminator` make the same architecture with new weights. Every generator also has
`z_dim`, `image_shape`, `num_classes` and `value_range`; its `forward(z, c=None)` maps latents (N, z_dim) and,
if `num_classes` > 0, int64 labels (N,) to images (N, C, H, W). A discriminator's `forward(images, c=None)`
maps these to logits (N, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from aigc_ext.models.dcgan import (
    DCGANDiscriminator,
    DCGANDiscriminatorConfig,
    DCGANGenerator,
    DCGANGeneratorConfig,
)
from aigc_ext.models.mlp import MLPDiscriminator, MLPDiscriminatorConfig, MLPGenerator, MLPGeneratorConfig
from aigc_ext.models.r3gan import (
    R3GANDiscriminator,
    R3GANDiscriminatorConfig,
    R3GANGenerator,
    R3GANGeneratorConfig,
)
from aigc_ext.models.settings import DiscriminatorConfig, GeneratorConfig, NetworkConfig
from aigc_ext.models.sngan import (
    SNGANDiscriminator,
    SNGANDiscriminatorConfig,
    SNGANGenerator,
    SNGANGeneratorConfig,
)
from aigc_ext.models.stylegan2 import (
    StyleGAN2Discriminator,
    StyleGAN2DiscriminatorConfig,
    StyleGAN2Generator,
    StyleGAN2GeneratorConfig,
)
from aigc_ext.models.stylegan3 import StyleGAN3Generator, StyleGAN3GeneratorConfig

__all__ = [
    "DCGANDiscriminator",
    "DCGANDiscriminatorConfig",
    "DCGANGenerator",
    "DCGANGeneratorConfig",
    "DiscriminatorConfig",
    "GeneratorConfig",
    "MLPDiscriminator",
    "MLPDiscriminatorConfig",
    "MLPGenerator",
    "MLPGeneratorConfig",
    "R3GANDiscriminator",
    "R3GANDiscriminatorConfig",
    "R3GANGenerator",
    "R3GANGeneratorConfig",
    "SNGANDiscriminator",
    "SNGANDiscriminatorConfig",
    "SNGANGenerator",
    "SNGANGeneratorConfig",
    "StyleGAN2Discriminator",
    "StyleGAN2DiscriminatorConfig",
    "StyleGAN2Generator",
    "StyleGAN2GeneratorConfig",
    "StyleGAN3Generator",
    "StyleGAN3GeneratorConfig",
    "build_discriminator",
    "build_generator",
]


def build_generator(config: Mapping[str, Any] | GeneratorConfig) -> nn.Module:
    """A generator with new weights from its settings, or from a dict: "family" and the arguments of that
    family's class.

    Raises:
        ValueError: "family" is missing or unknown, or an argument is not valid.
        TypeError: an argument is not one of that family's.
    """
    return _build("generator", GeneratorConfig, config)


def build_discriminator(config: Mapping[str, Any] | DiscriminatorConfig) -> nn.Module:
    """A discriminator with new weights; arguments and errors are as for `build_generator`."""
    return _build("discriminator", DiscriminatorConfig, config)


def _build(role: str, base: type[NetworkConfig], config: Mapping[str, Any] | NetworkConfig) -> nn.Module:
    if isinstance(config, NetworkConfig):
        return config.network(config)
    arguments = dict(config)
    family = arguments.pop("family", None)
    if family not in base.families:
        raise ValueError(f"{role} family is {family!r}, but must be one of {', '.join(base.families)}")
    chosen: Any = base.families[family]
    return chosen.network(**arguments)
