from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from aigc_ext.data import ImageDataset, TensorImages, open_dataset
from aigc_ext.tasks.gan import PRESETS, TrainConfig, Trainer, recipe


def _data(tmp_path, images):
    np.save(tmp_path / "images.npy", images)
    return open_dataset(str(tmp_path / "images.npy"))


def _output_act(config: TrainConfig, data: ImageDataset) -> str:
    generator: Any = recipe.complete(config, data).generator  # of a family with this setting
    return generator.output_act


@pytest.mark.parametrize("preset", ["stylegan2", "stylegan3-t", "r3gan"])
def test_the_output_is_limited_where_much_of_the_data_is_black_or_white(preset, tmp_path):
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    config = PRESETS[preset]
    assert _output_act(config, _data(tmp_path, photos)) == "linear"
    drawings = np.where(rng.random(photos.shape) < 0.3, 255 * (photos > 127), photos).astype(np.uint8)
    drawn = _data(tmp_path, drawings)
    assert _output_act(config, drawn) == "tanh"
    chosen = config.override("generator.output_act", "linear")
    assert _output_act(chosen, drawn) == "linear"


@pytest.mark.parametrize("act", ["linear", "tanh"])
def test_r3gan_begins_with_the_brightness_of_the_data(act, tmp_path):
    colours = np.stack([np.full((4, 8, 8), value, np.uint8) for value in (51, 204, 0)], -1)
    np.save(tmp_path / "images.npy", colours)
    config = (
        PRESETS["r3gan"]
        .override("generator.channel_max", 8)
        .override("generator.output_act", act)
        .override("data.source", str(tmp_path / "images.npy"))
    )
    generator: Any = Trainer.from_config(config, outdir=tmp_path).task.generator
    black = -0.95 if act == "tanh" else -1.0  # beyond which tanh has little slope
    begun = generator.head.bias.tanh() if act == "tanh" else generator.head.bias
    torch.testing.assert_close(begun, torch.tensor([-0.6, 0.6, black]))


def test_gamma_falls_to_a_tenth_only_along_a_ramp(tmp_path):
    data = _data(tmp_path, np.zeros((4, 64, 64, 1), np.uint8))
    ramped = recipe.complete(PRESETS["r3gan"], data).loss
    assert (ramped.gamma, ramped.gamma_end) == (2.0, 0.2)
    plain = recipe.complete(PRESETS["stylegan2"].override("loss.r2", True), data)
    assert (plain.loss.gamma, plain.loss.gamma_end, plain.ramp_kimg) == (2.0, None, 0)


def test_channels_are_last_for_convolutions_on_the_cpu_unless_the_user_says_otherwise(tmp_path):
    data = _data(tmp_path, np.zeros((4, 32, 32, 3), np.uint8))
    made = {name: recipe.complete(config, data).channels_last for name, config in PRESETS.items()}
    assert made == {name: config.generator.family != "mlp" for name, config in PRESETS.items()}
    for given in (True, False):
        for preset in ("mlp", "r3gan"):
            config = PRESETS[preset].override("channels_last", given)
            assert recipe.complete(config, data).channels_last is given


def test_a_grid_of_the_data_shows_all_of_it():
    digits = open_dataset("digits")
    places = recipe.spread(digits, 64)
    labels = digits.labels[places].tolist()
    assert labels[:20] == [*range(10), *range(10)]
    assert sorted(set(places)) == sorted(places)
    assert len(places) == 64
    assert max(places) > 1500

    def images(count: int, *labels: int) -> TensorImages:
        pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
        return TensorImages("x", pixels, torch.tensor(labels) if labels else None)

    assert recipe.spread(images(10), 4) == [0, 2, 5, 7]
    assert recipe.spread(images(3), 64) == [0, 1, 2]
    # A rare class, and one that is empty.
    assert recipe.spread(images(6, 0, 0, 0, 0, 0, 2), 4) == [0, 5, 1, 3]
    assert sorted(recipe.spread(images(6, 0, 0, 0, 0, 0, 2), 64)) == [0, 1, 2, 3, 4, 5]
    assert recipe.spread(images(1000, *range(1000)), 4) == [0, 250, 500, 750]
