from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.strategies as st
import torch

from aigc_ext import ops
from aigc_ext.ops.attention import has_attention
from tests.ops.suite import Call, OpCase, seeded, seeds

# On both sides of a vector, of a block of queries and of a strip of keys.
lengths = st.one_of(st.integers(0, 9), st.sampled_from([16, 33, 63, 64, 65, 130]))
widths = st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 33, 64]))


def inputs(
    n: int, heads: int, lengths: tuple[int, int], widths: tuple[int, int], seed: int, scale: float = 1.0
) -> dict[str, torch.Tensor | None]:
    (queries, keys), (width, value_width) = lengths, widths
    return {
        "q": seeded((n, heads, queries, width), seed, scale),
        "k": seeded((n, heads, keys, width), seed + 1, scale),
        "v": seeded((n, heads, keys, value_width), seed + 2),
    }


def padding(n: int, keys: int, seed: int) -> torch.Tensor:
    """A third of the keys; of the first sample all, of the last one none."""
    mask = seeded((n, keys), seed) < -0.43
    mask[:1] = n > 1
    mask[1:][-1:] = False
    return mask


@st.composite
def attention_calls(draw: st.DrawFn, score: str, small: bool = False) -> Call:
    n, heads = (
        draw(st.integers(1, 2) if small else st.integers(0, 3)),
        draw(st.integers(1 if small else 0, 2)),
    )
    length, width = (st.integers(1, 3), st.integers(1, 2)) if small else (lengths, widths)
    sides, features = (draw(length), draw(length)), (draw(width), draw(width))
    seed = draw(seeds)
    found = inputs(n, heads, sides, features, seed, 1.0 if small else draw(st.sampled_from([1.0, 3.0])))
    found["key_padding_mask"] = padding(n, sides[1], seed + 3) if draw(st.booleans()) else None
    options: dict[str, Any] = {"causal": draw(st.booleans()), "score": score}
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([0.0, 0.3, -0.2]))
    return Call(found, options)


def large_call(score: str, scale: int = 1) -> Call:
    """Parts of a head (of 700 queries), in several threads."""
    found = inputs(scale, 3, (700, 330), (40, 24), 5)
    return Call({**found, "key_padding_mask": padding(scale, 330, 6)}, {"score": score})


# Where the op is its reference, there is nothing to test.
CASES = [
    OpCase(
        name=f"attention[{score}]",
        function=ops.attention,
        reference=ops.attention_ref,
        calls=attention_calls(score),
        small_calls=attention_calls(score, small=True),
        large_call=partial(large_call, score),
        keeps_format=False,
    )
    for score in ("dot", "l2")
] * has_attention(torch.empty(0))
