from __future__ import annotations

import hypothesis.strategies as st

from aigc_ext import ops
from tests.ops.suite import Call, OpCase, alphas, clamps, gains, seeded, seeds


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool, small: bool = False) -> Call:
    groups = draw(st.sampled_from([1, 1, 2]))
    i, o = (groups * draw(st.integers(1, 2 if small else 5)) for _ in range(2))
    kernel = [draw(st.integers(1, 3 if small else 4)) for _ in range(2)]
    stride, dilation, padding = (
        [draw(st.integers(low, high)) for _ in range(2)] for low, high in ((1, 3), (1, 2), (0, 2))
    )
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    least = [1, 1]
    for d in range(2):
        reach = dilation[d] * (kernel[d] - 1)
        if transposed:
            padding[d] = min(padding[d], reach // 2)
        least[d] = max(1, reach + 1 - 2 * padding[d])
    if transposed:
        least = [1, 1]
        # PyTorch's own second derivative fails with an output_padding: see test_conv2d_act.py.
        most = [1, 1] if small else [max(stride[d], dilation[d]) for d in range(2)]
        options["output_padding"] = [draw(st.integers(0, most[d] - 1)) for d in range(2)]
    options["padding"] = padding
    height, width = (least[d] + draw(st.integers(0, 2 if small else 9)) for d in range(2))
    n = draw(st.integers(1, 2) if small else st.sampled_from([2, 1, 0, 3]))
    seed = draw(seeds)
    weight = (i, o // groups, *kernel) if transposed else (o, i // groups, *kernel)
    act = draw(st.sampled_from(["lrelu", "linear", "swish", "tanh"]))
    clamp = draw(clamps.filter(lambda c: not small or c != 0))
    inputs = {
        "x": seeded((n, i, height, width), seed),
        "w": seeded(weight, seed + 1, 0.5),
        "b": seeded((o,), seed + 2) if draw(st.booleans()) else None,
    }
    return Call(inputs, {**options, "act": act, "alpha": draw(alphas), "gain": draw(gains), "clamp": clamp})


def large_call(scale: int = 1) -> Call:
    """Of a size at which conv3x3 takes over on the CPU."""
    inputs = {
        "x": seeded((2 * scale, 33, 21, 37), 3),
        "w": seeded((40, 33, 3, 3), 4, 0.1),
        "b": seeded((40,), 5),
    }
    return Call(inputs, {"padding": 1, "act": "lrelu", "clamp": 0.9})


def large_transposed_call(scale: int = 1) -> Call:
    call = large_call(scale)
    return Call({**call.inputs, "w": seeded((33, 40, 3, 3), 4, 0.1)}, call.options)


CASES = [
    OpCase(
        name=name,
        function=function,
        reference=reference,
        calls=convolutions(transposed),
        small_calls=convolutions(transposed, small=True),
        large_call=large_transposed_call if transposed else large_call,
        own_sums=False,
    )
    for name, function, reference, transposed in (
        ("conv2d_act", ops.conv2d_act, ops.conv2d_act_ref, False),
        ("conv_transpose2d_act", ops.conv_transpose2d_act, ops.conv_transpose2d_act_ref, True),
    )
]
