"""Does one op for group norm and SiLU beat two, and how near to its bytes is its double backward? Layers of a
VQGAN's networks, contiguous and channels-last, against PyTorch's group norm and torch.compile of it (which
has no double backward)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting

SHAPES = [(16, 512, 8, 8), (4, 128, 64, 64)]
GROUPS = 32


def cases(setting: Setting) -> Iterable[Case]:
    for shape in [(2, 8, 5, 7)] if setting.quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for channels_last in (False, True):
                yield from cases_of(shape, dtype, channels_last, setting)


def cases_of(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, setting: Setting
) -> Iterable[Case]:
    torch.manual_seed(0)
    torch.compiler.reset()  # the number of compiled versions of one function is limited
    x, dy, v = (torch.randn(shape, device=setting.device).to(dtype) for _ in range(3))
    if channels_last:
        x, dy, v = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, v))
    # In x's dtype: PyTorch's group norm of bfloat16 has no backward on the CPU for others.
    weight, bias = ((torch.rand(shape[1], device=setting.device) + 0.5).to(dtype) for _ in range(2))
    groups = min(GROUPS, shape[1] // 2)

    def two_ops(x: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias))

    def ours(x: Tensor) -> Tensor:
        return ops.group_norm_act(x, groups, weight, bias, act="swish", gain=1.0)

    compiled = {
        contender: setting.compiled(two_ops, mode, dynamic=False)
        for contender, mode in setting.compile_modes().items()
    }
    contenders: dict[str, Callable[[Tensor], Tensor]] = {"eager": two_ops, **compiled, "aigc_ext": ours}
    name = "x".join(map(str, shape)) + (", channels last" if channels_last else "")
    size = x.numel() * x.element_size()
    full = dtype == torch.float32
    common: dict[str, Any] = {
        "dtype": str(dtype)[6:],
        "rtol": 1e-3 if full else 0.1,  # gradients of the parameters are sums of up to 16,384 numbers
        "atol": 1e-3 if full else 2.0,
        "graphs": ("eager", "aigc_ext"),
    }
    out = torch.empty_like(x)
    with torch.no_grad():
        yield Case(
            "group_norm_act",
            f"forward, {name}",
            {
                **{rival: partial(run, x) for rival, run in contenders.items()},
                "copy of the same bytes": lambda: out.copy_(x),
            },
            bytes=2 * size,
            outputs=lambda y: None if y is out else y,
            **common,
        )
    leaves = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())

    def train(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(x), leaves, dy)

    yield Case(
        "group_norm_act",
        f"forward + backward, {name}",
        {rival: partial(train, run) for rival, run in contenders.items()},
        bytes=5 * size,
        **common,
    )

    dy.requires_grad_()

    def penalise(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        (dx,) = torch.autograd.grad(run(x), x, dy, create_graph=True)
        return torch.autograd.grad(dx, (*leaves, dy), v, allow_unused=True)

    rivals = {"eager": two_ops, "aigc_ext": ours}
    yield Case(
        "group_norm_act",
        f"forward, backward and double backward, {name}",
        {rival: partial(penalise, run) for rival, run in rivals.items()},
        bytes=10 * size,
        **common,
    )
