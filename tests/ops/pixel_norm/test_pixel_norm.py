"""pixel_norm beyond the property suite: bad arguments, limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aigc_ext import ops
from tests.ops.suite import check_nonfinite

BAD: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"x": torch.zeros(2, 3), "dim": 2}, RuntimeError, ("dim is 2", "-2 to 1")),
    ({"x": torch.zeros(2, 3), "dim": -3}, RuntimeError, ("dim is -3", "-2 to 1")),
    ({"x": torch.zeros(())}, RuntimeError, ("dim is 1", "no dimensions")),
    ({"x": torch.zeros(2, 3), "eps": -1.0}, RuntimeError, ("eps is -1", "at least 0")),
    ({"x": torch.zeros(2, 3), "eps": float("nan")}, RuntimeError, ("eps is nan", "finite")),
    ({"x": torch.zeros(2, 3), "eps": float("inf")}, RuntimeError, ("eps is inf", "finite")),
    ({"x": torch.zeros(2, 3, dtype=torch.bool)}, RuntimeError, ("x is", "must be float64")),
    ({"x": [1.0]}, TypeError, ("x is [1.0] (list)", "must be a tensor")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.pixel_norm(**arguments)
    for part in ("pixel_norm", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


@pytest.mark.card
def test_backward_ops_check_their_arguments() -> None:
    x, native = torch.zeros(2, 4, 3), torch.ops.aigc
    with pytest.raises(RuntimeError, match=r"pixel_norm_backward: dy has shape \[1, 4, 3\]"):
        native.pixel_norm_backward(x[:1], x, 1, 0.1)
    with pytest.raises(RuntimeError, match=r"pixel_norm_double_backward: u has shape \[1, 4, 3\]"):
        native.pixel_norm_double_backward(x[:1], x, x, 1, 0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_comes_out_as_in_pytorch(value: float) -> None:
    check_nonfinite(ops.pixel_norm, ops.pixel_norm_ref, value)


@pytest.mark.card
def test_it_has_unit_mean_square() -> None:
    for x in (torch.randn(3, 50, 7, 5), torch.randn(9, 64)):
        torch.testing.assert_close(ops.pixel_norm(x * 20).square().mean(1), torch.ones_like(x[:, 0]))
    assert torch.equal(ops.pixel_norm(torch.zeros(2, 5)), torch.zeros(2, 5))
