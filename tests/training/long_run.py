"""Long runs: does a run of thousands of steps with snapshots keep its memory, handles, threads and disk?

    python -m tests.training.long_run [--steps 2000] [--preset stylegan2 ...] [--json FILE]

trains every preset with few channels, in a process of its own, and looks at /proc and at the run directory
several times a second. After the first third, which warms up caches and allocators, nothing may grow:
resident memory by more than 8 MB (which is 6 KB in a step of 2,000), open files and threads not at all; there
are never more checkpoints than the run keeps (with the best, where it ranks them) and the one that is being
written; what else a snapshot leaves, its images and lines, is small.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aigc_ext.bench.step import Size, sizes
from aigc_ext.tasks import adversarial as reconstruction
from aigc_ext.tasks import gan, likelihood, task_of
from tests.tasks.adversarial.helpers import config as small_reconstruction
from tests.tasks.likelihood.helpers import config as small_likelihood
from tests.tasks.likelihood.helpers import write_data
from tests.test_repository import ROOT

KEEP, SNAPSHOTS = 2, 20
MOST_GROWTH = 8 << 20  # bytes of resident memory
MOST_PER_SNAPSHOT = 64 << 10  # bytes on disk, beside the checkpoints
PAGE = os.sysconf("SC_PAGE_SIZE")


def narrow() -> dict[str, Size]:
    """The GANs' presets, 8 pixels wide and with few channels."""
    return {size.preset: size for size in sizes(quick=True)}


def batches() -> dict[str, int]:
    """The items of a step, by preset."""
    of_gans = {preset: size.batch for preset, size in narrow().items()}
    return {**of_gans, **dict.fromkeys(reconstruction.PRESETS, 25), **dict.fromkeys(likelihood.PRESETS, 12)}


def train(preset: str, steps: int, outdir: Path) -> None:
    if preset not in narrow():
        kimg = steps * batches()[preset] / 1000
        often = {"batch": batches()[preset], "kimg": kimg, "tick": kimg / SNAPSHOTS, "snap": 1, "keep": KEEP}
        config: Any = (
            small_reconstruction("vae-gan" if preset == "vae" else preset, **often)
            if preset in reconstruction.PRESETS
            else small_likelihood(preset, write_data(outdir)[preset], **often)
        )
        task_of(preset).Trainer.from_config(config, outdir=outdir / "runs").fit()
        return
    size = narrow()[preset]
    images = np.random.default_rng(0).integers(0, 256, (64, size.side, size.side, size.colours), np.uint8)
    np.save(outdir / "images.npy", images[..., 0] if size.colours == 1 else images)
    config = gan.PRESETS[preset]
    kimg = steps * size.batch / 1000
    values = {
        "batch": size.batch,
        "kimg": kimg,
        "tick": kimg / SNAPSHOTS,
        "snap": 1,
        "keep": KEEP,
        "grid": [2, 2],
        "metrics": [],
        "device": "cpu",
        "data.source": str(outdir / "images.npy"),
        **{f"generator.{name}": value for name, value in size.generator.items()},
        **{f"discriminator.{name}": value for name, value in size.discriminator.items()},
    }
    for name, value in values.items():
        config = config.override(name, list(value) if isinstance(value, tuple) else value)
    gan.Trainer.from_config(config, outdir=outdir / "runs").fit()


@dataclass(frozen=True)
class Look:
    """What is seen of a run at one moment."""

    progress: float  # of its images, 0 to 1
    resident: int  # bytes
    files: int
    threads: int
    checkpoints: int
    checkpoint_bytes: int
    other_bytes: int


def size_of(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # which passes over folders that are removed meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def look(pid: int, outdir: Path, images: float) -> Look | None:
    """None before there is a run, and where the process has ended."""
    run = next(iter((outdir / "runs").glob("*/stats.jsonl")), None)
    if run is None:
        return None
    process, checkpoints = Path(f"/proc/{pid}"), run.parent / "checkpoints"
    lines = [line for line in run.read_text().splitlines() if line.endswith("}")]
    done = [row["nimg"] for row in map(json.loads, lines) if "nimg" in row]
    try:
        resident = int((process / "statm").read_text().split()[1]) * PAGE
        files, threads = len(os.listdir(process / "fd")), len(os.listdir(process / "task"))
    except (FileNotFoundError, ProcessLookupError, PermissionError, IndexError):
        return None
    if resident == 0:  # it is ending
        return None
    stored = size_of(checkpoints)
    kept = len([path for path in checkpoints.glob("*") if path.is_dir()]) if checkpoints.exists() else 0
    progress = (done[-1] if done else 0) / images
    return Look(progress, resident, files, threads, kept, stored, size_of(run.parent) - stored)


def watch(preset: str, steps: int, interval: float = 0.2) -> tuple[list[Look], float]:
    """Trains in a process of its own; returns what was seen, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        outdir, seen = Path(folder), []
        command = [sys.executable, "-m", "tests.training.long_run", "--train", preset, "--steps", str(steps)]
        log = outdir / "log.txt"
        started = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, "--outdir", folder],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            while process.poll() is None:
                if found := look(process.pid, outdir, steps * batches()[preset]):
                    seen.append(found)
                time.sleep(interval)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if process.returncode:
            raise RuntimeError(f"{preset} ended with exit status {process.returncode}:\n{log.read_text()}")
        return seen, time.monotonic() - started


def faults(seen: Sequence[Look], ranked: bool = False) -> list[str]:
    """What has grown after the warm-up. A run that ranks its checkpoints keeps the best too."""
    warm = [s for s in seen if s.progress >= 1 / 3]
    if len(warm) < 6:
        return [f"it was seen only {len(warm)} times after the warm-up: too few to judge"]
    third = len(warm) // 3
    first, last = warm[:third], warm[-third:]
    found = []
    growth = statistics.median(s.resident for s in last) - statistics.median(s.resident for s in first)
    if growth > MOST_GROWTH:
        found.append(f"resident memory grew by {growth / 1e6:.1f} MB")
    for what in ("files", "threads"):
        before, after = (statistics.median(getattr(s, what) for s in part) for part in (first, last))
        if after > before:
            found.append(f"{what} grew from {before:.0f} to {after:.0f}")
    if (most := max(s.checkpoints for s in warm)) > KEEP + 1 + ranked:
        found.append(f"there were {most} checkpoints, of which {KEEP} are kept")
    if last[-1].checkpoint_bytes > 1.5 * max(s.checkpoint_bytes for s in first):
        found.append("the checkpoints grew")
    other = (last[-1].other_bytes - first[0].other_bytes) / (SNAPSHOTS * (last[-1].progress - 1 / 3))
    if other > MOST_PER_SNAPSHOT:
        found.append(f"a snapshot leaves {other / 1e3:.0f} kB beside the checkpoints")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.training.long_run")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--preset", action="append", choices=sorted(batches()), help="only this one")
    parser.add_argument("--json", type=Path, help="writes what was seen into this file")
    parser.add_argument("--train", choices=sorted(batches()), help=argparse.SUPPRESS)
    parser.add_argument("--outdir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.steps, options.outdir)
        return 0
    report, bad = {}, 0
    for preset in options.preset or batches():
        seen, seconds = watch(preset, options.steps)
        found = faults(seen, ranked=preset not in narrow())
        bad += bool(found)
        warm = [s for s in seen if s.progress >= 1 / 3] or seen
        first, last = warm[0], warm[-1]
        print(
            f"{preset:12} {options.steps} steps, {seconds:5.0f} s: {first.resident / 1e6:.0f} -> "
            f"{last.resident / 1e6:.0f} MB, {first.files} -> {last.files} files, {first.threads} -> "
            f"{last.threads} threads, checkpoints {last.checkpoint_bytes / 1e3:.0f} kB, rest "
            f"{first.other_bytes / 1e3:.0f} -> {last.other_bytes / 1e3:.0f} kB: {'; '.join(found) or 'flat'}",
            flush=True,
        )
        report[preset] = {"seconds": seconds, "faults": found, "seen": [asdict(s) for s in seen]}
    if options.json:
        options.json.write_text(json.dumps(report))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
