"""The error budget notices errors: a suite that passes anything would say nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.suite import Call, OpCase, all_cases, check_call, seeded

CASES = {case.name: case for case in all_cases()}


def off_by(roundings: float) -> Callable[..., Tensor]:
    """pixel_norm with that many roundings too many, in random directions."""
    case = CASES["pixel_norm[images]"]

    def function(x: Tensor, **options: object) -> Tensor:
        y = case.function(x, **options)
        noise = torch.randn_like(y).sign_().mul_(roundings * torch.finfo(x.dtype).eps)
        return y * (1 + noise).detach()

    return function


@pytest.mark.parametrize(
    ("dtype", "roundings"),
    [(torch.float64, 4000), (torch.float32, 20), (torch.float16, 6), (torch.bfloat16, 6)],
    ids=str,
)
def test_the_budget_notices_a_few_roundings_too_many(dtype: torch.dtype, roundings: float) -> None:
    call = Call({"x": seeded((2, 9, 5, 5), 0)})
    exact, inexact = (
        dataclasses.replace(CASES["pixel_norm[images]"], function=off_by(n)) for n in (0, roundings)
    )
    check_call(exact, call, dtype, "contiguous", 0)
    with pytest.raises(AssertionError, match=r"output 0: .* error"):
        check_call(inexact, call, dtype, "contiguous", 0)


def test_the_budget_notices_a_gradient_that_is_missing() -> None:
    case: OpCase = CASES["bias_act[lrelu]"]

    def without_bias(b: Tensor, **arguments: object) -> Tensor:
        return case.function(b=b.detach(), **arguments)

    call = Call({"x": seeded((4, 3), 0), "b": seeded((3,), 1)})
    check_call(case, call, torch.float32, "contiguous", 0)
    with pytest.raises(AssertionError, match="instead of"):
        check_call(dataclasses.replace(case, function=without_bias), call, torch.float32, "contiguous", 0)
