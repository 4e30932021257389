"""Every preset of the likelihood task keeps the promises of a run."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_ext.config import ConfigError
from aigc_ext.data import DatasetError, wav_file
from aigc_ext.sampling import read_wav_metadata
from aigc_ext.sampling.pretrained import load_pretrained
from aigc_ext.tasks import find_resume_point, task_of
from aigc_ext.tasks.likelihood import PRESETS, TrainConfig, Trainer, open_items, precision, replay
from aigc_ext.tasks.likelihood.step import likelihood
from aigc_ext.tasks.likelihood.trainer import schedule
from aigc_ext.training import CheckpointError, NonFiniteError, Progress, TrainResult, cost, read_checkpoint
from tests.tasks.likelihood.helpers import SETTINGS, config, resumed, write_data
from tests.training.helpers import files_of, rows_of

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=SETTINGS)
def whole(request, sources, tmp_path_factory) -> tuple[str, TrainResult]:
    """A run that was never interrupted."""
    trainer = Trainer.from_config(
        config(request.param, sources[request.param]), outdir=tmp_path_factory.mktemp("runs")
    )
    return request.param, trainer.fit()


def loaded(path: Path) -> Any:
    network, _ = load_pretrained(path)
    return network


def test_presets_are_of_this_task():
    for name, preset in PRESETS.items():
        assert preset.preset == name
        assert task_of(name).PRESETS[name] == preset
        assert TrainConfig.from_dict(json.loads(preset.to_json())) == preset


def test_it_learns_and_leaves_a_run(whole):
    _, done = whole
    rows = rows_of(done.run_dir)
    assert list(rows[0]) == ["step", "nimg", "epoch", "loss", "skipped_network", "ema_decay", "lr"]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    measured = [json.loads(line) for line in (done.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert measured[-1]["nats"] < measured[0]["nats"]
    assert sorted(p.name for p in done.checkpoint.iterdir()) == [
        *("ema.safetensors", "network.safetensors", "state.json", "training_state.safetensors")
    ]
    log = (done.run_dir / "log.txt").read_text()
    assert "36 " in log
    assert " are trained on, and 4 are held out" in log


def test_the_learning_rate_warms_up_and_falls():
    settings = config("textgen", "unread")
    rates = [schedule(settings, Progress(step, 12 * step, 0)).rates["lr"] for step in range(10)]
    assert rates[0] == pytest.approx(0.4 * 1e-2)  # 12 of 30 items
    assert rates[1] < rates[2]
    assert all(now > later for now, later in itertools.pairwise(rates[2:]))
    assert rates[9] == pytest.approx(1e-4)


def test_previews_can_be_looked_at_and_read(whole):
    case, done = whole
    if case == "textgen":
        text = done.grid.read_text()
        assert text.startswith("AI-generated")
        assert text.count("source:  A ") == text.count("\nnetwork:") == 4  # as many as are held out
    elif case == "wavenet":
        sound, marks = wav_file.decode(done.grid.read_bytes()), read_wav_metadata(done.grid)
        assert (sound.rate, len(sound.samples)) == (800, 6 * (79 + 160))
        assert marks.label is not None
        assert marks.provenance is not None
        assert marks.provenance["classes"] == [0, 1] * 3
    else:
        with Image.open(done.grid) as image:
            assert image.size == (3 * 64, 2 * 64)


def test_it_resumes_with_the_same_bits(whole, sources, tmp_path):
    case, done = whole
    half = config(case, sources[case], kimg=0.048)
    start = Trainer.from_config(half, outdir=tmp_path).fit()
    again = resumed(start.run_dir, kimg=0.12).fit()
    assert files_of(again.checkpoint) == files_of(done.checkpoint)
    assert rows_of(again.run_dir) == rows_of(done.run_dir)
    assert again.grid.read_bytes() == done.grid.read_bytes()
    for name in ("model.safetensors", "config.json"):
        assert (again.run_dir / "model" / name).read_bytes() == (done.run_dir / "model" / name).read_bytes()


def test_a_network_of_other_settings_does_not_go_on(whole, sources):
    case, done = whole
    point = find_resume_point(str(done.run_dir), done.run_dir.parent)
    changed = config(case, sources[case], network__hidden=7)
    with pytest.raises(ConfigError, match=r"network.hidden is 7, but the run was started with 24"):
        Trainer.from_config(changed).restore(point)
    trainer = Trainer.from_config(point.config)
    assert point.checkpoint is not None
    fact = "length" if case == "wavenet" else "tokenizer"
    point.checkpoint.state["network"][fact] = "of another version of the library"
    with pytest.raises(CheckpointError, match=f"its network has another {fact} than the one of this data"):
        trainer.restore(point)


def assert_close(one: Path, other: Path) -> None:
    a, b = read_checkpoint(one), read_checkpoint(other)
    for stem in ("network", "ema"):
        for name, value in a.tensors[stem].items():
            torch.testing.assert_close(b.tensors[stem][name], value, rtol=5e-3, atol=5e-5)


def exact_config(case: str, sources: dict[str, str]) -> TrainConfig:
    return config(case, sources[case], precision="float32", kimg=0.048)


@pytest.fixture(scope="module", params=SETTINGS)
def exact(request, sources, tmp_path_factory) -> tuple[str, TrainResult]:
    trainer = Trainer.from_config(
        exact_config(request.param, sources), outdir=tmp_path_factory.mktemp("exact")
    )
    return request.param, trainer.fit()


def test_a_batch_in_parts_is_the_whole_batch(exact, sources, tmp_path):
    case, done = exact
    parts = Trainer.from_config(exact_config(case, sources).override("batch_gpu", 4), outdir=tmp_path).fit()
    assert files_of(parts.checkpoint) != files_of(done.checkpoint)
    assert_close(parts.checkpoint, done.checkpoint)
    for row, same in zip(rows_of(parts.run_dir), rows_of(done.run_dir), strict=True):
        assert row == pytest.approx(same, rel=1e-4)


def test_two_processes_are_one(exact, sources, tmp_path):
    case, done = exact
    (tmp_path / "config.json").write_text(exact_config(case, sources).to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [
            *command,
            "-m",
            "tests.tasks.likelihood.helpers",
            str(tmp_path / "runs"),
            str(tmp_path / "config.json"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    assert ended.returncode == 0, ended.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert_close(max((run_dir / "checkpoints").iterdir()), done.checkpoint)


@pytest.mark.parametrize("case", SETTINGS)
def test_steps_that_are_not_finite_end_the_run_with_a_dump(case, sources, tmp_path, monkeypatch):
    trainer = Trainer.from_config(config(case, sources[case]), outdir=tmp_path)
    before = {name: p.clone() for name, p in trainer.task.network.named_parameters()}
    broken = "output.bias" if case == "wavenet" else "norm.weight"
    with torch.no_grad():
        trainer.task.network.get_parameter(broken).fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="stopped at step 3: 3 steps in a row") as error:
        trainer.fit()
    dump = read_checkpoint(error.value.dump)
    assert (dump.state["streaks"], dump.state["statistics"]["loss"]) == ([3], "nan")
    assert dump.tensors["inputs"]["items"].shape[0] == 12
    assert ("labels" in dump.tensors["inputs"]) == (case in ("prior", "wavenet"))
    for name, value in before.items():
        if name != broken:
            assert torch.equal(dump.tensors["network"][name], value), name
    assert "tasks.likelihood.replay" in str(error.value)
    found = replay(error.value.dump)
    assert found.reproduced
    assert math.isnan(found.loss)
    assert broken in found.bad
    with torch.no_grad():
        trainer.task.network.get_parameter(broken).copy_(before[broken])
    monkeypatch.setattr(trainer.task.network, "load_state_dict", lambda *state: None)
    mended = replay(error.value.dump, trainer.task.network)
    assert not mended.reproduced
    assert math.isfinite(mended.loss)
    with pytest.raises(CheckpointError, match=r"state.json cannot be read"):
        replay(tmp_path)


@pytest.mark.parametrize("case", SETTINGS)
def test_the_cost_of_a_run_is_estimated(case, sources):
    trainer = Trainer.from_config(config(case, sources[case]))
    found = cost.probe(trainer, seconds=5)
    assert found.parameters["network"] == sum(
        p.numel() for p in trainer.task.network.parameters() if p.requires_grad
    )
    assert found.seconds_per_kimg > 0


def test_the_model_loads_and_samples_by_itself(whole):
    case, done = whole
    network = loaded(done.run_dir)
    assert network.media == {"textgen": "text", "wavenet": "audio"}.get(case, "image")
    without = case in ("prior", "wavenet")
    options = {} if without else {"prompts": ["A tool", "light tile", "A", ""]}
    made = network.sample([3, 1, 19, 3], **options)
    if case == "textgen":
        assert all(isinstance(text, str) for text in made)
    elif case == "wavenet":
        assert made.dtype == np.int16
        assert made.shape == (4, 79)
    else:
        assert made.dtype == np.uint8
        assert made.shape == (4, 4, 4, 1)
    for index, seed in enumerate([3, 1, 19, 3]):
        alone = {} if without else {"prompts": [options["prompts"][index]]}
        assert np.array_equal(network.sample([seed], **alone)[0], made[index])
    assert np.array_equal(loaded(done.checkpoint).sample([3, 1, 19, 3], **options), made)


def test_samples_follow_the_class_and_the_caption(sources, tmp_path):
    for case in ("prior", "captions"):
        done = Trainer.from_config(
            config(case, sources[case], kimg=0.6, ramp_kimg=0.6, snap=50), outdir=tmp_path
        ).fit()
        network = loaded(done.run_dir)
        seeds = range(16)
        for kind, (name, light) in enumerate((("dark", False), ("light", True))):
            given = {"classes": [kind] * 16} if case == "prior" else {"prompts": [f"{name} tile"] * 16}
            assert ((network.sample(seeds, **given).mean((1, 2, 3)) > 127) == light).mean() > 0.9


def test_a_prior_decodes_what_its_codec_encodes(sources, tmp_path):
    trainer = Trainer.from_config(config("prior", sources["prior"]), outdir=tmp_path)
    network: Any = trainer.task.ema
    rows = trainer.data.read(range(36))[0]
    images = network.sample(range(36), [0] * 36)
    assert images.shape == (36, 4, 4, 1)
    decoded = network.codec.decode_codes(rows.unflatten(1, (2, 2)))
    assert torch.equal(network.codec.codes(decoded).flatten(1), rows)
    assert not any(p.requires_grad for p in network.codec.parameters())


@pytest.mark.parametrize(
    ("case", "overrides", "error", "message"),
    [
        ("textgen", {"caption": True}, ConfigError, "caption is true, but data.source is .*pairs.jsonl"),
        ("textgen", {"data__cond": True}, ConfigError, "data.cond is true, but pairs has no labels"),
        (
            "prior",
            {"ramp_kimg": 0.0},
            ConfigError,
            "optim.lr_end is 0.0001, but must be null: ramp_kimg is 0",
        ),
        (
            "prior",
            {"data__source": "digits"},
            DatasetError,
            "'digits' has nothing for a transformer to learn",
        ),
        (
            "wavenet",
            {"sampler__top_k": 3},
            ConfigError,
            "sampler.top_k is 3, but must be None: a WaveNet has no such option",
        ),
        ("prior", {"data__source": "tokens:missing"}, DatasetError, "must be of the form tokens:RUN:IMAGES"),
    ],
)
def test_what_does_not_fit_is_named(case, overrides, error, message, sources):
    with pytest.raises(error, match=message):
        Trainer.from_config(config(case, sources[case], **overrides))


def test_a_source_of_tokens_needs_an_autoencoder(whole, sources):
    with pytest.raises(
        DatasetError, match=r"is a (Transformer|WaveNet).*, but must be an autoencoder with codes"
    ):
        Trainer.from_config(config("prior", f"tokens:{whole[1].run_dir}:digits"))


def test_nothing_need_be_held_out(sources, tmp_path):
    done = Trainer.from_config(
        config("textgen", sources["textgen"], held_out=0.0, kimg=0.024), outdir=tmp_path
    )
    result = done.fit()
    assert not (result.run_dir / "metrics.jsonl").exists()
    assert "no pair is held out" in (result.run_dir / "log.txt").read_text()


class WithBuffer(torch.nn.Module):
    """Its buffer changes in every step, as batch statistics do."""

    media = "text"
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, items: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training:
            self.seen += 1
        return torch.nn.functional.softplus(self.logit) * len(items), torch.tensor(float(len(items)))

    def sample(self, seeds, classes=None, **options):
        return ["" for _ in seeds]


def test_the_average_has_the_buffers_of_the_network(sources, tmp_path):
    settings = config("textgen", sources["textgen"], kimg=0.048)
    trainer = Trainer(WithBuffer(), open_items(settings), settings, outdir=tmp_path)
    done = trainer.fit()
    tensors = read_checkpoint(done.checkpoint).tensors
    assert tensors["ema"]["seen"] == tensors["network"]["seen"] == done.step
    assert 0 > tensors["ema"]["logit"] > tensors["network"]["logit"]


@pytest.mark.parametrize(("slowness", "chosen"), [(0.5, "bfloat16"), (0.95, "float32"), (2.0, "float32")])
def test_a_run_keeps_the_precision_that_was_measured(slowness, chosen, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_SECONDS", 0.0)
    clock = [0.0]

    def timed(network, items, labels, autocast):
        clock[0] += 1.0 if autocast is None else slowness
        return likelihood(network, items, labels, autocast)

    monkeypatch.setattr(precision, "likelihood", timed)
    monkeypatch.setattr(precision, "now", lambda x: clock[0])
    monkeypatch.setattr(precision, "SHORT", 0.0)
    given = Trainer.from_config(config("prior", sources["prior"], precision=chosen), outdir=tmp_path).fit()
    trainer = Trainer.from_config(config("prior", sources["prior"], precision="auto"), outdir=tmp_path)
    done = trainer.fit()
    assert trainer.config.precision == chosen
    assert json.loads((done.run_dir / "config.json").read_text())["precision"] == chosen
    measured = f"precision: {chosen} (bfloat16 takes {slowness:.2f} of float32's time)"
    assert measured in (done.run_dir / "log.txt").read_text()
    assert files_of(done.checkpoint) | {"state.json": b""} == files_of(given.checkpoint) | {"state.json": b""}

    point = find_resume_point(str(done.run_dir), tmp_path)
    again = Trainer.from_config(point.config.override("precision", "auto"))
    with pytest.raises(ConfigError, match="precision is 'auto', which is for a new run"):
        again.restore(point)


def test_a_short_run_takes_float32(sources, tmp_path):
    trainer = Trainer.from_config(config("prior", sources["prior"], precision="auto"), outdir=tmp_path)
    done = trainer.fit()
    assert trainer.config.precision == "float32"
    assert "precision: float32 (not measured)" in (done.run_dir / "log.txt").read_text()
