"""Generators and discriminators, and functions that make one from its configuration.

Every network has `settings`, and `config`, the same as a dict of JSON values; from either, `build_network`,
for discriminators `build_discriminator`, makes the same architecture with new weights. A generator also has
`z_dim`, `image_shape`, `num_classes` and `value_range`; its `forward(z, c=None)` maps latents (N, z_dim) and,
if `num_classes` > 0, int64 labels (N,) to images (N, C, H, W). A discriminator's `forward(images, c=None)`
maps these to logits (N, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from aigc_ext.models.autoencoder import Autoencoder, AutoencoderConfig
from aigc_ext.models.dcgan import (
    DCGANDiscriminator,
    DCGANDiscriminatorConfig,
    DCGANGenerator,
    DCGANGeneratorConfig,
)
from aigc_ext.models.mlp import MLPDiscriminator, MLPDiscriminatorConfig, MLPGenerator, MLPGeneratorConfig
from aigc_ext.models.patch import PatchDiscriminator, PatchDiscriminatorConfig
from aigc_ext.models.r3gan import (
    R3GANDiscriminator,
    R3GANDiscriminatorConfig,
    R3GANGenerator,
    R3GANGeneratorConfig,
)
from aigc_ext.models.settings import (
    DiscriminatorConfig,
    GeneratorConfig,
    ImageDiscriminatorConfig,
    Network,
    NetworkConfig,
    ReconstructorConfig,
    SequenceConfig,
)
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
from aigc_ext.models.transformer import Transformer, TransformerConfig
from aigc_ext.models.vocoder import Vocoder, VocoderConfig
from aigc_ext.models.wave_discriminators import WaveDiscriminator, WaveDiscriminatorConfig
from aigc_ext.models.wavenet import WaveNet, WaveNetConfig

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "DCGANDiscriminator",
    "DCGANDiscriminatorConfig",
    "DCGANGenerator",
    "DCGANGeneratorConfig",
    "DiscriminatorConfig",
    "GeneratorConfig",
    "ImageDiscriminatorConfig",
    "MLPDiscriminator",
    "MLPDiscriminatorConfig",
    "MLPGenerator",
    "MLPGeneratorConfig",
    "Network",
    "NetworkConfig",
    "PatchDiscriminator",
    "PatchDiscriminatorConfig",
    "R3GANDiscriminator",
    "R3GANDiscriminatorConfig",
    "R3GANGenerator",
    "R3GANGeneratorConfig",
    "ReconstructorConfig",
    "SNGANDiscriminator",
    "SNGANDiscriminatorConfig",
    "SNGANGenerator",
    "SNGANGeneratorConfig",
    "SequenceConfig",
    "StyleGAN2Discriminator",
    "StyleGAN2DiscriminatorConfig",
    "StyleGAN2Generator",
    "StyleGAN2GeneratorConfig",
    "StyleGAN3Generator",
    "StyleGAN3GeneratorConfig",
    "Transformer",
    "TransformerConfig",
    "Vocoder",
    "VocoderConfig",
    "WaveDiscriminator",
    "WaveDiscriminatorConfig",
    "WaveNet",
    "WaveNetConfig",
    "build_discriminator",
    "build_generator",
    "build_network",
]

_PUBLISHED = (GeneratorConfig, ReconstructorConfig, SequenceConfig)
"""What a model directory may hold. Their families have different names."""


def build_generator(config: Mapping[str, Any] | GeneratorConfig) -> nn.Module:
    """A generator with new weights from its settings, or from a dict: "family" and the arguments of that
    family's class.

    Raises:
        ValueError: "family" is missing or unknown, or an argument is not valid.
        TypeError: an argument is not one of that family's.
    """
    return _build("generator", config, GeneratorConfig)


def build_network(config: Mapping[str, Any] | NetworkConfig) -> nn.Module:
    """Any network that a model directory may hold, with new weights: a generator, an autoencoder or vocoder,
    or a model of sequences; arguments and errors are as for `build_generator`."""
    return _build("network", config, *_PUBLISHED)


def build_discriminator(config: Mapping[str, Any] | DiscriminatorConfig) -> nn.Module:
    """A discriminator with new weights; arguments and errors are as for `build_generator`."""
    return _build("discriminator", config, DiscriminatorConfig)


def _build(role: str, config: Mapping[str, Any] | NetworkConfig, *choices: type[NetworkConfig]) -> nn.Module:
    if isinstance(config, NetworkConfig):
        return config.network(config)
    arguments = dict(config)
    family = arguments.pop("family", None)
    families = {name: each for choice in choices for name, each in choice.families.items()}
    if family not in families:
        raise ValueError(f"{role} family is {family!r}, but must be one of {', '.join(families)}")
    chosen: Any = families[family]
    return chosen.network(**arguments)
