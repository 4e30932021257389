from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

from aigc_ext import ops
from aigc_ext.ops.gan_loss import KINDS, REDUCTIONS
from tests.ops.suite import Call, OpCase, seeded, seeds, shapes


@st.composite
def discriminator_calls(draw: st.DrawFn, kind: str, small: bool = False) -> Call:
    shape = draw(shapes(1, 3, 3).filter(lambda s: 0 < torch.Size(s).numel() < 13) if small else shapes())
    seed, reduction = draw(seeds), draw(st.sampled_from(REDUCTIONS))
    weighted = draw(st.booleans())
    scale = 1.0 if small else draw(st.sampled_from([1.0, 10.0]))
    fake_shape = shape
    if kind != "relativistic" and reduction != "none" and draw(st.booleans()):
        fake_shape = (shape[0], 2) if weighted else (3, 2)
    inputs = {
        "real_logits": seeded(shape, seed, scale),
        "fake_logits": seeded(fake_shape, seed + 1, scale),
        "weight": seeded(shape[:1], seed + 2) if weighted else None,
    }
    options = {"kind": kind, "reduction": reduction, "l2_weight": draw(st.sampled_from([0.0, 0.3]))}
    if kind in ("logistic", "minimax"):
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1]))
    return Call(inputs, options)


@st.composite
def generator_calls(draw: st.DrawFn, small: bool = False) -> Call:
    kind = draw(st.sampled_from(KINDS))
    call = draw(discriminator_calls(kind, small))
    fake, real = call.inputs["real_logits"], call.inputs["fake_logits"]
    assert isinstance(fake, Tensor)
    inputs = {
        "fake_logits": fake,
        "real_logits": real if kind.startswith("relativistic") else None,
        "images": seeded((fake.shape[0], 2, 3), draw(seeds)) if call.options["l2_weight"] else None,
        "weight": call.inputs["weight"],
    }
    return Call(inputs, {k: call.options[k] for k in ("kind", "reduction", "l2_weight")})


def with_statistics(
    function: Callable[..., tuple[Tensor, Iterable[Tensor]]], *args: Any, **kwargs: Any
) -> tuple[Tensor, ...]:
    loss, stats = function(*args, **kwargs)
    return loss, *stats


def large_discriminator_call(kind: str, scale: int = 1) -> Call:
    inputs = {
        "real_logits": seeded((7 * scale, 1, 61, 67), 3),  # several chunks, the last one partial
        "fake_logits": seeded((7 * scale, 1, 61, 67), 4),
        "weight": seeded((7 * scale,), 5).abs(),
    }
    return Call(inputs, {"kind": kind, "l2_weight": 0.1})


def large_generator_call(scale: int = 1) -> Call:
    inputs = {
        "fake_logits": seeded((7 * scale, 1, 61, 67), 3),
        "real_logits": seeded((5 * scale, 4000), 4),
    }
    return Call(inputs, {"kind": "relativistic_avg"})


CASES = [
    OpCase(
        name=f"discriminator_loss[{kind}]",
        function=partial(with_statistics, ops.discriminator_loss_and_stats),
        reference=partial(with_statistics, ops.discriminator_loss_and_stats_ref),
        calls=discriminator_calls(kind),
        small_calls=discriminator_calls(kind, small=True),
        large_call=partial(large_discriminator_call, kind),
        keeps_format=False,
    )
    for kind in KINDS
] + [
    OpCase(
        name="generator_loss",
        function=ops.generator_loss,
        reference=ops.generator_loss_ref,
        calls=generator_calls(),
        small_calls=generator_calls(small=True),
        large_call=large_generator_call,
        keeps_format=False,
    )
]
