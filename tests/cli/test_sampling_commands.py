"""`aigc-ext interpolate`, `project`, `export`, and `sample` with style-based networks and given latents."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from aigc_ext.cli import main
from aigc_ext.models import GeneratorConfig, MLPGenerator
from aigc_ext.sampling import Sampler, image_grid, project, save_pretrained
from aigc_ext.training.checkpoint import serialize
from tests.sampling.stand_in import StandIn, stand_in


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Model directories: `mlp` and `mlp-cond`, and a style-based `style`, whose family is a stand-in."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "mlp": MLPGenerator((1, 8, 8), z_dim=4, hidden=(16, 8)),
        "mlp-cond": MLPGenerator((1, 8, 8), z_dim=4, hidden=(16, 8), num_classes=3),
        "style": stand_in(image_shape=(3, 16, 12)),
    }
    for name, generator in made.items():
        save_pretrained(root / name, generator.config, serialize(generator.state_dict()))
    return root


@pytest.fixture(autouse=True)
def family(monkeypatch):
    monkeypatch.setitem(GeneratorConfig.families, "stand-in", SimpleNamespace(network=StandIn))


def run(*arguments):
    return main([str(argument) for argument in arguments])


def refused(capsys, message, *arguments, code=2):
    """An error is one line on stderr, and the exit code says whose it is."""
    assert run(*arguments) == code
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in shown.err
    assert shown.out == ""


def record(path):
    with Image.open(path) as image:
        return json.loads(image.text["aigc_ext"])


def frames_of(path):
    with Image.open(path) as image:
        frames = [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(image)]
        return np.stack(frames), json.loads(image.info["comment"])


def test_sample_from_a_style_based_network(networks, tmp_path):
    options = ["--trunc", 0.4, "--trunc-cutoff", 2, "--noise-mode", "none"]
    assert run("sample", "--network", networks / "style", "--seeds", 3, "--outdir", tmp_path, *options) == 0
    sampler = Sampler.from_pretrained(networks / "style")
    expected = sampler.sample([3], truncation=0.4, truncation_cutoff=2, noise_mode="none")[0]
    with Image.open(tmp_path / "seed0003.png") as image:
        assert np.array_equal(np.asarray(image), expected)
    made = record(tmp_path / "seed0003.png")
    assert (made["truncation"], made["truncation_cutoff"], made["noise_mode"]) == (0.4, 2, "none")


def test_interpolate(networks, tmp_path, capsys):
    path = tmp_path / "walk.gif"
    walk = ["interpolate", "--network", networks / "style", "--seeds", "1,5,2-3", "--frames", 8, "--fps", 25]
    assert run(*walk, "--trunc", 0.7, "--grid", "2x1", "--no-loop", "--output", path) == 0
    assert capsys.readouterr().out == f"{path}\n"
    frames, comment = frames_of(path)
    sampler = Sampler.from_pretrained(networks / "style")
    walks = [sampler.interpolate(seeds, truncation=0.7, frames=8, loop=False) for seeds in ([1, 5], [2, 3])]
    expected = [image_grid(np.stack(pair), columns=2, scale=4) for pair in zip(*walks, strict=True)]
    # A palette has only 256 colours.
    assert np.abs(frames.astype(int) - np.stack(expected)).mean() < 4
    made = comment["aigc_ext"]
    assert (made["seeds"], made["space"], made["loop"], made["grid"]) == ([1, 5, 2, 3], "w", False, [2, 1])
    assert made["model_sha256"] == sampler.model_sha256
    assert comment["AIGC"]["Label"] == "1"
    arguments = ["--network", networks / "mlp-cond", "--seeds", "0,1", "--class", 2, "--no-label"]
    assert run("interpolate", *arguments, "--frames", 4, "--output", path) == 0
    frames, comment = frames_of(path)
    expected = list(Sampler.from_pretrained(networks / "mlp-cond").interpolate([0, 1], 2, frames=4))
    assert np.array_equal(frames[:, ::8, ::8, :1], np.stack(expected))  # grey needs no palette
    assert comment.keys() == {"aigc_ext"}
    assert comment["aigc_ext"]["classes"] == [2, 2]
    assert (made["curve"], comment["aigc_ext"]["curve"]) == ("cubic", "slerp")


def test_interpolate_refuses(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    walk = ["interpolate", "--network", networks / "mlp", "--seeds", "0-5", "--frames", 4]
    gif = ["--output", "a.gif"]
    refused(capsys, "Missing option '--output'", *walk)
    refused(capsys, "output is 'a.avi', but must end in one of", *walk, "--output", "a.avi")
    refused(capsys, "there is no directory none", *walk, "--output", "none/a.gif")
    refused(capsys, "fps is 90.0", *walk, *gif, "--fps", 90)
    refused(capsys, "there are 6 seeds, but each of the 4 walks", *walk, *gif, "--grid", "4x1")
    refused(capsys, "and at least 2", *walk, *gif, "--grid", "3x2")
    refused(capsys, "no mapping network", *walk, *gif, "--space", "w")
    refused(capsys, "truncation_cutoff is 1", *walk, *gif, "--trunc-cutoff", 1)
    refused(capsys, "curve is 'linear', but a walk in z", *walk, *gif, "--curve", "linear")
    refused(capsys, "a walk in z needs one class", *walk, *gif, "--network", networks / "mlp-cond")
    refused(capsys, "network owner/name is no directory", *walk, *gif, "--network", "owner/name")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    refused(capsys, "pip install aigc_ext[video]", *walk, "--output", "a.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "space"), [("style", "w"), ("mlp-cond", "z")])
def test_project_and_render(networks, tmp_path, capsys, name, space):
    network = ["--network", networks / name]
    class_ = ["--class", "1"] if name == "mlp-cond" else []
    assert run("sample", *network, "--seeds", 9, "--outdir", tmp_path, *class_) == 0
    target, out = tmp_path / "seed0009.png", tmp_path / "out"
    options = ["--steps", 30, "--seed", 5, "--lr", 0.2]
    assert run("project", *network, "--target", target, "--outdir", out, *class_, *options) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "projected.png",
        "projected.safetensors",
        "projection.json",
    ]
    written = json.loads((out / "projection.json").read_text())
    assert written["distance"] == min(written["distances"])
    assert (written["steps"], written["space"], written["seed"], written["lr"]) == (30, space, 5, 0.2)
    sampler = Sampler.from_pretrained(networks / name)
    class_index = 1 if class_ else None
    found = project(
        sampler, sampler.sample([9], class_index)[0], steps=30, class_=class_index, seed=5, lr=0.2
    )
    assert written["distances"] == found.distances
    assert f"distance {written['distance']:.6g}" in capsys.readouterr().out
    made = record(out / "projected.png")
    assert made["target_sha256"] == written["target_sha256"]
    assert made["model_sha256"] == sampler.model_sha256
    latents = out / "projected.safetensors"
    assert run("sample", *network, "--projected", latents, "--outdir", tmp_path / "again") == 0
    assert "Warning" not in capsys.readouterr().err
    with Image.open(out / "projected.png") as one, Image.open(tmp_path / "again/projected0000.png") as two:
        assert np.array_equal(np.asarray(one), np.asarray(two))
    assert "truncation" not in record(tmp_path / "again" / "projected0000.png")
    # Refused, or converted on demand.
    other = tmp_path / "other.png"
    Image.fromarray(np.full((20, 30, 4), 200, np.uint8)).save(other)
    arguments = [
        "project",
        *network,
        *class_,
        "--target",
        other,
        "--outdir",
        tmp_path / "fitted",
        "--steps",
        1,
    ]
    size = "12x16 with 3" if name == "style" else "8x8 with 1"
    refused(capsys, f"is 30x20 pixels with 4 channels, but the network makes {size}; --fit", *arguments)
    assert run(*arguments, "--fit") == 0


def test_project_and_sample_refuse(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mlp, sample = networks / "mlp", ["sample", "--network", networks / "mlp"]
    Path("bad.png").write_text("no image")
    search = ["project", "--network", mlp, "--target"]
    refused(capsys, "target bad.png: its content is not recognised as PNG", *search, "bad.png")
    refused(capsys, "No such file or directory: none.png", *search, "none.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("grey.png")
    refused(capsys, "no mapping network", *search, "grey.png", "--space", "w")
    refused(capsys, "lr is 0.0", *search, "grey.png", "--lr", 0)
    assert run(*search, "grey.png", "--steps", 2, "--outdir", "out") == 0
    capsys.readouterr()
    latents = ["--projected", "out/projected.safetensors"]
    refused(capsys, "exclude each other", *sample, *latents, "--seeds", 1)
    refused(capsys, "are for seeds", *sample, *latents, "--trunc", 0.5)
    refused(capsys, "latents bad.png are no safetensors file", *sample, "--projected", "bad.png")
    style = ["--network", networks / "style"]
    refused(capsys, "must be floating point of shape [N, 6]", *sample, *latents, *style)
    refused(capsys, "needs them, from 0 to 2", *sample, *latents, "--network", networks / "mlp-cond")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.png", "grey.png", "out"]
    torch.manual_seed(9)
    other = MLPGenerator((1, 8, 8), z_dim=4, hidden=(16, 8))
    save_pretrained(tmp_path / "other", other.config, serialize(other.state_dict()))
    assert run(*sample, *latents, "--network", "other", "--outdir", "made", "--grid", "1x1") == 0
    assert "Warning: these latents were found with another network" in capsys.readouterr().err


def test_metrics_fetches_only_on_demand(networks, tmp_path, monkeypatch, capsys):
    asked = []

    def load(path, *, allow_download=False):
        asked.append(allow_download)
        raise ValueError("none")

    monkeypatch.setattr("aigc_ext.sampling.load_pretrained", load)
    for more in ([], ["--allow-download"]):
        refused(capsys, "none", "metrics", "--network", "owner/name", "--data", "digits", *more)
    assert asked == [False, True]


def test_metrics_shows_the_nearest_pairs(networks, tmp_path, capsys):
    file = tmp_path / "pairs.png"
    options = ["--network", networks / "mlp", "--data", "digits", "--num", 40, "--cache", tmp_path / "cache"]
    needs = f"--pairs {file} needs the metric memorised: --metrics fd,kid,pr,memorised"
    refused(capsys, needs, "metrics", *options, "--pairs", file)
    assert run("metrics", *options, "--metrics", "memorised", "--pairs", file) == 0
    assert capsys.readouterr().out.startswith("memorised  ")
    with Image.open(file) as image:
        assert image.size == (8 * 64, 4 * 64)
    missing = tmp_path / "none" / "pairs.png"
    message = f"pairs is '{missing}', but there is no directory {missing.parent}"
    refused(capsys, message, "metrics", *options, "--metrics", "memorised", "--pairs", missing)


def test_export(networks, tmp_path, monkeypatch, capsys):
    path = tmp_path / "g.pt2"
    assert run("export", "--network", networks / "mlp", "--output", path, "--batch", 3) == 0
    assert f"{path}: needs import aigc_ext (aigc::fused_mlp); run by torch" in capsys.readouterr().out
    assert run("export", "--network", networks / "mlp", "--output", path, "--decompose") == 0
    assert "needs no aigc_ext" in capsys.readouterr().out
    files = {"aigc_ext.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    assert json.loads(files["aigc_ext.json"])["model_sha256"]
    sampler = Sampler.from_pretrained(networks / "mlp")
    z = torch.randn(5, 4)
    torch.testing.assert_close(program(z), sampler.generator(z))
    monkeypatch.chdir(tmp_path)
    export = ["export", "--network", networks / "mlp", "--output"]
    refused(capsys, "format is 'bin'", *export, "g.bin")
    refused(capsys, "there is no directory none", *export, "none/g.pt2")
    refused(capsys, "'0' is neither a number of images nor dynamic", *export, "g2.pt2", "--batch", 0)
    refused(capsys, "ONNX has no custom ops", *export, "g.onnx", "--no-decompose")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(capsys, "pip install aigc_ext[onnx]", *export, "g.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["g.pt2"]
