"""Does bias_act run at the speed of a copy? Leaky ReLU with bias and clamp on a tensor far larger than a
CPU's caches. On a GPU also in half precision, where the same tensor fits into the L2 cache of some GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting

SHAPE = (16, 64, 128, 128)  # 67 MB in float32
ACT: dict[str, Any] = {"act": "lrelu", "clamp": 256.0}


def cases(setting: Setting) -> Iterable[Case]:
    for dtype in (torch.float32, torch.float16) if setting.on_card else (torch.float32,):
        yield from cases_of(dtype, setting)


def cases_of(dtype: torch.dtype, setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    shape = (2, 3, 8, 8) if setting.quick else SHAPE
    x, b, dy = (torch.randn(size).to(setting.device, dtype) for size in (shape, shape[1:2], shape))
    out = torch.empty_like(x)
    size = x.numel() * x.element_size()
    name = f"lrelu + clamp, {size / 1e6:.0f} MB"
    full = dtype == torch.float32
    compiled = {
        contender: setting.compiled(ops.bias_act_ref, mode)
        for contender, mode in setting.compile_modes().items()
    }
    with torch.no_grad():
        yield Case(
            "bias_act",
            f"forward, {name}",
            {
                "eager": lambda: ops.bias_act_ref(x, b, **ACT),
                **{k: partial(function, x, b, **ACT) for k, function in compiled.items()},
                "copy of the same bytes": lambda: out.copy_(x),
                "aigc_ext": lambda: ops.bias_act(x, b, **ACT),
            },
            dtype=str(dtype)[6:],
            bytes=2 * size,
            outputs=lambda y: None if y is out else y[0, :, 0],
            rtol=1e-4 if full else 2e-3,
            atol=1e-5 if full else 2e-3,
            graphs=("eager", "aigc_ext"),
        )

    x.requires_grad_()
    b.requires_grad_()

    def train(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, b, **ACT), (x, b), dy)

    yield Case(
        "bias_act",
        f"forward + backward, {name}",
        {
            "eager": lambda: train(ops.bias_act_ref),
            # Inductor's CPU backward of leaky ReLU is slow by itself: part of the gap is not our merit.
            **{k: partial(train, function) for k, function in compiled.items()},
            "aigc_ext": lambda: train(ops.bias_act),
        },
        dtype=str(dtype)[6:],
        bytes=4 * size,
        # The bias gradient is a sum of 262,144 numbers, which the contenders round differently.
        outputs=lambda g: (g[0][0, :, 0], g[1]),
        rtol=1e-3 if full else 2e-3,
        atol=1e-2 if full else 2.0,
        graphs=("eager", "aigc_ext"),
    )
