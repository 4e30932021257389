from __future__ import annotations

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds


@st.composite
def resample_calls(draw: st.DrawFn, small: bool = False) -> Call:
    groups = draw(st.sampled_from([1, 1, 2]))
    i, o = (groups * draw(st.integers(1, 2 if small else 4)) for _ in range(2))
    kernel, taps = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([0, 1, 2, 4]))
    up, down = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)]))
    least = max(kernel, 2)  # enough for every padding below
    height, width = (least + draw(st.integers(0, 1 if small else 6)) for _ in range(2))
    padding = draw(st.sampled_from([kernel // 2, 1, 2, [2, 0, 1, 1]]))
    seed = draw(seeds)
    n = draw(st.integers(1, 2) if small else st.integers(0, 3))
    options = {"up": up, "down": down, "padding": padding, "groups": groups}
    options |= {"flip_weight": draw(st.booleans()), "flip_filter": draw(st.booleans())}
    inputs = {
        "x": seeded((n, i, height, width), seed),
        "w": seeded((o, i // groups, kernel, kernel), seed + 1),
        "f": seeded((taps,), seed + 2) if taps else None,
    }
    return Call(inputs, options)


def large_call(scale: int = 1) -> Call:
    inputs = {
        "x": seeded((2 * scale, 33, 21, 37), 3),
        "w": seeded((40, 33, 3, 3), 4, 0.1),
        "f": seeded((4,), 5),
    }
    return Call(inputs, {"padding": 1, "down": 2})


CASES = [
    OpCase(
        name="conv2d_resample",
        function=ops.conv2d_resample,
        reference=ops.conv2d_resample_ref,
        calls=resample_calls(),
        small_calls=resample_calls(small=True),
        large_call=large_call,
        own_sums=False,
        decomposes_to_reference=False,
    )
]
