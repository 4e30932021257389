from __future__ import annotations

import json

import pytest

from aigc_ext.config import ConfigError
from aigc_ext.models import DCGANGeneratorConfig, MLPGeneratorConfig
from aigc_ext.tasks.gan import TrainConfig
from aigc_ext.tasks.gan.config import AdamConfig, EMAConfig
from aigc_ext.tasks.gan.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip(tmp_path, preset):
    path = tmp_path / "config.json"
    path.write_text(PRESETS[preset].to_json())
    assert TrainConfig.from_json(path) == PRESETS[preset]
    assert PRESETS[preset].preset == preset


def test_every_key_survives_the_round_trip(tmp_path):
    config = TrainConfig(kimg=3.5)
    for key, value in {
        "data.source": "a folder",
        "data.cond": True,
        "generator.hidden": [5, 6],
        "loss.kind": "hinge",
        "loss.gamma": 2,
        "g_optim.beta2": 0.5,
        "ema.rampup": None,
        "grid": [3, 4],
        "threads": 2,
    }.items():
        config = config.override(key, value)
    assert isinstance(config.generator, MLPGeneratorConfig)
    assert (config.generator.hidden, config.loss.gamma, config.ema.rampup) == ((5, 6), 2.0, None)
    assert config.grid == (3, 4)
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert TrainConfig.from_json(path) == config


def test_what_a_file_leaves_out_keeps_the_value_of_the_base(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"g_optim": {"lr": 0.5}, "batch": 8}')
    base = TrainConfig(g_optim=AdamConfig(beta1=0.25), seed=3)
    config = TrainConfig.from_json(path, base=base)
    assert (config.g_optim, config.batch, config.seed) == (AdamConfig(lr=0.5, beta1=0.25), 8, 3)
    assert TrainConfig.from_json(path).g_optim == AdamConfig(lr=0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch", 0, "batch is 0, but must be at least 1"),
        ("batch", -3, "batch is -3, but must be at least 1"),
        ("batch", 1.5, "batch is 1.5, but must be an integer"),
        ("batch", True, "batch is True, but must be an integer"),
        ("batch", "64", "batch is '64', but must be an integer"),
        ("batch", None, "batch is None, but must be an integer"),
        ("seed", -1, "seed is -1, but must be at least 0"),
        ("seed", 2**63, f"seed is {2**63}, but must be less than {2**63}"),
        ("kimg", 0, "kimg is 0.0, but must be greater than 0"),
        ("kimg", float("nan"), "kimg is nan, but must be finite"),
        ("kimg", float("inf"), "kimg is inf, but must be finite"),
        ("kimg", "long", "kimg is 'long', but must be a number"),
        ("keep", 0, "keep is 0, but must be at least 1"),
        ("workers", -1, "workers is -1, but must be at least 0"),
        ("threads", 0, "threads is 0, but must be at least 1"),
        ("preset", 3, "preset is 3, but must be a string"),
        ("malloc", "x", "malloc is 'x', but must be one of 'default', 'keep'"),
        ("data", "mnist5k", "data is 'mnist5k', but must be an object with keys"),
        ("data.cond", 1, "data.cond is 1, but must be true or false"),
        ("data.source", None, "data.source is None, but must be a string"),
        ("generator.family", "vqgan", "generator.family is 'vqgan', but must be one of 'mlp'"),
        ("generator.hidden", 64, "generator.hidden is 64, but must be a list"),
        ("generator.hidden", [64, 0], "generator.hidden[1] is 0, but must be at least 1"),
        ("grid", [4], "grid has 1 entries, but must have 2"),
        ("loss.kind", "bce", "loss.kind is 'bce', but must be one of 'logistic', 'minimax'"),
        ("loss.gamma", -0.1, "loss.gamma is -0.1, but must be at least 0"),
        ("loss.label_smoothing", 1.0, "loss.label_smoothing is 1.0, but must be less than 1"),
        ("g_optim.lr", 0, "g_optim.lr is 0.0, but must be greater than 0"),
        ("d_optim.beta1", 1, "d_optim.beta1 is 1.0, but must be less than 1"),
        ("ema.rampup", 0, "ema.rampup is 0.0, but must be greater than 0"),
        ("g_optim.momentum", 0.9, "unknown key g_optim.momentum; known here: lr, beta1"),
        ("los.kind", "hinge", "unknown key los; did you mean loss?"),
        ("batch.size", 3, "batch is {'size': 3}, but must be an integer"),
    ],
)
def test_wrong_values_are_named(key, value, message):
    with pytest.raises(ConfigError) as error:
        TrainConfig().override(key, value)
    assert message in str(error.value)


def test_another_family_starts_from_its_own_defaults():
    config = TrainConfig().override("generator.z_dim", 7).override("generator", {"family": "dcgan"})
    assert config.generator == DCGANGeneratorConfig()
    assert config.override("generator.channels", 5).generator == DCGANGeneratorConfig(channels=5)
    back = config.override("generator", {"family": "mlp", "z_dim": 9})
    assert back.generator == TrainConfig().override("generator.z_dim", 9).generator
    with pytest.raises(ConfigError, match=r"unknown key generator.hidden; .*known here: family, z_dim, ch"):
        config.override("generator.hidden", [3])
    assert TrainConfig.from_dict(json.loads(config.to_json())) == config


def test_a_config_made_directly_is_checked_too():
    with pytest.raises(ConfigError, match="lr is -1"):
        AdamConfig(lr=-1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[1]", "holds a list, but must hold a JSON object"),
        ('{"bach": 3}', "unknown key bach; did you mean batch?"),
        ('{"loss": {"gamma": -1}}', "loss.gamma is -1.0"),
        ('{"kimg": NaN}', "kimg is nan"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / "my.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_json(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "my.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"my.json is not JSON"):
        TrainConfig.from_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json cannot be read: No such file"):
        TrainConfig.from_json(tmp_path / "none.json")


def test_to_json_is_plain_json():
    assert json.loads(TrainConfig().to_json())["generator"]["hidden"] == [256, 128, 64]


def test_ema_half_life():
    ema = EMAConfig(kimg=1.0, rampup=None)
    assert ema.decay(nimg=10**6, batch=100) ** 10 == pytest.approx(0.5)
    assert ema.decay(nimg=1, batch=100) == ema.decay(nimg=10**6, batch=100)
    ramp = EMAConfig(kimg=1.0, rampup=0.1)
    assert ramp.decay(nimg=1000, batch=100) == pytest.approx(0.5)
    assert ramp.decay(nimg=10**6, batch=100) == ema.decay(nimg=10**6, batch=100)
    assert EMAConfig(kimg=0).decay(nimg=1000, batch=64) == 0.0


def test_thousands_of_images_are_images():
    for kimg, images in ((16.1, 16_100), (64.9, 64_900), (1e-12, 1), (1.0004, 1001), (25_000.0, 25_000_000)):
        config = TrainConfig(kimg=kimg, tick=kimg)
        assert (config.total_images, config.tick_images) == (images, images)
