from __future__ import annotations

import json
import logging
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import nn

from aigc_ext.config import ConfigError
from aigc_ext.data import TensorImages, open_dataset
from aigc_ext.sampling import Sampler
from aigc_ext.tasks.gan import STATISTICS, Trainer, find_resume_point, recipe, replay
from aigc_ext.training import NonFiniteError, RunError, read_checkpoint
from tests.data.helpers import MIXED_REASONS, mixed_folder
from tests.tasks.gan.helpers import PlainDiscriminator, PlainGenerator, config
from tests.training.helpers import files_of, rows_of, tiny_images


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    options = config(keep=2, loss__gamma=0.1, loss__r1_interval=4)
    return Trainer.from_config(options, outdir=tmp_path_factory.mktemp("runs"), desc="first try").fit()


def plain_trainer(data, options, outdir, **kwargs):
    torch.manual_seed(0)
    ranges: dict[str, Any] = {"z_dim": 6, "value_range": (-1.0, 1.0), **kwargs}
    return Trainer(
        PlainGenerator(data.image_shape),
        PlainDiscriminator(data.image_shape),
        data,
        options,
        outdir=outdir,
        **ranges,
    )


def test_the_run_directory(done):
    assert done.run_dir.name == "00000-mlp-digits-first_try"
    assert sorted(p.relative_to(done.run_dir).as_posix() for p in done.run_dir.rglob("*")) == sorted(
        ["config.json", "data.json", "log.txt", "stats.jsonl", "reals.png", "fakes_init.png"]
        + [f"fakes{name}.png" for name in ("000000-250", "000000-500", "000000-750", "000001")]
        + ["model", "model/config.json", "model/model.safetensors", "model/sha256.json", "checkpoints"]
        + [
            f"checkpoints/{name}{file}"
            for name in ("000000-750", "000001")
            for file in (
                "",
                "/generator.safetensors",
                "/discriminator.safetensors",
                "/ema.safetensors",
                "/training_state.safetensors",
                "/state.json",
            )
        ]
    )
    assert (done.step, done.nimg, done.signal) == (40, 1000, None)
    assert done.checkpoint == done.run_dir / "checkpoints" / "000001"
    assert done.grid == done.run_dir / "fakes000001.png"
    assert done.stats == done.run_dir / "stats.jsonl"
    assert "finished at step 40 (1000 images)" in (done.run_dir / "log.txt").read_text()
    assert "the labels of digits are not used" in (done.run_dir / "log.txt").read_text()


def test_the_figures(done):
    rows = [json.loads(line) for line in done.stats.read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [row["nimg"] for row in rows] == [125 * i for i in range(1, 9)]
    assert rows[-1]["epoch"] == pytest.approx(1000 / 1797)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    for row in rows:
        assert set(STATISTICS) | {"skipped_d", "skipped_g", "ema_decay", "img_per_sec", "memory_gb"} <= set(
            row
        )
        assert (row["skipped_d"], row["skipped_g"]) == (0, 0)
        assert 0 <= row["acc_real"] <= 1
        assert row["loss_d"] > 0
        assert row["r1"] > 0  # steps 0, 4, 8, ...: at least one in every tick of five
        assert row["memory_gb"] > 0.01
    assert rows[0]["loss_d"] != rows[1]["loss_d"]


def test_the_grids_are_the_seeds_of_the_snapshot(done):
    images = Sampler.from_pretrained(done.checkpoint).sample(range(8))
    assert np.array_equal(images, Sampler.from_pretrained(done.run_dir).sample(range(8)))
    # 4 columns and 2 rows of 8x8 pixels, each of them shown as 8x8.
    sheet = np.asarray(Image.open(done.grid))
    assert sheet.shape == (2 * 64, 4 * 64)
    for i in range(8):
        cell = sheet[64 * (i // 4) :, 64 * (i % 4) :][:64, :64]
        assert np.array_equal(cell[::8, ::8], images[i, :, :, 0])
        assert np.array_equal(cell[7::8, 7::8], images[i, :, :, 0])
    text = PngImageFile(done.grid).text
    assert json.loads(text["aigc_ext"])["seeds"] == list(range(8))
    assert "AIGC" in text
    reals = PngImageFile(done.run_dir / "reals.png")
    assert "AIGC" not in reals.text
    assert np.asarray(reals)[::8, ::8][:8, :8].shape == (8, 8)
    scale = reals.width // (4 * 8)
    shown = np.asarray(reals)[scale // 2 :: scale, scale // 2 :: scale]
    digits = open_dataset("digits")
    first = digits.read(recipe.spread(digits, 8))[0][:, 0].numpy()
    assert np.array_equal(
        shown, np.concatenate([np.concatenate(list(row), 1) for row in (first[:4], first[4:])])
    )


def test_the_model_is_the_average_of_the_checkpoint(done):
    saved = read_checkpoint(done.checkpoint).tensors
    assert (done.model / "model.safetensors").read_bytes() == files_of(done.checkpoint)["ema.safetensors"]
    assert saved["ema"].keys() == saved["generator"].keys()
    assert any(not torch.equal(saved["ema"][k], saved["generator"][k]) for k in saved["ema"])


def test_an_average_with_half_life_zero_is_the_generator(tmp_path):
    result = Trainer.from_config(config(kimg=0.1, ema__kimg=0), outdir=tmp_path).fit()
    saved = read_checkpoint(result.checkpoint).tensors
    assert all(torch.equal(saved["ema"][k], saved["generator"][k]) for k in saved["ema"])


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path):
    runs = [Trainer.from_config(config(kimg=0.1, seed=s), outdir=tmp_path).fit() for s in (0, 0, 1)]
    assert [run.run_dir.name[:5] for run in runs] == ["00000", "00001", "00002"]
    assert files_of(runs[0].checkpoint) == files_of(runs[1].checkpoint)
    assert files_of(runs[0].checkpoint) != files_of(runs[2].checkpoint)


def test_two_runs_in_two_threads_are_the_runs_that_they_are_alone(tmp_path):
    options = [
        config(kimg=0.75, step="eager", loss__gamma=0.1, loss__r1_interval=1, seed=seed) for seed in (0, 1)
    ]

    def trainers(name: str) -> list[Trainer]:
        return [Trainer.from_config(o, outdir=tmp_path / f"{name}{i}") for i, o in enumerate(options)]

    alone = [trainer.fit() for trainer in trainers("alone")]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns in the middle of everything
    try:
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(Trainer.fit, trainers("together")))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(together, alone, strict=True):
        assert files_of(one.checkpoint) == files_of(other.checkpoint)


def test_workers_change_nothing(tmp_path):
    runs = [Trainer.from_config(config(kimg=0.25, workers=n), outdir=tmp_path).fit() for n in (0, 3)]
    assert files_of(runs[0].checkpoint) == files_of(runs[1].checkpoint)


def test_training_learns(tmp_path):
    """The generator's mean image comes near the data's, which an untrained one is far from."""
    data = TensorImages("bright", torch.full((50, 1, 4, 4), 230, dtype=torch.uint8))
    options = config(kimg=4, tick=4, loss__gamma=3, loss__r1_interval=1, ema__kimg=0.5)
    for key in ("g_optim", "d_optim"):
        options = options.override(f"{key}.lr", 0.01).override(f"{key}.beta1", 0)
    trainer = plain_trainer(data, options, tmp_path)
    sample = Sampler(trainer.state.ema, z_dim=6, value_range=(-1.0, 1.0))
    before = sample.sample(range(32)).mean()
    trainer.fit()
    assert abs(before - 230) > 70
    assert abs(sample.sample(range(32)).mean() - 230) < 20


def test_modules_without_our_attributes(tmp_path):
    data = tiny_images()
    for missing in ("z_dim", "value_range"):
        with pytest.raises(ValueError, match=f"PlainGenerator has no attribute {missing}; pass {missing}="):
            plain_trainer(data, config(), tmp_path, **{missing: None})
    result = plain_trainer(data, config(kimg=0.1), tmp_path).fit()
    assert result.model is None
    assert not (result.run_dir / "model").exists()
    with pytest.raises(ValueError, match="has no `config` to build it from"):
        Sampler.from_pretrained(result.checkpoint)


def test_a_generator_of_another_shape_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="makes images of 8x8 pixels with 1 channels, but those of tiny have 4x4 with 1"
    ):
        Trainer(
            PlainGenerator((1, 8, 8)),
            PlainDiscriminator(),
            tiny_images(),
            config(),
            z_dim=6,
            value_range=(0.0, 1.0),
        )


def test_labels_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"data.cond is true, but tiny has no labels"):
        plain_trainer(tiny_images(), config(data__cond=True), tmp_path)


def test_nothing_is_written_before_fit(tmp_path):
    Trainer.from_config(config(), outdir=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_an_outdir_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=r"no run directory can be made in .*runs: (File exists|Not a dir)"):
        Trainer.from_config(config(), outdir=tmp_path / "runs").fit()


def test_settings_of_the_process_are_put_back(tmp_path):
    threads = torch.get_num_threads()
    handlers = list(logging.getLogger("aigc_ext").handlers)
    result = Trainer.from_config(
        config(kimg=0.1, threads=threads + 1, deterministic=True), outdir=tmp_path
    ).fit()
    assert json.loads((result.checkpoint / "state.json").read_text())["threads"] == threads + 1
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert logging.getLogger("aigc_ext").handlers == handlers
    assert not any(logging.getLogger(f"aigc_ext.training.{result.run_dir.name}").handlers)


def test_another_number_of_threads_is_said_on_resume(tmp_path):
    threads = torch.get_num_threads()
    first = Trainer.from_config(config(kimg=0.1, threads=threads + 1), outdir=tmp_path).fit()
    point = find_resume_point(str(first.run_dir), tmp_path)
    trainer = Trainer.from_config(point.config.override("threads", threads), outdir=tmp_path)
    trainer.restore(point)
    trainer.fit()
    expected = f"the run had {threads + 1} CPU threads and now has {threads}: sums may round differently"
    assert expected in (first.run_dir / "log.txt").read_text()


# Numbers that are not finite


class Exploding(nn.Module):
    """A discriminator whose logits are infinite in the calls from `first` to `last`."""

    def __init__(self, shape, first, last):
        super().__init__()
        self.inner, self.calls, self.first, self.last = PlainDiscriminator(shape), 0, first, last

    def forward(self, images):
        self.calls += 1
        logits = self.inner(images)
        return logits * torch.inf if self.first <= self.calls <= self.last else logits


def exploding_trainer(outdir, first, last, **overrides):
    data = tiny_images()
    torch.manual_seed(0)
    discriminator = Exploding(data.image_shape, first, last)
    return Trainer(
        PlainGenerator(data.image_shape),
        discriminator,
        data,
        config(**overrides),
        outdir=outdir,
        z_dim=6,
        value_range=(-1.0, 1.0),
    )


def test_steps_that_are_not_finite_are_skipped_counted_and_logged(tmp_path):
    # Three calls a step: real, fake, and fake again. So the steps 4, 5 and 6 fail.
    result = exploding_trainer(tmp_path, 10, 18, kimg=0.25, nonfinite_limit=4).fit()
    rows = rows_of(result.run_dir)
    assert [(row["skipped_d"], row["skipped_g"]) for row in rows] == [(2, 2), (3, 3)]
    assert all(row["loss_d"] is not None for row in rows)
    log = (result.run_dir / "log.txt").read_text()
    assert (
        "WARNING step 5: so far 2 discriminator and 2 generator steps were not finite and were skipped" in log
    )
    assert "WARNING step 10: so far 3 discriminator and 3 generator steps" in log
    assert all(
        tensor.isfinite().all() for tensor in read_checkpoint(result.checkpoint).tensors["ema"].values()
    )


def test_a_tick_without_a_finite_step_has_no_means(tmp_path):
    result = exploding_trainer(tmp_path, 16, 45, kimg=0.5).fit()
    assert [row["loss_d"] is None for row in rows_of(result.run_dir)] == [False, True, True, False]


def test_a_long_streak_stops_the_run_with_a_dump(tmp_path):
    trainer = exploding_trainer(tmp_path, 37, 10**9, nonfinite_limit=5)
    with pytest.raises(NonFiniteError, match="stopped at step 17: 5 steps in a row") as error:
        trainer.fit()
    dump = error.value.dump
    assert dump == trainer.run_dir / "nonfinite-000000-425"
    assert f"ERROR {error.value}" in (trainer.run_dir / "log.txt").read_text()
    state = read_checkpoint(dump).state
    assert (state["step"], state["nimg"], state["last_checkpoint"]) == (17, 425, "000000-250")
    assert state["statistics"]["loss_d"] in ("inf", "nan")
    # The checkpoint before is whole, and the run resumes from it.
    found = find_resume_point(str(trainer.run_dir), tmp_path).checkpoint
    assert found is not None
    assert found.path.name == "000000-250"
    with pytest.raises(ValueError, match="its generator has no `config` to build it from; pass generator="):
        replay(dump)
    again = replay(dump, PlainGenerator(), Exploding((1, 4, 4), 1, 10**9))
    assert again.reproduced
    assert set(again.bad_d) == {
        "inner.first.weight",
        "inner.first.bias",
        "inner.last.weight",
        "inner.last.bias",
    }
    # The same step with a sound discriminator is sound.
    sound = replay(dump, PlainGenerator(), Exploding((1, 4, 4), 10**9, 0))
    assert not sound.reproduced
    assert (sound.bad_d, sound.bad_g) == ((), ())


def test_a_generator_that_learns_in_every_third_step_and_never_does_stops_the_run(tmp_path):
    trainer = exploding_trainer(tmp_path, 10**9, 0, n_dis=3, nonfinite_limit=4)
    # Sound images, no sound gradient: the discriminator learns on.
    trainer.state.generator.last.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match="stopped at step 12: 4 steps in a row"):
        trainer.fit()
    assert trainer.state.skipped == (0, 4)


def test_a_diverging_run_of_our_networks_can_be_replayed(tmp_path):
    trainer = Trainer.from_config(config(loss__kind="lsgan", nonfinite_limit=3), outdir=tmp_path)
    with torch.no_grad():
        for p in trainer.state.discriminator.parameters():
            p.fill_(1e30)
    with pytest.raises(NonFiniteError) as error:
        trainer.fit()
    again = replay(error.value.dump)
    assert again.reproduced
    written = read_checkpoint(error.value.dump).state["statistics"]
    assert [str(again.loss_d), str(again.loss_g)] == [written["loss_d"], written["loss_g"]]


def test_the_streak_survives_a_resume(tmp_path):
    first = exploding_trainer(tmp_path, 19, 10**9, kimg=0.25, nonfinite_limit=6).fit()
    assert read_checkpoint(first.checkpoint).state["streaks"] == [4, 4]
    point = find_resume_point(str(first.run_dir), tmp_path)
    second = exploding_trainer(tmp_path, 1, 10**9, kimg=1, nonfinite_limit=6)
    second.restore(point)
    with pytest.raises(NonFiniteError, match="stopped at step 12: 6 steps in a row"):
        second.fit()


def test_a_damaged_or_ordinary_checkpoint_is_no_dump(done, tmp_path):
    with pytest.raises(ValueError, match=r"it is no dump: it has no inputs.safetensors"):
        replay(done.checkpoint)
    with pytest.raises(ValueError, match=r"state.json cannot be read"):
        replay(tmp_path)


# Parts


def test_the_malloc_option_is_used(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("aigc_ext.training.loop.keep_freed_memory", lambda: calls.append(1))
    for mode, count in (("default", 0), ("keep", 1)):
        Trainer.from_config(config(kimg=0.1, malloc=mode), outdir=tmp_path).fit()
        assert len(calls) == count


def test_a_folder_with_bad_files_trains_on_what_is_good_and_reports_the_rest(tmp_path, caplog):
    folder = mixed_folder(tmp_path / "images")
    settings = config(
        data__max_left_out=1.0, data__source=str(folder), batch=4, kimg=0.02, tick=0.01, grid=[2, 2]
    )
    with caplog.at_level("WARNING"):
        done = Trainer.from_config(settings, outdir=tmp_path / "runs").fit()
    assert done.nimg == 20
    report = (done.run_dir / "bad_files.txt").read_text(encoding="utf-8").splitlines()
    reasons = dict(line.split(": ", 1) for line in report)
    assert reasons.keys() == MIXED_REASONS.keys()
    for name, reason in MIXED_REASONS.items():
        assert reason in reasons[name]
    assert f"{len(MIXED_REASONS)} files of images are left out (bad_files.txt)" in caplog.text


def test_metrics_are_taken_at_snapshots_and_keep_the_best_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = config(metrics=["fd", "pr"], metric_images=64, kimg=1.0, keep=1, data__cond=True)
    done = Trainer.from_config(settings, outdir=tmp_path).fit()
    rows = [json.loads(line) for line in (done.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in rows] == [250, 500, 750, 1000]
    assert all(row["fd"] > 0 and 0 <= row["precision"] <= 1 for row in rows)
    best = min(rows, key=lambda row: row["fd"])["checkpoint"]
    left = {path.name for path in (done.run_dir / "checkpoints").iterdir()}
    assert left == {best, done.checkpoint.name}
    # A resumed run measures the same, and no row twice.
    whole = (done.run_dir / "metrics.jsonl").read_bytes()
    first = Trainer.from_config(settings.override("kimg", 0.75), outdir=tmp_path / "again").fit()
    point = find_resume_point(str(first.run_dir), tmp_path)
    resumed = Trainer.from_config(point.config.override("kimg", 1.0), outdir=tmp_path / "again")
    resumed.restore(point)
    assert (resumed.fit().run_dir / "metrics.jsonl").read_bytes() == whole


def test_metrics_of_data_without_labels_use_random_features(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    networks = PlainGenerator(), PlainDiscriminator()
    settings = config(metrics=["kid"], metric_images=30, kimg=0.05)
    trainer = Trainer(*networks, tiny_images(), settings, outdir=tmp_path, z_dim=6, value_range=(-1.0, 1.0))
    with caplog.at_level("INFO"):
        done = trainer.fit()
    assert "features of random weights" in caplog.text
    assert "kid" in json.loads((done.run_dir / "metrics.jsonl").read_text())


def test_a_signal_waits_for_no_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = config(metrics=["kid"], metric_images=30, kimg=0.5)
    whole = plain_trainer(tiny_images(), settings, tmp_path / "whole").fit()
    trainer = plain_trainer(tiny_images(), settings, tmp_path / "stopped")
    one_step = trainer._one_step

    def one_step_and_a_signal(*batch):
        if trainer.state.step == 12:
            signal.raise_signal(signal.SIGTERM)
        return one_step(*batch)

    trainer._one_step = one_step_and_a_signal
    stopped = trainer.fit()
    assert stopped.checkpoint.name == "000000-325"
    rows = (stopped.run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["nimg"] for row in rows] == [250]
    trainer._one_step = one_step
    done = trainer.fit()
    assert (done.run_dir / "metrics.jsonl").read_bytes() == (whole.run_dir / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"augment__kind": "ada", "loss__kind": "relativistic"}, "augment.kind is 'ada', but loss.kind is"),
        ({"loss__mixing": 0.5}, "loss.mixing is 0.5, but must be 0: MLPGenerator has no mapping"),
        ({"loss__path_weight": 2.0}, "loss.path_weight is 2.0, but must be 0: MLPGenerator has no mapping"),
        ({"batch_gpu": 10}, "batch_gpu is 10, but must divide the 25 images"),
        ({"augment__kind": "ada", "loss__kind": "wgan"}, "augment.kind is 'ada', but loss.kind is 'wgan'"),
        ({"d_optim__lr_end": 1e-5}, "d_optim.lr_end is 1e-05, but must be null: ramp_kimg is 0"),
        ({"augment__p_start": 0.0}, "augment.p_start is 0.0, but must be null: ramp_kimg is 0"),
    ],
)
def test_recipes_that_do_not_fit_the_networks(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        Trainer.from_config(config(**overrides), outdir=tmp_path)


def test_a_penalty_that_grows_from_nothing_is_taken(tmp_path):
    settings = config(loss__gamma=0.0, loss__gamma_end=1.0, loss__r1_interval=1, ramp_kimg=0.2, kimg=0.25)
    done = Trainer.from_config(settings, outdir=tmp_path).fit()
    rows = rows_of(done.run_dir)
    assert [row["r1"] is not None for row in rows] == [True, True]
    assert rows[0]["gamma"] < rows[1]["gamma"] == 1.0


@pytest.mark.parametrize("step", ["eager", "native", "traced"])
def test_the_weight_decay_follows_the_ramp_in_the_step(tmp_path, step):
    """With rates that move nothing else: what is left of a weight is the product of its decays."""
    decay = {"lr": 0.1, "weight_decay": 1.0, "weight_decay_end": 0.0, "eps": 1e12}
    overrides = {f"g_optim__{key}": value for key, value in decay.items()}
    settings = config(**overrides, ramp_kimg=0.2, step=step)
    trainer = Trainer.from_config(settings, outdir=tmp_path)
    before = [p.detach().clone() for p in trainer.state.generator.parameters()]
    with trainer.prepared_step() as take:
        for _ in range(10):
            take()
    left = np.prod([1 - 0.1 * (1 + np.cos(np.pi * min(25 * step / 200, 1))) / 2 for step in range(10)])
    for p, was in zip(trainer.state.generator.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), was * left)


def test_the_probability_of_augmentation_follows_the_ramp_from_the_first_step_on(tmp_path):
    settings = config(augment={"kind": "fixed", "p": 0.5, "p_start": 0.1}, ramp_kimg=0.2)
    trainer = Trainer.from_config(settings, outdir=tmp_path)
    seen = []
    trainer.state.augment.register_forward_pre_hook(lambda module, _: seen.append(module.p.item()))
    with trainer.prepared_step() as take:
        for _ in range(10):
            take()
    expected = [0.1 + 0.4 * (1 - np.cos(np.pi * min(25 * step / 200, 1))) / 2 for step in range(10)]
    assert seen[::3] == pytest.approx(expected)  # real, fake, and fake again


def test_a_step_that_is_not_finite_says_nothing_about_the_probability_of_augmentation(tmp_path):
    settings = config(augment={"kind": "ada", "kimg": 0.1, "interval": 1})
    trainer = Trainer.from_config(settings, outdir=tmp_path)
    trainer.state.augment.set_p(0.5)
    with trainer.prepared_step() as take:
        take()
        moved = trainer.state.augment.p.item()
        assert abs(moved - 0.5) == pytest.approx(0.25)
        with torch.no_grad():
            next(trainer.state.discriminator.parameters()).fill_(torch.nan)
        assert take()[STATISTICS.index("acc_real")].isnan()
    assert trainer.state.augment.p == moved


def test_a_minibatch_deviation_that_parts_make_smaller_is_said(tmp_path):
    networks = {
        "generator": {"family": "mlp", "z_dim": 4, "hidden": [8]},
        "discriminator": {"family": "stylegan2", "channel_max": 4},
    }
    trainer = Trainer.from_config(
        config(**networks, batch=6, batch_gpu=3, kimg=0.006, grid=[1, 1]), outdir=tmp_path
    )
    log = (trainer.fit().run_dir / "log.txt").read_text()
    expected = "WARNING the discriminator gets 3 images at once, no multiple of its group_size, 4"
    assert f"{expected}: its minibatch's standard deviation is taken in groups of 3" in log
    critic = trainer.state.discriminator
    for images, end in ((6, "groups of 3"), (5, "is off"), (1, "is off")):
        warning = recipe.smaller_groups(critic, images)
        assert warning is not None
        assert warning.endswith(end)
    assert recipe.smaller_groups(critic, 4) is recipe.smaller_groups(critic, 8) is None
    assert recipe.smaller_groups(PlainDiscriminator(), 1) is None
