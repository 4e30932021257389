from __future__ import annotations

from functools import partial

import hypothesis.strategies as st

from aigc_ext import ops
from aigc_ext.ops.activations import ACTIVATIONS
from tests.ops.suite import Call, OpCase, seeded, seeds

OPTIONAL = ("weight", "bias", "scale", "shift", "residual")


def inputs(shape: tuple[int, ...], seed: int, given: tuple[str, ...]) -> dict:
    samples, channels = shape[:2]
    numbers = {"weight": (channels,), "bias": (channels,), "scale": (samples, channels)}
    numbers["shift"] = (samples, channels)
    made = {name: seeded(size, seed + 1 + i) * 0.5 + 1 for i, (name, size) in enumerate(numbers.items())}
    made["residual"] = seeded(shape, seed + 5)
    x = seeded(shape, seed) * 1.5 + seeded((channels,), seed + 6).reshape([1, -1] + [1] * (len(shape) - 2))
    return {"x": x, **{name: made[name] if name in given else None for name in OPTIONAL}}


@st.composite
def group_norm_calls(draw: st.DrawFn, kind: str, small: bool = False) -> Call:
    # Of a group with few elements the normalisation is a step function, whose derivative cancels almost
    # completely: no two roundings of that agree. So groups have many, or a large eps.
    if small:
        groups, width = draw(st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3)]))
        spatial = draw(st.sampled_from([(4,), (2, 3), (1, 5)]))
        samples = draw(st.integers(1, 2))
    else:
        groups = draw(st.sampled_from([1, 2, 3, 8]))
        width = draw(st.sampled_from([0, 1, 2, 4, 17]))
        spatial = draw(st.sampled_from([(), (0,), (1,), (40,), (3, 7), (4, 4), (5, 17), (1, 100), (2, 3, 4)]))
        samples = draw(st.sampled_from([0, 1, 2, 5]))
    if kind == "instance":
        groups, width = groups * width, min(width, 1)
        groups = max(groups, 1)
    elif kind == "layer":
        groups, width = 1, groups * width
    elements = width
    for side in spatial:
        elements *= side
    given = tuple(name for name in OPTIONAL if draw(st.booleans()))
    act = draw(st.sampled_from(["linear", "relu", "lrelu", "tanh", "swish"] if small else list(ACTIVATIONS)))
    eps = draw(st.sampled_from([1e-5, 0.1])) if elements >= 16 else 0.5
    options = {"num_groups": groups, "act": act, "eps": eps}
    if draw(st.booleans()):
        options |= {"clamp": 1.1, "gain": 0.9}
    shape = (samples, groups * width, *spatial)
    return Call(inputs(shape, 2**31 + draw(seeds), given), options)


def large_call(shape: tuple[int, ...], groups: int, scale: int = 1) -> Call:
    shape = (shape[0] * scale, *shape[1:])
    return Call(inputs(shape, 3, OPTIONAL), {"num_groups": groups, "act": "swish"})


CASES = [
    OpCase(
        name=f"group_norm_act[{kind}]",
        function=ops.group_norm_act,
        reference=ops.group_norm_act_ref,
        calls=group_norm_calls(kind),
        small_calls=group_norm_calls(kind, small=True),
        large_call=partial(large_call, shape, groups),
    )
    for kind, shape, groups in (
        ("group", (7, 70, 15, 17), 10),
        ("instance", (2, 66, 37, 31), 66),
        ("layer", (3, 70, 15, 33), 1),
    )
]
