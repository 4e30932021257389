"""The estimate of a run's cost: what follows from trials, and what another process is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable

import pytest
import torch

from aigc_ext.tasks.dry_run import estimate_cost
from aigc_ext.tasks.gan import PRESETS, TrainConfig, Trainer
from aigc_ext.training import cost, progress
from aigc_ext.training.cost import Cost, Trials, duration, measure, probe

CPU = torch.device("cpu")
TINY = (
    TrainConfig()
    .override("data.source", "digits")
    .override("device", "cpu")
    .override("generator.hidden", [8])
    .override("discriminator.hidden", [8])
    .override("kimg", 1000)
)


def trials(**changes) -> Trials:
    made = Trials(
        parameters={"generator": 100_000_000},
        kinds=[3, 1],
        images=32,
        batch=64,
        kimg=25_000,
        available_gb=20,
        before_gb=1,
        seconds={4: {0: 0.4, 1: 0.8}, 8: {0: 0.8, 1: 1.6}},
        memory_gb={4: 3.0, 8: 5.0},
    )
    return dataclasses.replace(made, **changes)


def test_the_weights_of_the_kinds_and_the_line_through_two_sizes() -> None:
    made = trials().cost()
    assert made.seconds_per_kimg == pytest.approx(1000 * (3 * 0.8 + 1.6) / 4 / 8)
    assert made.hours == pytest.approx(125 * 25_000 / 3600)
    assert made.memory_gb == pytest.approx(5 + 0.5 * 24)
    assert made.too_large is None
    assert made.remark == "measured with 8 images at once, for lack of time"
    assert str(made) == (
        "generator 100,000,000 parameters; 17.00 GB; about 125 s/kimg, 36.2 days in all\n"
        "Note: measured with 8 images at once, for lack of time"
    )


def test_the_first_step_also_makes_what_does_not_grow_with_the_images() -> None:
    made = trials(seconds={4: {0: 0.4, 1: 0.8}}, memory_gb={4: 3.0}).cost()
    assert made.memory_gb == pytest.approx(3 + (3 - 1 - 1.2) / 4 * 28)


def test_whole_steps_need_no_remark() -> None:
    made = trials(seconds={64: {0: 6.0, 1: 7.0}}, memory_gb={8: 5.0, 32: 9.0}).cost()
    assert (made.memory_gb, made.remark, made.too_large) == (9.0, None, None)
    assert made.seconds_per_kimg == pytest.approx(1000 * 6.25 / 64)


def test_more_than_there_is() -> None:
    made = trials(available_gb=16).cost()
    assert made.too_large == (
        "32 images at once would take about 17 GB, but there are 16; --batch-gpu computes a batch in parts. "
        "The time is that of 8 images"
    )
    failed = trials(failed=True, trying=16).cost()
    assert failed.too_large is not None
    assert failed.too_large.startswith("16 images at once would take about 17 GB, but there are 20")
    at_once = str(trials(failed=True, trying=4, seconds={}, memory_gb={}).cost())
    assert "memory not measured; time not measured" in at_once
    assert "32 images at once would take more memory than is free, but there are 20;" in at_once


def test_what_time_allowed() -> None:
    made = trials(seconds={4: {0: 0.4}}, memory_gb={4: 3.0}).cost()
    assert made.seconds_per_kimg == pytest.approx(100)
    assert made.remark == (
        "only 1 of 2 kinds of steps, with 4 images, were measured in time; the others take longer"
    )
    assert trials(seconds={}, memory_gb={}, trying=4).cost().remark == "no step of 4 images was done in time"


def test_metrics_are_counted_in() -> None:
    made = trials(metric_seconds=12_500.0).cost()
    assert made.metric_hours == pytest.approx(12_500 / 3600)
    assert made.hours == pytest.approx(125 * 25_000 / 3600 + made.metric_hours)
    assert "36.3 days in all, 3.47 h of it for metrics" in str(made)


def test_metrics_by_default_are_counted_where_the_run_will_have_them() -> None:
    """Where they take less than a tenth of the training's time, here 125 * 25,000 seconds."""
    assert trials(metric_seconds=3e5, metrics_by_default=True).cost().metric_hours == pytest.approx(
        3e5 / 3600
    )
    assert trials(metric_seconds=4e5, metrics_by_default=True).cost().metric_hours == 0
    assert trials(metric_seconds=4e5).cost().metric_hours > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.34, "12.3 s"),
        (600, "10 min"),
        (7200, "2 h"),
        (9.21e4 * 3600, "10.5 years"),
        (1e6, "11.6 days"),
        (1e300, "more than 30,000 years"),
    ],
)
def test_durations_are_in_units_for_people(seconds, text) -> None:
    assert duration(seconds) == text


def test_in_this_process() -> None:
    made = probe(Trainer.from_config(TINY.override("metrics", ["fd"])), seconds=20)
    assert made.parameters.keys() == {"generator", "discriminator"}
    assert 0 < made.memory_gb < 20
    assert 0 < made.metric_hours < made.hours < 10
    assert made.too_large is made.remark is None


def test_in_another_process() -> None:
    made = estimate_cost(TINY)
    assert 0 < made.hours < 10
    assert made.metric_hours == 0
    assert made.too_large is made.remark is None


def test_another_process_takes_no_more_than_the_free_memory() -> None:
    config = PRESETS["r3gan"].override("data.source", "digits").override("device", "cpu")
    for key, value in (("channel_base", 256), ("channel_max", 32)):
        for network in ("generator", "discriminator"):
            config = config.override(f"{network}.{key}", value)
    begin = time.monotonic()
    made = measure(
        [sys.executable, "-m", "aigc_ext.tasks.dry_run"], config.override("batch", 1 << 20).to_json(), 1.0
    )
    assert time.monotonic() - begin < 110
    assert made.too_large is not None
    assert "1048576 images at once would take about" in made.too_large
    assert made.memory_gb > 1
    assert math.isfinite(made.hours)


def child(code: str) -> Callable[[], Cost]:
    """Something that answers as `code` says, in which `answer` is one."""
    answer = json.dumps(dataclasses.asdict(trials(trying=16)))
    return lambda: measure(
        [sys.executable, "-c", f"import os, sys, time; answer = {answer!r}\n{code}"], "{}", None
    )


def test_a_process_that_is_killed_wanted_too_much() -> None:
    made = child("print(answer, flush=True); os.kill(os.getpid(), 9)")()
    assert made.too_large is not None
    assert made.too_large.startswith("16 images at once would take about 17 GB")


def test_a_process_that_fails_is_quoted() -> None:
    with pytest.raises(RuntimeError, match="the cost could not be measured: ValueError: no such thing"):
        child("raise ValueError('no such thing')")()
    with pytest.raises(RuntimeError, match="the cost could not be measured: ValueError: later"):
        child("print(answer, flush=True); raise ValueError('later')")()
    with pytest.raises(RuntimeError, match="it ended with exit status 0"):
        child("")()


def test_a_process_that_takes_too_long(monkeypatch) -> None:
    monkeypatch.setattr(cost, "_SECONDS", 0.5)
    monkeypatch.setattr(cost, "_PATIENCE", 0.5)
    begin = time.monotonic()
    assert child("print(answer, flush=True); time.sleep(60)")() == trials().cost()
    assert time.monotonic() - begin < 20
    monkeypatch.setattr(cost, "_OPENING", 1.0)
    with pytest.raises(RuntimeError, match="could not be measured: the data were not opened in time"):
        child("time.sleep(60)")()


def test_free_memory(monkeypatch) -> None:
    assert 0 < progress.available_memory_gb(CPU) <= progress.memory_size_gb(CPU)
    monkeypatch.setattr(progress, "_meminfo_available", lambda: 5_000_000_000)
    monkeypatch.setattr(progress, "_cgroup_memory", lambda: iter([(8_000_000_000, 6_000_000_000)]))
    assert progress.available_memory_gb(CPU) == 2.0
    monkeypatch.setattr(progress, "_cgroup_memory", lambda: iter([]))
    assert progress.available_memory_gb(CPU) == 5.0
    monkeypatch.setattr(progress, "_meminfo_available", lambda: None)
    assert progress.available_memory_gb(CPU) == progress.memory_size_gb(CPU)
