"""A native op and its fake kernel refuse the same calls, in the same words."""

from __future__ import annotations

import functools
import importlib
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from aigc_ext import ops
from aigc_ext.ops._apart import samples_apart
from aigc_ext.ops._gradients import flattened
from aigc_ext.ops._image_bytes import image_bytes
from aigc_ext.ops._op import NATIVES, Native, records
from tests.ops.suite import NativeCalls, case_id, native_calls

Arguments = tuple[Any, ...]

LARGE = 1 << 62  # twice as much is beyond 64 bits
MOST_CALLS = 3  # of an op, unchanged
PAIRS = 40  # calls of an op with two changes

# What only a real call can refuse: there is not enough memory.
NO_MEMORY = re.compile("cannot be allocated|allocate memory")
# What PyTorch's dispatcher refuses before it calls the op or the fake.
NO_CALL = re.compile("Expected a value of type|There were no tensor arguments")


def here(op: Native) -> bool:
    return bool(op.overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU))


per_op = pytest.mark.parametrize("op", [op for op in NATIVES.values() if here(op)], ids=lambda op: op.name)


# ---- calls -------------------------------------------------------------------------------------------------


@functools.cache
def calls_of(module: str) -> list[tuple[Any, Arguments]]:
    """Calls of the native ops that a module of aigc_ext.ops declares."""
    name = module.rpartition(".")[2]
    has_cases = (Path(__file__).parent / name / "case.py").exists()
    cases = importlib.import_module(f"tests.ops.{name}.case").CASES if has_cases else []
    found = [call for case in cases for call in native_calls(case)]
    with NativeCalls() as seen:
        for record in records():
            if record.public.__module__ == module:
                record.public(**record.arguments())
        if name == "adam_ema":
            tensors = {
                "lr": torch.tensor(1e-3),
                "found_inf": torch.zeros(()),
                "skipped": torch.zeros((), dtype=torch.int64),
            }
            arguments = next(r for r in records() if r.name == "adam_ema_").arguments()
            ops.adam_ema_(**{**arguments, **tensors})
        if name == "_image_bytes":
            image_bytes(torch.rand(2, 3, 4, 5), 0.0, 1.0)
        if name == "_apart":
            with torch.no_grad(), samples_apart():
                ops.fused_mlp(torch.randn(3, 4), [torch.randn(5, 4)], [torch.randn(5)], ["lrelu"])
    return found + seen.calls


def calls(op: Native) -> list[Arguments]:
    found = [arguments for overload, arguments in calls_of(op.module) if overload is op.overload]
    assert found, f"no test calls {op.name}"
    return found[:MOST_CALLS]


def changes(value: Any, type_: str) -> Iterator[Any]:
    """Other values for an argument of this type, most of which do not fit."""
    if isinstance(value, Tensor):
        yield from changed_tensors(value.detach())
        yield None
    elif isinstance(value, (list, tuple)):
        yield from (value[:-1], [*value, *value[:1]], [])
        for i in range(min(len(value), 2)):
            for other in changes(value[i], type_):
                yield [*value[:i], other, *value[i + 1 :]]
    elif value is None:
        yield from (torch.zeros(3), torch.zeros(())) if "Tensor" in type_ else (1.0, -1.0, float("nan"))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, -1, 0, 7, 1 << 40, LARGE + 1, -LARGE)
    elif isinstance(value, float):
        yield from (float("nan"), float("inf"), -1.0, 0.0, 2.0)
    elif isinstance(value, str):
        yield from ("?", "", "lrelu", "tanh", "tanh,tanh,tanh,tanh")


def changed_tensors(t: Tensor) -> Iterator[Tensor]:
    yield t.to("meta")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int32, torch.uint8, torch.complex64):
        if dtype != t.dtype:
            yield t.to(dtype)
    yield from (t.unsqueeze(0), t.new_zeros(()), t.new_zeros(0), t.flatten())
    if t.dim():
        yield from (t[..., :0], t[:0], t[:1].sum(0).to(t.dtype), torch.stack([t, t], -1)[..., 0])
        yield from (torch.cat([t, t[..., :1]], -1), torch.cat([t, t[:1]], 0), t[..., :-1])


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [mapped(function, item) for item in value]
    return function(value) if isinstance(value, Tensor) else value


def copied(t: Tensor) -> Tensor:
    """For ops that write to their arguments."""
    t = t.detach()
    return t if t.is_meta else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t)


def outcome(function: Callable[..., Any], arguments: Arguments) -> Any:
    """Sizes, strides (where they matter) and dtypes of a call's results, or the error."""
    try:
        with torch.no_grad():
            result = function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    results = flattened(result) if isinstance(result, tuple) else [] if result is None else [result]
    return [
        (
            tuple(t.shape),
            t.dtype,
            [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel()],
        )
        for t in results
    ]


def real_and_fake(op: Native, arguments: Arguments) -> tuple[Any, Any]:
    real = outcome(op.overload, mapped(copied, arguments))
    mode = FakeTensorMode()
    fakes = mapped(mode.from_tensor, mapped(torch.Tensor.detach, arguments))
    with mode:
        return real, outcome(op.overload, fakes)


def changed_calls(op: Native, arguments: Arguments) -> Iterator[tuple[str, int, Any]]:
    for i, (argument, value) in enumerate(zip(op.overload._schema.arguments, arguments, strict=False)):
        for other in changes(value, str(argument.type)):
            yield argument.name, i, other


# ---- properties --------------------------------------------------------------------------------------------


@per_op
def test_the_fake_kernel_refuses_what_the_op_refuses(op: Native) -> None:
    """In the same words. Where both accept, they agree on the sizes, strides and dtypes of the results."""
    for arguments in calls(op):
        assert not isinstance(real_and_fake(op, arguments)[0], str)
        for name, i, other in changed_calls(op, arguments):
            real, fake = real_and_fake(op, (*arguments[:i], other, *arguments[i + 1 :]))
            what = f"{op.name}: {name} is {case_id(other)} instead of {case_id(arguments[i])}"
            if isinstance(real, str) and NO_MEMORY.search(real):
                continue
            if isinstance(real, str) and NO_CALL.search(real):
                assert isinstance(fake, str), what
            else:
                assert fake == real, what


@per_op
def test_they_agree_on_calls_with_two_faults(op: Native) -> None:
    """Of which they may find one or the other first."""
    rng = random.Random(op.name)
    for arguments in calls(op)[:1]:
        changed = list(changed_calls(op, arguments))
        for _ in range(PAIRS):
            values, names = list(arguments), []
            for name, i, other in rng.sample(changed, 2):
                values[i] = other
                names.append(f"{name} is {case_id(other)}")
            real, fake = real_and_fake(op, tuple(values))
            if not (isinstance(real, str) and NO_MEMORY.search(real)):
                assert isinstance(real, str) == isinstance(fake, str), f"{op.name}: {names}"


@per_op
def test_a_tensor_on_another_device_is_refused(op: Native) -> None:
    """PyTorch would give a call of real tensors to the fake kernel if one of them is on the meta device, and
    return what nobody computed."""
    for arguments in calls(op):
        tensors = [t for t in flattened(arguments) if isinstance(t, Tensor)]
        for moved in tensors if len(tensors) > 1 else ():

            def elsewhere(t: Tensor, moved: Tensor = moved) -> Tensor:
                return t.detach().to("meta") if t is moved else copied(t)

            result = outcome(op.overload, mapped(elsewhere, arguments))
            assert isinstance(result, str), op.name
            assert re.search(r"\w+(\[\d+\])? is on (meta|cpu), but must be on (meta|cpu), as", result)


def on_card(mode: FakeTensorMode, t: Tensor, index: int) -> Tensor:
    """A tensor without values that says it is on that card, which need not be here."""
    with mode:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=f"cuda:{index}")


@per_op
def test_a_tensor_on_another_card_is_refused(op: Native) -> None:
    """The dispatcher compares only the kinds of device. A kernel that is given another card's memory ends in
    an illegal access."""
    mode = FakeTensorMode()
    for arguments in calls(op):
        tensors = [t for t in flattened(arguments) if isinstance(t, Tensor)]
        for other in (None, *tensors):

            def placed(t: Tensor, other: Tensor | None = other) -> Tensor:
                return on_card(mode, t, 0 if t is other else 1)

            with mode:
                result = outcome(op.overload, mapped(placed, arguments))
            if other is None or len(tensors) == 1:
                # Some of PyTorch's own functions, which a few fakes call, need a card even for fake tensors.
                assert not isinstance(result, str) or "not linked with support for cuda" in result
            else:
                cards = r"is on cuda:(\d), but must be on cuda:(\d), as \w+(\[\d+\])? is"
                found = re.search(rf"{op.name.partition('.')[0]}: \w+(\[\d+\])? {cards}", result)
                assert found, f"{op.name}: {result}"
                assert {found[2], found[3]} == {"0", "1"}


@per_op
def test_a_missing_tensor_is_named(op: Native) -> None:
    (arguments, *_) = calls(op)
    schema = op.overload._schema
    for i, argument in enumerate(schema.arguments):
        others = [t for t in flattened([*arguments[:i], *arguments[i + 1 :]]) if isinstance(t, Tensor)]
        if str(argument.type) != "Tensor" or not others:
            continue
        without = mapped(copied, (*arguments[:i], None, *arguments[i + 1 :]))
        expected = f"RuntimeError: {op.name.partition('.')[0]}: {argument.name} is None, but must be a tensor"
        assert outcome(op.overload, without) == expected
        assert outcome(op.overload, mapped(lambda t: t.detach().to("meta"), without)) == expected


# ---- sizes beyond 64 bits, and beyond memory ---------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.ops.aigc.upfirdn2d(
            x.expand(0, 1, 1 << 61, 1), None, 1, 4, 1, 1, 0, 0, 0, 0, False, 1.0
        ),
        lambda x: ops.upfirdn2d(x, None, up=1 << 16, padding=1 << 40),
        lambda x: ops.filtered_lrelu(x, None, None, up=2, down=2, padding=1 << 40),
        lambda x: torch.ops.aigc.filtered_lrelu_backward(
            *(
                x,
                x.to(torch.uint8),
                None,
                None,
                1 << 62,
                1,
                2,
                1,
                0,
                0,
                0,
                0,
                1.0,
                0.2,
                None,
                False,
                False,
                True,
            )
        ),
        lambda x: torch.ops.aigc.convolution(x, x, None, [1, 1], [1 << 62, 0], [1, 1], [0, 0], 1, False),
        lambda x: torch.ops.aigc.convolution(
            x.expand(1, 1, 4, 1), x, None, [1 << 62, 1], [0, 0], [1, 1], [0, 0], 1, True
        ),
        lambda x: torch.ops.aigc.convolution(
            *(x, x.expand(1, 1, 3, 1), None, [1, 1], [0, 0], [1 << 62, 1], [0, 0], 1, False)
        ),
    ],
)
def test_sizes_beyond_64_bits_are_refused(call: Callable[[Tensor], Tensor], device: str) -> None:
    with pytest.raises(RuntimeError, match=r"the sizes are too large: .* is more than 64 bits hold"):
        call(torch.zeros(1, 1, 1, 1, device=device))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.bias_act(x.expand(1 << 20, 1 << 20, 1 << 10)),
        lambda x: ops.linear_act(x.expand(1 << 22, 1), x.expand(1 << 22, 1)),
        lambda x: ops.conv2d_act(x.expand(1 << 30, 1, 1 << 20, 1), x.expand(1, 1, 1, 1)),
        lambda x: ops.upfirdn2d(x.expand(1, 1, 1, 1), None, padding=1 << 28),
    ],
)
def test_an_allocation_that_fails_says_what_for_and_shows_no_path(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="allocat") as error:
        call(torch.zeros(1))
    text = str(error.value)
    assert re.match("(bias_act|linear_act|convolution|upfirdn2d): ", text)
    assert "API call failed" not in text
    assert not re.search(r"csrc/|site-packages|\.h\b", text)
