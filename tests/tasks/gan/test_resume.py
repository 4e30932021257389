"""N steps are k steps, a resume, and N - k steps: the same bits, whatever happened in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aigc_ext.config import ConfigError
from aigc_ext.data import TensorImages
from aigc_ext.tasks.gan import TrainConfig, Trainer, find_resume_point
from aigc_ext.training import CheckpointError, RunError, read_checkpoint
from tests.reliability import faults
from tests.tasks.gan.helpers import PlainDiscriminator, PlainGenerator, config
from tests.training.helpers import files_of, rows_of, tiny_images

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "data__cond": True,
        "data__mirror": True,
        "loss__gamma": 0.1,
        "loss__r1_interval": 3,
        "loss__label_smoothing": 0.1,
        "workers": 2,
        "n_dis": 3,
    },
    "dcgan": {
        "generator": {"family": "dcgan", "z_dim": 8, "channels": 6},
        "discriminator": {"family": "dcgan", "channels": 6},
        "loss__gamma": 0.1,
        "loss__r1_interval": 3,
        "data__cond": True,
    },
    "sngan": {
        "generator": {"family": "sngan", "z_dim": 8, "channels": 6},
        "discriminator": {"family": "sngan", "channels": 6},
        "loss__kind": "hinge",
        "n_dis": 2,
    },
    "stylegan2": {
        "generator": {"family": "stylegan2", "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_max": 6},
        "discriminator": {"family": "stylegan2", "channel_max": 6},
        "data__cond": True,
        "loss": {"gamma": None, "r1_interval": 3, "path_weight": 2.0, "path_interval": 2, "mixing": 0.5},
        "augment": {"kind": "ada", "kimg": 1.0},
        "ema__kimg": None,
    },
    "stylegan3": {
        "generator": {
            "family": "stylegan3",
            "z_dim": 8,
            "w_dim": 8,
            "mapping_layers": 1,
            "channel_max": 4,
            "num_layers": 4,
        },
        "discriminator": {"family": "stylegan2", "channel_max": 6},
        "loss": {"gamma": None, "r1_interval": 4},
        "augment": {"kind": "diffaug", "blur_sigma": 1.5, "blur_kimg": 0.6},
        "batch_gpu": 5,
        "n_dis": 2,
    },
    "r3gan": {
        "generator": {"family": "r3gan", "z_dim": 8, "channel_max": 8, "blocks": 1},
        "discriminator": {"family": "r3gan", "channel_max": 8, "blocks": 1},
        "loss": {"kind": "relativistic", "gamma": None, "r1_interval": 1, "r2": True},
        "augment": {"kind": "fixed", "p": 0.3, "p_start": 0.0},
        "g_optim": {"lr_end": 1e-4, "beta2_end": 0.99},
        "ema__kimg_start": 0.0,
        "ramp_kimg": 0.7,
        "channels_last": True,
        "precision": "bfloat16",
    },
}


class Interrupting(TensorImages):
    """Raises a signal in the process that reads its n-th batch."""

    def __init__(self, data: TensorImages, number: int, read: int) -> None:
        super().__init__(data.name, data._images, data.labels if data.num_classes else None)
        self.number, self.left = number, read

    def _read_items(self, index):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)
        return super()._read_items(index)


def resume(run_dir, outdir=Path("unused"), **overrides):
    point = find_resume_point(str(run_dir), outdir)
    new = point.config
    for key, value in overrides.items():
        new = new.override(key.replace("__", "."), value)
    trainer = Trainer.from_config(new, outdir=outdir)
    trainer.restore(point)
    return trainer.fit()


def assert_same_run(one, other):
    assert files_of(one.checkpoint) == files_of(other.checkpoint)
    assert rows_of(one.run_dir) == rows_of(other.run_dir)
    assert one.grid.read_bytes() == other.grid.read_bytes()
    for name in ("model.safetensors", "config.json"):
        assert (one.model / name).read_bytes() == (other.model / name).read_bytes()


@pytest.fixture(scope="module", params=VARIANTS)
def whole(request, tmp_path_factory):
    """A run that was never interrupted."""
    outdir = tmp_path_factory.mktemp("whole")
    return Trainer.from_config(config(**VARIANTS[request.param]), outdir=outdir).fit()


def test_resume_from_every_checkpoint_of_a_run(whole, tmp_path):
    paths = sorted((whole.run_dir / "checkpoints").iterdir())
    assert len(paths) == 4
    for path in paths[:-1]:
        # A copy of the run as of this checkpoint, which also has rows and files of the steps after it.
        run_dir = tmp_path / f"00000-mlp-digits-{path.name}"
        shutil.copytree(whole.run_dir, run_dir)
        for later in paths[paths.index(path) + 1 :]:
            shutil.rmtree(run_dir / "checkpoints" / later.name)
        assert_same_run(whole, resume(run_dir))


def test_a_longer_run_is_a_resumed_run(whole, tmp_path):
    half = TrainConfig.from_json(whole.run_dir / "config.json").override("kimg", 0.5)
    first = Trainer.from_config(half, outdir=tmp_path).fit()
    assert first.step == 20
    assert_same_run(whole, resume(first.run_dir, kimg=1.0))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_tick_leaves_a_run_that_resumes(tmp_path, number):
    whole = Trainer.from_config(config(), outdir=tmp_path / "whole").fit()
    trainer = Trainer.from_config(config(), outdir=tmp_path / "stopped")
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    trainer.data = Interrupting(trainer.data, number, 18)
    result = trainer.fit()
    assert result.signal == number
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    # One read is for reals.png; the step that the signal met is finished.
    assert (result.step, result.nimg) == (17, 425)
    assert result.checkpoint.name == "000000-425"
    assert result.checkpoint.is_dir()
    assert result.grid.is_file()
    assert f"stopped by {signal.Signals(number).name} at step 17" in (result.run_dir / "log.txt").read_text()
    assert_same_run(whole, resume(result.run_dir))


def test_the_same_trainer_goes_on_after_a_signal(tmp_path):
    whole = Trainer.from_config(config(), outdir=tmp_path / "whole").fit()
    trainer = Trainer.from_config(config(), outdir=tmp_path / "stopped")
    plain = trainer.data
    trainer.data = Interrupting(plain, signal.SIGINT, 18)
    assert trainer.fit().step == 17
    trainer.data = plain
    assert_same_run(whole, trainer.fit())


def test_modules_with_random_numbers_and_buffers_of_their_own(tmp_path):
    def make(outdir):
        torch.manual_seed(7)  # of the initial weights, which are the caller's here
        data = tiny_images()
        trainer = Trainer(
            PlainGenerator(),
            PlainDiscriminator(),
            data,
            config(),
            outdir=outdir,
            z_dim=6,
            value_range=(-1.0, 1.0),
        )
        torch.manual_seed(len(str(outdir)))  # must not matter
        return trainer

    whole = make(tmp_path / "whole").fit()
    assert whole.model is None
    stopped = make(tmp_path / "stopped")
    stopped.data = Interrupting(stopped.data, signal.SIGINT, 18)
    stopped = stopped.fit()
    assert stopped.step == 17
    resumed = make(tmp_path / "another")
    resumed.restore(find_resume_point(str(stopped.run_dir), tmp_path))
    resumed = resumed.fit()
    assert files_of(whole.checkpoint) == files_of(resumed.checkpoint)
    assert rows_of(whole.run_dir) == rows_of(resumed.run_dir)
    assert whole.grid.read_bytes() == resumed.grid.read_bytes()
    # The case is what it claims to be: the state differs between two moments.
    middle, end = read_checkpoint(stopped.checkpoint), read_checkpoint(resumed.checkpoint)
    average, current = end.tensors["ema"], end.tensors["generator"]
    assert torch.equal(average["norm.running_mean"], current["norm.running_mean"])
    assert not torch.equal(average["norm.weight"], current["norm.weight"])
    for stem, name in (
        ("generator", "norm.running_mean"),
        ("generator", "tied.weight"),
        ("training_state", "rng.latents"),
    ):
        assert not torch.equal(middle.tensors[stem][name], end.tensors[stem][name])


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Trainer.from_config(config(kimg=0.1), outdir=tmp_path).fit()
    assert torch.equal(torch.rand(4), expected)


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(whole, tmp_path):
    run_dir = tmp_path / "00000-mlp-digits"
    shutil.copytree(whole.run_dir, run_dir)
    newest, second, *_ = sorted((run_dir / "checkpoints").iterdir(), reverse=True)
    weights = newest / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    (second / "state.json").unlink()
    result = resume(run_dir)
    assert_same_run(whole, result)
    log = (run_dir / "log.txt").read_text()
    assert f"WARNING checkpoint {newest} is refused: generator.safetensors has" in log
    assert f"WARNING checkpoint {second} is refused: state.json cannot be read" in log
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} > {
        f"refused-{newest.name}",
        f"refused-{second.name}",
    }


def test_damaged_checkpoints_do_not_push_out_whole_ones(tmp_path):
    first = Trainer.from_config(config(kimg=0.5, keep=1), outdir=tmp_path).fit()
    shutil.copytree(first.checkpoint, first.checkpoint.with_name("000009"))
    (first.checkpoint.with_name("000009") / "ema.safetensors").write_bytes(b"")
    result = resume(first.run_dir, kimg=0.75)
    found = find_resume_point(str(result.run_dir), tmp_path).checkpoint
    assert found is not None
    assert found.path == result.checkpoint


def test_a_checkpoint_that_a_killed_process_was_to_delete_is_deleted(tmp_path):
    first = Trainer.from_config(config(kimg=0.5, keep=1), outdir=tmp_path).fit()
    # It was killed when the last checkpoint had its name and the one before still had one.
    shutil.copytree(first.checkpoint, first.checkpoint.with_name("000000-250"))
    resume(first.run_dir)
    assert list(first.checkpoint.parent.iterdir()) == [first.checkpoint]


def test_nothing_is_started_over_if_all_checkpoints_are_damaged(whole, tmp_path):
    run_dir = tmp_path / "00000-mlp-digits"
    shutil.copytree(whole.run_dir, run_dir)
    for path in (run_dir / "checkpoints").iterdir():
        (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of 4 is whole \(.*ema.safetensors cannot be read"):
        find_resume_point("latest", tmp_path)


def test_a_run_that_died_before_its_first_checkpoint_starts_again(whole, tmp_path):
    run_dir = tmp_path / "00000-mlp-digits"
    run_dir.mkdir()
    shutil.copy(whole.run_dir / "config.json", run_dir)
    shutil.copy(whole.run_dir / "stats.jsonl", run_dir)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / ".tmp-000000-250-99").mkdir()
    (run_dir / ".tmp-config.json-99").write_text("{")
    result = resume("latest", tmp_path)
    assert result.run_dir == run_dir
    assert_same_run(whole, result)
    assert not list(run_dir.rglob(".tmp-*"))


def test_a_complete_run_is_left_as_it_is(whole, tmp_path):
    run_dir = tmp_path / "00000-mlp-digits"
    shutil.copytree(whole.run_dir, run_dir)
    result = resume(run_dir)
    assert result.step == whole.step
    assert result.signal is None
    assert_same_run(whole, result)
    assert len(list((run_dir / "checkpoints").iterdir())) == 4


def test_rows_that_were_cut_off_by_a_crash_are_written_again(whole, tmp_path):
    run_dir = tmp_path / "00000-mlp-digits"
    shutil.copytree(whole.run_dir, run_dir)
    newest = max((run_dir / "checkpoints").iterdir())
    shutil.rmtree(newest)
    stats = run_dir / "stats.jsonl"
    stats.write_text(stats.read_text()[:-30])
    assert_same_run(whole, resume(run_dir))


def test_lost_rows_are_reported(whole, tmp_path):
    run_dir = tmp_path / "00000-mlp-digits"
    shutil.copytree(whole.run_dir, run_dir)
    (run_dir / "stats.jsonl").unlink()
    resume(run_dir)
    assert "stats.jsonl has 0 rows where there were 8" in (run_dir / "log.txt").read_text()


def test_a_checkpoint_starts_a_new_run_and_leaves_the_old_one(whole, tmp_path):
    before = {p: p.read_bytes() for p in whole.run_dir.rglob("*") if p.is_file()}
    path = sorted((whole.run_dir / "checkpoints").iterdir())[1]
    result = resume(path, outdir=tmp_path)
    assert result.run_dir.parent == tmp_path
    assert_same_run(whole, result)
    assert before == {p: p.read_bytes() for p in whole.run_dir.rglob("*") if p.is_file()}


def test_the_new_run_of_a_finished_checkpoint_is_complete(whole, tmp_path):
    result = resume(whole.checkpoint, outdir=tmp_path)
    assert_same_run(whole, result)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 1, "seed is 1, but the run was started with 0, and it cannot change"),
        ("data__mirror", None, "data.mirror is"),
        ("generator__z_dim", 9, "generator.z_dim is 9, but the run was started with 8"),
        ("preset", "x", "preset is 'x', but the run was started with 'mlp'"),
    ],
)
def test_what_cannot_change_on_resume(whole, tmp_path, key, value, message):
    if value is None:
        value = not find_resume_point(str(whole.run_dir), tmp_path).config.data.mirror
    with pytest.raises(ConfigError) as error:
        resume(whole.run_dir, **{key: value})
    assert message in str(error.value)


def test_what_may_change_on_resume_is_logged_and_kept(tmp_path):
    first = Trainer.from_config(config(kimg=0.25), outdir=tmp_path).fit()
    result = resume(first.run_dir, kimg=0.5, batch=50, g_optim__lr=0.01)
    log = (result.run_dir / "log.txt").read_text()
    for change in ("kimg: 0.25 -> 0.5", "batch: 25 -> 50", "g_optim.lr: 0.001 -> 0.01"):
        assert f"changed: {change}" in log
    assert (result.step, result.nimg) == (15, 500)
    assert json.loads((result.run_dir / "config.json").read_text())["batch"] == 50
    assert find_resume_point(str(result.run_dir), tmp_path).config.g_optim.lr == 0.01


def test_the_augmentation_is_the_one_that_the_resumed_config_says(tmp_path):
    first = Trainer.from_config(config(kimg=0.25, augment__kind="fixed"), outdir=tmp_path).fit()
    result = resume(first.run_dir, kimg=0.5, augment__p=0.7)
    assert [row["augment_p"] for row in rows_of(result.run_dir)] == pytest.approx([0.2, 0.2, 0.7, 0.7])
    result = resume(first.run_dir, kimg=0.75, augment__kind="diffaug")
    assert [row["augment_p"] for row in rows_of(result.run_dir)[4:]] == [None, None]


def test_other_data_under_the_same_name_are_refused(tmp_path):
    def make(count):
        return Trainer(
            PlainGenerator(),
            PlainDiscriminator(),
            tiny_images(count),
            config(kimg=0.1),
            outdir=tmp_path,
            z_dim=6,
            value_range=(-1.0, 1.0),
        )

    run_dir = make(40).fit().run_dir
    with pytest.raises(
        CheckpointError, match=r"differs from tiny: 1 image added \(image 40\); --data-changed"
    ):
        make(41).restore(find_resume_point(str(run_dir), tmp_path))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("latest", "resume is 'latest', but there is no run in"),
        ("nowhere", "resume is 'nowhere', but that is neither 'latest' nor a run or checkpoint directory"),
    ],
)
def test_nothing_to_resume(tmp_path, target, message):
    with pytest.raises(RunError) as error:
        find_resume_point(target, tmp_path)
    assert message in str(error.value)


def test_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"has neither config.json"):
        find_resume_point(str(tmp_path), tmp_path)


def test_a_directory_without_a_config_is_not_passed_over(whole, tmp_path):
    shutil.copytree(whole.run_dir, tmp_path / "00000-mlp-digits")
    (tmp_path / "00001-mlp-digits").mkdir()
    with pytest.raises(RunError, match="00001-mlp-digits cannot be resumed"):
        find_resume_point("latest", tmp_path)


def test_latest_is_the_highest_number(whole, tmp_path):
    for name in ("00002-mlp-digits", "00010-mlp-digits", "00009-mlp-digits"):
        shutil.copytree(whole.run_dir, tmp_path / name)
    (tmp_path / "notes").mkdir()
    run_dir = find_resume_point("latest", tmp_path).run_dir
    assert run_dir is not None
    assert run_dir.name == "00010-mlp-digits"


def test_a_run_belongs_to_one_process(tmp_path):
    first = Trainer.from_config(config(kimg=0.1), outdir=tmp_path).fit()
    code = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(first.run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunError, match="is in use by another process"):
            resume(first.run_dir)
        other.kill()
    resume(first.run_dir)


def test_a_run_that_another_process_continued_is_not_overwritten(tmp_path):
    first = Trainer.from_config(config(kimg=0.25), outdir=tmp_path).fit()
    stale = Trainer.from_config(config(kimg=0.75), outdir=tmp_path)
    stale.restore(find_resume_point(str(first.run_dir), tmp_path))
    newer = resume(first.run_dir, kimg=0.5)
    with pytest.raises(RunError, match="was continued by another process meanwhile"):
        stale.fit()
    read_checkpoint(newer.checkpoint)


def test_kill_9_at_any_moment(tmp_path):
    """A run killed again and again, by chance and in every kind of write, ends in the same bits."""
    driver = Path(__file__).with_name("kill_driver.py")
    root = Path(__file__).parents[3]
    environment = os.environ | {
        "LD_PRELOAD": str(faults.build(tmp_path)),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["by_chance"] >= 1
    # Each kind of system call that writes was interrupted, many of them inside a checkpoint.
    assert min(report["in_write"].values()) >= 1
    assert report["in_checkpoint"] >= 5
    assert report["different"] == []
