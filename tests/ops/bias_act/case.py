from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import torch

from aigc_ext import ops
from aigc_ext.ops.activations import ACTIVATIONS
from tests.ops.suite import Call, OpCase, alphas, clamps, gains, seeded, seeds, shapes


@st.composite
def bias_act_calls(draw: st.DrawFn, act: str, small: bool = False) -> Call:
    shape = draw(shapes(1, 3, 3).filter(lambda s: 0 < torch.Size(s).numel() < 30) if small else shapes())
    seed = draw(seeds)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    b = seeded([shape[dim]], seed + 1) if draw(st.booleans()) else None
    options = {"dim": dim, "act": act, "alpha": draw(alphas), "gain": draw(gains), "clamp": draw(clamps)}
    if small and options["clamp"] == 0:
        options["clamp"] = 0.5  # everywhere on the corner of the clamp
    return Call(
        {"x": seeded(shape, seed, draw(st.sampled_from([1.0, 8.0])) if not small else 1.0), "b": b}, options
    )


@st.composite
def noise_calls(draw: st.DrawFn, small: bool = False) -> Call:
    shape = draw(st.lists(st.integers(1, 2), min_size=2, max_size=4) if small else shapes(2))
    seed = draw(seeds)
    noise_shape = [draw(st.sampled_from([1, shape[0]])), 1, *shape[2:]]
    inputs = {
        "x": seeded(shape, seed),
        "noise": seeded(noise_shape, seed + 1),
        "strength": seeded(draw(st.sampled_from([(), (1,)])), seed + 2),
        "b": seeded([shape[1]], seed + 3) if draw(st.booleans()) else None,
    }
    act = draw(st.sampled_from(["lrelu", "linear", "swish", "tanh"]))
    clamp = draw(clamps.filter(lambda c: not small or c != 0))
    return Call(inputs, {"act": act, "alpha": draw(alphas), "gain": draw(gains), "clamp": clamp})


def large_call(act: str, scale: int = 1) -> Call:
    inputs = {"x": seeded((7 * scale, 6, 61, 67), 3), "b": seeded([6], 4)}
    return Call(inputs, {"act": act, "clamp": 0.9})


def large_noise_call(scale: int = 1) -> Call:
    inputs = large_call("lrelu", scale).inputs
    noise = {"noise": seeded((1, 1, 61, 67), 5), "strength": seeded((), 6)}
    return Call({**inputs, **noise}, {"act": "lrelu", "clamp": 0.9})


CASES = [
    OpCase(
        name=f"bias_act[{act}]",
        function=ops.bias_act,
        reference=ops.bias_act_ref,
        calls=bias_act_calls(act),
        small_calls=bias_act_calls(act, small=True),
        large_call=partial(large_call, act),
    )
    for act in ACTIVATIONS
] + [
    OpCase(
        name="noise_bias_act",
        function=ops.noise_bias_act,
        reference=ops.noise_bias_act_ref,
        calls=noise_calls(),
        small_calls=noise_calls(small=True),
        large_call=large_noise_call,
    )
]
