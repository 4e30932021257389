from __future__ import annotations

import hypothesis.strategies as st
from torch import Tensor

from aigc_ext import ops
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops.filtered_lrelu import _one_pass
from aigc_ext.ops.upfirdn2d import four_paddings
from tests.ops.suite import DTYPES, Call, OpCase, seeded, seeds


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
    # Its gradient, a sum of few pixels, may cancel. So there is one only in float64 and in the large call.
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


def one_pass(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None,
    up: int,
    down: int,
    padding: list[int],
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """The native op, also where filtered_lrelu is faster without it."""
    run = ops.filtered_lrelu_ref if decomposed() else _one_pass
    pads = four_paddings(padding)
    return run(x, fu, fd, b, up, down, pads, gain, slope, clamp, flip_filter)


@st.composite
def one_pass_calls(draw: st.DrawFn, small: bool = False) -> Call:
    """What the native op takes: filters of one dimension, or none; factors to 4; any padding."""
    n, c = (1, draw(st.integers(1, 2))) if small else (draw(st.integers(0, 2)) for _ in range(2))
    height, width = (
        draw(st.integers(1, 3) if small else st.sampled_from([1, 2, 3, 7, 17, 40])) for _ in range(2)
    )
    up, down = (draw(st.sampled_from([1, 2, 3] if small else [1, 2, 2, 3, 4])) for _ in range(2))
    taps = [draw(st.sampled_from([0, 1, 2, 3] if small else [0, 1, 5, 12, 12, 24])) for _ in range(2)]
    if not small and draw(st.booleans()):  # what has kernels of its own
        up, down, taps = draw(st.sampled_from([(2, 2, [12, 12]), (4, 2, [24, 12]), (2, 4, [12, 24])]))
    seed = draw(seeds)
    least = max(taps[0], 1) + max(taps[1], 1) - 1
    pads = []
    for side in (width, height):
        before = draw(st.integers(-2, least))
        pads += [before, max(least - side * up - before, -2) + draw(st.integers(0, 14))]
    fu, fd = (None if k == 0 else seeded((k,), seed + 1 + i) for i, k in enumerate(taps))
    options = {"up": up, "down": down, "padding": pads, "flip_filter": draw(st.booleans())}
    options |= {"clamp": draw(st.sampled_from([None, 0.9])), "slope": draw(st.sampled_from([0.2, 0.0, -0.5]))}
    options["gain"] = draw(st.sampled_from([2**0.5, -1.0]))
    b = seeded((c,), seed + 3) if small and draw(st.booleans()) else None
    return Call({"x": seeded((n, c, height, width), seed), "fu": fu, "fd": fd, "b": b}, options)


def large_one_pass_call(scale: int = 1) -> Call:
    x, b = seeded((2 * scale, 2, 70, 37), 3), seeded((2,), 6)  # several bands of rows on the CPU
    call = large_filtered_lrelu_call()
    return Call({**call.inputs, "x": x, "b": b}, call.options)


CASES = [
    OpCase(
        name="filtered_lrelu",
        function=ops.filtered_lrelu,
        reference=ops.filtered_lrelu_ref,
        calls=filtered_lrelu_calls(),
        small_calls=filtered_lrelu_calls(small=True),
        large_call=large_filtered_lrelu_call,
        dtypes=DTYPES[:2],
        decomposes_to_reference=False,
    ),
    OpCase(
        name="filtered_lrelu[one pass]",
        function=one_pass,
        reference=ops.filtered_lrelu_ref,
        calls=one_pass_calls(),
        small_calls=one_pass_calls(small=True),
        large_call=large_one_pass_call,
        constant=("fu", "fd"),
    ),
]
