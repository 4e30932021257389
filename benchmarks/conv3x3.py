"""Does Winograd's convolution beat PyTorch's on the CPU, and from how many channels and pixels on? The layers
of StyleGAN2 at several widths. On a GPU it is PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from aigc_ext import ops
from benchmarks.harness import Case, Setting

# samples, channels in, channels out, side
SHAPES = [
    (4, 3, 64, 64),
    (8, 16, 16, 64),
    (8, 32, 32, 64),
    (4, 64, 64, 64),
    (4, 128, 128, 64),
    (4, 256, 256, 16),
    (4, 512, 512, 8),
    (16, 512, 512, 4),
    # 28x28 images, with reduced widths
    (16, 64, 64, 28),
    (16, 128, 128, 14),
    (16, 32, 32, 14),
    (16, 64, 64, 7),
]


def cases(setting: Setting) -> Iterable[Case]:
    if setting.on_card:
        return
    for shape in [(2, 3, 5, 7)] if setting.quick else SHAPES:
        for channels_last in (False, True):
            yield from cases_of(*shape, channels_last)


def cases_of(n: int, i: int, o: int, side: int, channels_last: bool) -> Iterable[Case]:
    torch.manual_seed(0)
    x, w, dy = torch.randn(n, i, side, side), torch.randn(o, i, 3, 3), torch.randn(n, o, side, side)
    name = f"{n}x{i}x{side}x{side} to {o}"
    if channels_last:
        x, w, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, w, dy))
        name += ", channels last"
    # float32 sums of 9 * in_channels (forward) and n * side^2 (weights) products, in another order
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-3}
    with torch.no_grad():
        yield Case(
            "conv3x3",
            f"forward, {name}",
            {"eager": lambda: F.conv2d(x, w, padding=1), "aigc_ext": lambda: ops.conv3x3(x, w)},
            **tolerance,
        )
    x.requires_grad_()
    w.requires_grad_()
    yield Case(
        "conv3x3",
        f"forward + backward, {name}",
        {
            "eager": lambda: torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), dy),
            "aigc_ext": lambda: torch.autograd.grad(ops.conv3x3(x, w), (x, w), dy),
        },
        **tolerance,
    )
