from __future__ import annotations

import hypothesis.strategies as st
import torch

from aigc_ext import ops
from aigc_ext.ops.conv3x3 import has_conv3x3
from tests.ops.suite import Call, OpCase, seeded, seeds

sides = st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 40]))
channels = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 33]))


@st.composite
def conv3x3_calls(draw: st.DrawFn, small: bool = False) -> Call:
    n = draw(st.integers(1 if small else 0, 2 if small else 3))
    i, o, h, w = (draw(st.integers(1, 3) if small else s) for s in (channels, channels, sides, sides))
    padding = draw(st.integers(1 if min(h, w) < 3 else 0, 2))
    seed = draw(seeds)
    return Call({"x": seeded((n, i, h, w), seed), "w": seeded((o, i, 3, 3), seed + 1)}, {"padding": padding})


def large_call(scale: int = 1) -> Call:
    return Call({"x": seeded((2 * scale, 35, 31, 37), 3), "w": seeded((150, 35, 3, 3), 4)})


# Where the op is PyTorch's own, there is nothing to test.
CASES = [
    OpCase(
        name="conv3x3",
        function=ops.conv3x3,
        reference=ops.conv3x3_ref,
        calls=conv3x3_calls(),
        small_calls=conv3x3_calls(small=True),
        large_call=large_call,
        cpu_only=True,
    )
] * has_conv3x3(torch.empty(0))
