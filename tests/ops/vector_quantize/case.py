from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds, shapes

# On both sides of a vector, of a strip and of a group of codes.
code_counts = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 63, 64, 65, 130]))
SMALL_SHAPES = [(3, 2), (2, 1, 2), (1, 2, 3), (1, 2, 1, 2)]


def differentiable(function: Any) -> Any:
    """By definition x has the gradient of the codes, which do not change with x. The numeric derivative and
    the formal one agree on the codes plus x, where the gradient of this x is left out."""

    def sum_with_x(x: Tensor, codebook: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        codes, indices = function(x, codebook, dim)
        return codes + x.detach(), indices

    return sum_with_x


def near_codes(shape: tuple[int, ...], dim: int, codes: int, seed: int) -> dict[str, Tensor | None]:
    """Rows near one of the codes and far from being as near to another, so that rounding a number, or moving
    it a little, leaves the nearest code the nearest."""
    generator = torch.Generator().manual_seed(seed)
    depth = shape[dim]
    places = torch.randperm(codes, generator=generator, device="cpu") * 0.5 - codes / 4
    codebook = seeded((codes, depth), seed) * 0.05 + places.to(torch.get_default_device())[:, None]
    rows = torch.Size([*shape[:dim], *shape[dim:][1:]]) if dim >= 0 else torch.Size(shape[:-1])
    chosen = torch.randint(codes, rows, generator=generator, device="cpu").to(codebook.device)
    noise = seeded((*rows, depth), seed + 1) * 0.03
    return {"x": (codebook[chosen] + noise).movedim(-1, dim), "codebook": codebook}


@st.composite
def quantize_calls(draw: st.DrawFn, dims: tuple[int, ...], small: bool = False) -> Call:
    shape = draw(st.sampled_from(SMALL_SHAPES) if small else shapes(min_dims=2))
    dim, seed = draw(st.sampled_from(dims)), draw(seeds)
    codes = draw(st.integers(1, 3) if small else code_counts)
    if small or draw(st.booleans()):
        return Call(near_codes(shape, dim, codes, seed), {"dim": dim})
    inputs = {"x": seeded(shape, seed), "codebook": seeded((codes, shape[dim]), seed + 1)}
    return Call(inputs, {"dim": dim})


def large_call(shape: tuple[int, ...], dim: int, scale: int = 1) -> Call:
    return Call(near_codes((shape[0] * scale, *shape[1:]), dim, 70, 5), {"dim": dim})


CASES = [
    OpCase(
        name="vector_quantize[images]",
        function=differentiable(ops.vector_quantize),
        reference=differentiable(ops.vector_quantize_ref),
        calls=quantize_calls((1,)),
        small_calls=quantize_calls((1,), small=True),
        large_call=partial(large_call, (6, 10, 29, 31), 1),
    ),
    OpCase(
        name="vector_quantize[rows]",
        function=ops.vector_quantize,
        reference=ops.vector_quantize_ref,
        calls=quantize_calls((-1, 0)),
        small_calls=quantize_calls((-1, 0), small=True),
        large_call=partial(large_call, (41, 130, 20), -1),
        constant=("x",),
        keeps_format=False,  # channels-last is contiguous
    ),
]
