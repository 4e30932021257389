"""Every preset that is no GAN from the command line: train, resume, sample and report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_ext import _names
from aigc_ext.cli.main import main
from aigc_ext.sampling import load_pretrained
from aigc_ext.sampling.hub import HubGenerator
from aigc_ext.sampling.wav import save_wav
from tests.training.helpers import files_of

PRESETS = [preset for task, presets in _names.TASKS.items() if task != "gan" for preset in presets]
AUTOENCODER = {"channels": [8, 8], "code_dim": 4}
TRANSFORMER = {"width": 16, "heads": 2, "layers": 1, "hidden": 16}
SMALL: dict[str, dict[str, Any]] = {
    "vae": {"generator": AUTOENCODER, "loss": {"adversarial": 0.1, "judged": "both"}},
    "vqgan": {
        "generator": {**AUTOENCODER, "num_codes": 8},
        "data": {"resolution": [16, 8], "transform": None},
        "loss": {"adversarial": 0.1},
    },
    "prior": {"network": TRANSFORMER},
    "vocoder": {
        "generator": {"n_mels": 8, "n_fft": 64, "window": 64, "hop": 16, "channels": 8, "upsample": [4]},
        "discriminator": {"channels": 4},
    },
    "wavenet": {
        "network": {"channels": 8, "gates": 8, "skips": 8, "hidden": 8, "dilations": [1, 3]},
        "data": {"class_folders": True},
    },
    "textgen": {"network": TRANSFORMER, "text": {"vocabulary": 280, "source": 12, "target": 6}},
}
SUFFIX = {"textgen": "txt", "vocoder": "wav", "wavenet": "wav"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The data of a preset."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(40):
        path = folder / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)).save(path)
    lines = [{"source": f"A tool number {i} for people.", "target": f"tool {i}"} for i in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    for i in range(40):
        wave = np.round(8000 * np.sin(np.arange(1200) * 0.1 * (1 + i % 2))).astype(np.int16)
        path = folder / "waves" / str(i % 2) / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_wav(wave, path, 8000, label=False)

    def source_of(preset: str) -> str:
        if preset in ("vocoder", "wavenet"):
            return str(folder / "waves")
        if preset == "textgen":
            return str(folder / "pairs.jsonl")
        if preset != "prior":
            return str(folder / "images")
        codec = folder / "codec"
        if not codec.exists():
            train("vqgan", str(folder / "images"), codec, "--kimg", "0.008")
        (run,) = codec.iterdir()
        return f"tokens:{run}:{folder / 'images'}"

    return source_of


def train(preset: str, data: str, outdir: Path, *more: str) -> Path:
    config = outdir.with_suffix(".json")
    small = {**SMALL[preset], "grid": [2, 2], "batch": 8, "tick": 0.016, "snap": 1, "threads": 1}
    config.write_text(json.dumps(small))
    arguments = [] if "--resume" in more else ["--preset", preset, "--data", data, "--config", str(config)]
    assert main(["train", "--outdir", str(outdir), *arguments, *more]) == 0
    (run_dir,) = outdir.iterdir()
    return run_dir


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_from_training_to_report(
    preset: str, source: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = source(preset)
    whole = train(preset, data, tmp_path / "whole", "--kimg", "0.032")
    said, told = capsys.readouterr()
    train(preset, data, tmp_path / "parts", "--kimg", "0.016")
    parts = train(preset, data, tmp_path / "parts", "--resume", "latest", "--kimg", "0.032")
    for name in ("000000-016", "000000-032"):
        assert files_of(whole / "checkpoints" / name) == files_of(parts / "checkpoints" / name)
    assert (whole / "metrics.jsonl").read_text().count("\n") == 2  # of held-out items

    assert ("img/s" in told) == (preset in ("vae", "vqgan", "prior"))
    # What the output suggests.
    commands = [
        line.partition("aigc-ext sample ")[2].split() for line in said.splitlines() if " sample " in line
    ]
    assert commands
    for number, command in enumerate(commands):
        out = tmp_path / f"out{number}"
        more = ["--prompt", "A tool."] if preset == "textgen" else []
        assert main(["sample", *command, *more, "--outdir", str(out)]) == 0
        assert len(list(out.glob(f"*.{SUFFIX.get(preset, 'png')}"))) == 16
    checkpoint = max((whole / "checkpoints").iterdir())
    assert load_pretrained(checkpoint)[1] == load_pretrained(whole)[1]
    if preset in ("vae", "prior"):
        images = source("vae")
        measure = ["metrics", "--network", str(whole), "--data", images, "--metrics", "fd", "--num", "8"]
        capsys.readouterr()
        assert main([*measure, "--extractor", "random", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["fd"] > 0
    if preset == "vae":
        assert main(["export", "--network", str(whole), "--output", str(tmp_path / "vae.pt2")]) == 0
    if preset == "vocoder":
        path, files = tmp_path / "v.pt2", {"aigc_ext.json": ""}
        assert main(["export", "--network", str(whole), "--output", str(path), "--decompose"]) == 0
        program = torch.export.load(path, extra_files=files).module()
        assert program(torch.zeros(2, 8, 5)).shape == (2, 5 * 16)
        assert json.loads(files["aigc_ext.json"])["model_sha256"] == load_pretrained(whole)[1]
    HubGenerator.from_pretrained(whole).save_pretrained(tmp_path / "hub")
    again, before = load_pretrained(tmp_path / "hub")[0].state_dict(), load_pretrained(whole)[0].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in again.items())
    page = tmp_path / "report.html"
    assert main(["report", str(whole), "--output", str(page)]) == 0
    assert preset in page.read_text()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run(
    preset: str, source: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, outdir = source(preset), tmp_path / "runs"
    config = tmp_path / "small.json"
    config.write_text(json.dumps({**SMALL[preset], "batch": 8, "threads": 1}))
    arguments = ["--preset", preset, "--data", data, "--config", str(config), "--outdir", str(outdir)]
    capsys.readouterr()
    assert main(["train", *arguments, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["preset"] == preset
    assert "s/kimg" in shown.err
    assert not outdir.exists()


def test_a_mistake_is_one_line(
    source: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("vqgan", source("vqgan"), tmp_path / "runs", "--kimg", "0.008")
    capsys.readouterr()
    sample, waves = ["sample", "--network", str(run), "--outdir", str(tmp_path / "out")], source("vocoder")
    for arguments, message in (
        ([*sample, "--seeds", "0"], "makes nothing from seeds: '--input' gives it"),
        ([*sample, "--input", source("vqgan"), "--temperature", "1"], "'--input' says all"),
        ([*sample, "--input", source("vqgan"), "--trunc", "0.5"], "has no latents to project or truncate"),
        ([*sample, "--input", source("vqgan"), "--seeds", "0"], "exclude each other"),
        ([*sample, "--input", source("textgen")], "pairs.jsonl"),
        (["metrics", "--network", str(run), "--data", "digits"], "which makes no images of seeds"),
        (
            ["interpolate", "--network", str(run), "--seeds", "0,1", "--output", "a.mp4"],
            "must be one that makes images of latents",
        ),
        (
            ["export", "--network", str(run), "--output", "v.pt2"],
            "that makes images of latents, or a vocoder",
        ),
        (["train", "--resume", str(run), "--preset", "mlp"], "preset is 'mlp', but the other settings"),
        (
            ["train", "--preset", "vae", "--init-from", str(run)],
            "preset is 'vae', whose bottleneck is 'kl', but",
        ),
        (["train", "--preset", "mlp", "--init-from", str(run)], "is of preset vqgan, but must be a GAN's"),
        (
            ["train", "--preset", "mlp", "--init-from", str(run / "model")],
            "is Autoencoder, but must be a GAN's",
        ),
        (["robust", "--data", "digits", "--network", str(run)], "is of preset vqgan, but must be a GAN's"),
        (["train", "--preset", "vae", "--cbase", "8"], "the preset vae is no GAN"),
        (["train", "--preset", "vae", "--data", "digits", "--aug", "ada"], "there is no discriminator"),
        (["train", "--preset", "textgen", "--gamma", "1"], "--gamma is not for the preset textgen"),
        (["train", "--preset", "wavenet", "--data", "a.jsonl"], "a wavenet learns recordings"),
        (["train", "--preset", "vocoder", "--data", waves, "--mirror"], "data.mirror is True, but has no"),
        (["train", "--preset", "vocoder", "--data", waves, "--resolution", "8"], "data.resolution is (8, 8)"),
        (["train", "--data", "digits", "--set", "data.segment=8"], "data.segment is 8, but has no effect"),
        (["train", "--preset", "textgen", "--data", source("textgen"), "--mirror"], "data.mirror is True"),
        (
            ["train", "--preset", "textgen", "--data", source("textgen"), "--set", "data.balance=true"],
            "data.balance is true, but",
        ),
    ):
        assert main(arguments) == 2, arguments
        shown = capsys.readouterr().err
        assert shown.startswith("Error: "), shown
        assert shown.count("\n") == 1, shown
        assert message in shown, shown
    assert not (tmp_path / "out").exists()


def test_the_newest_run_is_named_once_and_for_all(
    source: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the run goes on, the newest one is itself."""
    images, runs = source("vae"), tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    codec = train("vqgan", images, runs, "--kimg", "0.008")
    config = tmp_path / "prior.json"
    config.write_text(json.dumps({**SMALL["prior"], "batch": 8, "grid": [2, 2]}))
    arguments = ["--preset", "prior", "--data", f"tokens:latest:{images}", "--config", str(config)]
    assert main(["train", *arguments, "--kimg", "0.008"]) == 0
    run = max(runs.iterdir())
    kept = json.loads((run / "config.json").read_text())["data"]["source"]
    assert kept == f"tokens:runs/{codec.name}:{images}"
    assert main(["train", "--resume", "latest", "--kimg", "0.016"]) == 0


def test_a_run_on_named_data_goes_on(
    source: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`text` is no path of which a file could have moved."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "aigc_ext" / "data"
    folder.mkdir(parents=True)
    shutil.copy(source("textgen"), folder / "text.jsonl")
    train("textgen", "text", tmp_path / "runs", "--kimg", "0.008")
    run = train("textgen", "text", tmp_path / "runs", "--resume", "latest", "--kimg", "0.016")
    assert json.loads((run / "config.json").read_text())["data"]["source"] == "text"


def test_items_are_made_anew_by_their_classes(
    source: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A conditional autoencoder is told the labels of the images that it is given."""
    images = Path(source("vae"))
    labelled = tmp_path / "labelled"
    shutil.copytree(images, labelled)
    labels = [[path.name, number % 2] for number, path in enumerate(sorted(images.glob("*.png")))]
    (labelled / "dataset.json").write_text(json.dumps({"labels": labels}))
    run = train("vqgan", str(labelled), tmp_path / "runs", "--cond", "--kimg", "0.008")
    assert load_pretrained(run)[0].num_classes == 2
    sample = ["sample", "--network", str(run), "--num", "3", "--outdir", str(tmp_path / "out"), "--input"]
    assert main([*sample, str(labelled)]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
