"""Kills real training processes with SIGKILL, resumes them, and compares with a run that was left alone.

Run as a program, with tests/reliability/faults.cpp preloaded: it imports everything once and forks the
processes that it kills, so that a kill costs milliseconds. Prints a JSON report.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from aigc_ext.tasks.gan import Trainer, find_resume_point
from aigc_ext.training import read_checkpoint
from aigc_ext.training.checkpoint import list_checkpoints
from aigc_ext.training.run import RunError
from tests.reliability import faults
from tests.tasks.gan.helpers import config
from tests.training.helpers import files_of, rows_of

CONFIG = config(batch=20, kimg=0.4, tick=0.05, snap=2, keep=1, threads=1)
KINDS = ("create", "write", "fsync", "rename", "mkdir", "unlink")


def train(outdir: Path) -> None:
    try:
        point = find_resume_point("latest", outdir)
    except RunError:  # killed before there was a run
        point = None
    trainer = Trainer.from_config(CONFIG if point is None else point.config, outdir=outdir)
    if point is not None:
        trainer.restore(point)
    trainer.fit()


def fork(outdir: Path, before=lambda: None) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        before()
        train(outdir)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(child: int) -> bool:
    """True if the child ended, False if it was killed; anything else is an error."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status != 0:
        sys.exit(f"a training process failed with status {status}")
    return True


def die_in_call(number: int, outdir: Path, notes: Path, only: str | None = None):
    """Kills the process before its n-th call that changes the disk, or half-way if that is a write.

    Args:
        only: the kind of calls that count; all, if it is None.
    """
    kinds = KINDS if only is None else (only,)
    return lambda: faults.arm(outdir, kinds, first=number, error=faults.KILL, notes=notes)


def compare(expected: Path, outdir: Path, what: str, different: list[str]) -> None:
    (one,), (other,) = expected.glob("0*"), outdir.glob("0*")
    if [p.name for p in sorted(one.rglob("*"))] != [p.name for p in sorted(other.rglob("*"))]:
        different.append(f"{what}: files of {other}")
    for path in (one / "checkpoints").iterdir():
        if files_of(path) != files_of(other / "checkpoints" / path.name):
            different.append(f"{what}: {path.name}")
    for name in [p.name for p in one.glob("*.png")] + ["model/model.safetensors"]:
        if (one / name).read_bytes() != (other / name).read_bytes():
            different.append(f"{what}: {name}")
    if rows_of(one) != rows_of(other):
        different.append(f"{what}: stats.jsonl")


def main(work: Path) -> None:
    rng = random.Random(0)
    expected = work / "expected"
    train(work / "warm-up")  # what is imported on first use is imported before the forks
    start = time.monotonic()
    train(expected)
    seconds = time.monotonic() - start
    different: list[str] = []

    by_chance = 0
    for trial in range(3):
        outdir, kills = work / f"chance{trial}", 0
        while True:
            child = fork(outdir)
            # Later and later: on a disk that has become slow meanwhile it must reach a checkpoint too.
            time.sleep(rng.uniform(0.1, 1) * seconds * 1.15**kills)
            os.kill(child, signal.SIGKILL)
            if wait(child):
                break
            kills += 1
            if kills > 40:
                there = sorted(str(p.relative_to(outdir)) for p in outdir.rglob("*"))
                sys.exit(f"the run makes no progress: {seconds:.2f} s if left alone; {there}")
        by_chance += kills
        compare(expected, outdir, "by chance", different)

    in_write = dict.fromkeys(KINDS, 0)
    in_checkpoint = 0
    notes = work / "notes"
    rng = random.Random(1)  # the number of kills by chance is not known
    for trial, only in enumerate((None, *KINDS)):
        outdir = work / f"write{trial}"
        number = 1
        while not wait(fork(outdir, die_in_call(number, outdir, notes, only))):
            kind, path = notes.read_text().split(maxsplit=1)
            in_write[kind] += 1
            in_checkpoint += "checkpoints" in path
            for run_dir in outdir.glob("0*"):
                for checkpoint in list_checkpoints(run_dir):
                    read_checkpoint(checkpoint)  # whatever has its final name is complete
            number += rng.randrange(1, 6)
            if number > 300:
                sys.exit(f"the run makes no progress: it has died in call {number} ({only or 'any'})")
        compare(expected, outdir, f"in a write ({only or 'any'})", different)
    print(
        json.dumps(
            {
                "by_chance": by_chance,
                "in_write": in_write,
                "in_checkpoint": in_checkpoint,
                "different": different,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
