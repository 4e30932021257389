"""Every preset from the command line: train on colour images, resume, sample and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_ext.cli.main import main
from aigc_ext.tasks.gan import PRESETS
from aigc_ext.training import read_checkpoint
from tests.training.helpers import files_of

STYLE: dict[str, Any] = {"generator": {"z_dim": 8, "w_dim": 8, "mapping_layers": 1}, "cmax": 6}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"generator": {"z_dim": 8, "hidden": [8]}, "discriminator": {"hidden": [8]}},
    "dcgan": {"generator": {"z_dim": 8, "channels": 6}, "discriminator": {"channels": 6}},
    "sngan": {"generator": {"z_dim": 8, "channels": 6}, "discriminator": {"channels": 6}},
    "stylegan2": STYLE,
    "stylegan3-t": {**STYLE, "generator": {**STYLE["generator"], "num_layers": 4}},
    "stylegan3-r": {**STYLE, "generator": {**STYLE["generator"], "num_layers": 4}},
    "r3gan": {"generator": {"blocks": 1}, "discriminator": {"blocks": 1}, "cmax": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 colour images of 16x8 pixels."""
    path = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(generator.integers(0, 256, (8, 16, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_from_training_to_report(
    preset: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = dict(SMALL[preset])
    cmax = ["--cmax", str(small.pop("cmax"))] if "cmax" in small else []
    config = tmp_path / "small.json"
    config.write_text(
        json.dumps({**small, "grid": [2, 2], "batch": 8, "tick": 0.016, "snap": 1, "threads": 1})
    )
    arguments = ["--preset", preset, "--data", str(folder), "--config", str(config), *cmax]

    def train(outdir: str, *more: str) -> Path:
        assert main(["train", "--outdir", str(tmp_path / outdir), *more]) == 0
        (run_dir,) = (tmp_path / outdir).iterdir()
        return run_dir

    whole = train("whole", *arguments, "--kimg", "0.032")
    train("parts", *arguments, "--kimg", "0.016")
    parts = train("parts", "--resume", "latest", "--kimg", "0.032")
    for name in ("000000-016", "000000-032"):
        assert files_of(whole / "checkpoints" / name) == files_of(parts / "checkpoints" / name)
    state = read_checkpoint(whole / "checkpoints" / "000000-032").tensors["ema"]
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())

    out = tmp_path / "out"
    assert (
        main(["sample", "--network", str(whole), "--seeds", "0-1", "--trunc", "0.7", "--outdir", str(out)])
        == 0
    )
    with Image.open(out / "seed0000.png") as image:
        assert image.size == (16, 8)
    page = tmp_path / "report.html"
    assert main(["report", str(whole), "--output", str(page)]) == 0
    assert preset in page.read_text()
    capsys.readouterr()


def test_a_dry_run_prints_the_completed_recipe_and_its_cost(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    arguments = ["--preset", "r3gan", "--data", str(folder), "--cbase", "128", "--cmax", "8", "--batch", "8"]
    assert main(["train", "--outdir", str(tmp_path / "runs"), *arguments, "--dry-run"]) == 0
    shown = capsys.readouterr()
    completed = json.loads(shown.out)
    for network in ("generator", "discriminator"):
        assert (completed[network]["channel_base"], completed[network]["channel_max"]) == (128, 8)
    loss = completed["loss"]
    assert loss["gamma"] == 0.0625  # 0.5 at 32x32, proportional to the number of pixels below that
    assert loss["gamma_end"] == pytest.approx(loss["gamma"] / 10)
    assert "parameters" in shown.err
    assert "s/kimg" in shown.err
    assert torch.get_num_threads() == before
    assert not (tmp_path / "runs").exists()
