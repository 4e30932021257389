"""The Python programs under examples/, run as a user would, but with few steps."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aigc_ext.cli import main
from aigc_ext.tasks.adversarial import Trainer
from aigc_ext.tasks.likelihood import Trainer as LikelihoodTrainer
from tests.tasks.adversarial.helpers import config
from tests.tasks.likelihood import helpers as likelihood

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_accelerate_existing_gan(example):
    """Two steps of the plain and of the accelerated program end with the same figures."""
    lines = [
        example("accelerate_existing_gan.py", "--steps", 2, "--batch", 2, *options).splitlines()
        for options in ([], ["--plain"])
    ]
    assert re.fullmatch(r"[\d.]+ ms a step", lines[0][1])
    figures = np.array([re.findall(r"\d+\.\d+", line[0]) for line in lines], dtype=float)
    assert figures.shape == (2, 2)
    assert figures[0] == pytest.approx(figures[1], rel=5e-3)


def test_train_on_folder(example, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    shown = example("train_on_folder.py", "images", "--kimg", 0.016, "--batch", 8)
    (path,) = re.findall(r"samples (\S+)", shown)
    with Image.open(path) as image:
        assert image.size == (32, 32)
        assert image.text.keys() >= {"aigc_ext", "AIGC"}


def test_custom_discriminator_r1(example):
    shown = example("custom_discriminator_r1.py", "--kimg", 0.3)
    (path,) = re.findall(r"samples (\S+)", shown)
    with Image.open(path) as image:
        assert image.size == (4 * 64, 4 * 64)
    rows = (Path(path).parent / "stats.jsonl").read_text()
    assert re.search(r'"r1": [\d.]+', rows)


def test_own_training_loop(example):
    """Parts of a batch are the whole batch, also in somebody else's loop."""
    whole, parts = (example("own_training_loop.py", "--steps", 20, *more) for more in ((), ("--part", 16)))
    figures = [np.array(re.findall(r"\d+\.\d+", shown), dtype=float) for shown in (whole, parts)]
    assert len(figures[0]) == 5 * 4 + 1
    assert figures[0] == pytest.approx(figures[1], abs=2e-3)


def test_export_and_run(example):
    shown = example("export_and_run.py")
    there, here = re.findall(r"[\d.-]+\d(?=;|\n|$)", shown.splitlines()[-1])
    assert "images 5x3x16x16" in shown
    assert float(there) == pytest.approx(float(here), abs=2e-6)
    assert float(here) != 0


def test_vocoder_quality(example, tmp_path):
    run = Trainer.from_config(config("vocoder", kimg=0.05), outdir=tmp_path).fit().run_dir
    lines = example("vocoder_quality.py", run).splitlines()
    assert re.fullmatch(r"1 held-out recordings, 0 s, 12 mels every 32 samples", lines[0])
    assert len(lines) == 4
    for line in lines[1:]:
        assert re.fullmatch(r".*: LSD \d+\.\d\d dB, STFT loss \d+\.\d{3}, \d+x real time", line)
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"LSD {metrics['lsd']:.2f} dB, STFT loss {metrics['stft']:.3f}" in lines[1]


def test_caption_quality(example, tmp_path):
    """Of dark and light tiles, which keep their kind as codes."""
    source = likelihood.write_data(tmp_path)["captions"]
    trainer = LikelihoodTrainer.from_config(likelihood.config("captions", source), outdir=tmp_path / "runs")
    shown = example("caption_quality.py", trainer.fit().run_dir, "--steps", 100, "--guidance", 1)
    found = re.findall(
        r"(.+): mean over categories ([\d.]+), weighted by their images ([\d.]+) \(.*\)\n", shown
    )
    assert [what for what, *_ in found] == [
        f"{start}{part}{end}"
        for part in ("training", "held-out")
        for start, end in (
            ("", " images"),
            ("", " images, reconstructed"),
            ("samples of ", " captions, guidance 1"),
        )
    ]
    _, mean, weighted = found[0]
    assert float(mean) == float(weighted) > 0.9


def test_every_example_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.parametrize("recipe", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_recipes(recipe, tmp_path):
    preset = recipe.stem.removesuffix("_cpu")
    arguments = ["--preset", preset, "--config", recipe, "--data", "mnist5k", "--outdir", tmp_path]
    assert main(["train", *map(str, arguments), "--kimg", "0.03", "--metrics", "none"]) == 0
    (made,) = tmp_path.glob("*/config.json")
    written, resolved = json.loads(recipe.read_text()), json.loads(made.read_text())
    for key in ("generator", "discriminator", "loss", "ema", "augment"):
        assert written.get(key, {}).items() <= resolved[key].items()
