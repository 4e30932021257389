"""Does bias_act run at the speed of a copy? Leaky ReLU with bias and clamp on a tensor far larger than the
caches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case

SHAPE = (16, 64, 128, 128)  # 67 MB in float32
ACT = {"act": "lrelu", "clamp": 256.0}


def cases() -> Iterable[Case]:
    torch.manual_seed(0)
    x, b = torch.randn(SHAPE), torch.randn(SHAPE[1])
    dy = torch.randn(SHAPE)
    out = torch.empty_like(x)
    size = x.numel() * x.element_size()
    compiled = torch.compile(ops.bias_act_ref)
    with torch.no_grad():
        yield Case(
            "bias_act",
            "forward, lrelu + clamp, 67 MB",
            {
                "eager": lambda: ops.bias_act_ref(x, b, **ACT),
                "compile": lambda: compiled(x, b, **ACT),
                "copy of the same bytes": lambda: out.copy_(x),
                "aigc_ext": lambda: ops.bias_act(x, b, **ACT),
            },
            bytes=2 * size,
            outputs=lambda y: None if y is out else y[0, :, 0],
        )

    x.requires_grad_()
    b.requires_grad_()

    def train(function) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        return torch.autograd.grad(function(x, b, **ACT), (x, b), dy)

    yield Case(
        "bias_act",
        "forward + backward, lrelu + clamp, 67 MB",
        {
            "eager": lambda: train(ops.bias_act_ref),
            # Inductor's CPU backward of leaky ReLU is slow by itself: not to be read as our merit.
            "compile": lambda: train(compiled),
            "aigc_ext": lambda: train(ops.bias_act),
        },
        bytes=4 * size,
        outputs=lambda g: (g[0][0, :, 0], g[1]),
        rtol=1e-3,
        atol=1e-2,
    )
