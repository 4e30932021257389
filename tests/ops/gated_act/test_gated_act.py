"""gated_act beyond the property suite: bad arguments, formats, limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aigc_ext import ops
from tests.ops.suite import check_nonfinite

X = torch.zeros(2, 4)
BAD: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"x": torch.zeros(2, 5, 3)}, RuntimeError, ("x has shape [2, 5, 3]", "even number")),
    ({"x": torch.zeros(4)}, RuntimeError, ("x has shape [4]", "[N, C, ...]")),
    ({"x": X, "b": torch.zeros(2)}, RuntimeError, ("b has shape [2]", "[4]")),
    ({"x": X, "b": torch.zeros(4, 1)}, RuntimeError, ("b has shape [4, 1]", "[4]")),
    ({"x": X, "b": 1.0}, TypeError, ("b is 1.0", "a tensor or None")),
    ({"x": X, "b": torch.zeros(4, dtype=torch.int32)}, RuntimeError, ("b is int32", "must be float64")),
    ({"x": X, "b": torch.zeros(4, device="meta")}, RuntimeError, ("b is on meta", "cpu")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.gated_act(**arguments)
    for part in ("gated_act", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


@pytest.mark.card
def test_backward_ops_check_their_arguments() -> None:
    x, backward = torch.zeros(2, 4, 3), torch.ops.aigc.gated_act_backward
    with pytest.raises(RuntimeError, match=r"gated_act_backward: dy has shape \[2, 4, 3\]"):
        backward(x, x, None, False)
    with pytest.raises(RuntimeError, match="gradient of b is asked for, but b is not given"):
        backward(x[:, :2], x, None, True)


@pytest.mark.card
@pytest.mark.parametrize("size", [(2, 6, 3, 4), (2, 2, 3, 4), (3, 6, 1, 1), (2, 6, 5), (2, 6, 2, 3, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_is_kept(size: tuple[int, ...], channels_last: bool) -> None:
    x = torch.randn(size)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    y = ops.gated_act(x)
    expected = torch.empty(y.shape)
    if channels_last:
        expected = expected.movedim(1, -1).contiguous().movedim(-1, 1)
    real = [s for s, n in zip(y.stride(), y.shape, strict=True) if n > 1]
    assert real == [s for s, n in zip(expected.stride(), y.shape, strict=True) if n > 1]
    assert torch.equal(y, ops.gated_act(x.contiguous()))
    assert ops.gated_act(x.to("meta")).stride() == y.stride()


@pytest.mark.card
def test_it_promotes_to_the_wider_dtype() -> None:
    x, b = torch.randn(2, 4, 3).bfloat16(), torch.randn(4)
    y = ops.gated_act(x, b)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, ops.gated_act_ref(x.float(), b))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_comes_out_as_in_pytorch(value: float) -> None:
    check_nonfinite(ops.gated_act, ops.gated_act_ref, value)


@pytest.mark.card
def test_bias_gradient_of_a_large_batch_is_summed_in_blocks() -> None:
    x = torch.zeros(200_000, 2)
    b = torch.zeros(2, requires_grad=True)
    ops.gated_act(x, b).backward(torch.full((200_000, 1), 1 / 3))
    assert b.grad is not None
    assert abs(b.grad[0].item() / (200_000 / 6) - 1) < 1e-6
    assert b.grad[1] == 0
