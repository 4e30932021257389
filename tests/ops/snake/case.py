from __future__ import annotations

from functools import partial

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds, shapes

SMALL_SHAPES = [(3,), (2, 3), (3, 2, 2), (1, 3, 2, 2), (2, 1, 3)]


@st.composite
def snake_calls(draw: st.DrawFn, small: bool = False) -> Call:
    shape = draw(st.sampled_from(SMALL_SHAPES) if small else shapes())
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    seed = draw(seeds)
    # On either side of the limit that alpha = 0 is, and on it.
    alpha = seeded([shape[dim]], seed + 1, draw(st.sampled_from([0.0, 1e-3, 1.0, 8.0])))
    scale = 1.0 if small else draw(st.sampled_from([1.0, 8.0]))
    return Call({"x": seeded(shape, seed, scale), "alpha": alpha}, {"dim": dim})


def large_call(shape: tuple[int, ...], scale: int = 1) -> Call:
    return Call({"x": seeded((shape[0] * scale, *shape[1:]), 11), "alpha": seeded(shape[1:2], 12)})


CASES = [
    OpCase(
        name=f"snake[{name}]",
        function=ops.snake,
        reference=ops.snake_ref,
        calls=snake_calls(),
        small_calls=snake_calls(small=True),
        large_call=partial(large_call, shape),
    )
    for name, shape in {"audio": (3, 5, 20011), "images": (5, 6, 61, 67), "vectors": (3000, 34)}.items()
]
