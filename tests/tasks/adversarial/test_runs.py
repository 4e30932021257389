"""Runs of all presets, in small widths: resumed, in parts, in processes, broken, estimated, published."""

from __future__ import annotations

import json
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
from aigc_ext.data import open_audio, open_dataset, split, wav_file
from aigc_ext.data.audio import AudioPart
from aigc_ext.losses import perceptual
from aigc_ext.sampling import Sampler, load_pretrained, read_wav_metadata
from aigc_ext.tasks import find_resume_point
from aigc_ext.tasks.adversarial import PRESETS, Compared, Trainer, Weighted, replay
from aigc_ext.tasks.adversarial.symptoms import symptoms
from aigc_ext.tasks.dry_run import estimate_cost
from aigc_ext.training import NonFiniteError, cost, read_checkpoint
from aigc_ext.training.runtime import derive_seed
from tests.tasks.adversarial.helpers import SMALL, config, recordings
from tests.training.helpers import files_of, rows_of


@pytest.fixture(scope="module", params=SMALL)
def whole(request, tmp_path_factory):
    """A run that was never interrupted."""
    return Trainer.from_config(config(request.param), outdir=tmp_path_factory.mktemp("runs")).fit()


@pytest.fixture
def name(whole, request):
    return request.node.callspec.params["whole"]


def close(one: Path, other: Path, rtol=2e-3, atol=5e-5) -> None:
    ours, theirs = read_checkpoint(one).tensors, read_checkpoint(other).tensors
    assert ours.keys() == theirs.keys()
    for stem, tensors in ours.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(theirs[stem][key], tensor, rtol=rtol, atol=atol, msg=f"{stem} {key}")


def known(row):
    return {key: value for key, value in row.items() if value is not None}


def test_a_run_leaves_what_it_should(whole, name):
    run_dir = whole.run_dir
    adversarial = name in ("vae-gan", "vqgan", "vocoder")
    networks = ["ema", "generator", *(["discriminator"] if adversarial else [])]
    files = sorted(p.stem for p in whole.checkpoint.glob("*.safetensors"))
    assert files == sorted([*networks, "training_state"])
    assert read_checkpoint(whole.checkpoint).state["discriminator"] is None or adversarial
    rows = rows_of(run_dir)
    assert len(rows) == 8
    assert ("loss_d" in rows[0]) == adversarial
    assert all(row["skipped_g"] == 0 for row in rows)
    first = {"vae": "bernoulli", "vae-gan": "bernoulli", "vocoder": "mel"}.get(name, "l1")
    assert rows[-1][first] < rows[0][first]
    measured = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    begun = [row["adversarial"] is not None for row in rows] if adversarial else []
    assert begun == [False] * 4 + [True] * 4 if adversarial else not begun, "start_kimg is 0.2"
    if name == "vocoder":
        check_recordings(whole, measured, rows)
        return
    assert 5 < measured["psnr"] < 40
    assert 0 < measured["sharpness"] < 5
    expected = {"nelbo", "kl"} if first == "bernoulli" else {"perplexity", "used_codes"}
    assert expected <= set(measured)
    picture = np.asarray(Image.open(whole.grid))
    assert picture.shape == (2 * 2 * 64, 4 * 64)
    data = open_dataset("digits")
    top = picture[:64:8, :64:8]
    originals = data.read(range(len(data)))[0].numpy()
    assert (originals[:, 0] == top).all((1, 2)).any(), "an original is above"
    assert (run_dir / "samples000000-400.png").exists() == (first == "bernoulli")


def check_recordings(whole, measured, rows):
    assert set(measured) >= {"lsd", "stft"}
    assert 0 < measured["lsd"] < 40
    assert rows[0]["features"] is None
    assert rows[-1]["features"] is not None
    assert any(row["r1"] for row in rows)
    picture = np.asarray(Image.open(whole.grid))
    assert (
        picture.size % (2 * 2 * 128 * 4 * 7) == 0
    )  # 7 frames of 128 frequencies, 4 columns, 2 rows of pairs
    sound = wav_file.decode(whole.grid.with_suffix(".wav").read_bytes())
    assert sound.rate == 8000
    data, held = split(open_audio(recordings(), segment=200), 0.1, derive_seed(0, "held out"))
    assert isinstance(held, AudioPart)
    assert held.groups is not None
    assert data.groups is not None
    original = held.recording(int(held.groups[0]))
    assert (wav_file.to_int16(sound.samples)[: len(original)] == original.numpy()).all()
    assert isinstance(data, AudioPart)
    assert not set(data.groups.tolist()) & set(held.groups.tolist())
    assert len(sound.samples) == 2 * (len(original) + 2000)
    label = read_wav_metadata(whole.grid.with_suffix(".wav")).label
    assert label is not None
    assert label["Label"] == "1"
    network: Any = load_pretrained(whole.run_dir)[0]
    assert network.media == "audio"
    made = network.reconstructions(original[None])[0]
    assert (wav_file.to_int16(sound.samples)[-2000 - len(original) : -2000] - made.numpy() == 0).all()


def test_a_resumed_run_has_the_same_bits(whole, name, tmp_path):
    half = Trainer.from_config(config(name, kimg=0.2), outdir=tmp_path).fit()
    point = find_resume_point(str(half.run_dir), tmp_path)
    trainer = Trainer.from_config(point.config.override("kimg", 0.4), outdir=tmp_path)
    trainer.restore(point)
    again = trainer.fit()
    assert files_of(again.checkpoint) == files_of(whole.checkpoint)
    assert rows_of(again.run_dir) == rows_of(whole.run_dir)
    assert again.grid.read_bytes() == whole.grid.read_bytes()
    assert again.model is not None
    for file in ("model.safetensors", "config.json"):
        assert (again.model / file).read_bytes() == (whole.model / file).read_bytes()


def test_parts_are_the_whole_batch(name, tmp_path):
    """Four steps, so that roundings do not choose other codes."""
    short = {"kimg": 0.1, "tick": 0.1, "loss__start_kimg": 0.05}
    one, parts = (
        Trainer.from_config(config(name, **short, batch_gpu=size), outdir=tmp_path).fit()
        for size in (None, 5)
    )
    close(one.checkpoint, parts.checkpoint)
    for row, other in zip(rows_of(one.run_dir), rows_of(parts.run_dir), strict=True):
        assert known(row) == pytest.approx(known(other), rel=2e-3, abs=1e-4)


MAIN = """
import sys
from tests.tasks.adversarial.helpers import config
from aigc_ext.tasks.adversarial import Trainer
short = {"kimg": 0.096, "tick": 0.096, "batch": 24, "loss__start_kimg": 0.05}
Trainer.from_config(config(sys.argv[2], **short, data__source=sys.argv[3]), outdir=sys.argv[1]).fit()
"""


@pytest.mark.parametrize("name", ["vae-gan", "vqgan", "vocoder"])
def test_two_processes_share_a_run(name, tmp_path):
    script, root = tmp_path / "main.py", Path(__file__).parents[3]
    script.write_text(MAIN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "two"), name, config(name).data.source],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    (two,) = (tmp_path / "two").iterdir()
    short = {"kimg": 0.096, "tick": 0.096, "batch": 24, "loss__start_kimg": 0.05}
    one = Trainer.from_config(config(name, **short), outdir=tmp_path / "one").fit()
    close(one.checkpoint, two / "checkpoints" / "000000-096")
    for row, other in zip(rows_of(one.run_dir), rows_of(two), strict=True):
        assert known(row) == pytest.approx(known(other), rel=2e-3, abs=1e-4)


def test_steps_that_are_not_finite_end_a_run_with_a_dump(name, tmp_path):
    trainer = Trainer.from_config(config(name, nonfinite_limit=3), outdir=tmp_path)
    with torch.no_grad():
        network = trainer.state.generator
        last = network.layers[-1] if name == "vocoder" else network.decoder.last
        last.weight.fill_(torch.nan)
    before = files_of_state(trainer)
    with pytest.raises(NonFiniteError, match="3 steps in a row") as error:
        trainer.fit()
    dump = read_checkpoint(error.value.dump)
    assert dump.state["statistics"]["loss"] == "nan"
    assert dump.tensors["inputs"]["items"].shape == ((25, 200) if name == "vocoder" else (25, 1, 8, 8))
    assert not dump.tensors["inputs"]["fake"].isfinite().all()
    found = replay(error.value.dump)
    assert found.reproduced
    assert found.bad_g
    after = files_of_state(trainer)
    assert after["generator"] == before["generator"]


def files_of_state(trainer):
    files = trainer.state.files()
    return {name: files[name] for name in ("generator", "discriminator") if name in files}


def test_a_published_model_is_the_average(whole, name):
    network: Any = load_pretrained(whole.run_dir)[0]
    again: Any = load_pretrained(whole.checkpoint)[0]
    average = read_checkpoint(whole.checkpoint).tensors["ema"]
    for key, value in network.state_dict().items():
        assert torch.equal(value, average[key])
        assert torch.equal(again.state_dict()[key], value)
    assert not network.training
    if name in ("vae", "vae-gan"):
        c = [0, 1] if name == "vae-gan" else None
        made = Sampler(network.decoder).sample([0, 1], c)
        picture = np.asarray(Image.open(whole.run_dir / "samples000000-400.png"))
        assert (picture[:64:8, :64:8] == made[0, :, :, 0]).all()


def test_a_dry_run_takes_every_kind_of_step(name):
    trainer = Trainer.from_config(config(name))
    found = cost.probe(trainer, seconds=20)
    assert found.seconds_per_kimg > 0
    adversarial = name in ("vae-gan", "vqgan", "vocoder")
    assert set(found.parameters) == ({"generator", "discriminator"} if adversarial else {"generator"})
    # With R1 or not, before and after the start; the period of `vqgan` is the whole run.
    assert len(set(trainer.task.kinds_of_steps())) == {"vae-gan": 4, "vocoder": 4, "vqgan": 3}.get(name, 1)


def test_the_cost_is_estimated_by_another_process():
    found = estimate_cost(config("vqgan", augment__kind="noaug"))
    assert set(found.parameters) == {"generator", "discriminator"}
    assert 0 < found.hours < 1


# ---- what can be set ---------------------------------------------------------------------------------------


def test_held_out_items_are_never_trained_on():
    trainer = Trainer.from_config(config(held_out=0.2))
    task: Any = trainer.task
    assert (len(task.data), len(task.held)) == (1438, 359)
    shown = {bytes(image) for image in task.data.read(range(len(task.data)))[0].numpy()}
    held = [bytes(image) for image in task.held.read(range(len(task.held)))[0].numpy()]
    assert sum(image in shown for image in held) < 3, "but for images that the data have twice"
    assert Trainer.from_config(config(held_out=0.0)).task.metrics() == {}


def test_perceptual_features_of_ones_own(tmp_path):
    task = Trainer.from_config(config()).task
    layer = torch.nn.Conv2d(1, 2, 3).requires_grad_(False)
    term = Weighted(Compared("perceptual", lambda a, b: perceptual(a, b, layer)), 0.1)
    trainer = Trainer(task.generator, None, task.data, config(kimg=0.05), terms=[term], outdir=tmp_path)
    assert rows_of(trainer.fit().run_dir)[0]["perceptual"] > 0


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vqgan", {"loss__bernoulli": 1.0}, "generator.output_act is 'linear', not 'sigmoid'"),
        ("fsq", {"loss__l1": 0.0}, "are all 0, but one must be greater"),
        ("vqgan", {"loss__judged": "samples"}, "loss.judged is 'samples', but must be 'reconstructions'"),
        ("fsq", {"metrics": ["fd"]}, "metrics are fd, but must be none"),
        ("vae", {"loss__mel": 1.0}, "loss.mel is 1.0, but must be 0: the network makes no waves"),
        ("vae", {"loss__features": 1.0}, "loss.features is 1.0, but must be 0: it needs the discriminator"),
        ("vocoder", {"loss__mel": 0.0, "loss__stft": 0.0}, "loss.mel, loss.stft are all 0, but one must be"),
        ("vocoder", {"data__mirror": True}, "data.mirror is True, but has no effect"),
        ("vocoder", {"data__cond": True}, "data.cond is true, but"),
        ("vae", {"augment__blur_sigma": 1.0}, "augment.blur_sigma is 1.0, but must be 0"),
        ("vqgan", {"g_optim__lr_end": 1.0}, "g_optim.lr_end is 1.0, but must be null"),
        ("vae", {"loss__kind": "relativistic", "augment__kind": "ada"}, "augment.kind is 'ada', but"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_contradictions_are_named(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        Trainer.from_config(config(name, **overrides))


def test_every_preset_has_small_widths_here():
    assert set(PRESETS) <= set(SMALL)


def test_dead_codes_and_a_winner_are_told():
    settings = config("vqgan", kimg=10.0)
    rows = [{"nimg": 200 * i, "perplexity": 2.0, "acc_real": 0.99, "acc_fake": 0.99} for i in range(6)]
    found = symptoms(rows, settings, 32)
    assert set(found) == {"dead codes", "winner"}
    assert "perplexity of 2, less than a tenth of the 32 codes" in found["dead codes"]
    assert symptoms([{**row, "perplexity": 20.0, "acc_fake": 0.5} for row in rows], settings, 32) == {}
    assert symptoms(rows[:4], settings, 32) == {}
    heard = symptoms(rows, settings, 32, "segment")["winner"]  # recordings have no augmentation
    assert "--aug" in found["winner"]
    assert "--aug" not in heard
    assert "segments" in heard
