"""The alias-free activation of BigVGAN's vocoders: up 2, snake, down 2 with 12 + 12 taps, on audio features.
Eager is what a good user writes: replicate padding, a transposed and a strided depthwise convolution, snake
between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import nn, ops
from benchmarks.harness import Case, Setting

SHAPE = (1, 192, 8192)


def cases(setting: Setting) -> Iterable[Case]:
    for has_beta in (False, True):
        yield from cases_of(has_beta, setting)


def cases_of(has_beta: bool, setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    torch.compiler.reset()
    shape = (1, 3, 64) if setting.quick else SHAPE
    x, dy = (torch.randn(shape, device=setting.device) for _ in range(2))
    alpha, beta = (torch.rand(shape[1], device=setting.device).add(0.5) for _ in range(2))
    parameters = [alpha, beta] if has_beta else [alpha]
    f = nn.FilteredSnake(1).resample_filter.to(setting.device)
    taps, channels = f.numel(), shape[1]
    down = f.expand(channels, 1, taps).contiguous()
    up = 2 * down
    pad = taps // 2 - 1

    def eager(x: Tensor, *parameters: Tensor) -> Tensor:
        alpha, beta = (t[:, None] for t in (parameters[0], parameters[-1]))
        x = F.pad(x, (pad, pad), mode="replicate")
        x = F.conv_transpose1d(x, up, stride=2, padding=3 * pad, groups=channels)
        x = torch.addcdiv(x, (alpha * x).sin().square(), beta + 1e-9)
        x = F.pad(x, (pad, pad + 1), mode="replicate")
        return F.conv1d(x, down, stride=2, groups=channels)

    def ours(x: Tensor, alpha: Tensor, beta: Tensor | None = None) -> Tensor:
        return ops.filtered_snake(x, alpha, f, f, beta)

    contenders: dict[str, Callable[..., Tensor]] = {"eager": eager}
    for contender, mode in setting.compile_modes().items():
        contenders[contender] = setting.compiled(eager, mode, dynamic=False)
    contenders["aigc_ext"] = ours
    name = f"{'alpha and beta' if has_beta else 'alpha'}, {taps} + {taps} taps, {'x'.join(map(str, shape))}"
    size = x.numel() * x.element_size()
    with torch.no_grad():
        yield Case(
            "filtered_snake",
            f"forward, {name}",
            {k: partial(run, x, *parameters) for k, run in contenders.items()},
            bytes=2 * size,
            graphs=("eager", "aigc_ext"),
            atol=1e-4,
        )
    leaves = [x, *parameters]
    for leaf in leaves:
        leaf.requires_grad_()

    def train(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves), leaves, dy)

    yield Case(
        "filtered_snake",
        f"forward + backward, {name}",
        {k: partial(train, run) for k, run in contenders.items()},
        bytes=5 * size,
        # A parameter's gradient is a sum of 16,384 numbers, which no two contenders round alike.
        outputs=list,
        rtol=1e-3,
        atol=1e-2,
        graphs=("eager", "aigc_ext"),
    )
