"""Networks and their settings: one declaration, read by constructors, configs and docs/presets.md."""

from __future__ import annotations

import dataclasses
import inspect
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from aigc_ext import models
from aigc_ext.config import ConfigError, UnknownKeyError
from aigc_ext.models import DiscriminatorConfig, GeneratorConfig, build_discriminator, build_generator
from aigc_ext.training import TrainConfig

ROOT = Path(__file__).parents[2]
FAMILIES = [
    *((build_generator, cls) for cls in GeneratorConfig.families.values()),
    *((build_discriminator, cls) for cls in DiscriminatorConfig.families.values()),
]
# As config.json and state.json have had them since the first version.
ON_DISK = {
    "MLPGenerator": "family image_shape z_dim hidden num_classes",
    "MLPDiscriminator": "family image_shape hidden num_classes",
    "DCGANGenerator": "family image_shape z_dim channels num_classes",
    "DCGANDiscriminator": "family image_shape channels num_classes",
    "SNGANGenerator": "family image_shape z_dim channels num_classes",
    "SNGANDiscriminator": "family image_shape channels num_classes",
    "StyleGAN2Generator": "family image_shape z_dim w_dim mapping_layers channel_base channel_max "
    "num_classes output_act",
    "StyleGAN2Discriminator": "family image_shape channel_base channel_max group_size num_classes cmap_dim "
    "mapping_layers",
    "StyleGAN3Generator": "family image_shape variant z_dim w_dim mapping_layers channel_base channel_max "
    "num_layers num_critical first_cutoff first_stopband last_stopband_rel margin_size output_scale "
    "num_classes output_act",
    "R3GANGenerator": "family z_dim image_shape channel_base channel_max blocks group_size expansion "
    "num_classes output_act",
    "R3GANDiscriminator": "family image_shape channel_base channel_max blocks group_size expansion "
    "num_classes",
    "PatchDiscriminator": "family image_shape channels layers spectral num_classes",
    "WaveDiscriminator": "family periods windows channels layers normalize num_classes",
}
IN_A_RUN = {
    "MLPGenerator": "family z_dim hidden",
    "MLPDiscriminator": "family hidden",
    "DCGANGenerator": "family z_dim channels",
    "DCGANDiscriminator": "family channels",
    "SNGANGenerator": "family z_dim channels",
    "SNGANDiscriminator": "family channels",
    "StyleGAN2Generator": "family z_dim w_dim mapping_layers channel_base channel_max output_act",
    "StyleGAN2Discriminator": "family channel_base channel_max group_size",
    "StyleGAN3Generator": "family variant z_dim w_dim mapping_layers channel_base channel_max num_layers "
    "output_act",
    "R3GANGenerator": "family z_dim channel_base channel_max blocks group_size expansion output_act",
    "R3GANDiscriminator": "family channel_base channel_max blocks group_size expansion",
    "PatchDiscriminator": "family channels layers spectral",
    "WaveDiscriminator": "family periods windows channels layers normalize",
}


@pytest.mark.parametrize(("build", "cls"), FAMILIES, ids=lambda value: value.__name__)
def test_a_network_is_its_settings(build, cls):
    with torch.device("meta"):
        network = build({"family": cls.family, "num_classes": 3})
        assert type(network) is cls.network is getattr(models, cls.network.__name__)
        assert list(network.config) == ON_DISK[type(network).__name__].split()
        assert list(cls().to_dict()) == IN_A_RUN[type(network).__name__].split()
        for again in (
            build(network.config),
            build(network.settings),
            type(network)(network.settings),
            type(network)(num_classes=3),
            type(network)(getattr(cls(), network.settings.arguments()[0]), num_classes=3),
        ):
            assert type(again) is type(network)
            assert again.config == network.config
    for name in cls.arguments():
        assert getattr(network, name) == getattr(network.settings, name)


@pytest.mark.parametrize(("build", "cls"), FAMILIES, ids=lambda value: value.__name__)
def test_the_signature_shows_the_fields(build, cls):
    shown = inspect.signature(cls.network).parameters
    fields = [field for field in dataclasses.fields(cls) if field.name != "family"]
    assert list(shown) == [field.name for field in fields]
    assert [p.default for p in shown.values()] == [field.default for field in fields]
    assert {p.kind for p in shown.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_arguments_in_their_order():
    network = models.StyleGAN2Generator([1, 8, 8], 4, 5, 2, 64, 6, 3, "tanh")
    assert network.config == {
        "family": "stylegan2",
        "image_shape": [1, 8, 8],
        "z_dim": 4,
        "w_dim": 5,
        "mapping_layers": 2,
        "channel_base": 64,
        "channel_max": 6,
        "num_classes": 3,
        "output_act": "tanh",
    }
    shape = torch.zeros(2, 1, 8, 8).shape[1:]
    assert models.MLPGenerator(shape, np.int64(4)).z_dim == 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: models.MLPGenerator(zdim=3),  # type: ignore[call-arg]
            UnknownKeyError,
            "unknown key zdim; did you mean z_dim?",
        ),
        (
            lambda: models.MLPGenerator(zdim=3),  # type: ignore[call-arg]
            TypeError,
            "known here: image_shape, z_dim, hidden, num_classes",
        ),
        (lambda: models.MLPGenerator(family="mlp"), TypeError, "unknown key family"),
        (
            lambda: models.MLPGenerator(z_dim=2.5),  # type: ignore[arg-type]
            ConfigError,
            "z_dim is 2.5, but must be an integer",
        ),
        (
            lambda: models.MLPGenerator(hidden=3),  # type: ignore[arg-type]
            ConfigError,
            "hidden is 3, but must be a list",
        ),
        (
            lambda: models.StyleGAN3Generator(output_scale="1"),  # type: ignore[arg-type]
            ConfigError,
            "output_scale is '1', but must be a",
        ),
        (
            lambda: models.MLPGenerator((1, 4, 4), image_shape=(1, 4, 4)),  # type: ignore[misc]
            TypeError,
            "multiple values",
        ),
        (
            lambda: models.MLPGenerator((1, 4, 4), 1, (1,), 0, 5),  # type: ignore[call-arg, arg-type]
            TypeError,
            "positional arguments",
        ),
        (
            lambda: models.MLPGenerator(models.MLPDiscriminatorConfig()),  # type: ignore[arg-type]
            ConfigError,
            "image_shape is MLPDisc",
        ),
    ],
)
def test_a_wrong_argument_is_named_as_the_checker_does(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_subclass_has_a_constructor_of_its_own():
    class Wide(models.MLPGenerator):
        def __init__(self, width: int) -> None:
            super().__init__((1, 4, 4), hidden=(width,))

    assert Wide(7).hidden == (7,)
    assert list(inspect.signature(Wide).parameters) == ["width"]
    assert models.MLPGeneratorConfig.network is models.MLPGenerator


@pytest.mark.parametrize("key", ["image_shape", "num_classes", "num_critical"])
def test_what_the_data_decide_is_no_key_of_a_run(key):
    with pytest.raises(ConfigError, match=f"unknown key generator.{key}"):
        TrainConfig().override("generator", {"family": "stylegan3", key: 3})


def test_the_page_of_settings_is_what_the_records_say():
    """`python docs/presets.py` writes it."""
    page = runpy.run_path(str(ROOT / "docs" / "presets.py"))["page"]()
    assert (ROOT / "docs" / "presets.md").read_text(encoding="utf-8") == page
