"""modulated_conv2d, conv2d_resample and filtered_lrelu: bad arguments, and what half types must survive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from aigc_ext import decompose, ops
from tests.ops.suite import case_id

Form = Callable[[], AbstractContextManager[None]]
forms = pytest.mark.parametrize("form", [nullcontext, decompose])

X, W, S = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 3, 3), torch.ones(2, 3)
MODULATED = [
    ({"x": torch.zeros(3, 8, 8)}, RuntimeError, ("x has shape [3, 8, 8]",)),
    ({"w": torch.zeros(5, 4, 3, 3)}, RuntimeError, ("w [5, 4, 3, 3]",)),
    ({"s": torch.ones(2, 4)}, RuntimeError, ("s has shape [2, 4]", "[2, 3]")),
    ({"b": torch.zeros(3)}, RuntimeError, ("b has shape [3]", "[5]")),
    ({"noise": torch.zeros(2, 1, 8, 8)}, ValueError, ("noise is given, but strength is None",)),
    ({"strength": torch.zeros(())}, ValueError, ("strength is given, but noise is None",)),
    ({"s": None}, TypeError, ("s is None", "must be a tensor")),
    ({"b": 1.0}, TypeError, ("b is 1.0", "a tensor or None")),
    ({"act": "gelu"}, ValueError, ("act is 'gelu'",)),
    ({"up": 0}, ValueError, ("up is 0", "at least 1")),
    ({"up": 1.5}, TypeError, ("up is 1.5",)),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), MODULATED, ids=case_id)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.modulated_conv2d(**{"x": X, "w": W, "s": S, "padding": 1, **arguments})
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"),
    [
        ({"x": torch.zeros(3, 8, 8)}, RuntimeError, ("filtered_lrelu: x has shape [3, 8, 8]",)),
        ({"b": torch.zeros(4)}, RuntimeError, ("b has shape [4]", "[3]")),
        ({"fu": torch.zeros(0)}, RuntimeError, ("f has shape [0]",)),
        ({"fd": 1.0}, TypeError, ("fd is 1.0",)),
        ({"clamp": -1.0}, ValueError, ("clamp is -1.0",)),
        ({"padding": [1, 2, 3]}, ValueError, ("padding is [1, 2, 3]",)),
    ],
    ids=case_id,
)
def test_bad_argument_of_filtered_lrelu(
    arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as error:
        ops.filtered_lrelu(**{"x": X, **arguments})
    for part in parts:
        assert part in str(error.value)


@pytest.mark.card
@forms
@pytest.mark.parametrize("demodulate", [True, False])
def test_large_weights_and_styles_do_not_overflow_in_half_precision(form: Form, demodulate: bool) -> None:
    torch.manual_seed(0)
    x, w, s = torch.randn(2, 32, 8, 8), torch.randn(16, 32, 3, 3) * 1e3, torch.randn(2, 32) * 1e3
    with form():
        y = ops.modulated_conv2d(x.half(), w, s, padding=1, demodulate=demodulate)
    expected = ops.modulated_conv2d_ref(x.double(), w, s, padding=1, demodulate=demodulate)
    if demodulate:
        torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)
    else:  # which are themselves beyond what the type holds
        assert (y.isinf() == (expected.abs() > 65504)).all()


@forms
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_input_gain_may_be_a_tensor(form: Form, samples: int, kernel: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    x, w, s = torch.randn(samples, 4, 6, 6), torch.randn(5, 4, kernel, kernel), torch.randn(samples, 4)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for input_gain in (torch.tensor(0.3), torch.rand(4), torch.rand(samples, 4)):
        call = (x, w, s)
        options: dict[str, Any] = {"padding": kernel // 2, "normalize": True, "input_gain": input_gain}
        with form():
            y = ops.modulated_conv2d(*call, **options)
        torch.testing.assert_close(y, ops.modulated_conv2d_ref(*call, **options))
