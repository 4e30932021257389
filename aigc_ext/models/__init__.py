"""Generators and discriminators, and how to make one from its configuration.

Every network has `config`, a dict of JSON values that `build_generator` or `build_discriminator` turns
into the same architecture with new weights. Every generator also has `z_dim`, `image_shape`, `num_classes`
and `value_range`; its `forward(z, c=None)` maps latents (N, z_dim) and, if `num_classes` > 0, int64 labels
(N,) to images (N, C, H, W). A discriminator's `forward(images, c=None)` maps these to logits (N, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from aigc_ext.models.dcgan import DCGANDiscriminator, DCGANGenerator
from aigc_ext.models.mlp import MLPDiscriminator, MLPGenerator
from aigc_ext.models.r3gan import R3GANDiscriminator, R3GANGenerator
from aigc_ext.models.sngan import SNGANDiscriminator, SNGANGenerator
from aigc_ext.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from aigc_ext.models.stylegan3 import StyleGAN3Generator

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "MLPDiscriminator",
    "MLPGenerator",
    "R3GANDiscriminator",
    "R3GANGenerator",
    "SNGANDiscriminator",
    "SNGANGenerator",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "StyleGAN3Generator",
    "build_discriminator",
    "build_generator",
]

_GENERATORS: dict[str, type[nn.Module]] = {
    "dcgan": DCGANGenerator,
    "mlp": MLPGenerator,
    "r3gan": R3GANGenerator,
    "sngan": SNGANGenerator,
    "stylegan2": StyleGAN2Generator,
    "stylegan3": StyleGAN3Generator,
}
_DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "dcgan": DCGANDiscriminator,
    "mlp": MLPDiscriminator,
    "r3gan": R3GANDiscriminator,
    "sngan": SNGANDiscriminator,
    "stylegan2": StyleGAN2Discriminator,
}


def build_generator(config: Mapping[str, Any]) -> nn.Module:
    """A generator with new weights from `config`: "family" and the arguments of that family's class.

    Raises:
        ValueError: "family" is missing or unknown, or an argument is not valid.
        TypeError: an argument is missing or is not one of that family's.
    """
    return _build("generator", _GENERATORS, config)


def build_discriminator(config: Mapping[str, Any]) -> nn.Module:
    """A discriminator with new weights from `config`; like `build_generator`."""
    return _build("discriminator", _DISCRIMINATORS, config)


def _build(role: str, families: Mapping[str, type[nn.Module]], config: Mapping[str, Any]) -> nn.Module:
    arguments = dict(config)
    family = arguments.pop("family", None)
    if family not in families:
        raise ValueError(f"{role} family is {family!r}, but must be one of {', '.join(families)}")
    return families[family](**arguments)
