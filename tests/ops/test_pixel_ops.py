"""sample_sqnorm, pixel_norm and gated_act beyond the property suite: bad arguments, formats, limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_ext import ops

BAD: list[tuple[Any, dict[str, Any], type[Exception], tuple[str, ...]]] = [
    (ops.sample_sqnorm, {"g": torch.zeros(())}, RuntimeError, ("g has no dimensions", "[N, ...]")),
    (ops.sample_sqnorm, {"g": torch.zeros(2, dtype=torch.int64)}, RuntimeError, ("g is", "must be float64")),
    (ops.sample_sqnorm, {"g": None}, TypeError, ("g is None", "must be a tensor")),
    (ops.pixel_norm, {"x": torch.zeros(2, 3), "dim": 2}, RuntimeError, ("dim is 2", "-2 to 1")),
    (ops.pixel_norm, {"x": torch.zeros(2, 3), "dim": -3}, RuntimeError, ("dim is -3", "-2 to 1")),
    (ops.pixel_norm, {"x": torch.zeros(())}, RuntimeError, ("dim is 1", "no dimensions")),
    (ops.pixel_norm, {"x": torch.zeros(2, 3), "eps": -1.0}, RuntimeError, ("eps is -1", "at least 0")),
    (ops.pixel_norm, {"x": torch.zeros(2, 3), "eps": float("nan")}, RuntimeError, ("eps is nan", "finite")),
    (ops.pixel_norm, {"x": torch.zeros(2, 3), "eps": float("inf")}, RuntimeError, ("eps is inf", "finite")),
    (ops.pixel_norm, {"x": torch.zeros(2, 3, dtype=torch.bool)}, RuntimeError, ("x is", "must be float64")),
    (ops.pixel_norm, {"x": [1.0]}, TypeError, ("x is [1.0] (list)", "must be a tensor")),
    (ops.gated_act, {"x": torch.zeros(2, 5, 3)}, RuntimeError, ("x has shape [2, 5, 3]", "even number")),
    (ops.gated_act, {"x": torch.zeros(4)}, RuntimeError, ("x has shape [4]", "[N, C, ...]")),
    (ops.gated_act, {"x": torch.zeros(2, 4), "b": torch.zeros(2)}, RuntimeError, ("b has shape [2]", "[4]")),
    (
        ops.gated_act,
        {"x": torch.zeros(2, 4), "b": torch.zeros(4, 1)},
        RuntimeError,
        ("b has shape [4, 1]", "[4]"),
    ),
    (ops.gated_act, {"x": torch.zeros(2, 4), "b": 1.0}, TypeError, ("b is 1.0", "a tensor or None")),
    (
        ops.gated_act,
        {"x": torch.zeros(2, 4), "b": torch.zeros(4, dtype=torch.int32)},
        RuntimeError,
        ("b is int32", "must be float64"),
    ),
    (
        ops.gated_act,
        {"x": torch.zeros(2, 4), "b": torch.zeros(4, device="meta")},
        RuntimeError,
        ("b is on meta", "cpu"),
    ),
]


@pytest.mark.parametrize(("op", "arguments", "kind", "parts"), BAD)
def test_bad_argument(
    op: Any, arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as error:
        op(**arguments)
    for part in (op.__name__, *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


def test_backward_ops_check_their_arguments() -> None:
    x, native = torch.zeros(2, 4, 3), torch.ops.aigc
    for call, message in (
        (
            lambda: native.sample_dot(x, torch.zeros(2, 4)),
            r"sample_dot: b has shape \[2, 4\], but a has shape",
        ),
        (lambda: native.sample_dot(x, x.double()), "sample_dot: b is float64, but must be float32"),
        (lambda: native.sample_scale(x, torch.zeros(3)), r"sample_scale: s is float32 of shape \[3\].*\[2\]"),
        (
            lambda: native.sample_scale(x, torch.zeros(2).double()),
            "sample_scale: s is float64.*must be float32",
        ),
        (
            lambda: native.pixel_norm_backward(x[:1], x, 1, 0.1),
            r"pixel_norm_backward: dy has shape \[1, 4, 3\]",
        ),
        (lambda: native.pixel_norm_double_backward(x[:1], x, x, 1, 0.1), r"u has shape \[1, 4, 3\]"),
        (
            lambda: native.gated_act_backward(x, x, None, False),
            r"gated_act_backward: dy has shape \[2, 4, 3\]",
        ),
        (
            lambda: native.gated_act_backward(x[:, :2], x, None, True),
            "gradient of b is asked for, but b is not given",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_square_norms_of_half_types_are_float32(dtype: torch.dtype) -> None:
    g = torch.full((2, 3), 300.0, dtype=dtype, requires_grad=True)  # 300^2 is beyond float16
    result = ops.sample_sqnorm(g)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (result == 3 * g.detach().double()[0, 0] ** 2).all()
    result.sum().backward()
    assert g.grad.dtype == dtype
    assert (g.grad == 2 * g.detach()).all()


def test_a_long_sum_has_the_error_of_a_short_one() -> None:
    g = torch.full((1, 1 << 24), 0.1)  # all roundings of such a sum go the same way
    expected = g.double().square().sum()
    assert (
        abs(ops.sample_sqnorm(g).double().item() / expected.item() - 1) < 64 * torch.finfo(torch.float32).eps
    )


@pytest.mark.parametrize("size", [(2, 6, 3, 4), (2, 2, 3, 4), (3, 6, 1, 1), (2, 6, 5), (2, 6, 2, 3, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gated_act_keeps_the_memory_format(size: tuple[int, ...], channels_last: bool) -> None:
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


def test_gated_act_promotes_to_the_wider_dtype() -> None:
    x, b = torch.randn(2, 4, 3).bfloat16(), torch.randn(4)
    y = ops.gated_act(x, b)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, ops.gated_act_ref(x.float(), b))


def nonfinite_call(op: Any, value: float) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    x[1, 2, 0] = value
    return op(x), getattr(ops, f"{op.__name__}_ref")(x)


@pytest.mark.parametrize("op", [ops.sample_sqnorm, ops.pixel_norm, ops.gated_act])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_comes_out_as_in_pytorch(op: Any, value: float) -> None:
    ours, plain = nonfinite_call(op, value)
    torch.testing.assert_close(ours, plain, equal_nan=True)


def test_pixel_norm_has_unit_mean_square() -> None:
    for x in (torch.randn(3, 50, 7, 5), torch.randn(9, 64)):
        torch.testing.assert_close(ops.pixel_norm(x * 20).square().mean(1), torch.ones_like(x[:, 0]))
    assert torch.equal(ops.pixel_norm(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_bias_gradient_of_a_large_batch_is_summed_in_blocks() -> None:
    x = torch.zeros(200_000, 2)
    b = torch.zeros(2, requires_grad=True)
    ops.gated_act(x, b).backward(torch.full((200_000, 1), 1 / 3))
    assert abs(b.grad[0].item() / (200_000 / 6) - 1) < 1e-6
    assert b.grad[1] == 0


@pytest.mark.parametrize(
    ("op", "second", "message"),
    [
        ("sample_dot", torch.ones(2, 4), r"sample_dot: b has shape \[2, 4\]"),
        ("sample_dot", torch.ones(2, 3).double(), "sample_dot: b is float64, but must be float32"),
        ("sample_scale", torch.ones(3), r"sample_scale: s is .*float32 of shape \[3\].* must be"),
        ("sample_scale", torch.ones(2).double(), "sample_scale: s is .*float64"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_derivatives_of_sample_sqnorm_check_their_arguments(op, second, message, device) -> None:  # type: ignore[no-untyped-def]
    native = getattr(torch.ops.aigc, op)
    with pytest.raises(RuntimeError, match=message):
        native(torch.ones(2, 3, device=device), second.to(device))
    with pytest.raises(RuntimeError, match="meta"):
        native(
            torch.ones(2, 3),
            torch.ones(2, 3, device="meta") if op == "sample_dot" else torch.ones(2, device="meta"),
        )
