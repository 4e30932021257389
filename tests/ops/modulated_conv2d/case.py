from __future__ import annotations

from typing import Any

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds


@st.composite
def modulated_calls(draw: st.DrawFn, small: bool = False) -> Call:
    i, o = (draw(st.integers(2, 2 if small else 9)) for _ in range(2))  # with one alone, some gradients are 0
    n = draw(st.integers(1, 2 if small else 3))
    kernel = draw(st.sampled_from([1, 3]))
    up = draw(st.sampled_from([1, 1, 2]))
    height, width = (kernel + draw(st.integers(0, 1 if small else 6)) for _ in range(2))
    seed = draw(seeds)
    size = (height * up, width * up)
    with_noise = draw(st.booleans())
    inputs = {
        "x": seeded((n, i, height, width), seed),
        "w": seeded((o, i, kernel, kernel), seed + 1),
        "s": seeded((n, i), seed + 2) + 1,
        "b": seeded((o,), seed + 3) if draw(st.booleans()) else None,
        "noise": seeded((draw(st.sampled_from([1, n])), 1, *size), seed + 4) if with_noise else None,
        "strength": seeded((), seed + 5) if with_noise else None,
        "f": seeded((4,), seed + 6).abs() + 0.1 if up > 1 else None,
    }
    options: dict[str, Any] = {
        "up": up,
        "padding": kernel // 2,
        "demodulate": draw(st.booleans()),
        "normalize": draw(st.booleans()),
    }
    # No corners: in half types, the two forms' roundings put some elements on different sides of them.
    options |= {"act": draw(st.sampled_from(["linear", "swish", "tanh"])), "flip_weight": draw(st.booleans())}
    options["clamp"] = draw(st.sampled_from([None, 256.0]))
    options["input_gain"] = draw(st.sampled_from([None, 0.7]))
    return Call(inputs, options)


def large_call(scale: int = 1) -> Call:
    inputs = {
        "x": seeded((2 * scale, 33, 21, 37), 3),
        "w": seeded((40, 33, 3, 3), 4),
        "s": seeded((2 * scale, 33), 5) + 1,
        "b": seeded((40,), 6),
        "noise": seeded((1, 1, 21, 37), 7),
        "strength": seeded((), 8),
        "f": None,
    }
    return Call(inputs, {"padding": 1, "act": "swish"})


CASES = [
    OpCase(
        name="modulated_conv2d",
        function=ops.modulated_conv2d,
        reference=ops.modulated_conv2d_ref,
        calls=modulated_calls(),
        small_calls=modulated_calls(small=True),
        large_call=large_call,
        own_sums=False,
        half_factor=4.0,  # the reference resamples first, and multiplies the weights by the styles
        decomposes_to_reference=False,
    )
]
