from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from torch import Tensor

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, seeded, seeds

acts = st.sampled_from(["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "softplus", "swish"])


def from_arguments(function: Any) -> Any:
    """The op as a function of tensors that have a name each: x, w0, b0, w1, b1, ..."""

    def call(x: Tensor, acts: list[str], gains: list[float | None], **parameters: Tensor) -> Tensor:
        weights = [parameters[f"w{i}"] for i in range(len(acts))]
        biases = [parameters[f"b{i}"] for i in range(len(acts))]
        result: Tensor = function(x, weights, biases, acts, gains=gains)
        return result

    return call


@st.composite
def mlp_calls(draw: st.DrawFn, small: bool = False) -> Call:
    side = st.integers(1, 3) if small else st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 40]))
    shape = draw(st.lists(side, min_size=1, max_size=2 if small else 3))
    widths = draw(st.lists(side, min_size=1, max_size=3))
    seed = draw(seeds)
    inputs: dict[str, Tensor | None] = {"x": seeded(shape, seed)}
    features = shape[-1]
    for i, width in enumerate(widths):
        inputs[f"w{i}"] = seeded((width, features), seed + 2 * i + 1, scale=max(features, 1) ** -0.5)
        inputs[f"b{i}"] = seeded([width], seed + 2 * i + 2)
        features = width
    count = len(widths)
    gain = st.sampled_from([None, 0.7, -1.3])
    return Call(
        inputs,
        {
            "acts": draw(st.lists(acts, min_size=count, max_size=count)),
            "gains": draw(st.lists(gain, min_size=count, max_size=count)),
        },
    )


def large_call(scale: int = 1) -> Call:
    sizes = [50, 130, 70, 9]
    inputs: dict[str, Tensor | None] = {"x": seeded((500 * scale, 50), 1)}
    for i in range(3):
        inputs[f"w{i}"] = seeded((sizes[i + 1], sizes[i]), 2 * i + 2, scale=sizes[i] ** -0.5)
        inputs[f"b{i}"] = seeded([sizes[i + 1]], 2 * i + 3)
    return Call(inputs, {"acts": ["softplus", "tanh", "linear"], "gains": [None] * 3})


CASES = [
    OpCase(
        name="fused_mlp",
        function=from_arguments(ops.fused_mlp),
        reference=from_arguments(ops.fused_mlp_ref),
        calls=mlp_calls(),
        small_calls=mlp_calls(small=True),
        large_call=large_call,
        keeps_format=False,
        own_sums=False,
    )
]
