from __future__ import annotations

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, alphas, clamps, gains, seeded, seeds

acts = st.sampled_from(["linear", "relu", "lrelu", "tanh", "softplus", "swish"])


@st.composite
def linear_calls(draw: st.DrawFn, small: bool = False) -> Call:
    side = st.integers(1, 3) if small else st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 100]))
    shape = draw(st.lists(side, min_size=1, max_size=2 if small else 3))
    out = draw(side)
    seed = draw(seeds)
    inputs = {
        "x": seeded(shape, seed),
        "w": seeded((out, shape[-1]), seed + 1),
        "b": seeded([out], seed + 2) if draw(st.booleans()) else None,
    }
    # At the clamp the gradient jumps, and a product that is stored in a half type may lie on its other side.
    # The budget is about rounding, so larger calls stay clear of the clamp.
    clamp = draw(clamps.filter(lambda c: c != 0) if small else st.sampled_from([None, 256.0]))
    return Call(inputs, {"act": draw(acts), "alpha": draw(alphas), "gain": draw(gains), "clamp": clamp})


def large_call(scale: int = 1) -> Call:
    return Call(
        {"x": seeded((700 * scale, 50), 1), "w": seeded((130, 50), 2), "b": seeded([130], 3)},
        {"act": "lrelu", "clamp": 1.0},
    )


CASES = [
    OpCase(
        name="linear_act",
        function=ops.linear_act,
        reference=ops.linear_act_ref,
        calls=linear_calls(),
        small_calls=linear_calls(small=True),
        large_call=large_call,
        keeps_format=False,
        own_sums=False,
    )
]
