from __future__ import annotations

from functools import partial

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds, shapes

SMALL_SHAPES = [(3,), (2, 3), (1, 4), (2, 2, 2), (1, 2, 2, 2)]


@st.composite
def sqnorm_calls(draw: st.DrawFn, small: bool = False) -> Call:
    shape = draw(st.sampled_from(SMALL_SHAPES) if small else shapes())
    scale = 1.0 if small else draw(st.sampled_from([1.0, 100.0]))
    return Call({"g": seeded(shape, draw(seeds), scale)})


def large_call(shape: tuple[int, ...], scale: int = 1) -> Call:
    grown = 1 if shape[0] == 1 else 0  # one sample stays one, and becomes longer
    return Call({"g": seeded([n * scale if d == grown else n for d, n in enumerate(shape)], 7)})


CASES = [
    OpCase(
        name=f"sample_sqnorm[{name}]",
        function=ops.sample_sqnorm,
        reference=ops.sample_sqnorm_ref,
        calls=sqnorm_calls(),
        small_calls=sqnorm_calls(small=True),
        large_call=partial(large_call, shape),
        keeps_format=False,
    )
    for name, shape in {"one large sample": (1, 3, 211, 307), "many small samples": (1203, 5, 7)}.items()
]
