"""Run directories: their names, lock and statistics, and the meaning of `--resume`."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tqdm import tqdm

from aigc_ext import _files
from aigc_ext._runs import find_run, known_runs, numbered_runs
from aigc_ext.config import ConfigError, Count, NonNegative, Range, check_value, read_config
from aigc_ext.training.checkpoint import (
    STATE_FILE,
    Checkpoint,
    CheckpointError,
    newest_checkpoint,
    read_checkpoint,
)
from aigc_ext.training.config import RunConfig
from aigc_ext.training.identity import source_of

CONFIG_FILE = "config.json"
STATS_FILE = "stats.jsonl"
METRICS_FILE = "metrics.jsonl"
INIT_FILE = "init_from.txt"
"""Of a run that began with the weights of another: from where, and then where each tensor is from."""
# Younger temporary files may belong to another process that is still writing.
_STALE_SECONDS = 60
C = TypeVar("C", bound=RunConfig)
ConfigOf = type[RunConfig] | Callable[[Mapping[str, Any]], type[RunConfig]]
# Not what the data are, which is compared by content, but where, and how strictly they are looked at.
_FREE = ("data.source", "data.max_left_out", "data.many_empty_classes", "data.follow_links")
_Whole = Annotated[int, Range(ge=0, lt=2**63)]
# What a checkpoint's state.json has for every task, as far as it is read before it is compared.
_STATE = {
    **dict.fromkeys(("step", "nimg", "rows"), _Whole),
    "seconds": NonNegative,
    "threads": Count,
    "device": str,
    "skipped": tuple[_Whole, ...],
    "streaks": tuple[_Whole, ...] | None,
}
_STATE_OF_DATA = {
    "name": str,
    "images": Count,
    "shape": tuple[Count, ...],
    "num_classes": _Whole,
    "sha256": str | None,
    "path": str | None,
}
_LONGEST_PART = 80  # bytes of a run's name; file systems allow 255 in all


def is_number(value: object) -> bool:
    """A finite number, as float64 too: JSON also has integers of any size, and Python's has infinities."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


class RunError(ValueError):
    """A run directory that cannot be made, found or used; the message names it and says why."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run continues."""

    run_dir: Path | None  # the run to continue, or None to start a new one from `checkpoint`
    checkpoint: Checkpoint | None  # None: from the beginning, for a run that died before its first
    config: Any  # the run's config
    refused: tuple[CheckpointError, ...] = ()  # newer checkpoints that are damaged
    remark: str | None = None  # to be logged: how the data have changed since


def next_run_name(outdir: Path, preset: str, data: str, desc: str = "") -> str:
    """`00007-mlp-mnist5k-desc`: one above the highest number in `outdir`."""
    numbers = numbered_runs(outdir).values()
    parts = [_safe(part) for part in (preset, data, desc) if part]
    return f"{max(numbers, default=-1) + 1:05d}-{'-'.join(parts)}"


def _safe(text: str) -> str:
    """`text` as a part of a file name: letters and digits of any script, with their marks, and . _ + -, in
    Unicode's composed form."""

    def keeps(character: str) -> bool:
        return character.isalnum() or character in "._+-" or unicodedata.category(character)[0] == "M"

    kept = (character if keeps(character) else " " for character in unicodedata.normalize("NFC", text))
    name = re.sub(" +", "_", "".join(kept))
    return name.encode()[:_LONGEST_PART].decode(errors="ignore")


def create_run(outdir: Path, config: RunConfig, data: str, desc: str = "") -> Path:
    """Makes the next run directory with its config.json, atomically; raises RunError if that fails."""
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        _files.remove_temporaries(outdir, min_age=_STALE_SECONDS)
        temporary = _files.temporary_path(outdir / "run")
        with _files.removed_if_it_fails(temporary):
            temporary.mkdir()
            _files.write_durable(temporary / CONFIG_FILE, config.to_json().encode())
            _files.fsync_directory(temporary)
            while True:
                run_dir = outdir / next_run_name(outdir, config.preset, data, desc)
                try:
                    os.rename(temporary, run_dir)
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process took the name
                        raise
        _files.fsync_directory(outdir)
    except OSError as error:
        raise RunError(f"no run directory can be made in {outdir}: {error.strerror}") from error
    return run_dir


def resume_point(target: str, outdir: Path, config: ConfigOf) -> ResumePoint:
    """The point from which `--resume target` continues; `config` is the class of the runs' configs, or
    what gives it for the values of a run's config.json.

    - `latest`: the run with the highest number in `outdir`, in place, from its newest undamaged checkpoint;
    - a run directory, or the beginning of its name: that run, likewise;
    - a checkpoint directory: a new run that starts from exactly this checkpoint; the old run is unchanged.

    Raises RunError if the target does not exist, or has no checkpoint yet and began with weights of another
    run or model, which are not kept; CheckpointError if all its checkpoints are damaged.
    """
    if target == "latest" and not numbered_runs(outdir):
        raise RunError(f"resume is 'latest', but there is no run in {outdir}")
    try:
        path = find_run(target, outdir)
    except ValueError as error:
        raise RunError(f"resume: {error}") from error
    if (path / STATE_FILE).exists():
        checkpoint = read_checkpoint(path)
        return ResumePoint(None, checkpoint, config_of(checkpoint, config))
    if not path.is_dir():
        raise RunError(
            f"resume is {target!r}, but that is neither 'latest' nor a run or checkpoint directory"
            f"{known_runs(target, outdir)}"
        )
    if not (path / CONFIG_FILE).is_file():
        raise RunError(
            f"{path} cannot be resumed: it has neither {CONFIG_FILE} (a run) nor {STATE_FILE} (a checkpoint)"
        )
    checkpoint_or_none, refused = newest_checkpoint(path)
    if checkpoint_or_none is None:
        if (path / INIT_FILE).is_file():
            weights = _files.read_bytes(path / INIT_FILE).decode(errors="replace").partition("\n")[0]
            raise RunError(
                f"{path} cannot be resumed: it has no checkpoint yet, and it began with {weights}; "
                "--init-from begins another run with them"
            )
        cls = _class_for(read_config(path / CONFIG_FILE), config)
        return ResumePoint(path, None, cls.from_json(path / CONFIG_FILE, base=_old(cls)))
    return ResumePoint(path, checkpoint_or_none, config_of(checkpoint_or_none, config), tuple(refused))


def check_resumable(old: RunConfig, new: RunConfig) -> list[str]:
    """Describes the differences between two configs, key by key.

    Raises ConfigError for a difference with which the old state would mean something else.
    """
    changes = []
    before, after = old.flat(), new.flat()
    for key in before:
        if before[key] == after[key]:
            continue
        if key in _FREE:
            changes.append(f"{key}: {before[key]!r} -> {after[key]!r}")
            continue
        if key in new.measured and after[key] == "auto":
            raise ConfigError(f"{key} is 'auto', which is for a new run; this one has {before[key]!r}")
        if key.split(".")[0] in new.fixed:
            raise ConfigError(
                f"{key} is {after[key]!r}, but the run was started with {before[key]!r}, "
                "and it cannot change on resume"
            )
        changes.append(f"{key}: {before[key]!r} -> {after[key]!r}")
    return changes


class StatsLog:
    """`stats.jsonl`: one JSON object per tick, each with the `step` at which it was written and, if any, the
    `warnings` given then; or `metrics.jsonl`, one per snapshot."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; if that fails, none of it is left, and it may be added again."""
        # Unbuffered: a buffer would keep what could not be written and write it later.
        with _files.named(self.path), self.path.open("ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            left = memoryview((json.dumps(row) + "\n").encode())
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(size)
                raise

    def sync(self) -> None:
        """Makes the rows durable; called before a checkpoint, so that no row it counts can be lost."""
        if self.path.exists():
            with _files.named(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """The rows, without a last line that a dying process left incomplete."""
        if not self.path.exists():
            return []
        # A row is complete once it has its newline.
        *lines, _unfinished = _files.read_bytes(self.path).split(b"\n")
        return [self._row(line, number) for number, line in enumerate(lines, 1)]

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = _files.parse_json(line)
        except ValueError as error:
            raise RunError(
                f"{self.path}, line {number} is not JSON ({error}); repair or remove it"
            ) from error
        if not isinstance(row, dict) or not is_number(row.get("step", 0)) or not is_number(row.get("nimg")):
            shown = json.dumps(row)[:60]
            raise RunError(
                f"{self.path}, line {number} is {shown}, but must be an object with numbers step and nimg"
            )
        warnings = row.get("warnings", {})
        if not isinstance(warnings, dict) or not all(isinstance(text, str) for text in warnings.values()):
            raise RunError(f"{self.path}, line {number}: warnings must be an object of strings")
        return row

    def restart(self, rows: list[dict[str, Any]]) -> None:
        """Replaces the content, atomically."""
        _files.replace_file(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())


@dataclass(frozen=True)
class Run:
    """An open run directory."""

    path: Path
    stats: StatsLog
    metrics: StatsLog
    log: logging.Logger

    @property
    def model(self) -> Path:
        return self.path / "model"

    def checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / name

    def dump(self, name: str) -> Path:
        return self.path / f"nonfinite-{name}"


class _LogFile(logging.FileHandler):
    """A log that a run can do without: where it cannot be written, a line on stderr says so, once. What was
    not written then is, as soon as it can be."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._say(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if self._said:
            return
        self._said = True
        message = f"Warning: {self.baseFilename} cannot be written ({error.strerror}); the run goes on"
        with suppress(OSError):
            tqdm.write(message, file=sys.stderr)


@contextmanager
def open_run(path: Path) -> Iterator[Run]:
    """Locks a run directory for this process and opens its log; raises RunError if another process has it."""
    with _locked(path):
        log = logging.getLogger(f"{__package__}.{path.name}")
        handler = _LogFile(path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        data = logging.getLogger("aigc_ext.data")  # it reports files that turn out bad when they are read
        data.addHandler(handler)
        try:
            yield Run(path, StatsLog(path / STATS_FILE), StatsLog(path / METRICS_FILE), log)
        finally:
            data.removeHandler(handler)
            log.removeHandler(handler)
            handler.close()


def watched_run(path: Path) -> Run:
    """A run directory that another process writes to; log messages are discarded."""
    log = logging.getLogger(f"{__package__}.{path.name}.watched")
    log.propagate = False
    log.addHandler(logging.NullHandler())
    return Run(path, StatsLog(path / STATS_FILE), StatsLog(path / METRICS_FILE), log)


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Locks a run for one process. The system releases the lock however the process ends."""
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"run {run_dir} is in use by another process") from error
        yield
    finally:
        os.close(descriptor)


def _old(config: type[C]) -> C:
    """What a run's config leaves out is that of the version that began it."""
    return config.from_dict(config.before)


def _class_for(values: Mapping[str, Any], config: ConfigOf) -> type[RunConfig]:
    return config if isinstance(config, type) else config(values)


def config_of(checkpoint: Checkpoint, config: ConfigOf) -> Any:
    """The config of a checkpoint's run; the path of its data is that of its own working directory.

    Raises CheckpointError if it or another part of state.json does not fit this version.
    """
    _check_state(checkpoint)
    cls = _class_for(checkpoint.state["config"], config)
    try:
        found = cls.from_dict(checkpoint.state["config"], base=_old(cls))
    except ConfigError as error:
        raise CheckpointError(checkpoint.path, f"its config does not fit this version ({error})") from error
    return found.override("data.source", source_of(checkpoint, found.data.source))


def _check_state(checkpoint: Checkpoint) -> None:
    """Its digest says that state.json is as it was written, but not by whom."""
    state = checkpoint.state
    try:
        for key in ("config", "data"):
            if not isinstance(state.get(key), dict):
                raise ConfigError(f"{key} is {state.get(key)!r:.100}, but must be an object with keys")
        for prefix, values, hints in (("", state, _STATE), ("data.", state["data"], _STATE_OF_DATA)):
            for key, hint in hints.items():
                check_value(f"{prefix}{key}", values.get(key), hint)
    except ConfigError as error:
        raise CheckpointError(checkpoint.path, f"{STATE_FILE} is not that of a run: {error}") from error
