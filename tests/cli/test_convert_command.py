"""`aigc-ext convert`: foreign checkpoints become model directories, or are refused with the reason."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from aigc_ext.cli import main
from aigc_ext.models import build_generator
from aigc_ext.sampling import ConvertError, Sampler, convert_checkpoint, load_pretrained

MLP = {"family": "mlp", "image_shape": [1, 4, 4], "z_dim": 3, "hidden": [6, 5], "num_classes": 0}


class Main(nn.Module):
    """A network with its layers in `main`, as in the tutorial."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.main = nn.Sequential(*layers)


def tutorial_dcgan(z_dim=5, channels=3, colours=3, levels=4) -> Main:
    """The generator of PyTorch's DCGAN tutorial in the given sizes, after a forward in training mode."""
    width = channels << (levels - 1)
    layers: list[nn.Module]
    layers = [nn.ConvTranspose2d(z_dim, width, 4, 1, 0, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
    for _ in range(levels - 1):
        layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width // 2)]
        layers.append(nn.ReLU(True))
        width //= 2
    layers += [nn.ConvTranspose2d(width, colours, 4, 2, 1, bias=False), nn.Tanh()]
    network = Main(layers)
    network.main(torch.randn(8, z_dim, 1, 1))
    return network.eval()


def generator(config=MLP, seed=0):
    torch.manual_seed(seed)
    return build_generator(config).eval()


def run(*arguments):
    return main(["convert", *map(str, arguments)])


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "generator.json"
    path.write_text(json.dumps(MLP))
    return path


def refused(capsys, tmp_path, *arguments):
    """One line on stderr, exit code 2, and nothing written; returns the line."""
    dest = tmp_path / "refused"
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run(*arguments, "--dest", dest) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return shown.err


def same_images(directory, network, z_dim):
    made, _ = load_pretrained(directory)
    z = torch.randn(4, z_dim)
    torch.testing.assert_close(made(z), network(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_tutorials_dcgan_makes_the_same_images(tmp_path, capsys, zipped):
    torch.manual_seed(0)
    network = tutorial_dcgan()
    source, dest = tmp_path / "netG.pth", tmp_path / "models" / "dcgan"
    state = network.state_dict()
    if not zipped:  # as before PyTorch 0.4.1
        state = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(state, source, _use_new_zipfile_serialization=zipped)
    assert run(source, "--dest", dest, "--family", "dcgan") == 0
    shown = capsys.readouterr()
    assert shown.out == (
        f"{dest}: dcgan generator (image_shape [3, 64, 64], z_dim 5, channels 3, num_classes 0)\n"
    )
    assert "Note: layers.8.bias is not in the file and is set to 0\n" in shown.err
    assert ("Note: num_batches_tracked is not in the file and is set to 0\n" in shown.err) != zipped
    same_images(dest, lambda z: network.main(z[:, :, None, None]), 5)
    assert sorted(path.name for path in dest.iterdir()) == ["config.json", "model.safetensors", "sha256.json"]
    assert [path.name for path in dest.parent.iterdir()] == ["dcgan"]
    assert Sampler.from_pretrained(dest).sample([0]).shape == (1, 64, 64, 3)


def test_a_config_says_of_the_tutorials_dcgan_only_what_is_so(tmp_path, capsys):
    source = tmp_path / "netG.pth"
    torch.save({"netG": tutorial_dcgan(levels=2).state_dict()}, source)
    (tmp_path / "c.json").write_text(
        '{"family": "dcgan", "image_shape": [3, 16, 16], "z_dim": 7, "channels": 3}'
    )
    error = refused(capsys, tmp_path, source, "--config", tmp_path / "c.json")
    assert f"{source} (under netG) does not fit the dcgan generator: 1 of another shape: " in error
    assert "layers.0.weight is (5, 6, 4, 4), but must be (7, 6, 4, 4)" in error


@pytest.mark.parametrize("classes", [0, 3])
def test_a_dcgan_of_ours_says_its_architecture(tmp_path, classes):
    shape = {"image_shape": [1, 28, 20], "z_dim": 6, "channels": 2, "num_classes": classes}
    network = generator({"family": "dcgan", **shape})
    torch.save(network.state_dict(), tmp_path / "g.pt")
    made = convert_checkpoint(tmp_path / "g.pt", tmp_path / "out", family="dcgan")
    assert made.config == network.config
    assert (made.key, made.notes) == ("", ())
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, written[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "config",
    [
        {"family": "sngan", "image_shape": [3, 8, 8], "z_dim": 4, "channels": 4, "num_classes": 2},
        {"family": "r3gan", "image_shape": [3, 8, 8], "z_dim": 4, "channel_max": 16, "blocks": 1},
        {"family": "stylegan2", "image_shape": [3, 8, 8], "z_dim": 4, "w_dim": 4, "channel_base": 64},
        {"family": "stylegan3", "image_shape": [3, 16, 16], "z_dim": 4, "w_dim": 4, "channel_base": 64},
    ],
    ids=lambda config: config["family"],
)
def test_every_family_by_its_config(tmp_path, config):
    network = generator(config)
    torch.save(network.state_dict(), tmp_path / "g.pt")
    made = convert_checkpoint(tmp_path / "g.pt", tmp_path / "out", config=config)
    assert made.config == network.config
    written, state = load_pretrained(tmp_path / "out")[0].state_dict(), network.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(value, written[name]) for name, value in state.items())


def wrapped(network):
    """As DataParallel, torch.compile and AveragedModel save it."""
    state = network.state_dict()
    averaged = torch.optim.swa_utils.AveragedModel(network)
    return {
        "plain": state,
        "parallel": {f"module.{name}": value for name, value in state.items()},
        "compiled": {f"module._orig_mod.{name}": value for name, value in state.items()},
        "averaged": averaged.state_dict(),
        "double": {name: value.double() for name, value in state.items()},
    }


@pytest.mark.parametrize("wrapper", ["plain", "parallel", "compiled", "averaged", "double"])
def test_wrappers_are_taken_off(tmp_path, config_file, wrapper):
    network = generator()
    torch.save(wrapped(network)[wrapper], tmp_path / "g.pt")
    made = convert_checkpoint(tmp_path / "g.pt", tmp_path / "out", config=MLP)
    same_images(tmp_path / "out", network, 3)
    assert len(made.notes) == {"plain": 0, "parallel": 1, "compiled": 2, "averaged": 2, "double": 1}[wrapper]


def test_where_the_generator_is(tmp_path, config_file, capsys):
    first, averaged, third = (generator(seed=seed) for seed in range(3))
    lightning = {f"netG.{name}": value for name, value in third.state_dict().items()}
    lightning["netD.weight"] = torch.zeros(2)
    source = tmp_path / "all.pt"
    optimizer = torch.optim.Adam(first.parameters())
    content = {"g": first.state_dict(), "g_ema": averaged.state_dict(), "g_optim": optimizer.state_dict()}
    torch.save({**content, "step": 3, "deep": {"state_dict": lightning}}, source)
    for i, (key, network, said) in enumerate(
        [
            ([], averaged, "under g_ema "),
            (["--key", "g"], first, "under g "),
            (["--key", "deep.state_dict.netG"], third, "under deep.state_dict.netG "),
        ]
    ):
        assert run(source, "--dest", tmp_path / str(i), "--config", config_file, *key) == 0
        assert said in capsys.readouterr().out
        same_images(tmp_path / str(i), network, 3)
    wrong = ["--config", config_file, "--key"]
    assert "has no key 'h', nor names that start so: it has g, g_ema" in refused(
        capsys, tmp_path, source, *wrong, "h"
    )
    assert "holds a value of type int under step, where there is no x" in refused(
        capsys, tmp_path, source, *wrong, "step.x"
    )
    assert "of type int under step, but a state_dict is" in refused(capsys, tmp_path, source, *wrong, "step")
    assert "more than tensors (state, param_groups) under g_optim" in refused(
        capsys, tmp_path, source, *wrong, "g_optim"
    )
    torch.save({"mine": first.state_dict(), "step": 3}, source)
    assert "no tensors under a known key, so the key is needed: it has mine, step" in refused(
        capsys, tmp_path, source, "--config", config_file
    )


def test_safetensors_are_read_too(tmp_path, config_file):
    network = generator()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "g.safetensors")
    convert_checkpoint(tmp_path / "g.safetensors", tmp_path / "out", config=MLP)
    same_images(tmp_path / "out", network, 3)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_is_not_run(tmp_path, config_file, capsys, zipped):
    network, source = generator(), tmp_path / "g.pt"
    harm = tmp_path / "harm"
    for what, name in (
        (network, "aigc_ext.models.mlp.MLPGenerator"),
        ({"g": network.state_dict(), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"g": network.state_dict(), "x": Harmful(harm)}, "posix.mkdir"),
    ):
        torch.save(what, source, _use_new_zipfile_serialization=zipped)
        error = refused(capsys, tmp_path, source, "--config", config_file)
        assert f"{source} is refused: it needs pickle to import {name}, which could run any code" in error
    assert not harm.exists()


def test_what_is_no_checkpoint(tmp_path, config_file, capsys):
    source = tmp_path / "g.pt"
    arguments = (source, "--config", config_file)
    assert f"{source} is no file" in refused(capsys, tmp_path, *arguments)
    torch.save(generator().state_dict(), source)
    whole = source.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2], pickle.dumps(Harmful(tmp_path / "harm"), 4)):
        source.write_bytes(content)
        assert f"{source} is refused: " in refused(capsys, tmp_path, *arguments)
    assert not (tmp_path / "harm").exists()
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("a.png", b"")
    assert f"{source} is refused: torch.load(weights_only=True)" in refused(capsys, tmp_path, *arguments)
    (tmp_path / "g.safetensors").write_bytes(b"12345678{")
    error = refused(capsys, tmp_path, tmp_path / "g.safetensors", "--config", config_file)
    assert "g.safetensors is refused" in error
    for content, message in (
        (torch.zeros(2), "holds a value of type Tensor, but must hold a dict of tensors"),
        ({1: torch.zeros(2)}, "has tensors whose names are no strings: 1"),
        ({}, "no tensors under a known key"),
    ):
        torch.save(content, source)
        assert message in refused(capsys, tmp_path, *arguments)


def test_what_does_not_fit_is_listed(tmp_path, config_file, capsys):
    source = tmp_path / "g.pt"
    state = generator().state_dict()
    names = list(state)
    changed = {name: value for name, value in state.items() if name != names[0]}
    changed[names[-1]] = torch.zeros(7)
    torch.save({**changed, **{f"x{i}": torch.zeros(1) for i in range(6)}}, source)
    error = refused(capsys, tmp_path, source, "--config", config_file)
    assert "6 unknown: x0, x1, x2, x3 and 2 more; " in error
    assert f"1 missing: {names[0]}; 1 of another shape: {names[-1]} is (7,), but must be (16,)" in error
    weight = state[names[0]]
    for value, message in (
        (weight.int(), "is torch.int32, but must be torch.float32"),
        (weight.to_sparse(), "is no dense tensor"),
        (weight.to("meta"), "is no dense tensor"),
        (torch.zeros(1).expand(1 << 20, 1 << 20), "is (1048576, 1048576), which is more than its data"),
        (weight * torch.nan, "has values that are not finite"),
        (weight.double() + 1e300, "has values too large for torch.float32"),
    ):
        torch.save({**state, names[0]: value}, source)
        assert f"{names[0]} {message}" in refused(capsys, tmp_path, source, "--config", config_file)
    torch.save(tutorial_dcgan(levels=1).state_dict() | {"main.2.weight": torch.zeros(1)}, source)
    assert "1 unknown: main.2.weight" in refused(capsys, tmp_path, source, "--family", "dcgan")
    torch.save(state, source)
    assert "is no dcgan: its weights are not filters" in refused(
        capsys, tmp_path, source, "--family", "dcgan"
    )


def test_the_architecture_is_said_not_guessed(tmp_path, config_file, capsys):
    source, other = tmp_path / "g.pt", tmp_path / "other.json"
    torch.save(generator().state_dict(), source)
    assert "the generator's architecture is needed" in refused(capsys, tmp_path, source)
    assert "family is 'mlp', and a config is needed too" in refused(
        capsys, tmp_path, source, "--family", "mlp"
    )
    disagree = refused(capsys, tmp_path, source, "--family", "dcgan", "--config", config_file)
    assert "family is 'dcgan', but the config says 'mlp'" in disagree
    assert "cannot be read: No such file" in refused(capsys, tmp_path, source, "--config", other)
    for text, message in (
        ("[", "is not JSON"),
        ("[1]", "holds a list, but must hold a JSON object"),
        ('{"hidden": [6, 5]}', 'the config has no "family"'),
        ('{"family": "vqgan"}', "generator family is 'vqgan', but must be one of"),
        ('{"family": "mlp", "depth": 3}', "unknown key depth; known here: image_shape, z_dim, hidden"),
    ):
        other.write_text(text)
        assert message in refused(capsys, tmp_path, source, "--config", other)


def test_what_exists_is_not_touched(tmp_path):
    torch.save(generator().state_dict(), tmp_path / "g.pt")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConvertError, match="out exists already"):
        convert_checkpoint(tmp_path / "g.pt", tmp_path / "out", config=MLP)
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvertError, match=r"file.model cannot be written: (Not a directory|File exists)"):
        convert_checkpoint(tmp_path / "g.pt", tmp_path / "file" / "model", config=MLP)
