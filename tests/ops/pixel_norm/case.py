from __future__ import annotations

from functools import partial

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds, shapes

SMALL_SHAPES = [(3,), (2, 3), (3, 2, 2), (1, 3, 2, 2), (2, 1, 3)]


@st.composite
def pixel_norm_calls(draw: st.DrawFn, small: bool = False) -> Call:
    shape = draw(st.sampled_from(SMALL_SHAPES) if small else shapes())
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    # Along x itself the gradient cancels almost completely, and no two roundings of that agree: so one
    # channel alone needs a large eps, and the seed must never be the cotangent's.
    eps = 10.0 if shape[dim] == 1 else draw(st.sampled_from([0.1, 0.5] if small else [1e-8, 1e-3, 0.5]))
    seed = 2**32 - 1 - draw(seeds)
    return Call({"x": seeded(shape, seed)}, {"dim": dim, "eps": eps})


def large_call(shape: tuple[int, ...], scale: int = 1) -> Call:
    return Call({"x": seeded((shape[0] * scale, *shape[1:]), 8)})


CASES = [
    OpCase(
        name=f"pixel_norm[{name}]",
        function=ops.pixel_norm,
        reference=ops.pixel_norm_ref,
        calls=pixel_norm_calls(),
        small_calls=pixel_norm_calls(small=True),
        large_call=partial(large_call, shape),
    )
    for name, shape in {"images": (3, 130, 13, 29), "vectors": (1500, 100)}.items()
]
