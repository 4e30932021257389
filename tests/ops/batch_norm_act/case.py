from __future__ import annotations

from functools import partial

import hypothesis.strategies as st

from aigc_ext import ops
from aigc_ext.ops.activations import ACTIVATIONS
from tests.ops.suite import Call, OpCase, seeded, seeds


def inputs(shape: tuple[int, ...], seed: int, training: bool, affine: tuple[bool, bool]) -> dict:
    """Given statistics that are not x's, or none."""
    channels = shape[1]
    weight, bias = (
        seeded((channels,), seed + 1 + i) * 0.5 + 1 if wanted else None for i, wanted in enumerate(affine)
    )
    mean, var = None, None
    if not training:
        mean, var = seeded((channels,), seed + 3), seeded((channels,), seed + 4).square() + 0.5
    x = seeded(shape, seed) * 1.5 + seeded((channels,), seed + 5).reshape([1, -1] + [1] * (len(shape) - 2))
    return {"x": x, "running_mean": mean, "running_var": var, "weight": weight, "bias": bias}


@st.composite
def batch_norm_calls(draw: st.DrawFn, training: bool, small: bool = False) -> Call:
    # Of a batch with few elements the normalisation is a step function, whose derivative cancels almost
    # completely: no two roundings of that agree.
    sides = [
        draw(st.integers(4, 5) if small else st.sampled_from([0, 16, 19, 40])),
        draw(st.integers(1, 3) if small else st.sampled_from([0, 1, 3, 8, 17, 33])),
        *draw(
            st.sampled_from(
                [(), (2,), (1, 2)] if small else [(), (1,), (5,), (1, 1), (3, 5), (4, 4), (1, 33), (2, 3, 4)]
            )
        ),
    ]
    affine = draw(st.sampled_from([(True, True), (True, True), (False, True), (True, False), (False, False)]))
    seed = 2**31 + draw(seeds)
    act = draw(st.sampled_from(["linear", "relu", "lrelu", "tanh", "swish"] if small else list(ACTIVATIONS)))
    options = {"training": training, "act": act, "eps": draw(st.sampled_from([1e-5, 0.1]))}
    if draw(st.booleans()):
        options |= {"clamp": 1.1, "gain": 0.9}
    return Call(inputs(tuple(sides), seed, training, affine), options)


def large_call(shape: tuple[int, ...], training: bool, scale: int = 1) -> Call:
    shape = (shape[0] * scale, *shape[1:])
    return Call(inputs(shape, 3, training, (True, True)), {"training": training, "act": "lrelu"})


CASES = [
    OpCase(
        name=f"batch_norm_act[{name}]",
        function=ops.batch_norm_act,
        reference=ops.batch_norm_act_ref,
        calls=batch_norm_calls(training),
        small_calls=batch_norm_calls(training, small=True),
        large_call=partial(large_call, shape, training),
        constant=("running_mean", "running_var"),
    )
    for name, training, shape in (("batch", True, (21, 70, 15, 17)), ("running", False, (3, 5, 130, 131)))
]
