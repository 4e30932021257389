"""Ops that are made of others' kernels."""

from __future__ import annotations

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.cases.bias_act import seeds
from tests.ops.suite import DTYPES, Call, OpCase, seeded


@st.composite
def filtered_lrelu_calls(draw: st.DrawFn, small: bool = False) -> Call:
    """In float64 and float32: in half types, roundings put some pixels on different sides of the corner."""
    n, c = (1, draw(st.integers(1, 2))) if small else (draw(st.integers(0, 3)) for _ in range(2))
    height, width = (
        draw(st.integers(2, 3) if small else st.sampled_from([2, 3, 5, 8, 17])) for _ in range(2)
    )
    up, down = (draw(st.sampled_from([1, 2, 2] if small else [1, 2, 2, 3])) for _ in range(2))
    taps = [draw(st.sampled_from([0, 1, 2, 3] if small else [0, 1, 4, 6, 12])) for _ in range(2)]
    seed = draw(seeds)
    least = max(taps[0], 1) + max(taps[1], 1) - 2
    pads = [least // 2 + draw(st.integers(0, 2)) for _ in range(4)]
    f = [
        None if k == 0 else seeded((k,) if draw(st.booleans()) else (k, max(k - 1, 1)), seed + 1 + i)
        for i, k in enumerate(taps)
    ]
    options = {"up": up, "down": down, "padding": pads, "flip_filter": draw(st.booleans())}
    options |= {"clamp": draw(st.sampled_from([None, 0.9])), "slope": draw(st.sampled_from([0.2, 0.0]))}
    # Its gradient, a sum of few pixels, may cancel: so only in float64 and in the large call.
    b = seeded((c,), seed + 3) if small and draw(st.booleans()) else None
    return Call({"x": seeded((n, c, height, width), seed), "fu": f[0], "fd": f[1], "b": b}, options)


def large_filtered_lrelu_call(scale: int = 1) -> Call:
    inputs = {
        "x": seeded((2 * scale, 5, 33, 37), 3),
        "fu": seeded((12,), 4),
        "fd": seeded((12,), 5),
        "b": seeded((5,), 6),
    }
    return Call(inputs, {"up": 2, "down": 2, "padding": 11, "clamp": 0.9})


@st.composite
def stddev_calls(draw: st.DrawFn, small: bool = False) -> Call:
    size, groups = draw(st.integers(2, 3 if small else 4)), draw(st.integers(1 if small else 0, 2))
    channels, runs = draw(st.integers(1, 2 if small else 5)), draw(st.integers(1, 2))
    height, width = (draw(st.integers(1, 2 if small else 6)) for _ in range(2))
    shape = (size * groups, channels * runs, height, width)
    group_size = draw(st.sampled_from([size, None])) if groups < 2 else size
    seed = 2**32 - 1 - draw(seeds)
    return Call({"x": seeded(shape, seed)}, {"group_size": group_size, "num_channels": runs})


CASES = [
    OpCase(
        name="filtered_lrelu",
        function=ops.filtered_lrelu,
        reference=ops.filtered_lrelu_ref,
        calls=filtered_lrelu_calls(),
        small_calls=filtered_lrelu_calls(small=True),
        large_call=large_filtered_lrelu_call,
        native=None,
        dtypes=DTYPES[:2],
    ),
    OpCase(
        name="minibatch_stddev",  # plain PyTorch; test_minibatch_stddev.py has the definition
        function=ops.minibatch_stddev,
        reference=ops.minibatch_stddev,
        calls=stddev_calls(),
        small_calls=stddev_calls(small=True),
        large_call=lambda scale=1: Call(
            {"x": seeded((8 * scale, 64, 4, 4), 3)}, {"group_size": 4, "num_channels": 2}
        ),
        native=None,
        own_sums=False,
    ),
]
