"""``make gpu-check``: everything that needs a GPU, in one command and under 8 minutes.

In this order, each part with a time of its own (PARTS):

- build: the native code, for the GPU of this machine. ``--no-build`` takes the libraries in aigc_ext/lib,
  which another machine has built (CONTRIBUTING.md), and needs no nvcc, cmake or compiler.
- smoke: every op against float64, for 20 s.
- tests: ``pytest -m cuda`` in 4 processes, error budgets and large calls first; at the same time, since they
  leave most cores alone, compute-sanitizer's memcheck and racecheck, and csrc/check_kernels.py.
- shapes: benchmarks.shapes, in one process: layers from 4 to 1024 pixels, whole steps, some with
  torch.compile.
- counters: ncu on one call of each layer, where this user may read the GPU's counters.

It works in a bare checkout or a copy of one, with the Python that starts it and its packages: nothing is
installed or downloaded. If a part fails or takes too long, the later ones still run, and the exit code is 1.

Writes to OUT_DIR, as it goes: summary.txt (a line for each part, and a table), info.txt, log.txt (all
output), tests.xml, benchmarks.csv, kernels.csv, counters.csv. What is killed leaves what it has written.

``--dry-run`` runs the same parts with tiny sizes on the CPU, in the same times, as a test of this program,
without building.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "build" / "gpu-native"
PACKAGE = ROOT / "aigc_ext"
# Without initcheck: it tracks only writes by checked kernels, and PyTorch's are not checked. Without
# synccheck, for time: tests/simt reports what it would.
SANITIZERS = ("memcheck", "racecheck")
# Seconds for each part, after which it is ended. Without a build they are done in less than BUDGET; with one,
# what is last may be cut short.
PARTS = {
    "configure": 60,
    "build": 240,
    "install": 30,
    "smoke": 50,
    "tests": 140,
    "shapes": 210,
    "counters": 45,
}
WITHOUT_A_BUILD = ("smoke", "tests", "shapes", "counters")
BUDGET = 460
SMOKE_SECONDS = 20
TEST_WORKERS = 4
COUNTERS = (
    *("gpu__time_duration.sum", "dram__bytes.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed"),
    *(
        "sm__throughput.avg.pct_of_peak_sustained_elapsed",
        "sm__warps_active.avg.pct_of_peak_sustained_active",
    ),
    "launch__registers_per_thread",
)
NEEDED = {
    "the package": ("torch", "numpy", "tqdm", "PIL", "safetensors", "click"),
    "the tests": ("pytest", "hypothesis"),
}
OPTIONAL = ("xdist", "triton")
TAIL = 25  # lines of a failed step's output that are shown


@dataclass
class Step:
    """A command, its result, and a line about that for the table."""

    name: str
    command: list[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    status: str = "not run"  # ok, failed, timed out, skipped, not run
    seconds: float = 0.0
    note: str = ""
    # What the output says where the command cannot work on this machine, which is then no failure.
    excuse: str | None = None
    output: str = ""

    @property
    def bad(self) -> bool:
        return self.status not in ("ok", "skipped")


class GpuCheck:
    def __init__(self, out: Path, dry: bool, budget: float, build: bool = True) -> None:
        self.out, self.dry, self.builds = out, dry, build
        self.deadline = time.monotonic() + budget
        self.steps: list[Step] = []
        self.cores = len(os.sched_getaffinity(0))
        self.scratch = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        out.mkdir(parents=True, exist_ok=True)
        for name in ("summary.txt", "info.txt", "log.txt", "tests.xml"):
            (out / name).unlink(missing_ok=True)
        for name in ("benchmarks.csv", "kernels.csv", "counters.csv"):
            (out / name).unlink(missing_ok=True)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join(tool_folders()),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "PYTHONUNBUFFERED": "1",
        }
        self.environment.pop("AIGC_EXT_BACKEND", None)

    # ---- running steps -------------------------------------------------------------------------------------

    def run(self, *together: Step) -> bool:
        """Runs steps at the same time, each up to its limit or the rest of the budget. Are all ok?"""
        started = time.monotonic()
        processes = []
        for step in together:
            self.steps.append(step)
            output = self.scratch / f"{step.name.replace(' ', '-')}.txt"
            with output.open("w") as file:
                process = subprocess.Popen(
                    step.command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    cwd=ROOT,
                    env={**self.environment, **step.environment},
                    start_new_session=True,  # so that a timeout ends its children too
                )
            processes.append((step, process, output))
        for step, process, output in processes:
            limit = min(started + step.limit, self.deadline)
            try:
                code = process.wait(max(0.0, limit - time.monotonic()))
                step.status = "ok" if code == 0 else "failed"
                step.note = "" if code == 0 else f"exit status {code}"
            except subprocess.TimeoutExpired:
                step.status, step.note = "timed out", f"after {time.monotonic() - started:.0f} s"
            finally:
                end(process)
            step.seconds = time.monotonic() - started
            step.output = output.read_text(errors="replace")
            if step.status == "failed" and step.excuse and step.excuse in step.output:
                step.status, step.note = "skipped", step.excuse
            self.report(step, step.output)
        self.write_summary()
        return not any(step.bad for step in together)

    def report(self, step: Step, output: str) -> None:
        with (self.out / "log.txt").open("a") as log:
            print(f"==== {step.name}: {' '.join(step.command)}", file=log)
            print(output.rstrip(), file=log)
            print(f"==== {step.name}: {step.status} after {step.seconds:.1f} s {step.note}\n", file=log)
        print(f"{step.name:24} {step.status:10} {step.seconds:6.1f} s  {step.note}", flush=True)
        if step.bad:
            print("\n".join("    " + line for line in output.splitlines()[-TAIL:]), flush=True)

    def without_running(self, name: str, status: str, note: str) -> None:
        """Records a step that cannot be started."""
        step = Step(name, [], 0, status=status, note=note)
        self.steps.append(step)
        self.report(step, "")

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]

    # ---- the steps -----------------------------------------------------------------------------------------

    def information(self) -> None:
        (self.out / "info.txt").write_text("".join(f"{key}: {value}\n" for key, value in facts()))
        missing = [name for names in NEEDED.values() for name in names if not importable(name)]
        if missing:
            self.without_running("environment", "failed", f"Python cannot import {', '.join(missing)}")
        else:
            self.without_running("environment", "ok", "")

    def build(self) -> bool:
        """Builds the native code; without a GPU, only configures it and lists what would be built."""
        import torch

        if not self.builds:
            library = PACKAGE / "lib" / "libaigc_ops_cuda.so"
            found = self.dry or library.exists()
            note = f"{library} {'was brought along' if library.exists() else 'is not here'}"
            self.without_running("build", "skipped" if found else "failed", note)
            return found

        cmake = shutil.which("cmake", path=self.environment["PATH"])
        needed = ("cmake",) if self.dry else ("cmake", "nvcc")
        absent = [name for name in needed if shutil.which(name, path=self.environment["PATH"]) is None]
        if cmake is None or absent:
            note = f"{' and '.join(absent)} not found on PATH (cmake must be 3.24 or newer)"
            self.without_running("build", "failed", note)
            return False
        folder = self.scratch / "native" if self.dry else NATIVE
        ninja = shutil.which("ninja", path=self.environment["PATH"])
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-G", "Unix Makefiles"]
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(folder), *generator),
            f"-DAIGC_TORCH_DIR={Path(torch.__file__).parent}",
            f"-DAIGC_CUDA={'off' if self.dry else 'on'}",
            *("-DCMAKE_INSTALL_LIBDIR=lib", "-DCMAKE_INSTALL_INCLUDEDIR=include"),
        ]
        only = (
            {} if self.dry else {"TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability())}
        )
        if not self.run(Step("configure", configure, PARTS["configure"], only)):
            return False
        build = [cmake, "--build", str(folder), "--parallel", str(self.cores)]
        if self.dry:
            build += ["--", "-n"]
        if not self.run(Step("build", build, PARTS["build"], only)):
            return False
        if self.dry:
            return True
        install = [cmake, "--install", str(folder), "--prefix", str(PACKAGE)]
        return self.run(Step("install", install, PARTS["install"]))

    def smoke(self) -> None:
        seconds = 3 if self.dry else SMOKE_SECONDS
        command = ["-m", "tests.cuda.smoke", "--device", self.device, "--seconds", str(seconds)]
        self.run(Step("smoke", self.python(*command), PARTS["smoke"]))

    def tests(self) -> list[Step]:
        if not all(importable(name) for name in NEEDED["the tests"]):
            self.without_running("tests", "failed", "pytest and hypothesis must be importable")
            return []
        arguments = [
            "-v",
            "-p",
            "no:cacheprovider",
            f"--junitxml={self.out / 'tests.xml'}",
            "-o",
            "junit_logging=no",
        ]
        if self.dry:
            arguments += ["tests/ops/test_properties.py", "-k", "pixel_norm and decomposed"]
        else:  # tests/conftest.py puts budgets and large calls first, and one at a time keeps that order
            arguments += ["-m", "cuda"]
            if importable("xdist"):
                workers = min(self.cores, TEST_WORKERS)
                arguments += [
                    "-p",
                    "xdist.plugin",
                    "-n",
                    str(workers),
                    "--dist",
                    "load",
                    "--maxschedchunk",
                    "1",
                ]
        # No other installed plugins: some warn when they start, which is an error in our configuration.
        alone = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return [Step("tests", self.python("-m", "pytest", *arguments), PARTS["tests"], alone)]

    def sanitizers_and_kernels(self) -> list[Step]:
        program = self.python("-m", "tests.cuda.sanitize")
        steps, limit = [], PARTS["tests"]
        sanitizer = shutil.which("compute-sanitizer", path=self.environment["PATH"])
        if self.dry:
            steps.append(Step("sanitized program", [*program, "--device", "cpu"], limit))
        elif sanitizer is None:
            self.without_running("compute-sanitizer", "skipped", "not found on PATH")
        else:
            ours = ["--kernel-name", "kernel_substring=4aigc"]
            options = ["--error-exitcode", "9", "--print-limit", "20", *ours]
            # Every tensor gets its own allocation, so that an access beyond it doesn't hit another tensor.
            apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            steps += [
                Step(tool, [sanitizer, "--tool", tool, *options, *program], limit, apart)
                for tool in SANITIZERS
            ]
        library = PACKAGE / "lib" / "libaigc_ops_cuda.so"
        disassembler = shutil.which("cuobjdump", path=self.environment["PATH"])
        if self.dry:
            self.without_running("kernels", "skipped", "nothing was built")
        elif disassembler is None:
            self.without_running("kernels", "skipped", "cuobjdump was not found")
        else:
            command = ["csrc/check_kernels.py", str(library), "--csv", str(self.out / "kernels.csv")]
            steps.append(Step("kernels", self.python(*command), limit))
        return steps

    def together(self) -> None:
        steps = [*self.tests(), *self.sanitizers_and_kernels()]
        if not steps:
            return
        self.run(*steps)
        for step in steps:
            if step.name == "tests":
                step.note = " ".join([step.note, *counts_of(self.out / "tests.xml", step.output)]).strip()
        self.write_summary()

    def shapes(self) -> None:
        command = [
            "-m",
            "benchmarks.shapes",
            "--device",
            self.device,
            "--csv",
            str(self.out / "benchmarks.csv"),
        ]
        if self.dry:
            command += ["--quick", "--shapes", "10", "--steps", "10", "--compile", "5"]
        step = Step("shapes", self.python(*command), PARTS["shapes"])
        self.run(step)
        done = re.findall(r"^\w+: \d+ of \d+ cases in \d+ s", step.output, re.MULTILINE)
        step.note = "; ".join([*([step.note] if step.note else []), *done])
        self.write_summary()

    def counters(self) -> None:
        program = self.python("-m", "benchmarks.shapes", "--once", "--device", self.device)
        profiler = shutil.which("ncu", path=self.environment["PATH"])
        if self.dry:
            self.run(Step("counters", [*program, "--quick"], PARTS["counters"]))
        elif profiler is None:
            self.without_running("counters", "skipped", "ncu was not found")
        else:
            only = [
                "--kernel-name-base",
                "mangled",
                "--kernel-name",
                "regex:4aigc",
                "--metrics",
                ",".join(COUNTERS),
            ]
            log = ["--csv", "--log-file", str(self.out / "counters.csv")]
            step = Step("counters", [profiler, *only, *log, *program], PARTS["counters"])
            step.excuse = "ERR_NVGPUCTRPERM"  # only an administrator may read the counters
            self.run(step)
            if step.bad and step.excuse in text_of(self.out / "counters.csv"):
                step.status, step.note = "skipped", step.excuse
                self.write_summary()

    def write_summary(self) -> None:
        (self.out / "summary.txt").write_text(self.summary() + "\n")

    def summary(self) -> str:
        lines = [f"{s.name:24} {s.status:10} {s.seconds:6.1f} s  {s.note}".rstrip() for s in self.steps]
        path = self.out / "benchmarks.csv"
        if path.exists():
            lines += ["", *short_table(list(csv.DictReader(path.open())))]
        if self.dry:
            lines += ["", "A dry run on the CPU: these figures mean nothing."]
        bad = [step.name for step in self.steps if step.bad]
        return "\n".join([*lines, "", f"Not ok: {', '.join(bad)}" if bad else "All steps are ok."])

    def main(self) -> int:
        self.information()
        built = self.build()
        if built or self.dry:
            self.smoke()
            self.together()
            self.shapes()
            self.counters()
        else:
            for name in WITHOUT_A_BUILD:
                self.without_running(name, "not run", "the libraries are not ok")
        self.write_summary()
        print(f"\n{self.summary()}\n\nFiles: {self.out}", flush=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return int(any(step.bad for step in self.steps))


# ---- environment -------------------------------------------------------------------------------------------


def tool_folders() -> Iterator[str]:
    """Where programs are searched for: next to this Python, on PATH, in the CUDA toolkit."""
    yield str(Path(sys.executable).parent)
    yield from os.environ.get("PATH", os.defpath).split(os.pathsep)
    for toolkit in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if toolkit:
            yield str(Path(toolkit) / "bin")
            yield str(Path(toolkit) / "compute-sanitizer")


def importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def facts() -> Iterator[tuple[str, str]]:
    """The conditions under which the figures are measured."""
    yield "date", time.strftime("%Y-%m-%d %H:%M:%S %Z")
    yield "machine", f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores"
    yield "python", f"{platform.python_version()} ({sys.executable})"
    for name in ("cmake --version", "ninja --version", "nvcc --version", "compute-sanitizer --version"):
        yield name, output_of(name.split())
    for name in (*(name for names in NEEDED.values() for name in names), *OPTIONAL):
        yield f"imports {name}", "yes" if importable(name) else "no"
    if importable("torch"):
        import torch

        yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda}"
        for i in range(torch.cuda.device_count()):
            yield f"device {i}", str(torch.cuda.get_device_properties(i))
    yield "nvidia-smi", output_of(["nvidia-smi"])
    yield "commit", output_of(["git", "-C", str(ROOT), "log", "--oneline", "-1"])


def output_of(command: list[str]) -> str:
    path = shutil.which(command[0], path=os.pathsep.join(tool_folders()))
    if path is None:
        return "not found"
    try:
        result = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return result.stdout.strip() or result.stderr.strip()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a step's processes, including those that it has left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# ---- results -----------------------------------------------------------------------------------------------


def text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def counts_of(report: Path, output: str, names: int = 8) -> list[str]:
    """Counts of a junit file, and the first tests that failed; of what pytest has printed, if it was ended
    before."""
    if not report.exists():
        results = re.findall(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b.*", output)
        return [
            ", ".join(
                f"{results.count(kind)} {kind.lower()}" for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")
            )
        ]
    cases = list(xml.etree.ElementTree.parse(report).getroot().iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    counts = f"{len(cases) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped"
    return [counts, *(f"\n    {c.get('classname')}::{c.get('name')}" for c in failed[:names])]


def short_table(rows: list[dict[str, str]]) -> Iterator[str]:
    """One line for each question: plain PyTorch, the best of the others, ours, and ours over the floor."""
    from benchmarks.report import grouped

    for (op, case, dtype, _), group in grouped(rows).items():
        eager = float(group[0]["median_us"])
        ours = min((r for r in group if r["contender"].startswith("aigc_ext")), key=median, default=None)
        others = [r for r in group[1:] if not r["contender"].startswith("aigc_ext")]
        line = f"{op:16} {case:44} {dtype:9} {eager:10.1f} us"
        if ours:
            line += f"  ours {median(ours):10.1f} us {eager / median(ours):6.2f}x"
            line += f"  {float(ours['over_floor']):5.2f} of floor" if ours["over_floor"] else ""
            line += f"  {ours['launches']} launches" if ours["launches"] else ""
        if others:
            best = min(others, key=median)
            line += f"  ({best['contender']} {eager / median(best):.2f}x)"
        yield line


def median(row: dict[str, str]) -> float:
    return float(row["median_us"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder for all files")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, without a build")
    parser.add_argument("--no-build", action="store_true", help="with the libraries that aigc_ext/lib has")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps together")
    options = parser.parse_args()
    if not importable("torch"):
        parser.error(f"{sys.executable} cannot import torch")
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} sees no CUDA device; --dry-run tries this program on the CPU"
        )
    check = GpuCheck(options.out.resolve(), options.dry_run, options.budget, build=not options.no_build)
    return check.main()


if __name__ == "__main__":
    sys.exit(main())
