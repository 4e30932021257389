"""A batch in parts, one after another or in several processes, is the whole batch up to rounding."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.nn.split_batch import batch_randn
from aigc_ext.tasks.gan import STATISTICS, AdversarialStep, Mixing, Objective, Trainer, find_resume_point
from aigc_ext.tasks.gan.augment import AdaAugment
from aigc_ext.training import TrainResult, read_checkpoint
from aigc_ext.training.parts import part_size
from tests.tasks.gan.helpers import config
from tests.training.helpers import rows_of


class StyleGenerator(nn.Module):
    """The least that style mixing and path lengths ask for, with noise in a layer and a running mean."""

    z_dim, num_ws, num_classes, value_range = 3, 4, 0, (-1.0, 1.0)
    w_avg: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 5)
        self.layers = nn.ModuleList(nn.Linear(5, 16) for _ in range(self.num_ws))
        self.strength = nn.Parameter(torch.ones(()))
        self.register_buffer("w_avg", torch.zeros(5))
        self.register_buffer("constant", torch.tensor([0.1, 0.7]))

    def mapping(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        w = torch.tanh(self.map(z))
        with torch.no_grad():
            self.w_avg.lerp_(w.mean(0), 0.1)
        return w[:, None].expand(-1, self.num_ws, -1)

    def synthesis(self, w: Tensor) -> Tensor:
        x = sum(torch.sin(layer(w[:, i])) for i, layer in enumerate(self.layers))
        x = x + self.strength * batch_randn(len(w), 16, dtype=w.dtype)
        return torch.tanh(x).unflatten(1, (1, 4, 4))

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesis(self.mapping(z))


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 1))
    return StyleGenerator().double(), discriminator.double()


@pytest.mark.parametrize("kind", ["logistic", "relativistic"])
@pytest.mark.parametrize("train_generator", [True, False])
def test_parts_are_the_whole(kind: str, train_generator: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    real = torch.randn(12, 1, 4, 4, generator=rng, dtype=torch.float64)
    z, other = torch.randn(2, 12, 3, generator=rng, dtype=torch.float64)
    mixing = Mixing(other, torch.randint(1, 5, (12,), generator=rng))

    def run(part: int | None) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        generator, discriminator = pair()
        augment = AdaAugment(0.7).double()
        objective = Objective(
            discriminator,
            AdversarialLoss(kind),
            gamma=0.3,
            r2=True,
            path_weight=2.0,
            augment=augment,
            blur_sigma=0.8,
        )
        optimizers = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (generator, discriminator))
        step = AdversarialStep(generator, discriminator, objective, *optimizers, part_size=part)
        for seed in (5, 6):
            statistics = step(
                *(real, z),
                penalize=True,
                stretch=train_generator,
                train_generator=train_generator,
                mixing=mixing,
                seed=seed,
            )
        state = {**generator.state_dict(), **{f"d.{k}": v for k, v in discriminator.state_dict().items()}}
        return statistics, state, step.path_mean

    whole = run(None)
    assert whole[0].isfinite().all() == train_generator
    assert whole[1]["w_avg"].abs().max() > 0
    for part in (1, 3, 4, 6):
        parts = run(part)
        torch.testing.assert_close(parts[0], whole[0], equal_nan=True)
        for name, value in whole[1].items():
            torch.testing.assert_close(
                parts[1][name], value, rtol=1e-10, atol=1e-12, msg=partial("{}: {}".format, name)
            )
        assert torch.equal(parts[1]["constant"], whole[1]["constant"])
        torch.testing.assert_close(parts[2], whole[2])


STYLEGANS = {
    "stylegan2": {"mapping_layers": 2, "channel_max": 6},
    "stylegan3": {"mapping_layers": 1, "channel_max": 4, "num_layers": 4},
}


@pytest.mark.parametrize("family", STYLEGANS)
def test_running_means_of_our_generators_move_as_far_in_parts(family: str) -> None:
    shape = {"image_shape": (1, 8, 8), "num_classes": 0}
    torch.manual_seed(0)
    start = build_generator({"family": family, "z_dim": 8, "w_dim": 8, **STYLEGANS[family], **shape}).train()
    critic = build_discriminator({"family": "stylegan2", "channel_max": 6, "group_size": 1, **shape})
    real, z = torch.randn(8, 1, 8, 8), torch.randn(8, 8)
    moved = []
    for part in (None, 2):
        generator, discriminator = copy.deepcopy((start, critic))
        optimizers = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (generator, discriminator))
        objective = Objective(discriminator, AdversarialLoss())
        AdversarialStep(generator, discriminator, objective, *optimizers, part_size=part)(real, z, seed=3)
        before = dict(start.named_buffers())
        moved.append({name: buffer - before[name] for name, buffer in generator.named_buffers()})
    changed = {name for name, change in moved[0].items() if change.any()}
    assert "w_avg" in changed
    assert len(changed) == (1 if family == "stylegan2" else 6)
    for name in changed:
        # A later layer of StyleGAN3 gets inputs that each part has scaled by means of its own.
        torch.testing.assert_close(moved[1][name], moved[0][name], rtol=0.01, atol=1e-7)


def test_parts_of_another_seed_are_another_step() -> None:
    generator, discriminator = pair()
    objective = Objective(discriminator, AdversarialLoss("logistic"))
    other = copy.deepcopy((generator, discriminator))
    results = []
    for (g, d), seed in zip(((generator, discriminator), other), (1, 2), strict=True):
        optimizers = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (g, d))
        objective = Objective(d, AdversarialLoss("logistic"))
        step = AdversarialStep(g, d, objective, *optimizers, part_size=2)
        results.append(step(torch.zeros(4, 1, 4, 4).double(), torch.zeros(4, 3).double(), seed=seed))
    assert results[0][STATISTICS.index("loss_d")] != results[1][STATISTICS.index("loss_d")]


def test_what_cannot_be_split() -> None:
    generator, discriminator = pair()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (generator, discriminator)]
    objective = Objective(discriminator, AdversarialLoss("logistic"))
    step = AdversarialStep(generator, discriminator, objective, *optimizers, part_size=3)
    inputs = torch.zeros(4, 1, 4, 4).double(), torch.zeros(4, 3).double()
    with pytest.raises(ValueError, match="part_size is 3, but must divide the 4 samples"):
        step(*inputs, seed=1)
    step = AdversarialStep(generator, discriminator, objective, *optimizers, part_size=2)
    with pytest.raises(ValueError, match="seed is None"):
        step(*inputs)
    with pytest.raises(ConfigError, match="batch is 25, but must be a multiple of the 2 processes"):
        part_size(config(), 2)
    with pytest.raises(ConfigError, match="batch_gpu is 10, but must divide the 25 images"):
        part_size(config(batch_gpu=10), 1)
    assert part_size(config(batch=24, batch_gpu=4), 3) == 4


def test_accumulated_runs_are_the_plain_run(tmp_path: Path) -> None:
    options = {"kimg": 0.25, "loss__gamma": 0.1, "loss__r1_interval": 2, "augment__kind": "ada"}
    plain = Trainer.from_config(config(**options), outdir=tmp_path / "plain").fit()
    parts = Trainer.from_config(config(**options, batch_gpu=5), outdir=tmp_path / "parts").fit()
    assert_close_runs(plain, parts)


def assert_close_runs(one: TrainResult, other: TrainResult) -> None:
    a, b = read_checkpoint(one.checkpoint), read_checkpoint(other.checkpoint)
    for stem in ("generator", "discriminator", "ema"):
        for name, value in a.tensors[stem].items():
            torch.testing.assert_close(b.tensors[stem][name], value, rtol=2e-3, atol=2e-5)
    for row, same in zip(rows_of(one.run_dir), rows_of(other.run_dir), strict=True):
        for key, value in row.items():
            assert same[key] == (value and pytest.approx(value, rel=1e-3, abs=1e-4)), key


def processes(count: int, *arguments: str, outdir: Path) -> Path:
    """Runs `aigc-ext train` in that many processes; returns the newest checkpoint."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "aigc_ext.cli", "train", "--outdir", str(outdir), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = outdir.iterdir()
    return max((run_dir / "checkpoints").iterdir())


def test_two_processes_are_one_and_a_run_goes_on_with_another_number(tmp_path: Path) -> None:
    options = {"batch": 24, "kimg": 0.24, "tick": 0.12, "snap": 1, "loss__gamma": 0.1, "loss__r1_interval": 2}
    settings = config(**options, augment__kind="ada", augment__kimg=2.0, threads=1)
    (tmp_path / "config.json").write_text(settings.to_json())
    one = Trainer.from_config(settings, outdir=tmp_path / "one").fit()
    start = "--config", str(tmp_path / "config.json")
    processes(2, *start, "--kimg", "0.12", outdir=tmp_path / "two")
    half = find_resume_point("latest", tmp_path / "two")
    assert half.checkpoint is not None
    assert half.checkpoint.state["nimg"] == 120
    both = processes(2, "--resume", "latest", "--kimg", "0.24", outdir=tmp_path / "two")
    (run_dir,) = (tmp_path / "two").iterdir()
    assert len([json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]) == 2

    # From the half that two have done, one process goes on alone.
    resumed = Trainer.from_config(settings, outdir=tmp_path / "alone")
    resumed.restore(find_resume_point(str(both.parent / "000000-120"), tmp_path))
    alone = resumed.fit()
    for checkpoint in (both, alone.checkpoint):
        got, expected = read_checkpoint(checkpoint), read_checkpoint(one.checkpoint)
        assert got.state["nimg"] == 240
        for stem in ("generator", "discriminator", "ema"):
            for name, value in expected.tensors[stem].items():
                torch.testing.assert_close(got.tensors[stem][name], value, rtol=2e-3, atol=2e-5)
