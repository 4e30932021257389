"""GAN layers from 4 to 1024 pixels, in bfloat16 and float32, NCHW and NHWC, and whole training steps: what
`make gpu-check` measures, in one process.

    python -m benchmarks.shapes --csv FILE [--device cpu --quick] [--once]

On a card every contender is captured in a CUDA graph, whose replays are timed: what is compared are the
kernels, not what launches them, which the column `launches` counts. Contenders are plain PyTorch as a good
user writes it (depthwise convolutions for filters: cuDNN), ours, and in some cases torch.compile of the
former (Triton). `floor_us` is what the work takes at least on this card: the time in which a copy moves as
many bytes as the layer must, or the bare convolution within the layer, but no less than that of an empty
kernel. Outputs are compared.

There are three parts, each with its own time: shapes, steps, compile. Rows are written as they are measured.
What does not fit into a part's time is named and left out; a case that fails is reported, and the others go
on.

`--once` only runs every layer once, forward and backward: the program for a profiler.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gc
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from aigc_ext.bench import step
from aigc_ext.bench.timing import Case, Setting, check_outputs, device_name, time_case
from benchmarks import card
from benchmarks.harness import COLUMNS, rows_of

COLUMNS_HERE = (*COLUMNS, "floor_us", "over_floor", "launches", "seconds")
SECONDS = {"shapes": 75.0, "steps": 60.0, "compile": 45.0}
CHANNELS = {
    4: (64, 512),
    16: (32, 512),
    64: (16, 256),
    256: (8, 64),
    1024: (4, 32),
}  # side: samples, channels
QUICK = {4: (2, 8), 8: (2, 8)}
FORMS = (
    *((torch.bfloat16, torch.channels_last), (torch.float32, torch.contiguous_format)),
    *((torch.bfloat16, torch.contiguous_format), (torch.float32, torch.channels_last)),
)
EAGER, OURS, COMPILED = "eager", "aigc_ext", "compile"
STEPS = (EAGER, "eager, channels_last bf16", OURS, "aigc_ext, channels_last bf16")


Run = Callable[[], Any]


@dataclass(frozen=True)
class Layer:
    """A layer in plain PyTorch and ours, functions of x and the parameters that ``parameters`` makes for its
    channels. ``passes``: how many times the bytes of x it must move, forward, and forward and backward."""

    name: str
    eager: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    parameters: Callable[[int], list[Tensor]]
    passes: tuple[float, float] | None = None
    bare: Callable[..., Tensor] | None = None  # the convolution that takes the floor's time, if it is no copy


@functools.cache
def layers(device: torch.device) -> list[Layer]:
    # Everything that a call needs is made here, once: a call is captured, and timed.
    taps = (torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8).to(device)
    wide = torch.signal.windows.hann(14)[1:-1].to(device)
    wide /= wide.sum()

    def channel(count: int) -> list[Tensor]:
        return [torch.randn(count)]

    def two(count: int) -> list[Tensor]:
        return [torch.rand(count) + 0.5, torch.randn(count)]

    def weights(count: int) -> list[Tensor]:
        return [torch.randn(count, count, 3, 3) / (3 * count**0.5), torch.randn(count)]

    @functools.cache
    def square(channels: int, dtype: torch.dtype, gain: float) -> Tensor:
        return (torch.outer(taps, taps) * gain).to(dtype).expand(channels, 1, 4, 4).contiguous()

    def up(x: Tensor) -> Tensor:
        groups = x.size(1)
        return F.conv_transpose2d(x, square(groups, x.dtype, 4.0), stride=2, padding=1, groups=groups)

    def down(x: Tensor) -> Tensor:
        return F.conv2d(x, square(x.size(1), x.dtype, 1.0), stride=2, padding=1, groups=x.size(1))

    def filtered(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, b: function(x, wide, wide, b, up=2, down=2, padding=11, clamp=256.0)

    lrelu: dict[str, Any] = {"act": "lrelu", "clamp": 256.0}
    return [
        Layer(
            "bias_act", partial(ops.bias_act_ref, **lrelu), partial(ops.bias_act, **lrelu), channel, (2, 4)
        ),
        Layer(
            "batch_norm_act",
            lambda x, w, b: F.relu(F.batch_norm(x, None, None, w, b, True)),
            lambda x, w, b: ops.batch_norm_act(x, None, None, w, b, True, act="relu", gain=1.0),
            two,
            (3, 8),
        ),
        Layer(
            "group_norm_act",
            lambda x, w, b: F.silu(F.group_norm(x, x.size(1) // 8, w, b)),
            lambda x, w, b: ops.group_norm_act(x, x.size(1) // 8, w, b, act="swish", gain=1.0),
            two,
            (3, 8),
        ),
        Layer("upsample2d", up, lambda x: ops.upsample2d(x, taps), lambda n: [], (5, 10)),
        Layer("downsample2d", down, lambda x: ops.downsample2d(x, taps), lambda n: [], (1.25, 2.5)),
        Layer(
            "filtered_lrelu", filtered(ops.filtered_lrelu_ref), filtered(ops.filtered_lrelu), channel, (2, 4)
        ),
        Layer(
            "conv2d_act",
            lambda x, w, b: F.leaky_relu(F.conv2d(x, w, b, padding=1), 0.2),
            lambda x, w, b: ops.conv2d_act(x, w, b, padding=1, act="lrelu", gain=1.0),
            weights,
            bare=lambda x, w, b: F.conv2d(x, w, padding=1),
        ),
    ]


@dataclass(frozen=True)
class Shape:
    layer: Layer
    side: int
    dtype: torch.dtype
    memory_format: torch.memory_format
    backward: bool
    compiled: bool = False

    @property
    def name(self) -> str:
        layout = "NHWC" if self.memory_format == torch.channels_last else "NCHW"
        return f"{'forward + backward' if self.backward else 'forward'}, {self.side} px, {layout}"


def shapes(setting: Setting) -> list[Shape]:
    """Each layer, forward and backward, at each size in two forms, at one size in four; in one form forward
    alone as well. The commonest sizes come first."""
    sides = QUICK if setting.quick else CHANNELS
    order = sorted(sides, key=lambda side: abs(side - 100))
    return [
        Shape(layer, side, dtype, memory_format, backward)
        for side in order
        for layer in layers(setting.device)
        for dtype, memory_format in (FORMS if side == order[0] else FORMS[:2])
        for backward in ((True, False) if (dtype, memory_format) == FORMS[0] else (True,))
    ]


def compiled_shapes(setting: Setting) -> list[Shape]:
    side = min(QUICK) if setting.quick else 64
    return [
        Shape(layer, side, *form, True, compiled=True)
        for form in FORMS[:2]
        for layer in layers(setting.device)
    ]


def runs_of(shape: Shape, setting: Setting) -> tuple[dict[str, Run], Run | None, int]:
    """The contenders' calls, that of the bare convolution, and the bytes of x."""
    torch.manual_seed(0)
    layer, (samples, channels) = shape.layer, (QUICK if setting.quick else CHANNELS)[shape.side]
    x = torch.randn(samples, channels, shape.side, shape.side, device=setting.device).to(shape.dtype)
    x = x.contiguous(memory_format=shape.memory_format).requires_grad_(shape.backward)
    parameters = [p.to(setting.device, shape.dtype) for p in layer.parameters(channels)]
    leaves = [x, *(p.requires_grad_(shape.backward) for p in parameters)]
    with torch.no_grad():
        like = layer.eager(*leaves)
    dy = torch.randn_like(like)

    def call(function: Callable[..., Tensor]) -> Any:
        if not shape.backward:
            with torch.no_grad():
                return (function(*leaves),)
        y = function(*leaves)
        # The bare convolution has no bias to differentiate.
        return (y.detach(), *torch.autograd.grad(y, leaves, dy, allow_unused=True))

    functions = {EAGER: layer.eager}
    if shape.compiled:
        functions[COMPILED] = setting.compiled(layer.eager, dynamic=False)
    functions[OURS] = layer.ours
    runs: dict[str, Run] = {name: partial(call, function) for name, function in functions.items()}
    return runs, layer.bare and partial(call, layer.bare), x.numel() * x.element_size()


def case_of(shape: Shape, setting: Setting) -> tuple[Case, Run | None]:
    runs, bare, size = runs_of(shape, setting)
    half = shape.dtype == torch.bfloat16

    def seen(results: Any) -> list[Tensor]:
        """The first sample's values, and not those of x near the corner of an activation, which rounding
        takes to its other side: gradients are compared as a whole."""
        y, *gradients = results
        return [y[0].float(), *(g.float().norm()[None] for g in gradients if g is not None)]

    passes = shape.layer.passes
    case = Case(
        shape.layer.name,
        shape.name + (", with compile" if shape.compiled else ""),
        runs,
        dtype=str(shape.dtype)[6:],
        bytes=int(size * passes[shape.backward]) if passes else None,
        outputs=seen,
        rtol=0.03 if half else 2e-3,
        atol=0.06 if half else 2e-3,
    )
    return case, bare


class Measuring:
    """Rows for the file, with what is measured of the machine once."""

    def __init__(self, setting: Setting, out: Path) -> None:
        self.setting = setting
        self.failed: list[str] = []
        out.parent.mkdir(parents=True, exist_ok=True)
        self.file = out.open("w", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS_HERE, lineterminator="\n")
        self.writer.writeheader()

    def graphed(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return card.graphed(run) if self.setting.on_card else run

    def samples(self, case: Case) -> dict[str, list[float]]:
        if self.setting.on_card:
            return card.time_warm(case, 0.05, min_rounds=7)
        return time_case(case, seconds=0.01, min_rounds=3)

    def microseconds(self, run: Callable[[], Any]) -> float:
        times = sorted(self.samples(Case("", "", {"": self.graphed(run)}))[""])
        return times[len(times) // 2]

    def empty(self) -> float:
        one = torch.zeros(1, device=self.setting.device)
        return self.microseconds(lambda: one.add_(1))

    def bandwidth(self) -> float:
        """Bytes per microsecond of a copy."""
        if self.setting.on_card:
            return card.copy_bandwidth(self.setting.device) * 1e3
        source, target = torch.ones(1 << 16), torch.ones(1 << 16)
        return 2 * 4 * source.numel() / self.microseconds(lambda: target.copy_(source))

    def write(self, case: Case, samples: dict[str, list[float]], more: dict[str, dict[str, Any]]) -> None:
        where = f"{card.device_name(self.setting.device)}; graph" if self.setting.on_card else device_name(1)
        print(f"\n{case.op}: {case.case}, {case.dtype}")
        for row in rows_of(case, samples, where):
            self.writer.writerow({**row, **more.get(row["contender"], {})})
            self.file.flush()

    def launches(self, run: Callable[[], Any]) -> int | str:
        return card.launches(run)[0] if self.setting.on_card else ""

    # ---- the parts
    # -------------------------------------------------------------------------------------------

    def part(self, name: str, seconds: float, items: list[Any], measure: Callable[[Any], None]) -> None:
        started, done = time.perf_counter(), 0
        for item in items:
            if time.perf_counter() - started > seconds:
                break
            begun = time.perf_counter()
            try:
                measure(item)
                done += 1
            except Exception:
                self.failed.append(f"{name} {done + len(self.failed)}")
                print(f"a case of {name} fails:\n{traceback.format_exc()}", flush=True)
                done += 1
            finally:
                gc.collect()
                if self.setting.on_card:
                    torch.cuda.empty_cache()
            if time.perf_counter() - begun > 10:
                print(f"(this case took {time.perf_counter() - begun:.0f} s)", flush=True)
        took = time.perf_counter() - started
        print(f"\n{name}: {done} of {len(items)} cases in {took:.0f} s of {seconds:.0f}", flush=True)

    def shape(self, shape: Shape, floors: tuple[float, float]) -> None:
        begun = time.perf_counter()
        case, bare = case_of(shape, self.setting)
        check_outputs(case)
        launches = {name: self.launches(run) for name, run in case.contenders.items()}
        case.contenders = {name: self.graphed(run) for name, run in case.contenders.items()}
        samples = self.samples(case)
        bandwidth, least = floors
        floor = self.microseconds(bare) if bare else (case.bytes or 0) / bandwidth
        floor = max(floor, least)
        more: dict[str, dict[str, Any]] = {}
        for name, times in samples.items():
            median = sorted(times)[len(times) // 2]
            more[name] = {
                "floor_us": f"{floor:.2f}",
                "over_floor": f"{median / floor:.2f}",
                "launches": launches[name],
                "seconds": f"{time.perf_counter() - begun:.2f}",
            }
        self.write(case, samples, more)

    def step(self, question: tuple[step.Size, bool]) -> None:
        begun = time.perf_counter()
        case = step.case_of(*question, self.setting, names=STEPS)
        launches = {name: self.launches(run) for name, run in case.contenders.items()}
        samples = self.samples(case)
        seconds = f"{time.perf_counter() - begun:.2f}"
        self.write(case, samples, {name: {"launches": n, "seconds": seconds} for name, n in launches.items()})


def once(setting: Setting) -> None:
    """Each layer at 256 px (4, if quick), forward and backward, and nothing else of ours."""
    for shape in shapes(setting):
        if shape.side == (min(QUICK) if setting.quick else 256) and shape.backward:
            runs, _, _ = runs_of(shape, setting)
            runs[OURS]()
    if setting.on_card:
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--csv", type=Path, help="the file to write")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: the figures are meaningless")
    parser.add_argument("--once", action="store_true", help="measure nothing: a program for a profiler")
    for name, seconds in SECONDS.items():
        parser.add_argument(
            f"--{name}", type=float, default=seconds, help=f"seconds of this part ({seconds:.0f})"
        )
    options = parser.parse_args()
    setting = Setting(torch.device(options.device), options.quick)
    torch.set_num_threads(1)
    if options.once:
        once(setting)
        return 0
    if options.csv is None:
        parser.error("--csv is missing: the file to write")
    measuring = Measuring(setting, options.csv)
    with measuring.file:
        floors = measuring.bandwidth(), measuring.empty()
        print(f"a copy: {floors[0] / 1e3:.0f} GB/s; an empty kernel: {floors[1]:.2f} us", flush=True)
        measure = partial(measuring.shape, floors=floors)
        questions = [(size, penalize) for size in step.sizes(setting.quick) for penalize in size.penalties]
        measuring.part("shapes", options.shapes, shapes(setting), measure)
        measuring.part("steps", options.steps, questions, measuring.step)
        measuring.part("compile", options.compile, compiled_shapes(setting), measure)
    if measuring.failed:
        print(f"failed: {', '.join(measuring.failed)}", flush=True)
    return int(bool(measuring.failed))


if __name__ == "__main__":
    sys.exit(main())
