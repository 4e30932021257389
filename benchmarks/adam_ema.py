"""What does one optimizer step with the moving average of the weights cost, compared to the fused Adam?

The weights change during the measurement; the fourth step is compared between all contenders.
``aigc_ext, unchecked`` does not check for non-finite gradients, nor do PyTorch's optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from aigc_ext.models import MLPGenerator
from aigc_ext.optim import AdamEMA
from benchmarks.card import graphed
from benchmarks.harness import Case, Setting, those_that_work

LR, BETAS, DECAY = 1e-4, (0.5, 0.999), 0.999
Sizes = list[tuple[int, ...]]
MLP: Sizes = [tuple(p.shape) for p in MLPGenerator().parameters()]
DCGAN: Sizes = [(100, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 3, 4, 4)]
WARM_UP = 3  # steps before the compared one: a CUDA graph takes them before it is captured
Step = Callable[[], list[Tensor]]
Make = Callable[[Sizes, Setting], Step]


def start(sizes: Sizes, setting: Setting) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    params = [torch.randn(size).to(setting.device).requires_grad_() for size in sizes]
    for param in params:
        param.grad = torch.randn(param.shape).to(param)
    return params, [param.detach().clone() for param in params]


def fused(sizes: Sizes, setting: Setting) -> Step:
    params, averages = start(sizes, setting)
    optimizer = torch.optim.Adam(params, LR, BETAS, fused=True)

    @torch.no_grad()
    def step() -> list[Tensor]:
        optimizer.step()
        for average, param in zip(averages, params, strict=True):
            average.lerp_(param, 1 - DECAY)
        return averages

    return step


def foreach(
    sizes: Sizes,
    setting: Setting,
    fused: bool,
    capturable: bool = False,
    compile: Callable[[Step], Step] | None = None,
) -> Step:
    params, averages = start(sizes, setting)
    # When compiled, the learning rate is a constant of the graph; a tensor, for schedules, would be slower.
    optimizer = torch.optim.Adam(params, LR, BETAS, fused=fused, foreach=not fused, capturable=capturable)

    @torch.no_grad()
    def step() -> list[Tensor]:
        optimizer.step()
        torch._foreach_lerp_(averages, params, 1 - DECAY)
        return averages

    return compile(step) if compile else step


def ours(sizes: Sizes, setting: Setting, skip_nonfinite: bool = True) -> Step:
    params, averages = start(sizes, setting)
    optimizer = AdamEMA(
        params, LR, BETAS, ema_params=averages, ema_decay=DECAY, skip_nonfinite=skip_nonfinite
    )

    def step() -> list[Tensor]:
        optimizer.step()
        return averages

    return step


def warmed_up(make: Make, sizes: Sizes, setting: Setting) -> Step:
    step = make(sizes, setting)
    for _ in range(WARM_UP):
        step()
    return step


def in_a_graph(make: Make, sizes: Sizes, setting: Setting) -> Step:
    return graphed(make(sizes, setting), WARM_UP)


def cases(setting: Setting) -> Iterable[Case]:
    contenders: dict[str, Make] = {
        "Adam(fused) + lerp_": fused,
        "Adam(fused) + _foreach_lerp_": partial(foreach, fused=True),
        "Adam(foreach) + _foreach_lerp_": partial(foreach, fused=False),
    }
    for name, mode in setting.compile_modes().items():
        contenders[name.replace("compile", "compile of Adam + _foreach_lerp_", 1)] = partial(
            foreach, fused=False, capturable=setting.on_card, compile=partial(setting.compiled, mode=mode)
        )
    contenders |= {"aigc_ext": ours, "aigc_ext, unchecked": partial(ours, skip_nonfinite=False)}
    graphs: dict[str, Make] = {
        "Adam(fused) + _foreach_lerp_, CUDA graph": partial(foreach, fused=True, capturable=True),
        "aigc_ext, CUDA graph": ours,
    }
    for name, sizes in (("MLP generator", MLP), ("DCGAN generator", DCGAN)):
        if setting.quick:
            sizes = [(3, 4), (5,)]
        count = sum(torch.Size(size).numel() for size in sizes)
        size = f"{count / 1e6:.1f} M" if count > 1e6 else f"{count / 1e3:.0f} k"
        makes = {k: partial(warmed_up, make, sizes, setting) for k, make in contenders.items()}
        if setting.on_card:
            makes |= {k: partial(in_a_graph, make, sizes, setting) for k, make in graphs.items()}
        yield Case(
            "adam_ema",
            f"{name}, {size} parameters",
            those_that_work(makes),
            bytes=36 * count,
            outputs=lambda averages: [average.clone() for average in averages],
            rtol=1e-6,
            atol=1e-7,
        )
        if setting.quick:
            return
