"""A new run with the weights of another, for every preset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aigc_ext.cli import main
from aigc_ext.config import ConfigError
from aigc_ext.sampling import PretrainedError
from aigc_ext.tasks.gan import PRESETS, TrainConfig, Trainer, initial_config, read_initial_weights
from aigc_ext.training import CheckpointError, RunError, read_checkpoint
from tests.cli.test_presets import SMALL
from tests.data.helpers import encoded, labelled, pixels, write
from tests.tasks.gan.helpers import PlainDiscriminator, PlainGenerator, config
from tests.training.helpers import tiny_images

SHORT = ["--batch", "8", "--kimg", "0.016", "--tick", "0.016", "--snap", "1", "--set", "grid=[2, 2]"]
CPU = ["--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of 16x16 pixels, the same at 32x32 with three classes, and grey ones."""
    root = tmp_path_factory.mktemp("data")
    for name, shape in (("plain", (16, 16, 3)), ("large", (32, 32, 3)), ("grey", (16, 16))):
        write(root / name, {f"{i}.png": encoded(pixels(i, shape)) for i in range(12)})
    write(root / "large", {"dataset.json": labelled(*([f"{i}.png", i % 3] for i in range(12)))})
    return root


@pytest.fixture(scope="module", params=PRESETS)
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    small = dict(SMALL[request.param])
    cmax = ["--cmax", str(small.pop("cmax"))] if "cmax" in small else []
    (root / "small.json").write_text(json.dumps(small))
    arguments = ["--preset", request.param, "--config", str(root / "small.json"), *cmax, *SHORT, *CPU]
    assert main(["train", "--data", str(data / "plain"), "--outdir", str(root / "runs"), *arguments]) == 0
    return root / "runs" / f"00000-{request.param}-plain"


def settings_of(source: Path | str) -> TrainConfig:
    found = initial_config(read_initial_weights(source))
    for key, value in {"batch": 8, "kimg": 0.016, "device": "cpu", "grid": [2, 2]}.items():
        found = found.override(key, value)
    return found


def same(network: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    state = network.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


def test_a_new_run_begins_with_all_three_networks(run, tmp_path):
    checkpoint = read_checkpoint(run / "checkpoints" / "000000-016")
    settings = settings_of(run)
    old = TrainConfig.from_json(run / "config.json")
    assert (settings.generator, settings.discriminator) == (old.generator, old.discriminator)
    assert settings.preset == old.preset
    assert settings.data == old.data
    trainer = Trainer.from_config(settings.override("seed", 5), outdir=tmp_path)
    assert not same(trainer.state.generator, checkpoint.tensors["generator"])
    done = trainer.init_from(run)
    assert done.keys() == {"generator", "discriminator", "ema"}
    for role in done:
        assert same(getattr(trainer.state, role), checkpoint.tensors[role]), role
        assert not done[role].new
    if old.preset not in ("sngan", "r3gan"):  # whose averages are still the same after two steps
        assert not same(trainer.state.ema, checkpoint.tensors["generator"])
    result = trainer.fit()
    assert (result.step, result.run_dir.name) == (2, f"00000-{old.preset}-plain")
    log = (result.run_dir / "log.txt").read_text()
    assert f"it begins with weights of {checkpoint.path}" in log
    assert "averaged generator: " in log
    with pytest.raises(ValueError, match=r"init_from is for a new run, but this one is at step 2"):
        trainer.init_from(run)


def test_from_the_command_line_to_other_data_classes_and_size(run, data, tmp_path, capsys):
    arguments = ["--data", str(data / "large"), "--cond", *SHORT, *CPU]
    outdir = ["--outdir", str(tmp_path)]
    assert main(["train", "--init-from", str(run), *arguments, *outdir, "--dry-run"]) == 0
    assert "\naveraged generator: " in capsys.readouterr().err
    assert main(["train", "--init-from", str(run), *arguments, *outdir]) == 0
    (made,) = tmp_path.iterdir()
    assert made.name == run.name.replace("plain", "large")
    state = json.loads((made / "checkpoints" / "000000-016" / "state.json").read_text())
    assert (state["generator"]["image_shape"], state["generator"]["num_classes"]) == ([3, 32, 32], 3)
    listed = (made / "init_from.txt").read_text().splitlines()
    assert listed[0] == f"weights of {run}/checkpoints/000000-016"
    assert any(line.startswith("generator.") and line.endswith(": taken") for line in listed)
    assert any(line.startswith("generator.embedding.weight: new") for line in listed) or any(
        line.startswith("generator.mapping_network.embedding.weight: new") for line in listed
    )
    # It goes on like any run, without its source.
    assert main(["train", "--resume", str(made), "--kimg", "0.024"]) == 0
    again = (made / "log.txt").read_text()
    assert again.count("it begins with weights") == 1


def test_from_a_model_there_is_no_discriminator(run, data, tmp_path):
    settings = settings_of(run / "model").override("data.source", str(data / "grey"))
    assert settings.preset == TrainConfig.from_json(run / "config.json").preset
    settings = settings.override("discriminator", PRESETS[settings.preset].discriminator.to_dict())
    for key in ("channel_max", "channels"):
        if hasattr(settings.discriminator, key):
            settings = settings.override(f"discriminator.{key}", 8)
    trainer = Trainer.from_config(settings, outdir=tmp_path)
    before = {name: value.clone() for name, value in trainer.state.discriminator.state_dict().items()}
    done = trainer.init_from(run / "model")
    assert done.keys() == {"generator", "ema"}
    assert same(trainer.state.discriminator, before)
    assert {name: str(done["ema"].new[name]) for name in done["ema"].new} == done["generator"].new
    assert all("head" in name or "to_rgb" in name or "layers" in name for name in done["generator"].new)
    text = (trainer.fit().run_dir / "log.txt").read_text()
    assert "discriminator: new (a model has none)" in text


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outdir = tmp_path_factory.mktemp("small")
    return Trainer.from_config(config(kimg=0.5, keep=9), outdir=outdir).fit().run_dir


def test_the_newest_undamaged_checkpoint_is_meant(small, tmp_path):
    copy = tmp_path / "runs" / "00000-mlp-digits"
    shutil.copytree(small, copy)
    oldest, newest = sorted((copy / "checkpoints").iterdir())
    assert read_initial_weights(copy).source == str(newest)
    assert read_initial_weights("latest", copy.parent).source == str(newest)
    assert read_initial_weights(oldest).source == str(oldest)
    (newest / "ema.safetensors").write_bytes(b"x")
    assert read_initial_weights(copy).source == str(oldest)
    with pytest.raises(CheckpointError, match=r"ema.safetensors has 1 bytes"):
        read_initial_weights(newest)
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    assert read_initial_weights(copy).networks.keys() == {"generator", "ema"}


def test_the_average_is_the_average(small):
    weights, model = read_initial_weights(small), read_initial_weights(small / "model")
    for name, value in model.networks["generator"].items():
        assert torch.equal(value, weights.networks["ema"][name])
    assert any(
        not torch.equal(value, weights.networks["generator"][name])
        for name, value in model.networks["generator"].items()
    )


def test_a_recipe_of_ones_own_is_kept_and_a_presets_is_computed_anew(small):
    weights = read_initial_weights(small)
    assert weights.config is not None
    own = TrainConfig.from_dict({"preset": "mine", "loss": {"gamma": 0.7}})
    mine = initial_config(type(weights)(weights.source, weights.networks, weights.architectures, own))
    assert (mine.loss.gamma, mine.generator.to_dict()["hidden"]) == (0.7, (16, 16))
    assert initial_config(weights).loss == PRESETS["mlp"].loss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init-from", "nowhere"], "network nowhere is no directory"),
        (["--init-from", "latest"], "init_from is 'latest', but there is no run in"),
        (["--init-from", "SMALL", "--resume", "SMALL"], "--init-from begins a new one: give one of them"),
        (["--init-from", "SMALL", "--preset", "r3gan"], "preset is 'r3gan', whose generator is a r3gan, but"),
        (["--init-from", "SMALL", "--set", "generator.hidden=[3]"], "none of its generator's weights fits"),
        (["--init-from", "SMALL", "--data", "PLAIN", "--cond"], "data.cond is true, but plain has no labels"),
    ],
)
def test_what_cannot_be_a_beginning_is_said(small, data, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    places = {"SMALL": str(small), "PLAIN": str(data / "plain")}
    assert main(["train", *(places.get(argument, argument) for argument in arguments)]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_networks_of_others_are_filled_in_python_only(small, tmp_path):
    def make(seed: int) -> Trainer:
        torch.manual_seed(seed)
        networks = PlainGenerator(), PlainDiscriminator()
        options = config(kimg=0.05)
        return Trainer(*networks, tiny_images(), options, outdir=tmp_path, z_dim=6, value_range=(-1.0, 1.0))

    result = make(0).fit()
    with pytest.raises(ConfigError, match=r"call Trainer\(...\).init_from"):
        initial_config(read_initial_weights(result.run_dir))
    other = make(1)
    done = other.init_from(result.run_dir)
    assert not done["generator"].new
    assert same(other.state.ema, read_checkpoint(result.checkpoint).tensors["ema"])
    with pytest.raises(ValueError, match="none of its generator's weights fits this one"):
        make(1).init_from(small)


def test_errors_name_the_source(tmp_path):
    with pytest.raises(RunError, match="there is no run in"):
        read_initial_weights("latest", tmp_path)
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(PretrainedError, match=r"x.npy is no directory"):
        read_initial_weights(tmp_path / "x.npy")
