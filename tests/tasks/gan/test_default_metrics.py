"""Metrics that nobody asked for: where they cost less than a tenth of a run's time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from aigc_ext.data import TensorImages
from aigc_ext.metrics.cost import MetricSeconds, estimate_seconds
from aigc_ext.sampling import Sampler
from aigc_ext.tasks.gan import PRESETS, TrainConfig, Trainer, find_resume_point
from aigc_ext.tasks.gan import trainer as training
from aigc_ext.training import TrainResult
from tests.tasks.gan.helpers import PlainDiscriminator, PlainGenerator, config

CPU = torch.device("cpu")
LONG = config(metric_images=16, kimg=0.5, tick=0.125, snap=2)  # two snapshots, of 32 images in all


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def measured(monkeypatch):
    """Sets the seconds of a step, of which there are 20, and of the metrics of a run."""

    def set_seconds(step: float, metrics: float) -> None:
        monkeypatch.setattr(training, "seconds_per_step", lambda *_, **__: step)
        monkeypatch.setattr(training, "estimate_seconds", lambda *_: MetricSeconds(metrics, 0.0))

    return set_seconds


def metrics_of(done: TrainResult) -> Any:
    return json.loads((done.run_dir / "config.json").read_text())["metrics"]


def test_they_are_on_where_they_cost_little(tmp_path, measured, caplog) -> None:
    measured(step=1.0, metrics=1.9)
    done = Trainer.from_config(LONG, outdir=tmp_path).fit()
    assert metrics_of(done) == ["fd", "coverage"]
    said = "metrics: fd,coverage at each snapshot (about 1.9 s of 21.9 s; --metrics none turns them off)"
    assert said in caplog.messages
    rows = [json.loads(line) for line in (done.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert {"fd", "classes_found"} <= rows[0].keys()


def test_they_are_off_where_they_cost_more(tmp_path, measured, caplog) -> None:
    measured(step=1.0, metrics=2.1)
    done = Trainer.from_config(LONG, outdir=tmp_path).fit()
    assert metrics_of(done) == []
    assert not (done.run_dir / "metrics.jsonl").exists()
    said = (
        "metrics: none, since fd,coverage would take about 2.1 s of 22.1 s; "
        "--metrics fd,coverage takes them all the same"
    )
    assert said in caplog.messages


def test_data_without_labels_has_the_distance_only(tmp_path, measured) -> None:
    measured(step=1.0, metrics=1.0)
    data = TensorImages("grey", torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8))
    networks = Trainer.from_config(LONG).task
    done = Trainer(networks.generator, networks.discriminator, data, LONG, outdir=tmp_path).fit()
    assert metrics_of(done) == ["fd"]


@pytest.mark.parametrize("asked", [[], ["kid"]])
def test_what_was_asked_for_is_taken(tmp_path, monkeypatch, asked) -> None:
    monkeypatch.setattr(training, "seconds_per_step", None)  # nothing is measured
    done = Trainer.from_config(LONG.override("metrics", asked), outdir=tmp_path).fit()
    assert metrics_of(done) == asked


def refused(made: Trainer, caplog: Any) -> str:
    assert metrics_of(made.fit()) == []
    (line,) = (message for message in caplog.messages if message.startswith("metrics:"))
    caplog.clear()
    return line


def test_where_nothing_is_measured(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(training, "seconds_per_step", None)
    short = LONG.override("metric_images", 250)  # as many as the run has, at its two snapshots
    line = refused(Trainer.from_config(short, outdir=tmp_path), caplog)
    assert "since the run is short; --metrics fd,coverage takes" in line
    data = TensorImages("own", torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8))
    options: Any = {"outdir": tmp_path, "z_dim": 6, "value_range": (-1, 1)}
    own = Trainer(PlainGenerator(), PlainDiscriminator(), data, LONG, **options)
    assert "since networks of your own are not tried" in refused(own, caplog)
    labels = torch.tensor([0] * 39 + [1])
    lonely = TensorImages("lonely", torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8), labels)
    task = Trainer.from_config(LONG).task
    line = refused(Trainer(task.generator, task.discriminator, lonely, LONG, outdir=tmp_path), caplog)
    assert "since a classifier of lonely cannot be trained: labels has 1 images of class 1" in line


def small(preset: str) -> TrainConfig:
    changes: dict[str, Any] = {
        "data.source": "digits",
        "batch": 10,
        "kimg": 0.1,
        "device": "cpu",
        "metric_images": 16,
    }
    changes |= {"tick": 0.05, "snap": 2}
    if preset == "mlp":
        changes |= {"generator.hidden": [16], "discriminator.hidden": [16]}
    elif preset == "dcgan":
        changes |= {"generator.channels": 4, "discriminator.channels": 4}
    else:
        changes |= {"generator.z_dim": 8, "generator.w_dim": 8, "loss.path_weight": 2.0}
        changes |= {
            f"{n}.channel_{c}": v
            for n in ("generator", "discriminator")
            for c, v in (("base", 32), ("max", 8))
        }
    settings = PRESETS[preset]
    for key, value in changes.items():
        settings = settings.override(key, value)
    return settings


@pytest.mark.parametrize("preset", ["mlp", "dcgan", "stylegan2"])
def test_measuring_leaves_no_trace_in_the_run(tmp_path, monkeypatch, preset) -> None:
    """Not in running means, moments, augmentation or random numbers either; only the time is not real."""
    measured = training.seconds_per_step
    taken: list[float] = []

    def measure(*arguments: Any, **options: Any) -> float:
        taken.append(measured(*arguments, **options))
        return 1e9

    monkeypatch.setattr(training, "seconds_per_step", measure)
    by_default = Trainer.from_config(small(preset), outdir=tmp_path).fit()
    assert taken[0] > 0
    assert metrics_of(by_default) == ["fd", "coverage"]
    without = Trainer.from_config(small(preset).override("metrics", []), outdir=tmp_path).fit()
    assert len(taken) == 1
    for name in ("generator", "discriminator", "ema", "training_state"):
        file = f"{name}.safetensors"
        assert (by_default.checkpoint / file).read_bytes() == (without.checkpoint / file).read_bytes(), name


def test_a_resumed_run_keeps_what_was_decided(tmp_path, measured, monkeypatch) -> None:
    measured(step=1.0, metrics=0.5)
    whole = Trainer.from_config(LONG, outdir=tmp_path / "whole").fit()
    Trainer.from_config(LONG.override("kimg", 0.25), outdir=tmp_path).fit()
    monkeypatch.setattr(training, "seconds_per_step", None)
    point = find_resume_point("latest", tmp_path)
    resumed = Trainer.from_config(point.config.override("kimg", 0.5), outdir=tmp_path)
    resumed.restore(point)
    done = resumed.fit()
    assert metrics_of(done) == ["fd", "coverage"]
    assert (done.run_dir / "metrics.jsonl").read_bytes() == (whole.run_dir / "metrics.jsonl").read_bytes()


def test_a_run_of_an_older_version_goes_on_without() -> None:
    assert TrainConfig().metrics is None
    assert TrainConfig.from_dict(TrainConfig.before).metrics == ()


def test_the_estimate() -> None:
    task = Trainer.from_config(LONG).task
    sampler = Sampler(task.generator, z_dim=8)
    few, many = (estimate_seconds(task.data, sampler, count, CPU) for count in (100, 100_000))
    assert 0 < few.each < many.each
    assert few.total(2) == few.once + 2 * few.each
    plain = TensorImages("plain", task.data.read(range(100))[0])
    assert estimate_seconds(plain, sampler, 100, CPU).once < few.once  # no classifier is trained
