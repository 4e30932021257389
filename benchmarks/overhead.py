"""What does a call cost? Each op runs the small example call of its record, and each module a call of its
size, which has almost no arithmetic.

- no gradient: nothing is recorded;
- with backward: recorded, and differentiated once;
- with penalty: the gradient with respect to the first argument is itself differentiated, as in R1.

It runs on one thread: a second one would not matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext import decompose, ops
from aigc_ext import nn as own
from aigc_ext.ops._op import records
from benchmarks.harness import Case, Setting

PLAIN, OURS = "plain PyTorch", "aigc_ext"
FILTERS = ("f", "fu", "fd")  # arguments that are not differentiated here
NO_GRADIENT = (
    "adam_ema_",
    "mlp_gan_step_",
    "wavenet_step_",
    "any_nonfinite",
    "discriminator_loss_and_grad",
    "generator_loss_and_grad",
)


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
        functions = {
            "plain PyTorch": partial(op.ref, **arguments),
            "aigc_ext": partial(op.public, **arguments),
        }
        yield from kinds(op.name, functions, dict.fromkeys(functions, leaves))
    for module, twin, shapes in modules():
        inputs = [torch.randn(shape, device=setting.device).requires_grad_() for shape in shapes]
        networks = {PLAIN: twin or copy.deepcopy(module), OURS: module}
        for value, of in zip(
            module.state_dict().values(), networks[PLAIN].state_dict().values(), strict=True
        ):
            of.copy_(value)
        functions = {name: partial(net.to(setting.device), *inputs) for name, net in networks.items()}
        if twin is None:
            functions[PLAIN] = decompose()(functions[PLAIN])
        leaves_of = {name: [*inputs, *net.parameters()] for name, net in networks.items()}
        yield from kinds(f"nn.{type(module).__name__}", functions, leaves_of)


def modules() -> Iterator[tuple[nn.Module, nn.Module | None, list[tuple[int, ...]]]]:
    """Each public module, the same from PyTorch's or None if that is its decomposed form, and its inputs."""
    images: list[tuple[int, ...]] = [(2, 4, 8, 8)]
    act: dict[str, Any] = {"act": "lrelu", "gain": 1.0}
    lrelu = nn.LeakyReLU(0.2)
    yield own.Linear(8, 8, **act), nn.Sequential(nn.Linear(8, 8), lrelu), [(4, 8)]
    yield own.Conv2d(4, 4, 3, padding=1, **act), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), lrelu), images
    transposed: dict[str, Any] = {"stride": 2, "padding": 1}
    yield (
        own.ConvTranspose2d(4, 4, 4, **transposed, **act),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 4, **transposed), lrelu),
        images,
    )
    yield own.BatchNormAct1d(8, **act), nn.Sequential(nn.BatchNorm1d(8), lrelu), [(4, 8)]
    yield own.BatchNormAct2d(4, **act), nn.Sequential(nn.BatchNorm2d(4), lrelu), images
    yield own.GroupNormAct(2, 4, **act), nn.Sequential(nn.GroupNorm(2, 4), lrelu), images
    taps = ops.setup_filter((1, 3, 3, 1))
    more: list[nn.Module] = [
        own.BiasAct(4, **act),
        own.Filter2d(),
        own.Upsample2d(),
        own.Downsample2d(),
        own.FilteredLReLU(4, taps, taps, up=2, down=2, padding=2),
        own.MinibatchStddev(2),
        own.SelfAttention2d(4),
        own.VectorQuantizer(8, 4),
        own.FiniteScalarQuantizer((8, 5, 5, 5)),
    ]
    for module in more:
        yield module, None, images
    yield own.FilteredSnake(4), None, [(2, 4, 16)]
    yield own.ModulatedConv2d(4, 4, 3, noise=False), None, [*images, (2, 4)]


def kinds(
    name: str, functions: Mapping[str, Callable[[], Any]], leaves: dict[str, list[Any]]
) -> Iterator[Case]:
    """A case for each order of differentiation that there is."""
    runs: dict[str, Callable[..., Any]] = {"no gradient": call}
    if leaves[OURS]:
        runs |= {"with backward": backward, "with penalty": penalty}
    for kind, run in runs.items():
        yield Case(
            name,
            kind,
            {
                contender: partial(run, function, leaves[contender])
                for contender, function in functions.items()
            },
            outputs=None if name.endswith("_") else list,  # in-place ops
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
