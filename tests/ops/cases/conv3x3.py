from __future__ import annotations

import hypothesis.strategies as st
import torch

from aigc_ext import ops
from aigc_ext.ops.conv3x3 import has_conv3x3
from tests.ops.cases.bias_act import seeds
from tests.ops.suite import Call, OpCase, seeded

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


def native() -> list[tuple]:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    channels_last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    w, dy = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(2, 4, 4, 3, requires_grad=True)
    b = torch.randn(4, requires_grad=True)
    conv3x3, gradient = torch.ops.aigc.conv3x3.default, torch.ops.aigc.conv3x3_weight_gradient.default
    calls: list[tuple] = []
    for t in (x, channels_last):
        calls.append((conv3x3, (t, w, b, 1, 0, False)))
        calls.append((gradient, (dy, t, 1, 0)))
        calls.append((conv3x3, (t, w.detach().transpose(0, 1).requires_grad_(), None, 0, 2, True)))
    return calls


# Where the op is PyTorch's own, there is nothing to hold to a suite.
CASES = [
    OpCase(
        name="conv3x3",
        function=ops.conv3x3,
        reference=ops.conv3x3_ref,
        calls=conv3x3_calls(),
        small_calls=conv3x3_calls(small=True),
        large_call=large_call,
        native=native,
        cpu_only=True,
    )
] * has_conv3x3(torch.empty(0))
