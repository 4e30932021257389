"""The engine trains a task that it does not know, tests/training/vae.py. It does not know the GAN either."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import aigc_ext.training
from aigc_ext.config import ConfigError
from aigc_ext.training import Batch, CheckpointError, Loop, NonFiniteError, RunConfig, cost, read_checkpoint
from aigc_ext.training.config import DataConfig
from aigc_ext.training.run import resume_point
from tests.training.helpers import files_of, rows_of
from tests.training.vae import CONFIG, VAE, resumed

ENGINE = [
    path for path in sorted(Path(aigc_ext.training.__file__).parent.glob("*.py")) if path.name != "_moved.py"
]


def with_(**changes) -> RunConfig:
    return dataclasses.replace(CONFIG, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Loop(VAE(CONFIG), outdir=tmp_path_factory.mktemp("runs"), desc="toy").fit()


def test_a_task_of_its_own_learns_and_leaves_a_run(whole):
    run_dir = whole.run_dir
    assert run_dir.name == "00000-vae-noise-toy"
    snapshots = ["000000-500", "000001", "000001-500", "000002"]
    assert sorted(p.name for p in run_dir.iterdir()) == sorted(
        ["config.json", "data.json", "log.txt", "stats.jsonl", "checkpoints", "samples_init.png"]
        + [f"samples{name}.png" for name in snapshots]
    )
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == snapshots
    assert sorted(p.name for p in whole.checkpoint.iterdir()) == [
        "network.safetensors",
        "state.json",
        "training_state.safetensors",
    ]
    assert (whole.grid, whole.model, whole.step) == (run_dir / "samples000002.png", None, 20)
    rows = rows_of(run_dir)
    assert list(rows[0]) == ["step", "nimg", "epoch", "loss", "reconstruction", "divergence", "skipped_vae"]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert RunConfig.from_json(run_dir / "config.json") == CONFIG
    untrained, trained = (np.asarray(Image.open(run_dir / f"samples{n}.png")) for n in ("_init", "000002"))
    assert untrained.shape == trained.shape == (2 * 28, 4 * 28)
    assert (untrained != trained).any()


def test_it_resumes_with_the_same_bits(whole, tmp_path):
    half = Loop(VAE(with_(kimg=1.0)), outdir=tmp_path).fit()
    again = resumed(half.run_dir).fit()
    assert again.run_dir == half.run_dir
    assert files_of(again.checkpoint) == files_of(whole.checkpoint)
    assert rows_of(again.run_dir) == rows_of(whole.run_dir)
    assert again.grid.read_bytes() == whole.grid.read_bytes()
    log = (half.run_dir / "log.txt").read_text()
    assert "goes on at step 10" in log
    assert "changed: kimg: 1.0 -> 2.0" in log
    with pytest.raises(ConfigError, match="seed is 1, but the run was started with 0"):
        resumed(half.run_dir, with_(seed=1))
    with pytest.raises(ConfigError, match="preset is 'other', but the run was started with 'vae'"):
        resumed(half.run_dir, with_(preset="other"))


def close(one: Path, other: Path) -> None:
    ours, theirs = read_checkpoint(one).tensors, read_checkpoint(other).tensors
    assert ours.keys() == theirs.keys()
    for stem, tensors in ours.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(theirs[stem][name], tensor, rtol=2e-3, atol=2e-5)


def test_a_batch_in_parts_is_the_whole_batch(tmp_path):
    results = [Loop(VAE(with_(kimg=0.5, batch_gpu=part)), outdir=tmp_path).fit() for part in (None, 25, 100)]
    close(results[0].checkpoint, results[1].checkpoint)
    assert files_of(results[0].checkpoint) == files_of(results[2].checkpoint)
    assert files_of(results[0].checkpoint) != files_of(results[1].checkpoint)


class Normed(VAE):
    """With batch norm, which mixes the samples of a part."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.encoder[1] = torch.nn.Sequential(torch.nn.BatchNorm1d(32), torch.nn.ReLU())


def test_running_means_are_those_of_the_parts_averaged(tmp_path):
    whole, parts = (
        read_checkpoint(Loop(Normed(with_(kimg=0.1, batch_gpu=part)), outdir=tmp_path).fit().checkpoint)
        for part in (None, 25)
    )
    name = "0.1.0.running_mean"
    assert whole.tensors["network"][name].any()
    torch.testing.assert_close(parts.tensors["network"][name], whole.tensors["network"][name])
    assert not torch.equal(parts.tensors["network"]["0.0.weight"], whole.tensors["network"]["0.0.weight"])


def test_two_processes_share_a_run(whole, tmp_path):
    def start(*options: str) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "-m", "tests.training.vae", str(tmp_path), *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stderr

    start()
    (run_dir,) = tmp_path.iterdir()
    close(run_dir / "checkpoints" / "000002", whole.checkpoint)
    for row, other in zip(rows_of(run_dir), rows_of(whole.run_dir), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    before = files_of(run_dir / "checkpoints" / "000002")
    start("--resume")
    assert files_of(run_dir / "checkpoints" / "000002") == before, "a complete run is left as it is"


def test_a_step_that_is_not_finite_is_counted_and_ends_the_run(tmp_path):
    loop = Loop(VAE(CONFIG), outdir=tmp_path)
    with torch.no_grad():
        loop.state.decoder[0].weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="stopped at step 3: 3 steps in a row") as error:
        loop.fit()
    assert "runs it again" not in str(error.value)
    state = read_checkpoint(error.value.dump).state
    assert (state["streaks"], state["skipped"], state["statistics"]["loss"]) == ([3], [3], "nan")
    assert "network" in read_checkpoint(error.value.dump).tensors


def test_refused_steps_are_logged_by_the_learners_name(tmp_path, monkeypatch):
    loop = Loop(VAE(with_(kimg=0.5)), outdir=tmp_path)
    step, bad = loop.task.step, iter([True, True])

    def sometimes_bad(batch, at):
        return step(batch._replace(images=batch.images * torch.nan) if next(bad, False) else batch, at)

    monkeypatch.setattr(loop.task, "step", sometimes_bad)
    done = loop.fit()
    expected = "WARNING step 5: so far 2 autoencoder steps were not finite and were skipped"
    assert expected in (done.run_dir / "log.txt").read_text()
    assert rows_of(done.run_dir)[0]["skipped_vae"] == 2


def test_a_checkpoint_of_other_networks_is_refused(whole):
    class Other(VAE):
        def state(self):
            return {"network": self.network, "second": self.decoder, "optimizer": self.optimizer}

    with pytest.raises(CheckpointError, match=r"it has no second.safetensors"):
        Loop(Other(CONFIG)).restore(resume_point(str(whole.run_dir), whole.run_dir.parent, RunConfig))


def test_a_task_without_a_dry_run_says_so():
    with pytest.raises(NotImplementedError, match="VAE has no dry run"):
        cost.probe(Loop(VAE(CONFIG)))


def test_a_batch_of_any_fields():
    batch = Batch(labels=torch.arange(4), text=torch.arange(8).view(4, 2))
    part = batch.rows(slice(1, 3)).to(torch.device("cpu"))
    assert part.images is part.audio is None
    assert part.labels is not None
    assert part.labels.tolist() == [1, 2]
    assert part.text is not None
    assert part.text.tolist() == [[2, 3], [4, 5]]


# ---- the engine's source -----------------------------------------------------------------------------------


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.stem)
def test_the_engine_imports_no_task(path):
    """Only _moved.py names one, for the old names."""
    packages = (
        "aigc_ext.tasks",
        "aigc_ext.models",
        "aigc_ext.losses",
        "aigc_ext.sampling",
        "aigc_ext.metrics",
    )
    assert not [name for name in imported(path) if name.startswith(packages)]


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.stem)
def test_the_engine_speaks_of_no_gan(path):
    text = path.read_text(encoding="utf-8")
    # PyTorch's sources of random numbers, and Python's functions that yield.
    allowed = r"torch\.Generator|default_generators?|\b(number|global) generators|\bGenerator[,\[\n]"
    forbidden = r"generator|discriminator|latent|\bpng\b|\br[12]\b|\bd_real\b|fakes"
    assert not re.findall(forbidden, re.sub(allowed, "", text), re.IGNORECASE)


def test_old_names_are_the_one_exception():
    moved = Path(aigc_ext.training.__file__).with_name("_moved.py")
    assert any(name.startswith("aigc_ext.tasks") for name in imported(moved))


@pytest.mark.parametrize(("balance", "share"), [(False, 0.1), (True, 0.5)])
def test_a_run_can_show_all_classes_as_often(balance: bool, share: float) -> None:
    task = VAE(with_(data=DataConfig(balance=balance)))
    task.data.labels = (torch.arange(5000) >= 4500).long()
    batches = Loop(task)._batches()
    drawn = torch.cat([next(batches)[1] for _ in range(50)])
    batches.close()
    assert float(drawn.double().mean()) == share
