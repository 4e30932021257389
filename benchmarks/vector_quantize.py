"""Does one kernel beat a product, an addition and an argmin, in blocks of rows that fit into cache? Rows of
64 numbers and 1,024 codes, as in a VQGAN, against two forms that users write: norms added to the product, and
`addmm`, which adds them inside. Neither makes the matrix of all distances; memory is measured by
tests/ops/vector_quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting

SHAPES = [(4096, 64), (16384, 64), (16384, 4)]
CODES, BLOCK = 1024, 1024

Quantizer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def plain(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    norms = codebook.square().sum(1)
    indices = torch.cat([(norms - 2 * (rows @ codebook.T)).argmin(1) for rows in x.split(BLOCK)])
    return codebook[indices], indices


def by_addmm(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    norms = codebook.square().sum(1)
    blocks = x.split(BLOCK)
    indices = torch.cat([torch.addmm(norms, rows, codebook.T, alpha=-2).argmin(1) for rows in blocks])
    return codebook[indices], indices


def differentiable(find: Quantizer, x: Tensor, codebook: Tensor) -> Tensor:
    """The codes, with the gradient of both."""
    with torch.no_grad():
        _, indices = find(x, codebook)
    return codebook[indices] + (x - x.detach())


def cases(setting: Setting) -> Iterable[Case]:
    for rows, depth in [(60, 8)] if setting.quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            yield from cases_of(rows, depth, dtype, setting)


def cases_of(rows: int, depth: int, dtype: torch.dtype, setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    x, dy = (torch.randn(rows, depth).to(setting.device, dtype) for _ in range(2))
    codebook = torch.randn(CODES, depth).to(setting.device, dtype)
    name = f"{rows} rows of {depth}, {CODES} codes"
    full = dtype == torch.float32

    # Of two codes that are as near, each form may take another: their distances are compared. In bfloat16,
    # PyTorch's forms round these, and take codes that are not the nearest; nothing is compared.
    def distances(result: tuple[Tensor, Tensor]) -> Tensor:
        return (x.detach() - result[0].detach()).square().sum(1)

    finders: dict[str, Quantizer] = {
        "eager": plain,
        "eager, addmm": by_addmm,
        "aigc_ext": ops.vector_quantize,
    }
    with torch.no_grad():
        yield Case(
            "vector_quantize",
            f"forward, {name}",
            {rival: partial(find, x, codebook) for rival, find in finders.items()},
            dtype=str(dtype)[6:],
            outputs=distances if full else None,
            rtol=1e-4,
            atol=1e-4,
            graphs=("eager", "aigc_ext"),
        )
    leaves = (x.requires_grad_(), codebook.requires_grad_())

    def train(codes: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(codes(*leaves), leaves, dy)

    trained: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "eager": partial(differentiable, plain),
        "eager, addmm": partial(differentiable, by_addmm),
        "aigc_ext": lambda x, codebook: ops.vector_quantize(x, codebook)[0],
    }
    yield Case(
        "vector_quantize",
        f"forward + backward, {name}",
        {rival: partial(train, codes) for rival, codes in trained.items()},
        dtype=str(dtype)[6:],
        # A row that took another code moves its gradient to that: the sum over the codes stays.
        outputs=(lambda grads: (grads[0], grads[1].sum(0))) if full else None,
        rtol=1e-3,
        atol=1e-2,
        graphs=("eager", "aigc_ext"),
    )
