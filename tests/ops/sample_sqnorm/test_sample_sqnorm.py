"""sample_sqnorm and its derivatives beyond the property suite: bad arguments, limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aigc_ext import ops
from tests.ops.suite import check_nonfinite

BAD: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"g": torch.zeros(())}, RuntimeError, ("g has no dimensions", "[N, ...]")),
    ({"g": torch.zeros(2, dtype=torch.int64)}, RuntimeError, ("g is", "must be float64")),
    ({"g": None}, TypeError, ("g is None", "must be a tensor")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.sample_sqnorm(**arguments)
    for part in ("sample_sqnorm", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


DERIVATIVES = [
    ("sample_dot", torch.ones(2, 4), r"sample_dot: b has shape \[2, 4\], but a has shape \[2, 3\]"),
    ("sample_dot", torch.ones(2, 3).double(), "sample_dot: b is float64, but must be float32"),
    ("sample_scale", torch.ones(3), r"sample_scale: s is float32 of shape \[3\].* must be .*\[2\]"),
    ("sample_scale", torch.ones(2).double(), "sample_scale: s is float64.* must be float32"),
]


@pytest.mark.card
@pytest.mark.parametrize(("op", "second", "message"), DERIVATIVES)
def test_derivatives_check_their_arguments(op: str, second: torch.Tensor, message: str) -> None:
    first = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.aigc, op)(first, second.to(first.device))
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.aigc, op)(first.to("meta"), second.to("meta"))


@pytest.mark.parametrize(("op", "shape"), [("sample_dot", (2, 3)), ("sample_scale", (2,))])
def test_meta_tensors_among_real_ones_are_refused(op: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        getattr(torch.ops.aigc, op)(torch.ones(2, 3), torch.ones(shape, device="meta"))


@pytest.mark.card
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_square_norms_of_half_types_are_float32(dtype: torch.dtype) -> None:
    g = torch.full((2, 3), 300.0, dtype=dtype, requires_grad=True)  # 300^2 is beyond float16
    result = ops.sample_sqnorm(g)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (result == 3 * g.detach().double()[0, 0] ** 2).all()
    result.sum().backward()
    assert g.grad is not None
    assert g.grad.dtype == dtype
    assert (g.grad == 2 * g.detach()).all()


@pytest.mark.card
def test_a_long_sum_has_the_error_of_a_short_one() -> None:
    g = torch.full((1, 1 << 24), 0.1)  # all roundings of such a sum go the same way
    expected = g.double().square().sum()
    error = ops.sample_sqnorm(g).double().item() / expected.item() - 1
    assert abs(error) < 64 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_comes_out_as_in_pytorch(value: float) -> None:
    check_nonfinite(ops.sample_sqnorm, ops.sample_sqnorm_ref, value)
