"""Files that were damaged, and numbers with which nothing can be done: one line, no traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors

from aigc_ext import _files
from aigc_ext.cli import main
from aigc_ext.reporting import write_report
from aigc_ext.sampling import PretrainedError, load_pretrained
from aigc_ext.tasks.gan import TrainConfig, Trainer
from aigc_ext.training.progress import memory_size_gb
from tests.cli.test_cli import TINY, assert_refused

DEEP = "[" * 100_000 + "]" * 100_000
DEEPER_THAN_ALLOWED = '{"a": ' * 101 + "1" + "}" * 101
LONG = "1" + "0" * 399


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has ended at 0.2 thousand images, in batches of 50."""
    outdir = tmp_path_factory.mktemp("runs")
    assert main(["train", "--outdir", str(outdir), *TINY]) == 0
    return outdir / "00000-mlp-digits"


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / trained.name)
    return tmp_path / trained.name


def test_a_run_cannot_end_before_the_point_that_it_has_reached(run, capsys) -> None:
    words = "kimg is 0.1, but the run has learned from 0.2 thousand images already: give more"
    words += f", or sample from it as it is ({run}/checkpoints/000000-200)"  # whose state.json may be wrong
    assert_refused(capsys, ["train", "--resume", run, "--kimg", "0.1"], words)
    # A complete run may be beyond its end by part of a batch, however short it is on the line.
    assert main(["train", "--resume", str(run), "--kimg", "0.16"]) == 0
    assert main(["train", "--resume", str(run), "--kimg", "0.25"]) == 0


def test_the_progress_line_of_a_run_that_is_beyond_its_end(tmp_path) -> None:
    options = [*TINY, "--outdir", str(tmp_path), "--batch", "1700", "--kimg", "1"]
    assert main(["train", *options]) == 0
    assert main(["train", "--resume", str(tmp_path / "00000-mlp-digits")]) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"step": 1, "nimg": 1}\n\xff\n', "line 2 is not JSON ('utf-8' codec can't decode byte 0xff"),
        (DEEP.encode() + b"\n", "line 1 is not JSON (it is nested more than 100 deep)"),
        (b'{"step": "1", "nimg": 1}\n', "but must be an object with numbers step and nimg"),
        (b'{"step": 1, "nimg": Infinity}\n', "but must be an object with numbers step and nimg"),
        (f'{{"step": 1, "nimg": {LONG}}}\n'.encode(), "but must be an object with numbers step and nimg"),
        (b"7\n", "line 1 is 7, but must be an object"),
    ],
)
@pytest.mark.parametrize("name", ["stats.jsonl", "metrics.jsonl"])
def test_rows(run, capsys, name, content, words) -> None:
    (run / name).write_bytes(content)
    for command in (["report", run], ["train", "--resume", run, "--kimg", "0.4"]):
        assert main([str(argument) for argument in command]) == 2
        shown = capsys.readouterr().err.splitlines()[-1]
        assert shown.startswith(f"Error: {run / name}")
        assert words in shown


@pytest.mark.parametrize("text", [DEEP, DEEPER_THAN_ALLOWED], ids=["deep", "deeper"])
def test_nested_json(run, tmp_path, capsys, text) -> None:
    (tmp_path / "c.json").write_text(text)
    words = "is not JSON: it is nested more than 100 deep"
    assert_refused(capsys, ["train", "--config", tmp_path / "c.json"], words)
    assert_refused(capsys, ["convert", "x.pt", "--dest", "d", "--config", tmp_path / "c.json"], words)
    (run / "model" / "sha256.json").unlink()
    (run / "model" / "config.json").write_text(text)
    with pytest.raises(PretrainedError, match=r"config.json is not JSON"):
        load_pretrained(run)
    assert_refused(capsys, ["report", run], "config.json is not JSON")
    checkpoint = run / "checkpoints" / "000000-200"
    (checkpoint / "state.json").write_text(text)
    assert_refused(capsys, ["train", "--resume", checkpoint, "--kimg", "9"], "state.json is not JSON")
    assert main(["train", *TINY, "--outdir", str(tmp_path), "--set", f"kimg={text}"]) == 2
    assert "kimg is " in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", [LONG, "-" + LONG, "Infinity", "-Infinity", "NaN", "1e308", "-1e308", "1e300"]
)
def test_a_report_of_any_numbers(run, value) -> None:
    row = '{"step": 1, "nimg": 100, "loss_d": VALUE, "seconds": VALUE, "skipped_d": VALUE, "fd": VALUE}\n'
    for name in ("stats.jsonl", "metrics.jsonl"):
        (run / name).write_text(row.replace("VALUE", value) + row.replace("VALUE", "1.5"))
    html = write_report(run).read_text()
    assert "Losses" in html
    assert not any(word in html.split("<svg", 1)[1].split("</svg>")[0] for word in ("nan", "inf"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config).replace('"kimg": 0.2', f'"kimg": {value}'))
    write_report(run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--batch", "1000000000000"],
            "batch is 1000000000000, but must be smaller: its images alone, 1x8x8, would take 2.56e+05 GB",
        ),
        (["--set", "grid=[1000000, 1000000]"], "grid is 1000000x1000000, but must have fewer cells"),
        (["--workers", "1000000000"], "workers is 1000000000, but must be at most 256"),
        (["--threads", "1000000000"], "threads is 1000000000, but must be at most 1024"),
        (["--set", f"kimg={LONG}"], "but must be finite"),
        (["--set", f"batch={LONG}"], "but must be less than"),
    ],
)
def test_numbers_that_would_take_for_ever(tmp_path, capsys, options, words) -> None:
    assert_refused(capsys, ["train", *TINY, "--outdir", tmp_path, *options], words)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_fits_in_parts_of_several_processes(monkeypatch) -> None:
    data = TrainConfig().override("data.source", "digits").override("device", "cpu")
    limit = int(memory_size_gb(Trainer.from_config(data).device) * 1e9 / 256)
    with pytest.raises(ValueError, match="batch is"):
        Trainer.from_config(data.override("batch", 2 * limit))
    monkeypatch.setenv("WORLD_SIZE", "4")
    Trainer.from_config(data.override("batch", 2 * limit))


def test_a_dry_run_of_a_very_long_period(tmp_path, capsys) -> None:
    settings = [part for key in ("n_dis", "loss.r1_interval") for part in ("--set", f"{key}=1000003")]
    assert main(["train", *TINY, "--gamma", "1", *settings, "--dry-run", "--outdir", str(tmp_path)]) == 0


def test_the_family_of_a_network_is_a_string(tmp_path, capsys) -> None:
    (tmp_path / "c.json").write_text('{"generator": {"family": []}}')
    assert_refused(capsys, ["train", "--config", tmp_path / "c.json"], "generator.family is [], but must be")


def test_half_a_surrogate_pair_in_a_report(run) -> None:
    """JSON can have one, and a text file cannot."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "preset": "\ud800"}))
    assert "\\ud800" in write_report(run).read_text()


ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes. Error code 12"
STATE = ["step", "nimg", "rows", "seconds", "threads", "device", "skipped", "config", "data", "files"]
STATE += [f"data.{name}" for name in ("name", "images", "shape", "num_classes")]


@pytest.mark.parametrize("key", STATE)
@pytest.mark.parametrize("value", [None, "x", [1], -1], ids=str)
def test_a_checkpoint_made_by_hand(run, capsys, key, value) -> None:
    """Its digest is right, and its content is not."""
    if (key.split(".")[-1], value) in (("skipped", [1]), ("name", "x"), ("device", "x")):
        pytest.skip("it may be so")
    path = max((run / "checkpoints").iterdir())
    state = json.loads((path / "state.json").read_text())
    *folder, name = key.split(".")
    place = state[folder[0]] if folder else state
    if value is None:
        del place[name]
    else:
        place[name] = value
    state["sha256"] = _files.json_digest(state)
    (path / "state.json").write_text(json.dumps(state))
    of_run = f"state.json is not that of a run: {key}"
    words = "has no list of its safetensors files" if key == "files" else of_run
    if (key, value) == ("data.shape", [1]):
        words = "its networks are for data with images of the shape 1, but"
    assert_refused(capsys, ["train", "--resume", path, "--kimg", "0.4"], words)


@pytest.mark.parametrize("key", ["skipped", "streaks"])
def test_a_checkpoint_of_another_number_of_optimizers(run, capsys, key) -> None:
    path = max((run / "checkpoints").iterdir())
    state = json.loads((path / "state.json").read_text())
    state[key] = [0]
    state["sha256"] = _files.json_digest(state)
    (path / "state.json").write_text(json.dumps(state))
    words = f"it has 1 {key}, but there are 2 optimizers"
    assert_refused(capsys, ["train", "--resume", path, "--kimg", "0.4"], words)


def test_optimizers_that_do_not_fit(run, capsys) -> None:
    path = max((run / "checkpoints").iterdir())
    state = json.loads((path / "state.json").read_text())
    data = (path / "ema.safetensors").read_bytes()
    (path / "training_state.safetensors").write_bytes(data)
    state["files"]["training_state.safetensors"] = {"bytes": len(data), "sha256": _files.sha256(data)}
    state["sha256"] = _files.json_digest(state)
    (path / "state.json").write_text(json.dumps(state))
    words = "training_state.safetensors does not fit the optimizers"
    assert_refused(capsys, ["train", "--resume", path, "--kimg", "0.4"], words)


def test_a_weights_file_that_cannot_be_opened(run, capsys, monkeypatch) -> None:
    """PyTorch, which opens it, raises a RuntimeError."""

    def refused(path, framework):
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: Permission denied (13)")

    monkeypatch.setattr(safetensors, "safe_open", refused)
    assert_refused(capsys, ["report", run], "model.safetensors cannot be opened: unable to open file")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("std::bad_alloc"), "there is not enough memory (std::bad_alloc)"),
        (
            RuntimeError("std::bad_alloc"),
            "there is not enough memory (std::bad_alloc)",
        ),  # of an autograd node
        (
            RuntimeError(f"[enforce fail at alloc_cpu.cpp:127] err == 0. {ALLOCATOR}"),
            f"there is not enough memory ({ALLOCATOR})",
        ),
        (OSError(28, "No space left on device", "runs/a"), "No space left on device: runs/a"),
    ],
)
def test_memory_and_disks_end_a_command_with_one_line(monkeypatch, capsys, error, words) -> None:
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("aigc_ext.reporting.write_report", fail)
    code = main(["report", "x"])
    assert code == (2 if isinstance(error, OSError) else 1)
    assert capsys.readouterr().err == f"Error: {words}\n"


def test_another_runtime_error_is_a_traceback(monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("aigc_ext.reporting.write_report", fail)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        main(["report", "x"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aigc_ext.cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device: standard output\n")
