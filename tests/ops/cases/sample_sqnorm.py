from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import torch

from aigc_ext import ops
from tests.ops.cases.bias_act import seeds
from tests.ops.suite import Call, OpCase, seeded, shapes

SMALL_SHAPES = [(3,), (2, 3), (1, 4), (2, 2, 2), (1, 2, 2, 2)]


@st.composite
def sqnorm_calls(draw: st.DrawFn, small: bool = False) -> Call:
    shape = draw(st.sampled_from(SMALL_SHAPES) if small else shapes())
    scale = 1.0 if small else draw(st.sampled_from([1.0, 100.0]))
    return Call({"g": seeded(shape, draw(seeds), scale)})


def large_call(shape: tuple[int, ...], scale: int = 1) -> Call:
    grown = 1 if shape[0] == 1 else 0  # one sample stays one, and becomes longer
    return Call({"g": seeded([n * scale if d == grown else n for d, n in enumerate(shape)], 7)})


def native() -> list[tuple]:
    g, h = (torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2))
    channels_last = g.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    half = torch.randn(3, 7, dtype=torch.float16, requires_grad=True)
    sample_ops = torch.ops.aigc
    return [
        *((sample_ops.sample_sqnorm.default, (t,)) for t in (g, channels_last, half)),
        *((sample_ops.sample_dot.default, pair) for pair in ((g, h), (g, channels_last), (half, half))),
        (sample_ops.sample_scale.default, (channels_last, torch.randn(2, requires_grad=True))),
        (sample_ops.sample_scale.default, (half, torch.randn(3, requires_grad=True))),
    ]


CASES = [
    OpCase(
        name=f"sample_sqnorm[{name}]",
        function=ops.sample_sqnorm,
        reference=ops.sample_sqnorm_ref,
        calls=sqnorm_calls(),
        small_calls=sqnorm_calls(small=True),
        large_call=partial(large_call, shape),
        native=native,
        keeps_format=False,
    )
    for name, shape in {"one large sample": (1, 3, 211, 307), "many small samples": (1203, 5, 7)}.items()
]
