from __future__ import annotations

import hypothesis.strategies as st
import torch

from aigc_ext import ops
from tests.ops.cases.bias_act import alphas, clamps, gains, seeds
from tests.ops.suite import Call, OpCase, seeded

acts = st.sampled_from(["linear", "relu", "lrelu", "tanh", "softplus", "swish"])


@st.composite
def linear_calls(draw: st.DrawFn, small: bool = False) -> Call:
    side = st.integers(1, 3) if small else st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 100]))
    shape = draw(st.lists(side, min_size=1, max_size=2 if small else 3))
    out = draw(side)
    seed = draw(seeds)
    inputs = {
        "x": seeded(shape, seed),
        "w": seeded((out, shape[-1]), seed + 1),
        "b": seeded([out], seed + 2) if draw(st.booleans()) else None,
    }
    # At the clamp the gradient jumps, and a product that is stored in a half type may lie on its other
    # side: the budget
    # is about rounding, so larger calls stay clear of it.
    clamp = draw(clamps.filter(lambda c: c != 0) if small else st.sampled_from([None, 256.0]))
    return Call(inputs, {"act": draw(acts), "alpha": draw(alphas), "gain": draw(gains), "clamp": clamp})


def large_call(scale: int = 1) -> Call:
    return Call(
        {"x": seeded((700 * scale, 50), 1), "w": seeded((130, 50), 2), "b": seeded([130], 3)},
        {"act": "lrelu", "clamp": 1.0},
    )


def native() -> list[tuple]:
    def grad(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, requires_grad=True)

    op = torch.ops.aigc.linear_act.default
    return [
        (op, (x, grad(5, 4), b, act, 0.2, 1.1, clamp, True))
        for act in ("linear", "lrelu", "tanh")
        for x, b, clamp in ((grad(2, 3, 4), grad(5), 0.7), (grad(4), None, None))
    ]


CASES = [
    OpCase(
        name="linear_act",
        function=ops.linear_act,
        reference=ops.linear_act_ref,
        calls=linear_calls(),
        small_calls=linear_calls(small=True),
        large_call=large_call,
        native=native,
        keeps_format=False,
        own_sums=False,
    )
]
