"""One optimizer step with the moving average of the weights: what does it cost beside the fused Adam?

The weights move while they are measured; that all contenders take the same step is checked on the first one.
``aigc_ext, unchecked`` does not look for gradients that are not finite, which none of PyTorch's does either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from aigc_ext.models import MLPGenerator
from aigc_ext.optim import AdamEMA
from benchmarks.harness import Case

LR, BETAS, DECAY = 1e-4, (0.5, 0.999), 0.999
MLP = [tuple(p.shape) for p in MLPGenerator().parameters()]
DCGAN = [(100, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 3, 4, 4)]
Step = Callable[[], list[Tensor]]


def start(sizes: list[tuple[int, ...]]) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    params = [torch.randn(size, requires_grad=True) for size in sizes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params, [param.detach().clone() for param in params]


def fused(sizes: list[tuple[int, ...]]) -> Step:
    params, averages = start(sizes)
    optimizer = torch.optim.Adam(params, LR, BETAS, fused=True)

    @torch.no_grad()
    def step() -> list[Tensor]:
        optimizer.step()
        for average, param in zip(averages, params, strict=True):
            average.lerp_(param, 1 - DECAY)
        return averages

    return step


def foreach(sizes: list[tuple[int, ...]], fused: bool, compiled: bool = False) -> Step:
    params, averages = start(sizes)
    # Compiled, the learning rate is a constant of the graph; as a tensor, for schedules, it would be slower.
    optimizer = torch.optim.Adam(params, LR, BETAS, fused=fused, foreach=not fused)

    @torch.no_grad()
    def step() -> list[Tensor]:
        optimizer.step()
        torch._foreach_lerp_(averages, params, 1 - DECAY)
        return averages

    return torch.compile(step) if compiled else step


def ours(sizes: list[tuple[int, ...]], skip_nonfinite: bool) -> Step:
    params, averages = start(sizes)
    optimizer = AdamEMA(
        params, LR, BETAS, ema_params=averages, ema_decay=DECAY, skip_nonfinite=skip_nonfinite
    )

    def step() -> list[Tensor]:
        optimizer.step()
        return averages

    return step


def cases() -> Iterable[Case]:
    contenders: dict[str, Callable[[list[tuple[int, ...]]], Step]] = {
        "Adam(fused) + lerp_": fused,
        "Adam(fused) + _foreach_lerp_": partial(foreach, fused=True),
        "Adam(foreach) + _foreach_lerp_": partial(foreach, fused=False),
        "compile of Adam + _foreach_lerp_": partial(foreach, fused=False, compiled=True),
        "aigc_ext": partial(ours, skip_nonfinite=True),
        "aigc_ext, unchecked": partial(ours, skip_nonfinite=False),
    }
    for name, sizes in (("MLP generator", MLP), ("DCGAN generator", DCGAN)):
        count = sum(torch.Size(size).numel() for size in sizes)
        size = f"{count / 1e6:.1f} M" if count > 1e6 else f"{count / 1e3:.0f} k"
        yield Case(
            "adam_ema",
            f"{name}, {size} parameters",
            {contender: make(sizes) for contender, make in contenders.items()},
            bytes=36 * count,
            outputs=lambda averages: [average.clone() for average in averages],
            rtol=1e-6,
            atol=1e-7,
        )
