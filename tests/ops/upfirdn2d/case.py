from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds

SIDES = (1, 2, 3, 5, 8, 9, 16, 17, 33)


@st.composite
def axis(draw: st.DrawFn, side: int, taps: int, most: int) -> tuple[int, int, int, int]:
    """up, down and the padding before and after: any for which something is left."""
    up, down = (draw(st.sampled_from([1, 1, *range(1, most + 1)])) for _ in range(2))
    before = draw(st.integers(-2, taps + 2))
    least = taps - side * up - before
    return up, down, before, draw(st.integers(max(least, -3), max(least, -3) + taps + 2))


@st.composite
def upfirdn_calls(draw: st.DrawFn, dims: tuple[int, ...], small: bool = False) -> Call:
    sides = (1, 2, 3) if small else SIDES
    height, width = draw(st.sampled_from(sides)), draw(st.sampled_from(sides))
    batch, channels = draw(st.integers(1 if small else 0, 2)), draw(st.integers(1 if small else 0, 2))
    if not small and draw(st.booleans()):
        channels = draw(st.sampled_from([3, 8, 17, 33]))
    number_of_taps = st.integers(1, 3) if small else st.sampled_from([1, 2, 3, 4, 4, 5, 7, 12, 24])
    seed = draw(seeds)
    kind = draw(st.sampled_from(dims))
    taps_x = taps_y = 1 if kind == 0 else draw(number_of_taps)
    f = None
    if kind == 1:
        f = seeded([taps_x], seed + 1)
    elif kind == 2:
        taps_y = draw(number_of_taps)
        product = draw(st.booleans())
        f = seeded([taps_y, taps_x], seed + 1)
        if product:  # which the op takes apart
            f = f[:, :1] * f[:1]
    most = 2 if small else 4
    up_x, down_x, x0, x1 = draw(axis(width, taps_x, most))
    up_y, down_y, y0, y1 = draw(axis(height, taps_y, most))
    if draw(st.booleans()):  # the usual case, which has kernels of its own
        up_y, down_y = up_x, down_x
        y1 = max(y1, taps_y - height * up_y - y0)
    options: dict[str, Any] = {"up": [up_x, up_y], "down": [down_x, down_y], "padding": [x0, x1, y0, y1]}
    options |= {"flip_filter": draw(st.booleans()), "gain": draw(st.sampled_from([1, -0.7]))}
    return Call({"x": seeded([batch, channels, height, width], seed), "f": f}, options)


def large_call(
    filter_shape: tuple[int, ...], options: dict[str, Any], side: int = 61, scale: int = 1
) -> Call:
    taps = [seeded([size], 4 + d) for d, size in enumerate(filter_shape)]
    f = taps[0] if len(taps) == 1 else taps[0][:, None] * taps[1]
    return Call({"x": seeded((3 * scale, 6, side, side + 6), 3), "f": f}, options)


LARGE: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("2-D", (0, 2), (4, 4), {"padding": [2, 1, 2, 1]}),
    ("1-D", (1,), (12,), {"up": 2, "padding": [7, 4, 6, 5], "gain": 4}),
    ("any", (0, 1, 2), (4, 4), {"down": 2, "padding": 1, "flip_filter": True}),
]
CASES = [
    OpCase(
        name=f"upfirdn2d[{name}]",
        function=ops.upfirdn2d,
        reference=ops.upfirdn2d_ref,
        calls=upfirdn_calls(dims),
        small_calls=upfirdn_calls(dims, small=True),
        large_call=partial(large_call, filter_shape, options, 61 // options.get("up", 1)),
        decomposes_to_reference=False,
    )
    for name, dims, filter_shape, options in LARGE
]
