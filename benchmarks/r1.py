"""What does R1 through a residual convolutional discriminator cost? 64x64, batch 8: the penalty and its
gradient with respect to all parameters, without unused weight gradients, against plain PyTorch in eager mode
and with the whole step compiled (torch.func inside)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import no_weight_gradients, ops
from benchmarks.harness import Case, Setting

WIDTHS = (32, 64, 128, 128)
BATCH, SIDE = 8, 64


def parameters(setting: Setting) -> dict[str, Tensor]:
    """The parameters of residual blocks: two 3x3 convolutions with a 1x1 shortcut, then average pooling."""
    torch.manual_seed(0)
    widths = (4, 4) if setting.quick else WIDTHS
    sizes: dict[str, tuple[int, ...]] = {"first": (widths[0], 3, 1, 1), "last": (1, widths[-1], 4, 4)}
    for k, (i, o) in enumerate(pairwise(widths)):
        sizes |= {f"a{k}": (i, i, 3, 3), f"b{k}": (o, i, 3, 3), f"skip{k}": (o, i, 1, 1)}
    result = {}
    for name, size in sizes.items():
        fan_in = size[1] * size[2] * size[3]
        result[name] = torch.randn(size, device=setting.device) / fan_in**0.5
        result[f"{name}.bias"] = torch.zeros(size[0], device=setting.device)
    return {name: p.requires_grad_() for name, p in result.items()}


def discriminator(convolve: Callable[..., Tensor]) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def run(p: dict[str, Tensor], x: Tensor) -> Tensor:
        x = convolve(x, p["first"], p["first.bias"], act="lrelu")
        k = 0
        while f"a{k}" in p:
            y = convolve(x, p[f"a{k}"], p[f"a{k}.bias"], padding=1, act="lrelu")
            y = convolve(y, p[f"b{k}"], p[f"b{k}.bias"], padding=1, act="lrelu")
            x = F.avg_pool2d(y + convolve(x, p[f"skip{k}"], p[f"skip{k}.bias"]), 2)
            k += 1
        return convolve(F.adaptive_avg_pool2d(x, 4), p["last"], p["last.bias"]).flatten()

    return run


def cases(setting: Setting) -> Iterable[Case]:
    torch.compiler.reset()
    p = parameters(setting)
    x = torch.randn(
        2 if setting.quick else BATCH, 3, 16 if setting.quick else SIDE, 16 if setting.quick else SIDE
    )
    x = x.to(setting.device)
    plain, ours = discriminator(ops.conv2d_act_ref), discriminator(ops.conv2d_act)

    def eager(run: Callable[..., Tensor]) -> dict[str, Tensor]:
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(run(p, leaf).sum(), leaf, create_graph=True)
        return gradients(slope.square().sum() / len(x))

    def gradients(value: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(value, list(p.values()), allow_unused=True)
        return {name: g for name, g in zip(p, found, strict=True) if g is not None}  # biases have none

    def fused() -> dict[str, Tensor]:
        leaf = x.clone().requires_grad_()
        with no_weight_gradients():
            (slope,) = torch.autograd.grad(ours(p, leaf).sum(), leaf, create_graph=True)
        return gradients(slope.square().sum() / len(x))

    def penalty(p: dict[str, Tensor]) -> Tensor:
        slope = torch.func.grad(lambda t: plain(p, t).sum())(x)
        return slope.square().sum() / len(x)

    whole = setting.compiled(torch.func.grad(penalty), dynamic=False)
    yield Case(
        "r1",
        f"penalty and its gradient, residual discriminator {SIDE}x{SIDE}, batch {BATCH}",
        {
            "eager": lambda: eager(plain),
            "compile of the whole step": lambda: whole({k: v.detach() for k, v in p.items()}),
            "aigc_ext": fused,
        },
        outputs=lambda result: [result[name] for name in ("first", "a0", "last")],
        rtol=1e-3,
        atol=1e-3,
    )
