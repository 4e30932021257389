from __future__ import annotations

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds


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
        name="minibatch_stddev",
        function=ops.minibatch_stddev,
        reference=ops.minibatch_stddev_ref,
        calls=stddev_calls(),
        small_calls=stddev_calls(small=True),
        large_call=lambda scale=1: Call(
            {"x": seeded((8 * scale, 64, 4, 4), 3)}, {"group_size": 4, "num_channels": 2}
        ),
        own_sums=False,
        decomposes_to_reference=False,
    ),
]
