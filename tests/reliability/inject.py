"""Lets the nth call of the system fail, for every n, in the commands that read and write; then looks at what
they said, at what is left, and whether the work can go on.

    python -m tests.reliability.inject [--every N] [--only COMMAND]

A failed call may have two outcomes:

- the command **stops** with one line that names the file and the reason. No file is lost or half written, and
  once the fault is gone, the same work ends in the same bits as without it;
- the command **carries on and says so**, or did not need the call: all files have the bits that they have
  without the fault.

The driver imports everything once and forks a process for each fault, which costs a fraction of a second. It
prints a JSON report.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.reliability import faults

TMP = "/dev/shm" if os.path.isdir("/dev/shm") else None  # its fsync costs nothing
ROOT = Path(__file__).parents[2]
SECONDS = 300  # for one command, which takes less than one on an idle machine
_UNCOUNTED = ("log.txt", "said.txt")
_CLOCK = ("seconds", "img_per_sec", "memory_gb")
_TIDYING = ("unlink", "list")  # if these fail, temporary files may stay

ERRORS = {
    "open": (errno.EACCES, errno.EIO),
    "create": (errno.ENOSPC, errno.EACCES),
    "read": (errno.EIO,),
    "write": (errno.ENOSPC, errno.EIO, faults.SHORT_WRITE),
    "fsync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.EACCES),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "unlink": (errno.EACCES,),
    "list": (errno.EACCES,),
    "map": (errno.ENOMEM,),
    "tensor": (errno.ENOMEM,),
    "workspace": (errno.ENOMEM,),
}
FILLING = ("create", "write", "mkdir")  # what a full disk refuses


@dataclass(frozen=True)
class Fault:
    kinds: tuple[str, ...]
    error: int
    first: int
    count: int = 1
    label: str = ""  # for the report

    @property
    def name(self) -> str:
        return self.label or f"{self.kinds[0]} {error_name(self.error)}"


def error_name(error: int) -> str:
    return "short" if error == faults.SHORT_WRITE else errno.errorcode.get(error, str(error))


@dataclass(frozen=True)
class Scenario:
    """A command in a folder of its own.

    Attributes:
        arguments: with paths relative to the folder.
        prepare: fills the folder.
        again: the arguments with which the work goes on after a failure; None if it was done.
        whole: what is wrong with the files that a failed command left, in phrases.
        without: kinds of calls that do not fail.
    """

    name: str
    arguments: Sequence[str]
    prepare: Callable[[Path], None]
    again: Callable[[Path, Sequence[str]], Sequence[str] | None] = lambda folder, arguments: arguments
    whole: Callable[[Path, Path, Path], list[str]] = lambda base, expected, folder: _old_or_new(
        base, expected, folder
    )
    without: Sequence[str] = ()


@dataclass
class Ended:
    code: int | None  # None: killed
    stderr: str
    calls: int
    injected: int
    where: str


@dataclass
class Report:
    calls: dict[str, dict[str, int]] = field(default_factory=dict)  # by command and kind
    outcomes: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # by command and fault
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


# ---- what is run -------------------------------------------------------------------------------------------

_TRAIN = (
    *("train", "--outdir", "runs", "--data", "photos", "--preset", "mlp", "--batch", "8", "--kimg", "0.08"),
    *("--tick", "0.02", "--snap", "2", "--seed", "1", "--threads", "1", "--device", "cpu"),
    *("--set", "generator.hidden=[16,16]", "--set", "discriminator.hidden=[16,16]", "--set", "keep=100"),
    *("--set", "generator.z_dim=8", "--set", "grid=[2,2]"),
)


def _photos(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02d}.png")


_ENGINE = (
    *("--batch", "8", "--kimg", "0.04", "--tick", "0.02", "--snap", "1", "--seed", "1", "--threads", "1"),
    *("--device", "cpu", "--set", "keep=100", "--set", "grid=[2,2]"),
)
_AUTOENCODER = (
    *("train", "--outdir", "runs", "--data", "photos", "--preset", "vqgan", *_ENGINE, "--resolution", "8"),
    *("--set", "generator.channels=[8]", "--set", "generator.code_dim=4", "--set", "loss.adversarial=0.1"),
)
_TEXTS = (
    *("train", "--outdir", "runs", "--data", "pairs.jsonl", "--preset", "textgen", *_ENGINE),
    *("--set", "network.width=16", "--set", "network.heads=2", "--set", "network.layers=1"),
    *("--set", "network.hidden=16", "--set", "text.vocabulary=280", "--set", "text.source=12"),
)
_WAVES = (
    *("train", "--outdir", "runs", "--data", "waves", "--preset", "wavenet", *_ENGINE, "--no-cond"),
    *("--set", "network.channels=8", "--set", "network.gates=8", "--set", "network.skips=8"),
    *("--set", "network.hidden=8", "--set", "network.dilations=[1,3]"),
)


def _autoencoder(folder: Path) -> None:
    _photos(folder)
    _must(run(folder, _AUTOENCODER))
    (folder / "said.txt").unlink()


def _pairs(folder: Path) -> None:
    lines = [{"source": f"A tool number {i} for people.", "target": f"tool {i}"} for i in range(20)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _waves(folder: Path) -> None:
    import numpy as np

    from aigc_ext.sampling.wav import save_wav

    (folder / "waves").mkdir()
    for i in range(12):
        wave = np.round(8000 * np.sin(np.arange(400) * 0.1 * (1 + i % 2))).astype(np.int16)
        save_wav(wave, folder / "waves" / f"{i:02d}.wav", 8000, label=False)


def _wavenet(folder: Path) -> None:
    _waves(folder)
    _must(run(folder, _WAVES))
    (folder / "said.txt").unlink()


def _half_a_run(folder: Path) -> None:
    _photos(folder)
    _must(run(folder, [*_TRAIN, "--kimg", "0.04"]))


def _run(folder: Path) -> None:
    _photos(folder)
    _must(run(folder, _TRAIN))
    (folder / "said.txt").unlink()


def _run_with_report(folder: Path) -> None:
    _run(folder)
    (folder / "report.html").write_text("the page of yesterday")


def _weights(folder: Path) -> None:
    import safetensors.torch
    import torch

    from aigc_ext.sampling import load_pretrained

    _run(folder)
    generator, _ = load_pretrained(next(folder.glob("runs/0*")))
    (folder / "architecture.json").write_text(json.dumps(generator.config))
    torch.save({"g_ema": generator.state_dict()}, folder / "other.pt")
    safetensors.torch.save_file(generator.state_dict(), folder / "other.safetensors")
    shutil.rmtree(folder / "runs")


def _resume(folder: Path, arguments: Sequence[str]) -> Sequence[str]:
    if not list(folder.glob("runs/0*")):
        return arguments
    return ["train", "--outdir", "runs", "--resume", "latest"]


_RESUME = ("train", "--outdir", "runs", "--resume", "latest", "--kimg", "0.08")
_SAMPLE = (
    "sample",
    "--network",
    "runs/00000-mlp-photos",
    "--seeds",
    "0-5",
    "--device",
    "cpu",
    "--threads",
    "1",
)
_ANEW = ("sample", "--network", "runs/00000-vqgan-photos", "--input", "photos", "--device", "cpu")
_HEAR = ("sample", "--network", "runs/00000-wavenet-waves", "--seeds", "0-1", "--device", "cpu")
_CONVERT = ("--dest", "made", "--config", "architecture.json")
_DATASET = ("dataset", "--source", "photos", "--resolution", "4x4", "--workers", "1", "--dest")


def _unless_made(folder: Path, arguments: Sequence[str]) -> Sequence[str] | None:
    """Only what came after, as the words on what was made, has failed."""
    return None if (folder / "made").exists() or (folder / "made.zip").exists() else arguments


def scenarios() -> list[Scenario]:
    def goes_on(folder: Path, arguments: Sequence[str]) -> Sequence[str]:
        return [*_resume(folder, arguments), "--kimg", "0.08"]

    def goes_on_shortly(folder: Path, arguments: Sequence[str]) -> Sequence[str]:
        return [*_resume(folder, arguments), "--kimg", "0.04"]

    # A tensor that cannot be had inside a convolution or product of oneDNN ends the process (PyTorch 2.13).
    others: dict[str, Any] = {"without": ("tensor",)}
    return [
        Scenario("train", _TRAIN, _photos, goes_on, _whole_run),
        Scenario("resume", _RESUME, _half_a_run, goes_on, _whole_run),
        Scenario("train, images cut to size", [*_TRAIN, "--resolution", "4x4"], _photos, goes_on, _whole_run),
        Scenario("sample", [*_SAMPLE, "--outdir", "out"], _run),
        Scenario("sample a grid", [*_SAMPLE, "--grid", "3x2", "--outdir", "out"], _run),
        Scenario("train an autoencoder", _AUTOENCODER, _photos, goes_on_shortly, _whole_run, **others),
        Scenario("train on texts", _TEXTS, _pairs, goes_on_shortly, _whole_run, **others),
        Scenario("train on recordings", _WAVES, _waves, goes_on_shortly, _whole_run, **others),
        Scenario("make anew", [*_ANEW, "--outdir", "out"], _autoencoder, **others),
        Scenario("sample recordings", [*_HEAR, "--outdir", "out"], _wavenet, **others),
        Scenario("dataset", _DATASET[:3], _photos),
        Scenario("dataset to a folder", [*_DATASET, "made"], _photos, _unless_made),
        Scenario("dataset to a zip", [*_DATASET, "made.zip"], _photos, _unless_made),
        Scenario("report", ["report", "runs/00000-mlp-photos", "--output", "report.html"], _run_with_report),
        Scenario("convert", ["convert", "other.pt", *_CONVERT], _weights, _unless_made),
        Scenario("convert safetensors", ["convert", "other.safetensors", *_CONVERT], _weights, _unless_made),
    ]


# ---- processes ---------------------------------------------------------------------------------------------


def run(folder: Path, arguments: Sequence[str], fault: Fault | None = None) -> Ended:
    """Runs a command in a process of its own, with its output in the folder too."""
    from aigc_ext.cli import main

    said = folder.with_name(f"{folder.name}.stderr")
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            signal.alarm(SECONDS)
            os.chdir(folder)
            os.dup2(os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
            if fault is not None:
                faults.arm(folder, fault.kinds, first=fault.first, count=fault.count, error=fault.error)
            try:
                code = main(list(arguments))
            finally:
                faults.disarm()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        found = {"calls": faults.calls(), "injected": faults.injected(), "where": faults.first_injected()}
        os.write(writer, json.dumps(found).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    found = json.loads(text) if text else {"calls": 0, "injected": 0, "where": ""}
    return Ended(None if code < 0 else code, said.read_text(errors="replace"), **found)


def _must(ended: Ended) -> None:
    if ended.code != 0:
        raise RuntimeError(f"without a fault: {ended}")


# ---- what is left ------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their names, without what depends on the clock."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name in _UNCOUNTED or name.startswith("cache/"):
            continue
        data = path.read_bytes()
        if path.name == "stats.jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([{k: v for k, v in row.items() if k not in _CLOCK} for row in rows]).encode()
        elif path.name == "state.json":
            state = json.loads(data)
            data = json.dumps({k: v for k, v in state.items() if k not in ("seconds", "sha256")}).encode()
        elif path.name == "sha256.json":  # each list begins with the digest of the file as it is
            data = json.dumps({k: v[0] for k, v in json.loads(data).items()}).encode()
        files[name] = data
    return files


def _differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in found]
    more = [f"{name} is left" for name in found if name not in expected]
    other = [f"{name} differs" for name in expected if name in found and expected[name] != found[name]]
    return missing + more + other


def _old_or_new(base: Path, expected: Path, folder: Path) -> list[str]:
    """Each file is as it was before, or as it is to be; none that was there has gone."""
    old, new, now = content(base), content(expected), content(folder)
    half = [name for name in now if now[name] not in (old.get(name), new.get(name)) and not _temporary(name)]
    return [f"{name} has gone" for name in old if name not in now] + [
        f"{name} is half written" for name in half
    ]


def _temporary(name: str) -> bool:
    return any(part.startswith(".tmp-") for part in Path(name).parts)


def _whole_run(base: Path, expected: Path, folder: Path) -> list[str]:
    from aigc_ext.sampling import load_pretrained
    from aigc_ext.training import read_checkpoint
    from aigc_ext.training.checkpoint import list_checkpoints

    wrong = [f"{path} has gone" for path in content(base) if not (folder / path).exists()]
    for run_dir in folder.glob("runs/0*"):
        json.loads((run_dir / "config.json").read_bytes())
        for checkpoint in list_checkpoints(run_dir):
            read_checkpoint(checkpoint)
        if (run_dir / "model" / "model.safetensors").exists():
            load_pretrained(run_dir)
    return wrong


# ---- the matrix --------------------------------------------------------------------------------------------


def judge(
    scenario: Scenario, fault: Fault, base: Path, expected: Path, folder: Path
) -> tuple[str, list[str]]:
    """The outcome of a fault, and what is wrong with it."""
    _fresh(base, folder)
    ended = run(folder, scenario.arguments, fault)
    if ended.code is None:
        return "killed", [f"it was killed: {ended.stderr[-300:]}"]
    if ended.injected == 0:
        return "not reached", []
    wrong: list[str] = []
    if "Traceback" in ended.stderr or "Logging error" in ended.stderr or "Exception ignored" in ended.stderr:
        wrong.append(f"a traceback: {' | '.join(ended.stderr.splitlines()[-3:])}")
    if ended.code == 0:
        left_out = re.search("/(photos|waves)/", ended.where) and _said_so(folder, ended)
        if not left_out:  # the rest is then trained on, or written
            wrong += _differences(content(expected), content(folder))
            if fault.error == errno.ENOSPC:
                not_written = _snapshots_left_out(ended.stderr)
                wrong = [each for each in wrong if not any(files.search(each) for files in not_written)]
            if not _said_so(folder, ended) and not _harmless(fault, ended):
                wrong.append("nothing is said of it")
        return "carried on", [f"{each} ({ended.where})" for each in wrong]
    last = ended.stderr.splitlines()[-1] if ended.stderr else ""
    if not last.startswith("Error: "):
        wrong.append(f"no line of what is wrong, but {last!r}")
    # Of several faults, it may be a later one of which it is said.
    elif not _named(last, ended.where) and not (fault.count > 1 and os.strerror(fault.error) in last):
        wrong.append(f"the error does not name the file: {last}")
    if not set(fault.kinds) & set(_TIDYING):
        left = list(folder.rglob(".tmp-*"))
        wrong += [f"{path} is left" for path in left]
    try:
        wrong += scenario.whole(base, expected, folder)
    except Exception as error:
        wrong.append(f"{type(error).__name__}: {error}")
    arguments = scenario.again(folder, scenario.arguments)
    again = None if arguments is None else run(folder, arguments)
    if again is not None and again.code != 0:
        wrong.append(f"it does not go on: {again.stderr[-300:]}")
    else:
        tidy = {name: data for name, data in content(folder).items() if not _temporary(name)}
        wrong += [f"afterwards {each}" for each in _differences(content(expected), tidy)]
    return "stopped", [f"{each} ({ended.where})" for each in wrong]


def _snapshots_left_out(said: str) -> list[re.Pattern[str]]:
    """What is wrong, in phrases, where a run said that it goes on without a snapshot: its files are missing,
    and its row of metrics."""
    names = [
        f"{int(count) // 1000:06d}-{int(count) % 1000:03d}"
        for count in re.findall(r"the run goes on, without a checkpoint of (\d+) ", said)
    ]
    return [
        re.compile(rf"(checkpoints/{name}/.*|[a-z]+{name}\.[a-z]+) is missing|/metrics\.jsonl differs")
        for name in names
    ]


def _fresh(base: Path, folder: Path) -> None:
    """All runs are in the same folder, whose path a run's files have."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)


def _said_so(folder: Path, ended: Ended) -> bool:
    """Does the command's output speak of the file, or of the reason?"""
    text = ended.stderr + (folder / "said.txt").read_text(errors="replace")
    return (
        re.search("Warning:|left out|unreadable|bad files:  [1-9]|cannot be (written|read|used)", text)
        is not None
    )


def _harmless(fault: Fault, ended: Ended) -> bool:
    """May a command say nothing of it, if all files have the right bits? What it read it read again, then, or
    did not need; the folder was there; a library did with less memory."""
    kind = ended.where.split()[0]
    return fault.error == faults.SHORT_WRITE or kind in ("open", "read", "list", "map", "mkdir", "tensor")


def _named(message: str, where: str) -> bool:
    """Does a message name the file of a call, or a folder above it?"""
    kind, _, path = where.partition(" ")
    if kind in ("tensor", "workspace"):
        return "memory" in message
    if path.endswith("said.txt"):
        return "output" in message
    parts = [re.sub(r"^\.tmp-(.*)-\d+$", r"\1", part) for part in path.split("/")]
    below = [part for part in parts[parts.index("here") + 1 :] if part != "."]
    return any(part in message for part in below) or not below


def faults_of(calls: dict[str, int], every: int, without: Sequence[str] = ()) -> Iterator[Fault]:
    for kind, errors in ERRORS.items():
        if kind in without:
            continue
        total = calls[kind]
        for offset, error in enumerate(errors):
            # As many as there are of the others, spread over all
            step = max(every, total * every // 450)
            for number in range(1 + offset % step, total + 1, step):
                yield Fault((kind,), error, number)
    total = sum(calls[kind] for kind in FILLING)
    for number in range(1, total + 1, every):
        yield Fault(FILLING, errno.ENOSPC, number, count=1 << 40, label="the disk stays full")
    for number in range(1 + every // 2, total + 1, 2 * every):
        yield Fault(FILLING, errno.ENOSPC, number, count=10, label="the disk is full for a while")


def sweep(work: Path, every: int, only: Sequence[str] | None) -> Report:
    report = Report()
    start = time.monotonic()
    folder = work / "here"
    for scenario in scenarios():
        if only is not None and scenario.name not in only:
            continue
        name = re.sub(r"\W+", "-", scenario.name)
        base, expected = work / f"{name}-base", work / f"{name}-expected"
        folder.mkdir()
        scenario.prepare(folder)
        (folder / "said.txt").unlink(missing_ok=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        folder.rename(base)
        _fresh(base, folder)
        _import_for(folder, scenario.arguments)
        _fresh(base, folder)
        _must(run(folder, scenario.arguments))
        folder.rename(expected)
        calls = {}
        for kind in faults.KINDS:
            _fresh(base, folder)
            ended = run(folder, scenario.arguments, Fault((kind,), 0, 1 << 60))
            _must(ended)
            calls[kind] = ended.calls
        report.calls[scenario.name] = calls
        outcomes = report.outcomes[scenario.name] = {}
        for fault in faults_of(calls, every, scenario.without):
            outcome, wrong = judge(scenario, fault, base, expected, folder)
            counts = outcomes.setdefault(fault.name, {})
            counts[outcome] = counts.get(outcome, 0) + 1
            for each in wrong:
                problem = f"{scenario.name}: {fault.name} at {fault.first}: {outcome}: {each}"
                report.problems.append(problem)
                print(problem, file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    report.seconds = time.monotonic() - start
    return report


def _import_for(folder: Path, arguments: Sequence[str]) -> None:
    """Runs a command in this process: what it imports on first use, the forks need not import again."""
    from aigc_ext.cli import main

    before = Path.cwd()
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            main(list(arguments))
    finally:
        os.chdir(before)


def start(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs this program with the library that injects faults."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "LD_PRELOAD": str(faults.build(Path(folder))),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        }
        command = [
            sys.executable,
            "-m",
            __name__ if __name__ != "__main__" else __spec__.name,
            "--here",
            *arguments,
        ]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try only every Nth call")
    parser.add_argument("--only", action="append", help="one command; may be repeated")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.here:
        done = start(sys.argv[1:])
        print(done.stdout, end="")
        return done.returncode
    from tqdm import tqdm

    import aigc_ext.reporting
    import aigc_ext.sampling.convert
    import aigc_ext.tasks.gan  # noqa: F401 (the forks need not import it)

    tqdm.monitor_interval = 0  # it is a thread, which a fork would lose
    with tempfile.TemporaryDirectory(dir=TMP) as folder:
        report = sweep(Path(folder), options.every, options.only)
    print(json.dumps(asdict(report)))
    return bool(report.problems)


if __name__ == "__main__":
    sys.exit(main())
