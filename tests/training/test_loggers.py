"""What goes to TensorBoard and W&B, recorded by stand-ins for the two packages."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_ext.cli import main
from aigc_ext.config import ConfigError
from aigc_ext.tasks.gan import TrainConfig, Trainer, find_resume_point
from aigc_ext.training import NonFiniteError, RunError
from aigc_ext.training.distributed import Processes
from tests.tasks.gan.helpers import PlainDiscriminator, PlainGenerator, config
from tests.training.helpers import files_of, tiny_images

BOTH = ["tensorboard", "wandb"]


class Writer:
    """torch.utils.tensorboard.SummaryWriter."""

    def __init__(self, log_dir, purge_step=None):
        self.log_dir, self.purge_step, self.closed = log_dir, purge_step, False
        self.scalars, self.images = [], []

    def add_scalar(self, tag, value, step):
        assert not self.closed
        self.scalars.append((tag, step, value))

    def add_image(self, tag, image, step, dataformats):
        assert len(dataformats) == image.ndim
        self.images.append((tag, step, image))

    def flush(self):
        pass

    def close(self):
        self.closed = True


class WandbError(Exception):
    pass


class WandbRun:
    def __init__(self, **arguments):
        self.arguments, self.rows, self.exit_code, self.metrics = arguments, [], None, {}
        self.id = arguments["id"] or f"made{id(self)}"

    def define_metric(self, name, **options):
        self.metrics[name] = options

    def log(self, row):
        assert self.exit_code is None
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def made(monkeypatch, tmp_path):
    """What was made: `writers` and `runs`, the oldest first; `fail` makes W&B fail."""
    made = SimpleNamespace(writers=[], runs=[], fail=False)

    def writer(log_dir, purge_step=None):
        made.writers.append(Writer(log_dir, purge_step))
        (tmp_path / log_dir).mkdir(exist_ok=True)
        return made.writers[-1]

    def init(**arguments):
        if made.fail:
            raise WandbError("no API key\nconfigured")
        made.runs.append(WandbRun(**arguments))
        return made.runs[-1]

    tensorboard, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    vars(tensorboard).update(SummaryWriter=writer)
    vars(wandb).update(init=init, Image=lambda path: ("image", path), Error=WandbError)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return made


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(group, rows):
    """The figures of a .jsonl as (name, images seen, value), without what is not a number."""
    return [
        (f"{group}/{name}", row["nimg"], value)
        for row in rows
        for name, value in row.items()
        if name not in ("nimg", "checkpoint") and value is not None
    ]


def said_to_wandb(run):
    """The scalars and the images of a run."""
    pairs = [(k, row["nimg"], v) for row in run.rows for k, v in row.items() if k != "nimg"]
    return [pair for pair in pairs if pair[0] != "fakes"], [pair for pair in pairs if pair[0] == "fakes"]


def resumed(run_dir, **overrides):
    point = find_resume_point(str(run_dir), run_dir.parent)
    options = point.config
    for key, value in overrides.items():
        options = options.override(key, value)
    trainer = Trainer.from_config(options, outdir=run_dir.parent)
    trainer.restore(point)
    return trainer.fit()


def test_rows_grids_and_metrics_go_there_and_change_no_bit(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = []
    for log in ((), BOTH):
        torch.manual_seed(0)
        networks = PlainGenerator((3, 4, 4)), PlainDiscriminator((3, 4, 4))
        settings = config(metrics=["kid"], metric_images=30, kimg=0.5, log=log)
        data = tiny_images(shape=(3, 4, 4))
        trainer = Trainer(*networks, data, settings, outdir=tmp_path, z_dim=6, value_range=(-1.0, 1.0))
        runs.append(trainer.fit())
    assert files_of(runs[0].checkpoint) == files_of(runs[1].checkpoint)
    assert not list(runs[0].run_dir.glob("*wandb*"))
    ((writer,), (run,), run_dir) = made.writers, made.runs, runs[1].run_dir

    stats, metrics = lines(run_dir / "stats.jsonl"), lines(run_dir / "metrics.jsonl")
    assert len(stats) == 4
    assert len(metrics) == 2
    expected = sorted(numbers("stats", stats) + numbers("metrics", metrics))
    assert any(name == "metrics/kid" for name, _, _ in expected)
    assert sorted(writer.scalars) == sorted(said_to_wandb(run)[0]) == expected
    grids = [(0, "fakes_init.png"), (250, "fakes000000-250.png"), (500, "fakes000000-500.png")]
    assert said_to_wandb(run)[1] == [("fakes", n, ("image", str(run_dir / name))) for n, name in grids]
    assert [(tag, step) for tag, step, _ in writer.images] == [("fakes", step) for step, _ in grids]
    for (_, _, pixels), (_, name) in zip(writer.images, grids, strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(run_dir / name)))

    assert (writer.log_dir, writer.purge_step) == (str(run_dir / "tensorboard"), None)
    assert writer.closed
    assert run.exit_code == 0
    assert run.metrics["*"] == {"step_metric": "nimg"}
    given = run.arguments
    assert (given["project"], given["name"], given["dir"]) == ("aigc_ext", run_dir.name, str(run_dir))
    assert TrainConfig.from_dict(given["config"]) == trainer.config
    assert "mode" not in given


def test_a_resumed_run_goes_on_in_the_same_places(made, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run_dir = Trainer.from_config(config(kimg=0.5, log=BOTH), outdir=tmp_path).fit().run_dir
    # As if the process had died after its last rows, before its last checkpoint.
    shutil.rmtree(run_dir / "checkpoints" / "000000-500")
    resumed(run_dir, kimg=0.75)
    first, second = made.writers
    assert second.log_dir == first.log_dir
    assert second.purge_step == 251
    assert [step for _, step, _ in second.images] == [500, 750]
    kept = [row for row in first.scalars if row[1] < second.purge_step]
    assert sorted(kept + second.scalars) == sorted(numbers("stats", lines(run_dir / "stats.jsonl")))
    before, after = made.runs
    assert (before.arguments["id"], before.arguments["resume"]) == (None, None)
    assert (after.arguments["id"], after.arguments["resume"]) == (before.id, "allow")
    assert after.arguments["project"] == "mine"
    assert sorted(said_to_wandb(after)[0]) == sorted(second.scalars)
    # A new run that starts from a checkpoint is another one, with the history of the first.
    point = find_resume_point(str(run_dir / "checkpoints" / "000000-750"), tmp_path)
    trainer = Trainer.from_config(point.config.override("kimg", 1.0), outdir=tmp_path)
    trainer.restore(point)
    other = trainer.fit().run_dir
    assert other != run_dir
    assert (made.runs[2].arguments["id"], made.writers[2].purge_step) == (None, None)
    assert sorted(made.writers[2].scalars) == sorted(numbers("stats", lines(other / "stats.jsonl")))
    assert len(lines(other / "stats.jsonl")) == 8


def test_a_place_named_later_gets_the_rows_so_far(made, tmp_path):
    run_dir = Trainer.from_config(config(kimg=0.25), outdir=tmp_path).fit().run_dir
    resumed(run_dir, kimg=0.5, log=["tensorboard", "tensorboard"])
    (writer,) = made.writers
    assert sorted(writer.scalars) == sorted(numbers("stats", lines(run_dir / "stats.jsonl")))
    assert [step for _, step, _ in writer.images] == [500]
    assert made.runs == []
    assert "changed: log: () -> ('tensorboard', 'tensorboard')" in (run_dir / "log.txt").read_text()


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_anything_happens(tmp_path, monkeypatch, capsys, name, module):
    for hidden in ("torch.utils.tensorboard", "tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, hidden, None)
    outdir = tmp_path / "runs"
    with pytest.raises(ConfigError, match=rf"log has '{name}', .*pip install aigc_ext\[{name}\]"):
        Trainer.from_config(config(log=[name]), outdir=outdir)
    small = ["train", "--outdir", str(outdir), "--data", "digits", "--kimg", "0.1", "--batch", "50"]
    assert main([*small, "--log", name]) == 2
    assert f"pip install aigc_ext[{name}]" in capsys.readouterr().err
    assert main([*small, "--log", f"{name},mlflow"]) == 2
    assert "log[1] is 'mlflow', but must be one of 'tensorboard', 'wandb'" in capsys.readouterr().err
    assert not outdir.exists()
    # Without their names neither package is needed.
    assert main([*small, "--log", "none"]) == 0


def test_the_option(made, capsys):
    for value, names in (("tensorboard,wandb", BOTH), ("none", [])):
        assert main(["train", "-n", "--data", "digits", "--kimg", "1", "--log", value]) == 0
        assert json.loads(capsys.readouterr().out)["log"] == names
    assert (made.writers, made.runs) == ([], [])


def test_when_wandb_cannot_start_the_run_does_not(made, tmp_path):
    made.fail = True
    trainer = Trainer.from_config(config(log=BOTH), outdir=tmp_path)
    with pytest.raises(RunError, match="wandb cannot be started: no API key configured"):
        trainer.fit()
    assert made.writers[0].closed
    assert trainer.run_dir is not None
    assert not (trainer.run_dir / "stats.jsonl").read_text()
    made.fail = False
    resumed(trainer.run_dir, kimg=0.25)
    assert made.runs[0].arguments["id"] is None
    assert len(said_to_wandb(made.runs[0])[1]) == 2


def test_a_run_that_breaks_down_is_failed_there_too(made, tmp_path):
    settings = config(log=BOTH, loss__kind="lsgan", nonfinite_limit=2, g_optim__lr=1e30, d_optim__lr=1e30)
    with pytest.raises(NonFiniteError):
        Trainer.from_config(settings, outdir=tmp_path).fit()
    assert made.runs[0].exit_code == 1
    assert made.writers[0].closed


def test_only_the_main_process_writes(made, tmp_path, monkeypatch):
    run_dir = Trainer.from_config(config(kimg=0.25), outdir=tmp_path).fit().run_dir

    class Other(Processes):
        main = False

        def broadcast_text(self, text):
            return str(run_dir)

    @contextmanager
    def another_process(device):
        yield Other()

    monkeypatch.setattr("aigc_ext.training.loop.process_group", another_process)
    before = sorted(run_dir.rglob("*"))
    Trainer.from_config(config(kimg=0.25, log=BOTH, metrics=[]), outdir=tmp_path).fit()
    assert (made.writers, made.runs) == ([], [])
    assert sorted(run_dir.rglob("*")) == before
