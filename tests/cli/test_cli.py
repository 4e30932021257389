from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

import aigc_ext._info
from aigc_ext.cli import main
from aigc_ext.data import DatasetError
from aigc_ext.sampling import Sampler
from aigc_ext.tasks.gan import PRESETS, TrainConfig
from aigc_ext.version import __version__

TINY = [
    *(
        "--data",
        "digits",
        "--batch",
        "50",
        "--kimg",
        "0.2",
        "--tick",
        "0.1",
        "--snap",
        "1",
        "--device",
        "cpu",
    ),
    *("--set", "generator.hidden=[8, 8]", "--set", "discriminator.hidden=[8, 8]", "--set", "grid=[2, 2]"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of one conditional and one unconditional run."""
    outdir = tmp_path_factory.mktemp("runs")
    assert main(["train", "--outdir", str(outdir), *TINY, "--cond"]) == 0
    assert main(["train", "--outdir", str(outdir), *TINY, "--desc", "plain"]) == 0
    return outdir


@pytest.fixture
def conditional(runs):
    return runs / "00000-mlp-digits"


@pytest.fixture
def plain(runs):
    return runs / "00001-mlp-digits-plain"


def assert_refused(capsys, arguments, message):
    """Bad input is one line on stderr and exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert shown.out == ""


def test_train_says_where_everything_is(tmp_path, capsys):
    assert main(["train", "--outdir", str(tmp_path / "my runs"), *TINY]) == 0
    shown = capsys.readouterr()
    paths = dict(line.split(":", 1) for line in shown.out.splitlines())
    run_dir = tmp_path / "my runs" / "00000-mlp-digits"
    assert Path(paths["samples"].strip()) == run_dir / "fakes000000-200.png"
    assert Path(paths["checkpoint"].strip()) == run_dir / "checkpoints" / "000000-200"
    assert Path(paths["figures"].strip()) == run_dir / "stats.jsonl"
    for name in ("samples", "checkpoint", "figures"):
        assert Path(paths[name].strip()).exists()
    assert paths["to go on"].strip() == f"aigc-ext train --resume '{run_dir}' --kimg 0.4"
    assert paths["more images"].strip() == f"aigc-ext sample --network '{run_dir}' --seeds 0-15"
    assert (
        paths["one file"].strip() == f"aigc-ext export --network '{run_dir}' --output '{run_dir}'/model.pt2"
    )
    assert paths["on one page"].strip() == f"aigc-ext report '{run_dir}'"
    # The progress line and the log.
    assert "0.2/0.2 kimg" in shown.err
    assert f"run {run_dir}" in shown.err
    assert "the labels of digits are not used" in shown.err
    assert "finished at step 4 (200 images)" in shown.err
    assert not any(isinstance(h, logging.FileHandler) for h in logging.getLogger("aigc_ext").handlers)


def test_options_reach_the_config(tmp_path, capsys):
    file = tmp_path / "my.json"
    file.write_text('{"batch": 7, "seed": 8, "g_optim": {"beta1": 0.25}, "loss": {"gamma": 9}}')
    arguments = [
        *(
            "train",
            "-n",
            "--data",
            "digits",
            "--preset",
            "mlp",
            "--config",
            str(file),
            "--batch",
            "11",
            "--gamma",
            "0.5",
        ),
        *("--glr", "0.1", "--dlr", "0.2", "--kimg", "3", "--tick", "2", "--snap", "4", "--cond", "--mirror"),
        *("--workers", "1", "--threads", "1", "--device", "cpu", "--deterministic", "--malloc", "keep"),
        *("--set", "batch=12", "--set", "ema.kimg=1.5", "--set", "loss.kind=hinge"),
    ]
    assert main(arguments) == 0
    got = json.loads(capsys.readouterr().out)
    expected = PRESETS["mlp"]
    for key, value in {
        "batch": 12,
        "seed": 8,
        "g_optim.beta1": 0.25,
        "g_optim.lr": 0.1,
        "d_optim.lr": 0.2,
        "loss.gamma": 0.5,
        "loss.kind": "hinge",
        "ema.kimg": 1.5,
        "kimg": 3,
        "tick": 2,
        "snap": 4,
        "data.source": "digits",
        "data.cond": True,
        "data.mirror": True,
        "workers": 1,
        "threads": 1,
        "device": "cpu",
        "deterministic": True,
        "malloc": "keep",
        "channels_last": False,
    }.items():
        expected = expected.override(key, value)
    assert TrainConfig.from_dict(got) == expected


def test_without_options_it_is_the_preset(capsys):
    assert main(["train", "--dry-run"]) == 0
    completed = PRESETS["mlp"].override("channels_last", False)
    assert TrainConfig.from_dict(json.loads(capsys.readouterr().out)) == completed


def test_a_config_that_names_its_preset_needs_no_other_option(tmp_path, capsys):
    config = str(Path(__file__).parents[2] / "examples" / "r3gan_cpu.json")
    options = ["--data", "digits", "--dry-run"]
    assert main(["train", "--config", config, *options, "--set", "generator.z_dim=8"]) == 0
    completed = json.loads(capsys.readouterr().out)
    assert (completed["preset"], completed["generator"]["family"]) == ("r3gan", "r3gan")
    # The option's networks don't have the config's keys.
    assert_refused(capsys, ["train", "--preset", "mlp", "--config", config, *options], "channel_base")


def test_a_dry_run_creates_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "-n"]) == 0
    assert list(tmp_path.iterdir()) == []
    # What it prints is a config file.
    (tmp_path / "again.json").write_text(capsys.readouterr().out)
    assert main(["train", "--config", "again.json", "--dry-run"]) == 0
    assert capsys.readouterr().out == (tmp_path / "again.json").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["again.json"]


def test_resume(runs, conditional, tmp_path, capsys):
    outdir = tmp_path / "runs"
    shutil.copytree(runs, outdir)
    assert main(["train", "--outdir", str(outdir), "--resume", "latest", "--kimg", "0.3"]) == 0
    assert "00001-mlp-digits-plain/checkpoints/000000-300" in capsys.readouterr().out
    assert main(["train", "--resume", str(outdir / conditional.name), "--set", "kimg=0.4", "--dry-run"]) == 0
    resolved = TrainConfig.from_dict(json.loads(capsys.readouterr().out))
    assert (resolved.kimg, resolved.data.cond, resolved.batch) == (0.4, True, 50)
    checkpoint = outdir / conditional.name / "checkpoints" / "000000-100"
    assert main(["train", "--outdir", str(outdir), "--resume", str(checkpoint), "--desc", "again"]) == 0
    assert "00002-mlp-digits-again/checkpoints/000000-200" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_said_and_passed_over(plain, tmp_path, capsys):
    run_dir = tmp_path / plain.name
    shutil.copytree(plain, run_dir)
    damaged = run_dir / "checkpoints" / "000000-200"
    (damaged / "ema.safetensors").write_bytes(b"x")
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert f"Warning: checkpoint {damaged} is refused: ema.safetensors has 1 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "batch is 0, but must be at least 1"),
        (["--batch", "x"], "Invalid value for '--batch': 'x' is not a valid integer"),
        (["--gamma", "-1"], "loss.gamma is -1.0, but must be at least 0"),
        (["--glr", "nan"], "g_optim.lr is nan, but must be finite"),
        (["--kimg", "0"], "kimg is 0.0, but must be greater than 0"),
        (["--seed", "-1"], "seed is -1, but must be at least 0"),
        (["--workers", "-1"], "workers is -1, but must be at least 0"),
        (["--threads", "0"], "threads is 0, but must be at least 1"),
        (["--device", "gpu"], "device is 'gpu', but must be 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        (["--device", "cuda:77"], "device is 'cuda:77', but this PyTorch sees"),
        (["--malloc", "x"], "'x' is not one of 'default', 'keep'"),
        (["--preset", "biggan"], "'biggan' is not"),
        (["--data", "none"], "'none'"),
        (["--data", ""], "''"),
        (["--set", "bach=3"], "unknown key bach; did you mean batch?"),
        (["--set", "batch"], "setting 'batch' is not of the form key=value"),
        (["--set", "generator.hidden=[]"], "hidden is ()"),
        (["--set", "loss.kind=bce"], "loss.kind is 'bce', but must be one of"),
        (["--config", "none.json"], "config none.json cannot be read: No such file or directory"),
        (["--resume", "nowhere"], "resume is 'nowhere', but that is neither"),
        (["--p", "0.5"], "p is 0.5, but only --aug fixed has one: --aug is noaug"),
        (["--aug", "fixed", "--target", "0.5"], "target is 0.5, but only --aug ada has one: --aug is fixed"),
        (
            ["--preset", "dcgan", "--cmax", "64"],
            "cmax is 64, but dcgan has no channel_max: only stylegan2, stylegan3, r3gan have",
        ),
        (["--resume", "latest"], "resume is 'latest', but there is no run in runs"),
        (["--frobnicate"], "--frobnicate"),
        (["digits"], "unexpected extra argument"),
    ],
)
def test_train_refuses(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    # Short, in case it is not refused.
    assert_refused(capsys, ["train", "--kimg", "0.1", *arguments], message)
    assert list(tmp_path.iterdir()) == []


def test_train_refuses_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text('{"batch": 3')
    assert_refused(capsys, ["train", "--config", "bad.json"], "config bad.json is not JSON")
    Path("text.zip").write_text("not a zip")
    assert_refused(capsys, ["train", "--data", "text.zip"], "text.zip")
    Path("empty").mkdir()
    assert_refused(capsys, ["train", "--data", "empty"], "empty")
    Path("blocked").write_text("")
    assert_refused(capsys, ["train", *TINY, "--outdir", "blocked"], "no run directory can be made in blocked")
    Path("zero").mkdir()
    Path("zero/a.png").write_bytes(b"")
    assert_refused(capsys, ["train", "--data", "zero"], "a.png")


def test_labels_that_are_not_there(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    assert_refused(capsys, ["train", "--data", tmp_path, "--cond"], "data.cond is true, but")


def test_resume_refuses(plain, tmp_path, capsys):
    assert_refused(
        capsys, ["train", "--resume", plain, "--seed", "5"], "seed is 5, but the run was started with 0"
    )
    assert_refused(
        capsys,
        ["train", "--resume", plain, "--data", "mnist5k"],
        "its networks are for data with images of the shape 1x8x8, but mnist5k has 1x28x28",
    )
    assert_refused(capsys, ["train", "--resume", plain, "--preset", "dcgan"], "preset is 'dcgan', but")
    assert_refused(
        capsys, ["train", "--resume", plain, "--desc", "more"], "desc is 'more', but a run that goes on"
    )
    run_dir = tmp_path / plain.name
    shutil.copytree(plain, run_dir)
    for path in (run_dir / "checkpoints").iterdir():
        (path / "state.json").unlink()
    assert_refused(capsys, ["train", "--resume", run_dir], "none of 2 is whole")


def test_metrics_that_cannot_be_taken_are_an_error_of_the_user(tmp_path, capsys):
    arguments = ["train", *TINY, "--outdir", str(tmp_path), "--metrics", "pr", "--set", "metric_images=3"]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "Error: pr needs more than 3 images, real and generated, but has 1797 of digits and 3" in shown
    assert not list(tmp_path.glob("*/checkpoints/*"))


def test_a_run_in_use(plain, capsys):
    import fcntl

    descriptor = os.open(plain, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert main(["train", "--resume", str(plain), "--kimg", "0.5"]) == 2
    finally:
        os.close(descriptor)
    assert f"Error: run {plain} is in use by another process\n" in capsys.readouterr().err


def test_what_only_shows_in_training_is_one_line_too(tmp_path, capsys, monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        assert main(["train", *TINY, "--outdir", str(tmp_path)]) == 2
    assert "Error: WORLD_SIZE is 2, but RANK" in capsys.readouterr().err

    def fit(trainer, progress):
        raise DatasetError("a.png is gone")

    monkeypatch.setattr("aigc_ext.training.Trainer.fit", fit)
    assert main(["train", *TINY, "--outdir", str(tmp_path)]) == 1
    assert "Error: " in (shown := capsys.readouterr().err)
    assert "a.png" in shown


def test_a_run_that_breaks_down_is_a_failure_with_a_dump(tmp_path, capsys):
    arguments = ["train", *TINY, "--outdir", str(tmp_path), "--glr", "1e30", "--dlr", "1e30"]
    assert main([*arguments, "--set", "nonfinite_limit=2", "--kimg", "100", "--set", "loss.kind=lsgan"]) == 1
    shown = capsys.readouterr().err
    assert "Error: stopped at step " in shown
    assert "2 steps in a row had a loss or gradient that is not finite" in shown
    assert list(tmp_path.glob("00000-mlp-digits/nonfinite-*/inputs.safetensors"))


def test_sample_files(plain, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sample", "--network", str(plain), "--seeds", "0-3,12345,7", "--outdir", str(out)]) == 0
    assert capsys.readouterr().out == f"6 images in {out}\n"
    expected = Sampler.from_pretrained(plain)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"seed{name}.png" for name in ("0000", "0001", "0002", "0003", "0007", "12345")
    )
    for seed in (0, 3, 7, 12345):
        image = PngImageFile(out / f"seed{seed:04d}.png")
        assert np.array_equal(np.asarray(image), expected.sample([seed])[0, :, :, 0])
        assert json.loads(image.text["aigc_ext"]) == {
            "version": __version__,
            "model_sha256": expected.model_sha256,
            "seed": seed,
            "class": None,
            "truncation": 1.0,
        }
        assert json.loads(image.text["AIGC"])["ContentProducer"] == "aigc_ext"
        assert "trainedAlgorithmicMedia" in image.text["XML:com.adobe.xmp"]


def test_sample_many_and_without_label(plain, tmp_path):
    arguments = ["sample", "--network", str(plain / "model"), "--seeds", "10-310", "--outdir", str(tmp_path)]
    threads = str(torch.get_num_threads())
    assert main([*arguments, "--no-label", "--trunc", "0.5", "--threads", threads]) == 0
    assert len(list(tmp_path.iterdir())) == 301
    image = PngImageFile(tmp_path / "seed0300.png")
    assert image.text.keys() == {"aigc_ext"}
    assert json.loads(image.text["aigc_ext"])["truncation"] == 0.5
    expected = Sampler.from_pretrained(plain).sample([300], truncation=0.5)[0, :, :, 0]
    assert np.array_equal(np.asarray(image), expected)


def test_sample_a_grid_of_a_class(conditional, tmp_path, capsys):
    arguments = ["sample", "--network", str(conditional), "--seeds", "0-5", "--class", "7", "--grid", "3x2"]
    assert main([*arguments, "--outdir", str(tmp_path), "--producer", "me"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'grid.png'}\n"
    image = PngImageFile(tmp_path / "grid.png")
    images = Sampler.from_pretrained(conditional).sample(range(6), 7)
    sheet = np.asarray(image)[::8, ::8]
    assert sheet.shape == (16, 24)
    for i in range(6):
        assert np.array_equal(sheet[8 * (i // 3) :, 8 * (i % 3) :][:8, :8], images[i, :, :, 0])
    record = json.loads(image.text["aigc_ext"])
    assert (record["seeds"], record["classes"]) == (list(range(6)), [7] * 6)
    assert json.loads(image.text["AIGC"])["ContentProducer"] == "me"


def test_sample_chooses_classes_by_seed(conditional, tmp_path):
    assert main(["sample", "--network", str(conditional), "--seeds", "5", "--outdir", str(tmp_path)]) == 0
    record = json.loads(PngImageFile(tmp_path / "seed0005.png").text["aigc_ext"])
    sampler = Sampler.from_pretrained(conditional)
    assert [record["class"]] == sampler.resolve_classes([5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", ""], "'' is no list of seeds such as 0-15"),
        (["--seeds", "a-b"], "'a-b' is no list of seeds"),
        (["--seeds", "1,,2"], "'1,,2' is no list of seeds"),
        (["--seeds", "-3"], "-3"),
        (["--seeds", "5-2"], "'5-2' runs backwards; write 2-5"),
        (["--seeds", str(2**63)], f"seed {2**63} is too large"),
        (["--seeds", "0-99999999999"], "has more than 1000000 seeds"),
        (["--seeds", "1", "--trunc", "-1"], "truncation is -1.0, but must be a finite number of at least 0"),
        (["--seeds", "1", "--trunc", "nan"], "truncation is nan"),
        (["--seeds", "1", "--class", "3"], "classes is 3, but this generator is unconditional"),
        (["--seeds", "0-4", "--grid", "2x2"], "grid is 2x2, but must have a cell for each of the 5 seeds"),
        (["--seeds", "0-4", "--grid", "2by2"], "'2by2' is no grid of COLUMNSxROWS"),
        (["--seeds", "0-4", "--grid", "0x5"], "'0x5' is no grid"),
        (["--seeds", "1", "--device", "tpu"], "device is 'tpu'"),
        (["--seeds", "1", "--threads", "0"], "'--threads': 0 is not in the range x>=1"),
        ([], "Missing option '--seeds'"),
        (["--seeds", "1", "--outdir", "blocked"], "blocked"),
    ],
)
def test_sample_refuses(plain, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("blocked").write_text("")
    assert_refused(capsys, ["sample", "--network", plain, *arguments], message)
    assert [p.name for p in tmp_path.iterdir()] == ["blocked"]


def test_sample_refuses_networks(conditional, tmp_path, capsys):
    assert_refused(capsys, ["sample", "--seeds", "1"], "Missing option '--network'")
    assert_refused(capsys, ["sample", "--seeds", "1", "--network", "no"], "network no is no directory")
    assert_refused(
        capsys, ["sample", "--seeds", "1", "--network", tmp_path], f"network {tmp_path} is no model"
    )
    arguments = ["sample", "--seeds", "1", "--network", conditional, "--class", "10"]
    assert_refused(capsys, arguments, "class is 10, but must be an integer from 0 to 9")


def test_info_is_the_report_of_the_package(monkeypatch):
    calls = []
    monkeypatch.setattr(aigc_ext._info, "main", lambda: calls.append(1))
    assert main(["info"]) == 0
    assert calls == [1]


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("train", "sample", "info"))
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--outdir", "--data", "--preset", "--resume", "--dry-run", "--set", "--config"):
        assert option in text


def test_an_unknown_command(capsys):
    assert_refused(capsys, ["tarin"], "tarin")


def start(*arguments, **kwargs):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "aigc_ext.cli", *map(str, arguments)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_sigterm_ends_a_process_with_a_checkpoint_and_says_how_to_go_on(tmp_path):
    with start("train", *TINY, "--outdir", tmp_path, "--kimg", "100000") as process:
        run_dir = tmp_path / "00000-mlp-digits"
        deadline = time.monotonic() + 120
        while not list(run_dir.glob("checkpoints/0*")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"to go on:    aigc-ext train --resume {run_dir}\n" in out
    assert "stopped by SIGTERM at step" in err
    assert "Traceback" not in err
    (checkpoint,) = [
        line.split(":", 1)[1].strip() for line in out.splitlines() if line.startswith("checkpoint")
    ]
    kimg = json.loads((Path(checkpoint) / "state.json").read_text())["nimg"] / 1000 + 0.05
    assert main(["train", "--resume", str(run_dir), "--kimg", str(kimg)]) == 0


def test_the_module_runs_and_errors_are_one_line():
    with start("train", "--batch", "0") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (2, "", "Error: batch is 0, but must be at least 1\n")
