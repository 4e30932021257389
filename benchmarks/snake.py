"""The activation of BigVGAN's vocoders: ``x + sin(alpha * x)**2 / alpha`` on audio features. ``snake_ref`` is
safe at alpha = 0 and pays for it; eager is the short form that users write, which is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting

SHAPE = (16, 64, 16384)  # 67 MB in float32


def plain(x: Tensor, alpha: Tensor) -> Tensor:
    alpha = alpha[:, None]
    return x + (alpha * x).sin().square() / (alpha + 1e-9)


def cases(setting: Setting) -> Iterable[Case]:
    for dtype in (torch.float32, torch.float16) if setting.on_card else (torch.float32,):
        yield from cases_of(dtype, setting)


def cases_of(dtype: torch.dtype, setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    shape = (2, 3, 64) if setting.quick else SHAPE
    x, dy = (torch.randn(shape).to(setting.device, dtype) for _ in range(2))
    alpha = torch.rand(shape[1]).add(0.5).to(setting.device, dtype)
    out = torch.empty_like(x)
    size = x.numel() * x.element_size()
    name = f"{size / 1e6:.0f} MB"
    full = dtype == torch.float32
    compiled = {
        contender: setting.compiled(plain, mode) for contender, mode in setting.compile_modes().items()
    }
    with torch.no_grad():
        yield Case(
            "snake",
            f"forward, {name}",
            {
                "eager": lambda: plain(x, alpha),
                **{k: partial(function, x, alpha) for k, function in compiled.items()},
                "copy of the same bytes": lambda: out.copy_(x),
                "aigc_ext": lambda: ops.snake(x, alpha),
            },
            dtype=str(dtype)[6:],
            bytes=2 * size,
            outputs=lambda y: None if y is out else y[0],
            rtol=1e-4 if full else 5e-3,
            atol=1e-5 if full else 5e-3,
            graphs=("eager", "aigc_ext"),
        )

    x.requires_grad_()
    alpha.requires_grad_()

    def train(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, alpha), (x, alpha), dy)

    yield Case(
        "snake",
        f"forward + backward, {name}",
        {
            "eager": lambda: train(plain),
            **{k: partial(train, function) for k, function in compiled.items()},
            "aigc_ext": lambda: train(ops.snake),
        },
        dtype=str(dtype)[6:],
        bytes=5 * size,
        # alpha's gradient is a sum of 262,144 numbers, which no two contenders round alike.
        outputs=lambda g: (g[0][0], g[1]),
        rtol=1e-3 if full else 5e-3,
        atol=1e-2 if full else 2.0,
        graphs=("eager", "aigc_ext"),
    )
