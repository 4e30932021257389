from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import torch

from aigc_ext import ops
from tests.ops.cases.bias_act import seeds
from tests.ops.suite import Call, OpCase, seeded, shapes

SMALL_SHAPES = [(2, 1), (1, 2), (2, 1, 2), (1, 2, 2), (1, 1, 2, 2)]


@st.composite
def gated_calls(draw: st.DrawFn, small: bool = False) -> Call:
    batch, channels, *rest = draw(st.sampled_from(SMALL_SHAPES) if small else shapes(min_dims=2))
    seed = draw(seeds)
    scale = 1.0 if small else draw(st.sampled_from([1.0, 8.0]))
    b = seeded([2 * channels], seed + 1) if draw(st.booleans()) else None
    return Call({"x": seeded((batch, 2 * channels, *rest), seed, scale), "b": b})


def large_call(shape: tuple[int, ...], scale: int = 1) -> Call:
    batch, channels, *rest = shape
    return Call({"x": seeded((batch * scale, channels, *rest), 9), "b": seeded([channels], 10)})


def native() -> list[tuple]:
    x = torch.randn(2, 6, 4, 5, requires_grad=True)
    channels_last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn(2, 3, 4, 5, requires_grad=True)
    b = torch.randn(6, requires_grad=True)
    op, backward = torch.ops.aigc.gated_act.default, torch.ops.aigc.gated_act_backward.default
    return [
        (op, (x, b)),
        (op, (channels_last, None)),
        (op, (torch.randn(3, 4, requires_grad=True), None)),
        (backward, (dy, x, b, True)),
        (backward, (dy, channels_last, b, True)),
        (backward, (dy, x, None, False)),
    ]


CASES = [
    OpCase(
        name=f"gated_act[{name}]",
        function=ops.gated_act,
        reference=ops.gated_act_ref,
        calls=gated_calls(),
        small_calls=gated_calls(small=True),
        large_call=partial(large_call, shape),
        native=native,
        keeps_format=False,
    )
    for name, shape in {"images": (5, 12, 61, 67), "vectors": (3000, 34)}.items()
]
