"""`ops.wavenet_step_` against its reference, and what a sampler relies on."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from aigc_ext import decompose, ops
from aigc_ext.ops import WaveNetState, WaveNetWeights
from tests.ops.suite import check_budget

INF, NAN = float("inf"), float("nan")


def make(
    batch: int = 3,
    steps: int = 6,
    channels: int = 5,
    gates: int = 4,
    skips: int = 7,
    hidden: int = 9,
    classes: int = 11,
    taps: int = 2,
    dilations: tuple[int, ...] = (1, 2, 4),
    frames: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of a call; the numbers are the same in every dtype."""
    rng, layers = torch.Generator(torch.get_default_device()).manual_seed(seed), len(dilations)

    def normal(*shape: int, inputs: int = 1) -> Tensor:
        return (torch.randn(shape, generator=rng, dtype=torch.float64) / max(inputs, 1) ** 0.5).to(dtype)

    return {
        "state": WaveNetState(
            torch.zeros(batch, (taps - 1) * sum(dilations), channels, dtype=dtype),
            torch.randint(0, classes, (batch,), generator=rng),
            torch.zeros(batch, dtype=torch.int64),
        ),
        "weights": WaveNetWeights(
            normal(classes, channels),
            normal(layers, taps, channels, 2 * gates, inputs=taps * channels),
            normal(layers, gates, channels + skips, inputs=gates),
            normal(layers, channels + skips),
            normal(skips, hidden, inputs=skips),
            normal(hidden),
            normal(hidden, classes, inputs=hidden),
            normal(classes),
        ),
        "condition": normal(batch, frames, layers, 2 * gates),
        "dilations": list(dilations),
        "uniform": torch.rand(batch, steps, generator=rng, dtype=torch.float32).to(dtype),
        **options,
    }


def given_codes(call: dict[str, Any], codes: Tensor) -> dict[str, Any]:
    return {**call, "uniform": None, "given": codes}


def after(function: Any, call: dict[str, Any], times: int = 1) -> list[Tensor]:
    """The results of a copy of the call, made so many times, and its state then."""
    call = copy.deepcopy(call)
    results = [t for _ in range(times) for t in function(**call)]
    return [*results, *call["state"]]


def rows(call: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    """The call for these sequences alone."""
    call = copy.deepcopy(call)
    part = {name: call[name][chosen] for name in ("condition", "uniform")}
    return {**call, **part, "state": WaveNetState(*(t[chosen].contiguous() for t in call["state"]))}


def on_the_boundary(call: dict[str, Any], logits: Tensor) -> bool:
    """Whether a random number is so near to a sum of probabilities that rounding decides."""
    p = (logits / call.get("temperature", 1.0)).softmax(-1).double().cumsum(-1)
    return bool(((p - call["uniform"].double()[..., None]).abs() < 1e-12).any())


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    width = st.sampled_from([1, 2, 5, 8, 16, 17, 33, 70])
    widths: dict[str, Any] = {
        name: draw(width) for name in ("channels", "gates", "skips", "hidden", "classes")
    }
    return make(
        batch=draw(st.sampled_from([0, 1, 2, 3, 5, 6, 7, 13, 25])),
        steps=draw(st.sampled_from([0, 1, 4, 9])),
        **widths,
        taps=draw(st.integers(1, 3)),
        dilations=tuple(draw(st.lists(st.integers(1, 5), max_size=3))),
        frames=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**20)),
        hop=draw(st.sampled_from([1, 3, 1 << 32])),
        temperature=draw(st.sampled_from([0.0, 0.5, 1.0])),
        with_logits=True,
    )


@pytest.mark.card
@settings(max_examples=60)
@given(calls())
def test_it_is_the_reference(call: dict[str, Any]) -> None:
    ours, plain = (after(f, call, 2) for f in (ops.wavenet_step_, ops.wavenet_step_ref))
    if not on_the_boundary(call, plain[1]):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.card
@pytest.mark.parametrize("channels", [48, 21])
def test_float32_is_within_the_error_budget(channels: int) -> None:
    sizes: dict[str, Any] = {
        "batch": 7,
        "steps": 40,
        "channels": channels,
        "gates": 40,
        "skips": 64,
        "hidden": 64,
        "classes": 256,
        "dilations": (1, 2, 4, 8) * 3,
        "with_logits": True,
    }
    codes = torch.randint(0, 256, (7, 40))

    def run(function: Any, dtype: torch.dtype) -> list[Tensor]:
        return after(function, given_codes(make(**sizes, dtype=dtype), codes))

    ours, plain = (run(f, torch.float32) for f in (ops.wavenet_step_, ops.wavenet_step_ref))
    truth = run(ops.wavenet_step_ref, torch.float64)
    for what, i in (("logits", 1), ("queues", 2)):
        check_budget(ours[i], plain[i], truth[i], torch.float32, what)


@pytest.mark.card
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [16, 19])
def test_a_sequence_has_the_same_bits_alone_and_among_others(dtype: torch.dtype, channels: int) -> None:
    """Of 29: a whole block of sequences, whole groups, and the rest of one."""
    call = make(29, 12, channels, 24, 33, 32, 64, dilations=(1, 2, 4, 8), dtype=dtype, with_logits=True)
    together = after(ops.wavenet_step_, call)
    for chosen in ([0], [5], [28], [3, 4], [0, 9, 17, 23, 24, 28, 1]):
        for alone, among in zip(after(ops.wavenet_step_, rows(call, chosen)), together, strict=True):
            assert torch.equal(alone, among[chosen])


@pytest.mark.card
def test_many_steps_are_one_after_the_other() -> None:
    """Beyond the end of every queue, which are rings."""
    call = make(2, 40, dilations=(1, 3, 5), taps=3, frames=4, hop=11, with_logits=True)
    whole, pieces = after(ops.wavenet_step_, call), copy.deepcopy(call)
    results = []
    for first, last in ((0, 1), (1, 2), (2, 19), (19, 40)):
        pieces["uniform"] = call["uniform"][:, first:last]
        results.append(ops.wavenet_step_(**pieces))
    together = [torch.cat(parts, 1) for parts in zip(*results, strict=True)]
    for a, b in zip([*together, *pieces["state"]], whole, strict=True):
        assert torch.equal(a, b)


@pytest.mark.card
def test_sequences_may_be_at_different_times() -> None:
    call = make(2, 20, dilations=(1, 3), frames=3, hop=7, with_logits=True)
    late = rows(call, [1])
    late["uniform"] = call["uniform"][1:, :9]
    first, _ = ops.wavenet_step_(**late)
    joined = rows(call, [0, 1])
    for own, other in zip(joined["state"], late["state"], strict=True):
        own[1] = other[0]
    joined["uniform"] = torch.stack([call["uniform"][0, :11], call["uniform"][1, 9:]])
    codes, _ = ops.wavenet_step_(**joined)
    expected = after(ops.wavenet_step_, call)[0]
    assert torch.equal(codes[0], expected[0, :11])
    assert torch.equal(torch.cat([first[0], codes[1]]), expected[1])


@pytest.mark.card
def test_given_codes_are_taken() -> None:
    call = make(with_logits=True)
    drawn = after(ops.wavenet_step_, call)
    again = after(ops.wavenet_step_, given_codes(call, drawn[0]))
    for a, b in zip(again, drawn, strict=True):
        assert torch.equal(a, b)
    without = after(ops.wavenet_step_, {**given_codes(call, drawn[0]), "with_logits": False})
    assert without[1].shape == (3, 0, 11)
    for a, b in zip(without[2:], drawn[2:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.card
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_as_frequent_as_their_probabilities(temperature: float) -> None:
    count = 2000
    call = make(1, 1, classes=5, dtype=torch.float32, temperature=temperature, with_logits=True)
    _, logits = ops.wavenet_step_(**copy.deepcopy(call))
    many = rows(call, [0] * count)
    many["uniform"] = (torch.arange(count).float()[:, None] + 0.5) / count  # each part of [0, 1) once
    codes, _ = ops.wavenet_step_(**many)
    got = codes.flatten().bincount(minlength=5) / count
    torch.testing.assert_close(got, (logits[0, 0] / temperature).softmax(0), atol=2 / count, rtol=0)


@pytest.mark.card
def test_temperature_0_takes_the_first_of_the_most_likely() -> None:
    call = make(1, 1, classes=5, temperature=0.0)
    weights = call["weights"]
    weights.w_logits.zero_()
    weights.b_logits.copy_(torch.tensor([1.0, 3, 2, 3, 0]))
    assert ops.wavenet_step_(**call)[0].item() == 1
    with decompose():
        assert ops.wavenet_step_(**call)[0].item() == 1


@pytest.mark.card
@pytest.mark.parametrize("function", [ops.wavenet_step_, ops.wavenet_step_ref])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_finite_goes_on(function: Any, temperature: float) -> None:
    call = make(3, 4, temperature=temperature, with_logits=True)
    call["state"].codes[1] = 11  # not one of the classes
    call["condition"][2, 0, 1, 3] = NAN
    codes, logits = function(**call)
    assert (codes[0] >= 0).all()
    assert logits[0].isfinite().all()
    assert (codes[1:] == -1).all()
    assert logits[1:].isnan().all()
    call = make(1, 1, classes=3, temperature=temperature)
    call["weights"].b_logits[1:] = -INF  # cannot be drawn
    assert function(**call)[0].item() == 0


@pytest.mark.card
def test_a_time_before_the_first_or_after_the_last_writes_nothing_out_of_bounds() -> None:
    call = make(3, 9, dilations=(1, 3, 2), frames=2, hop=4)
    call["state"].times.copy_(torch.tensor([-5, -(2**63), 2**63 - 1]))
    codes, _ = ops.wavenet_step_(**call)
    assert (codes >= 0).all()


@pytest.mark.card
def test_other_strides_and_offsets() -> None:
    call = make(with_logits=True)
    other = copy.deepcopy(call)
    other["weights"] = WaveNetWeights(
        *(torch.stack([t, t], -1)[..., 1] for t in call["weights"])  # every second number
    )
    t = call["condition"]
    other["condition"] = torch.cat([t[:1], t])[1:]  # an offset
    other["uniform"] = call["uniform"].t().contiguous().t()
    for a, b in zip(after(ops.wavenet_step_, other), after(ops.wavenet_step_, call), strict=True):
        assert torch.equal(a, b)


@pytest.mark.card
def test_autograd_sees_the_change_of_the_state() -> None:
    call = make()
    version = call["state"].queues._version
    ops.wavenet_step_(**call)
    assert call["state"].queues._version > version


def test_opcheck() -> None:
    call = make(with_logits=True)
    positional = [*call["state"], call["uniform"], None, call["condition"], *call["weights"]]
    arguments = (*positional, call["dilations"], 3, 0.7, True)
    torch.library.opcheck(torch.ops.aigc.wavenet_step_.default, arguments)
    with decompose():
        codes, _ = ops.wavenet_step_(**copy.deepcopy(call))
    assert torch.equal(codes, ops.wavenet_step_(**call)[0])


def test_it_compiles_into_one_graph() -> None:
    call = make(with_logits=True)
    expected = after(ops.wavenet_step_, call)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(*state: Tensor) -> tuple[Tensor, Tensor]:
        return ops.wavenet_step_(**{**call, "state": WaveNetState(*state)})

    state = [t.clone() for t in call["state"]]
    for a, b in zip([*step(*state), *state], expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_other_instruction_sets_give_the_reference(isa: str) -> None:
    program = (
        "import torch; from aigc_ext import ops; from tests.ops.wavenet_step.test_wavenet_step import *\n"
        "call = make(13, 8, 17, 12, 20, 40, 33, with_logits=True)\n"
        "for a, b in zip(after(ops.wavenet_step_, call), after(ops.wavenet_step_ref, call), strict=True):\n"
        "    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)\n"
        "print(torch.ops.aigc.instruction_set())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "AIGC_EXT_ISA": isa},
    )
    if "must be one of" in run.stderr:
        pytest.skip(f"this library or CPU has no {isa}")
    assert run.returncode == 0, run.stderr
    assert isa in run.stdout


BAD: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"condition": 1.0}, TypeError, ("condition is 1.0 (float)", "must be a tensor")),
    ({"condition": torch.zeros(3, 0, 3, 8).double()}, RuntimeError, ("condition has shape", "one frame at")),
    ({"condition": torch.zeros(3, 1, 3, 8)}, RuntimeError, ("condition is float32", "float64, as queues is")),
    ({"dilations": [1, 2]}, RuntimeError, ("dilations has 2 numbers, but w_gate 3 layers",)),
    ({"dilations": [1, 0, 4]}, RuntimeError, ("dilations[1] is 0, but must be at least 1",)),
    ({"dilations": [1, 2, 5]}, RuntimeError, ("queues has shape [3, 7, 5], but must be [3, 8, 5]",)),
    ({"uniform": None}, RuntimeError, ("one of uniform and given must be a tensor",)),
    ({"given": torch.zeros(3, 6).long()}, RuntimeError, ("one of uniform and given",)),
    (
        {"uniform": torch.zeros(2, 6).double()},
        RuntimeError,
        ("uniform has shape [2, 6], but must be [3, 6]",),
    ),
    ({"hop": 0}, RuntimeError, ("hop is 0, but must be at least 1",)),
    ({"temperature": -1.0}, RuntimeError, ("temperature is -1, but must be at least 0 and finite",)),
    ({"temperature": NAN}, RuntimeError, ("temperature is nan",)),
]


@pytest.mark.parametrize(("changes", "kind", "parts"), BAD)
def test_bad_argument(changes: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    call = make()
    before = copy.deepcopy(call["state"])
    with pytest.raises(kind) as error:
        ops.wavenet_step_(**{**call, **changes})
    for part in ("wavenet_step_", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"
    for a, b in zip(before, call["state"], strict=True):
        assert torch.equal(a, b)


def test_what_is_written_must_be_contiguous() -> None:
    call = make()
    queues = call["state"].queues.transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(RuntimeError, match=r"queues has shape \[3, 7, 5\] and strides .*be contiguous"):
        ops.wavenet_step_(**{**call, "state": call["state"]._replace(queues=queues)})
    with pytest.raises(RuntimeError, match="codes is int32, but must be int64"):
        ops.wavenet_step_(**{**call, "state": call["state"]._replace(codes=call["state"].codes.int())})
