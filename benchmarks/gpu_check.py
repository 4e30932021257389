"""``make gpu-check``: everything that needs a GPU, in one command and under 8 minutes.

Builds the native code for the GPU of this machine, runs ``pytest -m cuda``, the benchmarks, compute-sanitizer
and csrc/check_kernels.py, and prints a short table at the end. It works in a bare checkout, with the Python
that starts it and its packages: nothing is installed or downloaded. If a step fails or takes too long, the
later ones still run, and the exit code is 1.

Writes to OUT_DIR: summary.txt (the table), info.txt, log.txt (all output), tests.xml, benchmarks.csv,
kernels.csv.

``--dry-run`` runs the same steps with tiny sizes on the CPU, as a test of this program, without building.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import os
import platform
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
BENCHMARKS = (
    *("bias_act", "gan_loss", "adam_ema", "mlp_gan_step"),
    *("batch_norm_act", "upfirdn2d", "filtered_lrelu", "modulated_conv2d", "r1"),
)
# Without initcheck: it tracks only writes by checked kernels, and PyTorch's are not checked.
SANITIZERS = ("memcheck", "racecheck", "synccheck")
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

    @property
    def bad(self) -> bool:
        return self.status not in ("ok", "skipped")


class GpuCheck:
    def __init__(self, out: Path, dry: bool, budget: float) -> None:
        self.out, self.dry = out, dry
        self.deadline = time.monotonic() + budget
        self.steps: list[Step] = []
        self.cores = len(os.sched_getaffinity(0))
        self.scratch = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        out.mkdir(parents=True, exist_ok=True)
        for name in ("summary.txt", "info.txt", "log.txt", "tests.xml", "benchmarks.csv", "kernels.csv"):
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
            self.report(step, output.read_text(errors="replace"))
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
        if not self.run(Step("configure", configure, 60, only)):
            return False
        build = [cmake, "--build", str(folder), "--parallel", str(self.cores)]
        if self.dry:
            build += ["--", "-n"]
        if not self.run(Step("build", build, 240, only)):
            return False
        if self.dry:
            return True
        return self.run(Step("install", [cmake, "--install", str(folder), "--prefix", str(PACKAGE)], 30))

    def tests(self) -> None:
        if not all(importable(name) for name in NEEDED["the tests"]):
            self.without_running("tests", "failed", "pytest and hypothesis must be importable")
            return
        report = self.out / "tests.xml"
        arguments = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-o", "junit_logging=no"]
        if self.dry:
            arguments += ["tests/ops/test_properties.py", "-k", "pixel_norm and decomposed"]
        else:
            arguments += ["-m", "cuda", "tests/cuda"]
            if importable("xdist"):
                arguments += ["-p", "xdist.plugin", "-n", str(min(self.cores, 10)), "--dist", "worksteal"]
        # No other installed plugins: some warn when they start, which is an error in our configuration.
        alone = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        step = Step("tests", self.python("-m", "pytest", *arguments), 170, alone)
        self.run(step)
        step.note = " ".join([step.note, *counts_of(report)]).strip()

    def benchmarks(self) -> None:
        results = self.scratch / "results"
        device = ["--device", "cpu", "--threads", "1", "--quick"] if self.dry else ["--device", "cuda"]
        for name in BENCHMARKS:
            command = self.python("-m", "benchmarks", name, *device, "--results", str(results), "--csv-only")
            self.run(Step(f"benchmark {name}", command, 100))
        rows = [row for path in sorted(results.glob("*.csv")) for row in csv.DictReader(path.open())]
        if rows:
            with (self.out / "benchmarks.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    def sanitizers_and_kernels(self) -> None:
        program = self.python("-m", "tests.cuda.sanitize")
        steps = []
        sanitizer = shutil.which("compute-sanitizer", path=self.environment["PATH"])
        if self.dry:
            steps.append(Step("sanitized program", [*program, "--device", "cpu"], 100))
        elif sanitizer is None:
            self.without_running("compute-sanitizer", "skipped", "not found on PATH")
        else:
            ours = ["--kernel-name", "kernel_substring=4aigc"]
            options = ["--error-exitcode", "9", "--print-limit", "20", *ours]
            # Every tensor gets its own allocation, so that an access beyond it doesn't hit another tensor.
            apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            steps += [
                Step(tool, [sanitizer, "--tool", tool, *options, *program], 100, apart) for tool in SANITIZERS
            ]
        library = PACKAGE / "lib" / "libaigc_ops_cuda.so"
        disassembler = shutil.which("cuobjdump", path=self.environment["PATH"])
        if self.dry:
            self.without_running("kernels", "skipped", "nothing was built")
        elif disassembler is None:
            self.without_running("kernels", "skipped", "cuobjdump was not found")
        else:
            command = ["csrc/check_kernels.py", str(library), "--csv", str(self.out / "kernels.csv")]
            steps.append(Step("kernels", self.python(*command), 100))
        if steps:
            self.run(*steps)

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
            self.tests()
            self.benchmarks()
            self.sanitizers_and_kernels()
        else:
            for name in ("tests", "benchmarks", "compute-sanitizer"):
                self.without_running(name, "not run", "the build is not ok")
        summary = self.summary()
        (self.out / "summary.txt").write_text(summary + "\n")
        print(f"\n{summary}\n\nFiles: {self.out}", flush=True)
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


def counts_of(report: Path, names: int = 8) -> list[str]:
    """Counts of a junit file, and the first tests that failed."""
    if not report.exists():
        return ["no report"]
    cases = list(xml.etree.ElementTree.parse(report).getroot().iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    counts = f"{len(cases) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped"
    return [counts, *(f"\n    {c.get('classname')}::{c.get('name')}" for c in failed[:names])]


def short_table(rows: list[dict[str, str]]) -> Iterator[str]:
    """One line for each question: the first contender, the best of the others, the best of ours."""
    from benchmarks.report import grouped

    for (op, case, dtype, device), group in grouped(rows).items():
        first = float(group[0]["median_us"])
        others = [row for row in group[1:] if not row["contender"].startswith(("aigc_ext", "copy"))]
        ours = [row for row in group if row["contender"].startswith("aigc_ext")]
        yield f"{op}: {case}, {dtype}, {device}"
        yield f"    {first:10.1f} us         {group[0]['contender']}"
        for chosen in (others, ours):
            if chosen:
                best = min(chosen, key=lambda row: float(row["median_us"]))
                time_us, copy = float(best["median_us"]), best.get("copy")
                note = f" ({copy} of a copy's GB/s)" if copy else ""
                yield f"    {time_us:10.1f} us {first / time_us:6.2f}x {best['contender']}{note}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder for all files")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, without a build")
    parser.add_argument("--budget", type=float, default=460, help="seconds for all steps together")
    options = parser.parse_args()
    if not importable("torch"):
        parser.error(f"{sys.executable} cannot import torch")
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} sees no CUDA device; --dry-run tries this program on the CPU"
        )
    return GpuCheck(options.out.resolve(), options.dry_run, options.budget).main()


if __name__ == "__main__":
    sys.exit(main())
