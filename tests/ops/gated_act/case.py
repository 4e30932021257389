from __future__ import annotations

from functools import partial

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds, shapes

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


CASES = [
    OpCase(
        name=f"gated_act[{name}]",
        function=ops.gated_act,
        reference=ops.gated_act_ref,
        calls=gated_calls(),
        small_calls=gated_calls(small=True),
        large_call=partial(large_call, shape),
        keeps_format=False,
    )
    for name, shape in {"images": (5, 12, 61, 67), "vectors": (3000, 34)}.items()
]
