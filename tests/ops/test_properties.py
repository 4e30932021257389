"""Every property of suite.py on every op. Those that could come out differently on a card run there too."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.autograd import forward_ad

from aigc_ext import decompose
from tests.ops.suite import (
    LAYOUTS,
    Call,
    OpCase,
    all_cases,
    check_call,
    examples,
    native_calls,
    outputs_of,
    prepare,
    seeded,
    seeds,
    total,
    values_and_gradients,
)

CASES = all_cases()

Function = Callable[..., Any]  # an op or its reference
Scalar = Callable[[Tensor], Tensor]


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        ("before", ctypes.c_size_t * 4),
        ("hblkhd", ctypes.c_size_t),  # in mmapped blocks
        ("between", ctypes.c_size_t * 2),
        ("uordblks", ctypes.c_size_t),  # in the heaps
        ("after", ctypes.c_size_t * 2),
    ]


@pytest.fixture
def heap_in_use() -> Iterator[Callable[[], int]]:
    """Bytes that malloc has given out and not got back."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("mallinfo2 is glibc's, from 2.33 on")
    mallinfo2.restype = _Mallinfo2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # every thread would have a heap of its own

    def bytes_in_use() -> int:
        gc.collect()
        info = mallinfo2()
        return int(info.uordblks + info.hblkhd)

    yield bytes_in_use
    torch.set_num_threads(threads)


# Indirect: the fixture `case` (tests/conftest.py) puts it on the device.
per_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name, indirect=True)
on_a_card_too = pytest.mark.card


def draw_example(strategy: st.SearchStrategy) -> Call:
    """One example that is the same in every run."""
    return examples(strategy, 1)[0]


@per_case
@on_a_card_too
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_within_the_error_budget(case: OpCase, layout: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(case.calls, st.sampled_from(case.dtypes), st.integers(0, 2**31))
    def check(call: Call, dtype: torch.dtype, seed: int) -> None:
        check_call(case, call, dtype, layout, seed)

    check()


@per_case
@on_a_card_too
def test_gradients_are_right_to_second_order(case: OpCase) -> None:
    # Each is thousands of calls of one size: 8 examples, or 2 of a brief run.
    @settings(max_examples=max(2, settings().max_examples // 12), deadline=None)
    @given(case.small_calls)
    def check(call: Call) -> None:
        inputs = prepare(call, case, torch.float64)
        wanted = {k: v for k, v in inputs.items() if v is not None and v.requires_grad}

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            outputs = outputs_of(
                case.function, {**inputs, **dict(zip(wanted, values, strict=True))}, call.options
            )
            return tuple(y for y in outputs if y.requires_grad)

        leaves = [*wanted.values()]
        torch.autograd.gradcheck(function, leaves, fast_mode=False)
        if case.twice_differentiable:
            torch.autograd.gradgradcheck(function, leaves, fast_mode=False)

    check()


@per_case
@on_a_card_too
def test_third_derivative_is_the_references(case: OpCase) -> None:
    @settings(max_examples=5, deadline=None)
    @given(case.small_calls)
    def check(call: Call) -> None:
        def third(function: Function) -> Tensor:
            inputs = prepare(call, case, torch.float64)
            leaves = [v for v in inputs.values() if v is not None and v.requires_grad]
            outputs = outputs_of(function, inputs, call.options)
            value = total((y * y).sum() for y in outputs if y.requires_grad)
            for _ in range(3):
                gradients = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
                squares = ((g**2).sum() for g in gradients if g is not None)
                value = total([0 * total(v.sum() for v in leaves), *squares])
            return value.detach()

        torch.testing.assert_close(third(case.function), third(case.reference), rtol=1e-7, atol=1e-10)

    if case.twice_differentiable:
        check()


@per_case
@on_a_card_too
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_double_backward_leaves_out_no_parameter_that_plain_pytorch_gives_zeros(
    case: OpCase, dtype: torch.dtype
) -> None:
    """And none more. Adam skips a parameter without a gradient, and decays the moments of one with zeros. The
    first input is an activation, which may have None (``with_zeros`` in aigc_ext/ops/_gradients.py)."""
    if not case.twice_differentiable or dtype not in case.dtypes:
        pytest.skip("not twice differentiable, or not in this dtype")

    @settings(max_examples=5, deadline=None)
    @given(case.small_calls, st.booleans())
    def check(call: Call, of_all: bool) -> None:
        def with_gradient(function: Function) -> set[str]:
            inputs = prepare(call, case, dtype)
            leaves = {k: v for k, v in inputs.items() if v is not None and v.requires_grad}
            outputs = [y for y in outputs_of(function, inputs, call.options) if y.requires_grad]
            wanted = [*leaves.values()][: None if of_all else 1]
            cotangents = [torch.ones_like(y).requires_grad_() for y in outputs]
            slopes = torch.autograd.grad(outputs, wanted, cotangents, create_graph=True, allow_unused=True)
            penalty = total([cotangents[0].sum(), *((g * g).sum() for g in slopes if g is not None)])
            second = torch.autograd.grad(penalty, [*leaves.values()], allow_unused=True)
            return {name for name, g in zip(leaves, second, strict=True) if g is not None} - {
                *list(leaves)[:1]
            }

        assert with_gradient(case.function) == with_gradient(case.reference)

    check()


@per_case
@on_a_card_too
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by PyTorch's own formulas
def test_a_tangent_that_enters_in_a_backward_is_kept(case: OpCase) -> None:
    """Forward over reverse. A gradient is linear in the cotangent: its tangent is the tangent's gradient."""

    @settings(max_examples=5, deadline=None)
    @given(case.small_calls, seeds)
    def check(call: Call, seed: int) -> None:
        def recorded(function: Function) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
            inputs = prepare(call, case, torch.float64)
            leaves = [v for v in inputs.values() if v is not None and v.requires_grad]
            outputs = [y for y in outputs_of(function, inputs, call.options) if y.requires_grad]
            cotangents, tangents = (
                [seeded(y.shape, seed + 2 * i + k).to(y) for i, y in enumerate(outputs)] for k in (0, 1)
            )
            return outputs, leaves, cotangents, tangents

        outputs, leaves, cotangents, tangents = recorded(case.function)
        with forward_ad.dual_level():
            duals = list(map(forward_ad.make_dual, cotangents, tangents))
            gradients = torch.autograd.grad(outputs, leaves, duals, allow_unused=True)
            ours = [None if g is None else forward_ad.unpack_dual(g) for g in gradients]
        outputs, leaves, cotangents, tangents = recorded(case.reference)
        for k, vectors in enumerate((cotangents, tangents)):
            expected = torch.autograd.grad(outputs, leaves, vectors, allow_unused=True, retain_graph=k == 0)
            for dual, gradient in zip(ours, expected, strict=True):
                part = None if dual is None else dual[k]
                assert (part is None) == (gradient is None)
                if part is not None and gradient is not None:
                    torch.testing.assert_close(part, gradient, rtol=1e-9, atol=1e-12)

    check()


@per_case
@on_a_card_too
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_tangent_in_a_second_derivative_is_kept_or_refused(case: OpCase) -> None:
    if not case.twice_differentiable:
        pytest.skip("not twice differentiable")
    call = draw_example(case.small_calls)

    def duals(function: Function) -> list[Tensor | None]:
        """Values and tangents of the gradients of the gradients' squares."""
        inputs = prepare(call, case, torch.float64)
        leaves = [v for v in inputs.values() if v is not None and v.requires_grad]
        outputs = [y for y in outputs_of(function, inputs, call.options) if y.requires_grad]
        with forward_ad.dual_level():
            cotangents = [forward_ad.make_dual(torch.ones_like(y), seeded(y.shape, 1).to(y)) for y in outputs]
            slopes = torch.autograd.grad(outputs, leaves, cotangents, create_graph=True, allow_unused=True)
            squares = [(g * g).sum() for g in slopes if g is not None]
            gradients = torch.autograd.grad(
                total([*squares, *(0 * v.sum() for v in leaves)]), leaves, allow_unused=True
            )
            pairs = [forward_ad.unpack_dual(g) for g in gradients if g is not None]
            return [None if t is None else t.detach() for pair in pairs for t in pair]

    try:
        ours = duals(case.function)
    except RuntimeError as error:
        assert "a gradient has a tangent" in str(error)  # noqa: PT017
        return
    for one, other in zip(ours, duals(case.reference), strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other)


@per_case
@on_a_card_too
def test_opcheck(case: OpCase) -> None:
    """A traced graph with open sizes, which takes most of the time, for one case of a function, and for its
    forward op: the graph has the op of its backward too."""
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    traced = case.name == next(c.name for c in CASES if c.function is case.function)
    for overload, arguments in native_calls(case):
        more = ["test_aot_dispatch_dynamic"] if traced else []
        torch.library.opcheck(overload, arguments, test_utils=[*checks, *more])
        traced = False


@per_case
def test_calls_leave_no_memory_behind(case: OpCase, heap_in_use: Callable[[], int]) -> None:
    call = draw_example(case.small_calls)
    inputs = prepare(call, case, torch.float32)
    native = native_calls(case)

    def growth() -> int:
        before = heap_in_use()
        for _ in range(50):
            for overload, arguments in native:
                overload(*arguments)
            values_and_gradients(case.function, inputs, call.options, 1, torch.float32)
        return heap_in_use() - before

    # Caches fill up and other objects come and go, but not in every round.
    assert any(growth() < 50 * 32 for _ in range(5)), "a leak of one small block a call would show here"


@per_case
def test_result_does_not_depend_on_the_number_of_threads(case: OpCase) -> None:
    call = case.large_call()
    before = torch.get_num_threads()

    def bits(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        inputs = prepare(call, case, torch.float32)
        return list(values_and_gradients(case.function, inputs, call.options, 1, torch.float32).values())

    try:
        first = bits(1)
        for threads in (1, 2, 3):
            for one, other in zip(first, bits(threads), strict=True):
                if case.own_sums:
                    assert torch.equal(one, other), f"{threads} threads"
                else:
                    scale = one.abs().max().item()  # the smallest are what is left of sums of large ones
                    torch.testing.assert_close(one, other, rtol=1.3e-6, atol=1e-6 * scale)
    finally:
        torch.set_num_threads(before)


@per_case
@on_a_card_too
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_call_is_within_the_error_budget(case: OpCase, layout: str) -> None:
    for dtype in case.dtypes:
        check_call(case, case.large_call(), dtype, layout, seed=2)


@per_case
@on_a_card_too
def test_memory_format_is_kept(case: OpCase) -> None:
    if not case.keeps_format:
        pytest.skip("the output has other dimensions than x")

    def of_images(call: Call) -> bool:
        x = call.inputs["x"]
        return x is not None and x.dim() == 4 and min(x.shape) > 1

    call = draw_example(case.calls.filter(of_images))
    inputs = prepare(call, case, torch.float32, "channels_last")
    (y, *_) = outputs_of(case.function, inputs, call.options)
    assert y.stride() == torch.empty_like(y, memory_format=torch.channels_last).stride()
    y = outputs_of(case.function, prepare(call, case, torch.float32, "transposed"), call.options)[0]
    assert y.is_contiguous()


@per_case
@on_a_card_too
def test_inputs_and_their_surroundings_are_left_alone(case: OpCase) -> None:
    @settings(max_examples=10, deadline=None)
    @given(case.calls)
    def check(call: Call) -> None:
        inputs = prepare(call, case, torch.float32, "offset")
        whole = [
            torch.as_strided(v.detach(), (v.untyped_storage().size() // v.element_size(),), (1,), 0)
            for v in inputs.values()
            if v is not None
        ]
        before = [t.clone() for t in whole]
        values_and_gradients(case.function, inputs, call.options, 1, torch.float32)
        for t, b in zip(whole, before, strict=True):
            assert torch.equal(t.nan_to_num(7.0), b.nan_to_num(7.0))

    check()


@per_case
@on_a_card_too
def test_fullgraph_compile_trains(case: OpCase) -> None:
    call = draw_example(case.small_calls)
    torch._dynamo.reset()
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
    ours = values_and_gradients(compiled, prepare(call, case, torch.float32), call.options, 1, torch.float32)
    eager = values_and_gradients(
        case.function, prepare(call, case, torch.float32), call.options, 1, torch.float32
    )
    assert ours.keys() == eager.keys()
    for name in eager:
        torch.testing.assert_close(ours[name], eager[name])


@per_case
@on_a_card_too
def test_decomposed_is_the_reference(case: OpCase) -> None:
    """Bit for bit; within the budget where another form is used."""
    if not case.decomposes_to_reference:
        plain_case = dataclasses.replace(case, function=decompose()(case.function))

        @settings(max_examples=25, database=None, derandomize=True, deadline=None)
        @given(case.calls, st.sampled_from(LAYOUTS), st.integers(0, 2**31))
        def check(call: Call, layout: str, seed: int) -> None:
            check_call(plain_case, call, torch.float64, layout, seed)

        check()
        return
    call = draw_example(case.small_calls)
    with decompose():
        ours = values_and_gradients(
            case.function, prepare(call, case, torch.float64), call.options, 1, torch.float64
        )
    plain = values_and_gradients(
        case.reference, prepare(call, case, torch.float64), call.options, 1, torch.float64
    )
    assert ours.keys() == plain.keys()
    for name in plain:
        assert torch.equal(ours[name], plain[name])


def one_leaf(case: OpCase) -> tuple[Tensor, Scalar, Scalar]:
    """A scalar function of one input of a small call, by the op and by its reference."""
    call = draw_example(case.small_calls)
    inputs = prepare(call, case, torch.float64)
    name, value = next((k, v) for k, v in inputs.items() if v is not None and v.requires_grad)
    rest = {k: v.detach() if v is not None else None for k, v in inputs.items() if k != name}

    def scalar(function: Function) -> Scalar:
        return lambda leaf: total(
            (y * y).sum()
            for y in outputs_of(function, {name: leaf, **rest}, call.options)
            if y.is_floating_point()
        )

    return value.detach(), scalar(case.function), scalar(case.reference)


def penalty(scalar: Scalar) -> Scalar:
    """The gradient of ||grad f||^2, as a gradient penalty has it, by torch.func."""
    gradient: Scalar = torch.func.grad(lambda t: (torch.func.grad(scalar)(t) ** 2).sum())
    return gradient


@per_case
@on_a_card_too
def test_penalty_inside_one_compiled_graph(case: OpCase) -> None:
    if not case.twice_differentiable:
        pytest.skip("not twice differentiable")
    leaf, ours, reference = one_leaf(case)
    expected = penalty(reference)(leaf)
    torch._dynamo.reset()
    compiled = torch.compile(penalty(ours), fullgraph=True, backend="aot_eager")(leaf)
    torch.testing.assert_close(compiled, expected, rtol=1e-9, atol=1e-12)


@per_case
@on_a_card_too
def test_functional_transforms(case: OpCase) -> None:
    leaf, ours, reference = one_leaf(case)
    torch.testing.assert_close(torch.func.grad(ours)(leaf), torch.func.grad(reference)(leaf))
    batch = torch.stack([leaf, leaf * 0.5, leaf - 1])
    expected = torch.stack([reference(t) for t in batch])
    torch.testing.assert_close(torch.vmap(ours)(batch), expected)
    if case.twice_differentiable:
        torch.testing.assert_close(penalty(ours)(leaf), penalty(reference)(leaf))
