"""Does one op for batch norm and ReLU beat two? The layers of DCGAN's generator, in training and evaluation,
against PyTorch's batch norm and torch.compile of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting

SHAPES = [(64, 512, 4, 4), (64, 256, 8, 8), (64, 128, 16, 16), (64, 64, 32, 32)]


def cases(setting: Setting) -> Iterable[Case]:
    for shape in [(4, 3, 5, 7)] if setting.quick else SHAPES:
        for channels_last in (False, True):
            yield from cases_of(shape, channels_last, setting)


def cases_of(shape: tuple[int, ...], channels_last: bool, setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    torch.compiler.reset()  # the number of compiled versions of one function is limited
    x, dy = (torch.randn(shape, device=setting.device) for _ in range(2))
    if channels_last:
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    mean, var, weight, bias = (torch.rand(shape[1], device=setting.device) + 0.5 for _ in range(4))

    # No gradient where rounding decides on which side of ReLU's corner a value is, so that outputs are
    # comparable.
    dy[F.batch_norm(x, None, None, weight, bias, True).abs() < 1e-4] = 0

    def two_ops(x: Tensor, training: bool) -> Tensor:
        return F.relu(F.batch_norm(x, mean, var, weight, bias, training))

    def ours(x: Tensor, training: bool) -> Tensor:
        return ops.batch_norm_act(x, mean, var, weight, bias, training, act="relu", gain=1.0)

    contenders: dict[str, Callable[[Tensor, bool], Tensor]] = {"eager": two_ops}
    for contender, mode in setting.compile_modes().items():
        contenders[contender] = setting.compiled(two_ops, mode, dynamic=False)
    contenders["aigc_ext"] = ours
    name = "x".join(map(str, shape)) + (", channels last" if channels_last else "")
    size = x.numel() * x.element_size()
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    graphs = ("eager", "aigc_ext")
    with torch.no_grad():
        for training, kind, passes in ((False, "evaluation", 2), (True, "training", 3)):
            yield Case(
                "batch_norm_act",
                f"{kind}, forward, {name}",
                {rival: partial(run, x, training) for rival, run in contenders.items()},
                bytes=passes * size,
                graphs=graphs,
                **tolerance,
            )
    leaves = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())

    def train(run: Callable[[Tensor, bool], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(x, True), leaves, dy)

    yield Case(
        "batch_norm_act",
        f"training, forward + backward, {name}",
        {rival: partial(train, run) for rival, run in contenders.items()},
        bytes=8 * size,
        graphs=graphs,
        rtol=1e-3,  # the gradients of weight and bias are sums of up to 65,536 numbers
        atol=1e-3,
    )
