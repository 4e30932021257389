"""A disk that fills up while a run writes, and empties again."""

from __future__ import annotations

import errno
import json
import logging
import os

import pytest

from aigc_ext import _files
from aigc_ext.tasks.gan import Trainer, find_resume_point
from aigc_ext.training import read_checkpoint
from aigc_ext.training.checkpoint import list_checkpoints
from aigc_ext.training.run import StatsLog, open_run
from tests.tasks.gan.helpers import config
from tests.training.helpers import files_of, rows_of

# Snapshots at 250, 500, 750 and 1000 images
NAMES = ["000001", "000000-750", "000000-500", "000000-250"]


class Disk:
    """Refuses to write files whose names have `word`, from the nth on, `count` times."""

    def __init__(self, monkeypatch, word: str, first: int, count: int) -> None:
        self.word, self.first, self.count, self.calls = word, first, count, 0
        self.write = _files.write_durable
        monkeypatch.setattr(_files, "write_durable", self)

    def __call__(self, path, data):
        if self.word in str(path):
            self.calls += 1
            if self.first <= self.calls < self.first + self.count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self.write(path, data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Trainer.from_config(config(), outdir=tmp_path_factory.mktemp("whole")).fit()


def test_the_run_goes_on_without_the_checkpoint(tmp_path, whole, monkeypatch, caplog):
    Disk(monkeypatch, "checkpoints", 6, 1)  # in the second
    with caplog.at_level(logging.WARNING):
        result = Trainer.from_config(config(), outdir=tmp_path).fit()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("No space left on device: ")
    assert warning.endswith(": the run goes on, without a checkpoint of 500 images")
    assert [path.name for path in list_checkpoints(result.run_dir)] == [
        name for name in NAMES if name != "000000-500"
    ]
    assert not list(result.run_dir.rglob(".tmp-*"))
    assert files_of(result.checkpoint) == files_of(whole.checkpoint)
    assert rows_of(result.run_dir) == rows_of(whole.run_dir)


def test_the_last_checkpoint_is_not_left_out(tmp_path, whole, monkeypatch):
    disk = Disk(monkeypatch, "checkpoints", 11, 1000)  # from the third on
    with pytest.raises(OSError, match="No space left on device"):
        Trainer.from_config(config(), outdir=tmp_path).fit()
    (run_dir,) = tmp_path.iterdir()
    assert [path.name for path in list_checkpoints(run_dir)] == ["000000-500", "000000-250"]
    disk.count = 0
    point = find_resume_point("latest", tmp_path)
    trainer = Trainer.from_config(point.config, outdir=tmp_path)
    trainer.restore(point)
    result = trainer.fit()
    assert files_of(result.checkpoint) == files_of(whole.checkpoint)
    assert rows_of(result.run_dir) == rows_of(whole.run_dir)
    for checkpoint in list_checkpoints(run_dir):
        read_checkpoint(checkpoint)


def test_another_error_stops_the_run(tmp_path, monkeypatch):
    def broken(path, data):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    trainer = Trainer.from_config(config(), outdir=tmp_path)
    monkeypatch.setattr(trainer.task, "publish", broken)
    with pytest.raises(OSError, match="Input/output error"):
        trainer.fit()


def test_rows_are_written_later(tmp_path, whole, monkeypatch, caplog):
    append, calls = StatsLog.append, []

    def sometimes(self, row):
        calls.append(row)
        if len(calls) in (2, 3):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self.path))
        append(self, row)

    monkeypatch.setattr(StatsLog, "append", sometimes)
    with caplog.at_level(logging.WARNING):
        result = Trainer.from_config(config(), outdir=tmp_path).fit()
    assert "the run goes on, the row is written later" in caplog.text
    assert rows_of(result.run_dir) == rows_of(whole.run_dir)


def test_half_a_row_is_taken_back(tmp_path, monkeypatch):
    """What a full disk took of a row would make a line that is no JSON with the next."""
    log = StatsLog(tmp_path / "stats.jsonl")
    log.append({"nimg": 1})

    class Full:
        """A file on a disk with room for three bytes."""

        def __init__(self, file):
            self.file, self.room = file, 3

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = self.file.write(data[: self.room])
            self.room -= written
            return written

    path = type(log.path)
    opened = path.open
    monkeypatch.setattr(path, "open", lambda self, *args, **kwargs: Full(opened(self, *args, **kwargs)))
    with pytest.raises(OSError, match=r"stats.jsonl"):
        log.append({"nimg": 2})
    monkeypatch.undo()
    log.append({"nimg": 3})
    assert [json.loads(line)["nimg"] for line in log.path.read_text().splitlines()] == [1, 3]


def test_a_log_on_a_full_disk_is_no_traceback(tmp_path, capsys):
    with open_run(tmp_path) as run:
        (handler,) = run.log.handlers
        assert isinstance(handler, logging.FileHandler)
        handler.close()
        handler.stream = open("/dev/full", "w")  # noqa: SIM115 (the handler closes it)
        for _ in range(3):
            run.log.warning("something")
    shown = capsys.readouterr().err
    words = f"Warning: {tmp_path / 'log.txt'} cannot be written (No space left on device); the run goes on"
    assert shown.splitlines() == [words]


def test_the_best_is_of_the_checkpoints_that_are_there(tmp_path, monkeypatch):
    """That of the best metrics was not written: the best of the others is spared."""
    Disk(monkeypatch, "checkpoints", 6, 1)  # the second
    trainer = Trainer.from_config(config(keep=1, metrics=["kid"], metric_images=20), outdir=tmp_path)
    values = iter([2.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(trainer.task, "metrics", lambda: {"kid": next(values)})
    result = trainer.fit()
    assert [path.name for path in list_checkpoints(result.run_dir)] == ["000001", "000000-250"]
