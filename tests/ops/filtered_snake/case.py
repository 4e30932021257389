from __future__ import annotations

import hypothesis.strategies as st
from torch import Tensor

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds


def low_pass(taps: int, seed: int) -> Tensor:
    """Of a sum near 1, and no two taps alike. With taps of both signs the result for a short signal, whose
    ends most of them multiply, would be the small difference of large sums, and its roundings luck."""
    return (1 + 0.5 * seeded((taps,), seed)) / taps


@st.composite
def filtered_snake_calls(draw: st.DrawFn, has_beta: bool, small: bool = False) -> Call:
    n, c = (1, draw(st.integers(1, 2))) if small else (draw(st.integers(0, 3)) for _ in range(2))
    # Shorter than a filter, with a tail, and more than a segment of a GPU.
    length = draw(st.integers(1, 4) if small else st.sampled_from([1, 2, 5, 16, 39, 100, 520]))
    taps = [draw(st.sampled_from([1, 2, 3, 4] if small else [1, 2, 5, 12, 31])) for _ in range(2)]
    if draw(st.booleans()):  # what has code of its own
        taps = [12, 12]
    seed, log_scale = draw(seeds), draw(st.booleans())
    scale = 0.5 if log_scale or small else draw(st.sampled_from([0.0, 1e-3, 1.0, 4.0]))
    inputs = {
        "x": seeded((n, c, length), seed),
        "alpha": seeded((c,), seed + 1, scale),
        "fu": low_pass(taps[0], seed + 2),
        "fd": low_pass(taps[1], seed + 3),
        "beta": None,
    }
    if has_beta:
        beta = seeded((c,), seed + 4, 0.5)
        inputs["beta"] = beta if log_scale else beta.exp() * draw(st.sampled_from([1.0, -1.0]))
    return Call(inputs, {"log_scale": log_scale})


def large_call(scale: int = 1) -> Call:
    inputs = {
        "x": seeded((2 * scale, 3, 2501), 11),
        "alpha": seeded((3,), 12),
        "fu": low_pass(12, 13),
        "fd": low_pass(12, 14),
        "beta": None,
    }
    return Call(inputs, {})


def large_call_with_beta(scale: int = 1) -> Call:
    call = large_call(scale)
    beta = seeded((3,), 15, 0.5)
    return Call({**call.inputs, "fu": low_pass(7, 16), "beta": beta}, {"log_scale": True})


CASES = [
    OpCase(
        name=f"filtered_snake[{name}]",
        function=ops.filtered_snake,
        reference=ops.filtered_snake_ref,
        calls=filtered_snake_calls(has_beta=has_beta),
        small_calls=filtered_snake_calls(has_beta=has_beta, small=True),
        large_call=large,
        constant=("fu", "fd"),
        decomposes_to_reference=False,
        keeps_format=False,  # the test is about images; test_filtered_snake.py has one about signals
    )
    for name, has_beta, large in (("alpha", False, large_call), ("beta", True, large_call_with_beta))
]
