"""Metrics of samples, where a run does not say which."""

from __future__ import annotations

import copy

import pytest

from aigc_ext.tasks.adversarial import Trainer
from tests.tasks.adversarial.helpers import config


def settled(tmp_path, monkeypatch, seconds, **settings):
    """The config of a run whose metrics would take so many seconds at each snapshot."""
    trainer = Trainer.from_config(config(**{"metrics": None, "kimg": 0.1, **settings}), outdir=tmp_path)
    monkeypatch.setattr(type(trainer.task), "metric_seconds", lambda self: seconds)
    trainer.fit()
    (path,) = tmp_path.glob("*/config.json")
    return type(trainer.config).from_json(path), (path.parent / "log.txt").read_text()


@pytest.mark.parametrize(("seconds", "expected"), [(1e-9, ("fd",)), (1e9, ())])
def test_they_are_taken_where_they_cost_little(seconds, expected, tmp_path, monkeypatch):
    found, log = settled(tmp_path, monkeypatch, seconds, metric_images=20)
    assert found.metrics == expected
    assert (
        "metrics of samples: fd at each snapshot" in log if expected else "none, since fd would take" in log
    )


@pytest.mark.parametrize(
    ("name", "why"), [("fsq", "the codes need a prior to sample from"), ("vae", "the run is short")]
)
def test_why_there_are_none(name, why, tmp_path):
    trainer = Trainer.from_config(config(name, metrics=None, kimg=0.05), outdir=tmp_path)
    assert f"metrics of samples: none, since {why}" in (trainer.fit().run_dir / "log.txt").read_text()


def test_measuring_a_step_changes_nothing(tmp_path):
    task = Trainer.from_config(config("vae-gan")).task
    before = copy.deepcopy(task.generator.state_dict())
    assert task._seconds_per_step() > 0
    assert all(before[name].equal(value) for name, value in task.generator.state_dict().items())
