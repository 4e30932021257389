from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import torch

from aigc_ext import ops
from tests.ops.cases.bias_act import seeds
from tests.ops.suite import Call, OpCase, seeded

sides = st.integers(1, 9)


@st.composite
def resample_calls(draw: st.DrawFn, small: bool = False) -> Call:
    groups = draw(st.sampled_from([1, 1, 2]))
    i, o = (groups * draw(st.integers(1, 2 if small else 4)) for _ in range(2))
    kernel, taps = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([0, 1, 2, 4]))
    up, down = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)]))
    least = max(kernel, 2)  # however the padding falls
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
    options = {
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


def large_resample_call(scale: int = 1) -> Call:
    inputs = {
        "x": seeded((2 * scale, 33, 21, 37), 3),
        "w": seeded((40, 33, 3, 3), 4, 0.1),
        "f": seeded((4,), 5),
    }
    return Call(inputs, {"padding": 1, "down": 2})


def large_modulated_call(scale: int = 1) -> Call:
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


def case(
    name: str,
    calls: Callable[..., st.SearchStrategy[Call]],
    large_call: Callable[..., Call],
    function: Callable[..., torch.Tensor],
    reference: Callable[..., torch.Tensor],
    luck: tuple[str, ...] = (),
    half_factor: float = 2.0,
) -> OpCase:
    return OpCase(
        name=name,
        function=function,
        reference=reference,
        calls=calls(),
        small_calls=calls(small=True),
        large_call=large_call,
        native=None,
        own_sums=False,
        luck=luck,
        half_factor=half_factor,
        decomposes_to_reference=False,
    )


CASES = [
    case(
        "conv2d_resample",
        resample_calls,
        large_resample_call,
        ops.conv2d_resample,
        ops.conv2d_resample_ref,
    ),
    case(
        "modulated_conv2d",
        modulated_calls,
        large_modulated_call,
        ops.modulated_conv2d,
        ops.modulated_conv2d_ref,
        luck=("f", "strength", "b"),
        half_factor=4.0,  # the reference resamples first, and multiplies the weights by the styles
    ),
]
