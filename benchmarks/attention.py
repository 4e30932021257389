"""Attention of 1,024 queries and keys, 8 heads of width 64: forward, with backward, and a gradient penalty,
which differentiates the gradient once more. PyTorch's fused attention, its default, has no second derivative;
there its plain form (SDPBackend.MATH) is the rival. L2 distances are written as users write them. What the
calls keep in memory is measured by tests/ops/attention: the kernels' own is not PyTorch's to count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from aigc_ext import ops
from benchmarks.harness import Case, Setting

SHAPES = [(1, 8, 1024, 64), (4, 1, 4096, 16)]  # the second: an image of 64x64 in SAGAN

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Results = tuple[Tensor, ...]


def distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    squares = q.square().sum(-1)[..., :, None] + k.square().sum(-1)[..., None, :] - 2 * q @ k.mT
    return (squares * -(q.size(-1) ** -0.5)).softmax(-1) @ v


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v)


CONTENDERS: dict[str, dict[str, Attention]] = {
    "dot": {"eager": F.scaled_dot_product_attention, "plain": plain, "aigc_ext": ops.attention},
    "l2": {"eager": distances, "aigc_ext": partial(ops.attention, score="l2")},
}


def relative(results: Tensor | Results) -> Results:
    """In half types, to the largest number of each."""
    given = (results,) if isinstance(results, Tensor) else results
    return tuple(t if t.dtype == torch.float32 else t.float() / t.abs().max() for t in given)


def cases(setting: Setting) -> Iterable[Case]:
    for shape in [(1, 2, 70, 16)] if setting.quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for score, contenders in CONTENDERS.items():
                yield from cases_of(shape, dtype, score, contenders, setting)


def cases_of(
    shape: tuple[int, ...], dtype: torch.dtype, score: str, contenders: dict[str, Attention], setting: Setting
) -> Iterable[Case]:
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(shape).to(setting.device, dtype) for _ in range(4))
    leaves = tuple(t.requires_grad_() for t in (q, k, v))

    def forward(run: Attention) -> Tensor:
        with torch.no_grad():
            return run(q, k, v)

    def train(run: Attention) -> Results:
        return torch.autograd.grad(run(q, k, v), leaves, do)

    def penalty(run: Attention) -> Results:
        slopes = torch.autograd.grad(run(q, k, v), leaves, do, create_graph=True)
        squares = torch.stack([slope.float().square().sum() for slope in slopes])
        return torch.autograd.grad(squares.sum(), leaves)

    name = f"{score}, {'x'.join(map(str, shape))}"
    # In bfloat16 the gradients themselves are rounded, and the distances before their softmax.
    tolerance = {torch.float32: (1e-3, 2e-4), torch.bfloat16: (0, 0.1)}[dtype]
    for kind, run in (("forward", forward), ("forward + backward", train), ("gradient penalty", penalty)):
        twice = kind == "gradient penalty"
        rivals = dict(contenders)
        if score == "dot":  # the default where it can do it, else the plain form
            del rivals["eager" if twice else "plain"]
        yield Case(
            "attention",
            f"{kind}, {name}",
            {rival: partial(run, function) for rival, function in rivals.items()},
            dtype=str(dtype)[6:],
            outputs=relative,
            rtol=tolerance[0],
            atol=tolerance[1],
        )
