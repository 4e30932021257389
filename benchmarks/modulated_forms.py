"""Which of modulated_conv2d's two forms is faster, by channels, resolution, batch and kernel? Both as
computed
by the op, without the epilogue: weights per sample (with one group per sample if there are several, or a
matrix product for 1x1), or shared weights between a scaled input and a scaled output. The rule in
aigc_ext/ops/modulated_conv2d.py is based on these figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting

# channels and side, all with the same amount of work
SHAPES = [(512, 8), (256, 16), (128, 32), (64, 64)]
BATCHES = (1, 2, 8)


def scaled(x: Tensor, w: Tensor, s: Tensor, d: Tensor) -> Tensor:
    y = ops.conv2d_resample(x * s[:, :, None, None], w, padding=w.size(2) // 2)
    return y * d[:, :, None, None]


def own(x: Tensor, w: Tensor, s: Tensor, d: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    weights = w * s[:, None, :, None, None] * d[:, :, None, None, None]
    if w.size(2) == 1:
        return torch.matmul(weights.flatten(2), x.flatten(2)).unflatten(2, (height, width))
    x = x.reshape(1, n * channels, height, width)
    y = ops.conv2d_resample(x, weights.flatten(0, 1), padding=w.size(2) // 2, groups=n)
    return y.reshape(n, -1, height, width)


def cases(setting: Setting) -> Iterable[Case]:
    for channels, side in [(3, 8)] if setting.quick else SHAPES:
        for n in (1, 2) if setting.quick else BATCHES:
            for kernel in (1, 3):
                yield from cases_of(n, channels, side, kernel, setting)


def cases_of(n: int, channels: int, side: int, kernel: int, setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    sizes = ((n, channels, side, side), (channels, channels, kernel, kernel), (n, channels), (n, channels))
    x, w, s, d = (torch.randn(size, device=setting.device) for size in sizes)
    d = d / channels**0.5
    name = f"{n}x{channels}x{side}x{side}, {kernel}x{kernel}"
    contenders = {"scaled": scaled, "own weights": own}
    graphs = tuple(contenders)
    tolerance: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
    with torch.no_grad():
        yield Case(
            "modulated_forms",
            f"forward, {name}",
            {k: partial(run, x, w, s, d) for k, run in contenders.items()},
            graphs=graphs,
            **tolerance,
        )
    leaves = tuple(t.requires_grad_() for t in (x, w, s, d))
    dy = torch.randn(n, channels, side, side, device=setting.device)

    def train(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves), leaves, dy)

    yield Case(
        "modulated_forms",
        f"forward + backward, {name}",
        {k: partial(train, run) for k, run in contenders.items()},
        outputs=lambda gradients: gradients[0],
        graphs=graphs,
        **tolerance,
    )
