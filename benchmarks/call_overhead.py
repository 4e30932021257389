"""What does a call cost? Each op runs the small example call of its record, which has almost no arithmetic.

- no gradient: nothing is recorded;
- with backward: recorded, and differentiated once;
- with penalty: the gradient with respect to the first argument is itself differentiated, as in R1.

It runs on one thread: a second one would not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._op import records
from benchmarks.harness import Case, Setting

FILTERS = ("f", "fu", "fd")  # arguments that are not differentiated here
NO_GRADIENT = ("adam_ema_", "any_nonfinite", "discriminator_loss_and_grad", "generator_loss_and_grad")


def cases(setting: Setting) -> Iterator[Case]:
    if torch.get_num_threads() > 1 and not setting.on_card:
        return
    torch.manual_seed(0)
    for op in records():
        with setting.device:
            arguments = op.arguments()
        leaves = [
            leaf.requires_grad_()
            for name, value in arguments.items()
            if name not in FILTERS and op.name not in NO_GRADIENT
            for leaf in (value if isinstance(value, list) else [value])
            if isinstance(leaf, Tensor)
        ]
        kinds: dict[str, Callable[..., Any]] = {"no gradient": call}
        if leaves:
            kinds |= {"with backward": backward, "with penalty": penalty}
        for kind, run in kinds.items():
            functions = {"plain PyTorch": op.ref, "aigc_ext": op.public}
            yield Case(
                op.name,
                kind,
                {name: partial(run, partial(f, **arguments), leaves) for name, f in functions.items()},
                outputs=None if op.name.endswith("_") else list,  # in-place ops
                atol=1e-3,  # a penalty's gradients are sums of products
            )


def call(function: Callable[[], Any], leaves: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return tensors(function())


def backward(function: Callable[[], Any], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    outputs = differentiable(function)
    return torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])


def penalty(function: Callable[[], Any], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    loss = torch.stack([y.square().mean() for y in differentiable(function)]).sum()
    (slope,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    return torch.autograd.grad(slope.square().sum(), leaves)


def differentiable(function: Callable[[], Any]) -> list[Tensor]:
    return [y for y in tensors(function()) if y.requires_grad]


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for t in result or () if isinstance(t, Tensor)]
