"""snake beyond the property suite: bad arguments, alpha = 0, limits."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

from aigc_ext import no_weight_gradients, ops
from tests.ops.suite import DTYPES, check_nonfinite

X = torch.zeros(2, 3, 4)
INF, NAN = float("inf"), float("nan")
BAD: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"alpha": torch.zeros(4)}, RuntimeError, ("alpha has shape [4]", "[3]", "[2, 3, 4]", "dim 1")),
    ({"alpha": torch.zeros(3), "dim": -1}, RuntimeError, ("alpha has shape [3]", "[4]", "dim 2")),
    ({"alpha": torch.zeros(3, 1)}, RuntimeError, ("alpha has shape [3, 1]", "[3]")),
    ({"alpha": torch.zeros(())}, RuntimeError, ("alpha has shape []", "[3]")),
    ({"alpha": torch.zeros(3), "dim": 3}, RuntimeError, ("dim is 3", "-3 to 2")),
    ({"x": torch.zeros(()), "alpha": torch.zeros(1)}, RuntimeError, ("dim is 1", "no dimensions")),
    ({"alpha": 1.0}, TypeError, ("alpha is 1.0 (float)", "must be a tensor")),
    ({"x": [1.0], "alpha": torch.zeros(3)}, TypeError, ("x is [1.0] (list)", "must be a tensor")),
    ({"alpha": None}, TypeError, ("alpha is None", "must be a tensor")),
    ({"alpha": torch.zeros(3, dtype=torch.int32)}, RuntimeError, ("alpha is int32", "must be float64")),
    ({"alpha": torch.zeros(3, device="meta")}, RuntimeError, ("alpha is on meta", "cpu")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.snake(**{"x": X, **arguments})
    for part in ("snake", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


@pytest.mark.card
def test_backward_ops_check_their_arguments() -> None:
    native, alpha = torch.ops.aigc, torch.ones(3)
    with pytest.raises(RuntimeError, match=r"snake_backward: dy has shape \[1, 3, 4\]"):
        native.snake_backward(X[:1], X, alpha, 1, True)
    with pytest.raises(RuntimeError, match="snake_backward: dy is float64, but must be float32"):
        native.snake_backward(X.double(), X, alpha, 1, True)
    with pytest.raises(RuntimeError, match=r"snake_double_backward: v has shape \[1, 3, 4\]"):
        native.snake_double_backward(X[:1], None, X, X, alpha, 1, True)
    with pytest.raises(RuntimeError, match=r"snake_double_backward: w has shape \[2\]"):
        native.snake_double_backward(X, alpha[:2], X, X, alpha, 1, True)


# ---- values ------------------------------------------------------------------------------------------------


def exactly(x: float, alpha: float) -> list[float]:
    """y, dy/dx, dy/dalpha and the second derivatives by the textbook formula, in more digits than cancel."""
    with mpmath.workdps(250):
        if alpha == 0:
            return [x, 1.0, x * x, 0.0, 2 * x, 0.0]
        u = mpmath.mpf(alpha) * x
        s, s2, c2 = mpmath.sin(u) ** 2, mpmath.sin(2 * u), mpmath.cos(2 * u)
        values = [
            x + s / alpha,
            1 + s2,
            x * s2 / alpha - s / mpmath.mpf(alpha) ** 2,
            2 * alpha * c2,
            2 * x * c2,
            2 * x**2 * c2 / alpha - 2 * x * s2 / mpmath.mpf(alpha) ** 2 + 2 * s / mpmath.mpf(alpha) ** 3,
        ]
        return [float(v) for v in values]


def derivatives(x: Tensor, alpha: Tensor) -> list[Tensor]:
    """The same of ``snake(x, alpha)`` element by element."""
    x, alpha = x.clone().requires_grad_(), alpha.clone().requires_grad_()
    y = ops.snake(x, alpha, dim=0)
    of_x, of_alpha = torch.autograd.grad(y.sum(), (x, alpha), create_graph=True)
    xx, mixed = torch.autograd.grad(of_x.sum(), (x, alpha), retain_graph=True)
    also_mixed, aa = torch.autograd.grad(of_alpha.sum(), (x, alpha))
    torch.testing.assert_close(mixed, also_mixed)
    return [t.detach() for t in (y, of_x, of_alpha, xx, mixed, aa)]


@pytest.mark.card
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("x", [1.0, -3.0, 1e4])
def test_nothing_cancels_next_to_alpha_zero(x: float, dtype: torch.dtype) -> None:
    sizes = [0.0, *(10.0**e for e in range(-30, 0, 2)), 0.1, 0.3]  # of u: no derivative is 0 but at 0
    alpha = torch.tensor([sign * size / abs(x) for size in sizes for sign in (1, -1)], dtype=dtype)
    got = derivatives(torch.full_like(alpha, x), alpha)
    for i, a in enumerate(alpha.tolist()):
        for t, expected in zip(got, exactly(x, a), strict=True):
            error = abs(t[i].item() - expected)
            assert error <= 8 * torch.finfo(dtype).eps * abs(expected), (a, t[i].item(), expected)


@pytest.mark.card
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_zero_is_the_identity(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 37).to(dtype).requires_grad_()
    alpha = torch.zeros(3, dtype=dtype, requires_grad=True)
    y = ops.snake(x, alpha)
    assert torch.equal(y, x)
    dx, dalpha = torch.autograd.grad(y, (x, alpha), torch.ones_like(y))
    assert torch.equal(dx, torch.ones_like(x))
    torch.testing.assert_close(dalpha, x.detach().double().square().sum((0, 2)).to(dtype))


@pytest.mark.parametrize("function", [ops.snake, ops.snake_ref])
def test_gradcheck_at_alpha_zero(function: Any) -> None:
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    for alpha in (torch.zeros(3), torch.tensor([0.0, 1e-5, -1e-9])):
        leaves = (x, alpha.double().requires_grad_())
        torch.autograd.gradcheck(function, leaves)
        torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.card
def test_the_third_derivative_at_alpha_zero() -> None:
    x, alpha = torch.tensor([2.0]).double(), torch.zeros(1).double().requires_grad_()
    value = ops.snake(x, alpha, 0)
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sum(), alpha, create_graph=True)
    assert value.item() == pytest.approx(-2 * 2.0**4)  # x + alpha x^2 - alpha^3 x^4 / 3 + ...


@pytest.mark.card
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_arguments_keep_their_digits(dtype: torch.dtype) -> None:
    """Where the vectors' sine ends and the C library's begins, and beyond; alpha = 1, so that alpha*x is
    exact."""
    x = torch.cat([torch.linspace(0.99, 1.01, 50) * 2.0**e for e in (0, 10, 17, 20, 30, 100)]).to(dtype)
    x = torch.cat([x, -x])
    got = derivatives(x, torch.ones_like(x))
    for i, value in enumerate(x.tolist()):
        y, of_x, of_alpha, xx, mixed, aa = exactly(value, 1.0)
        eps, size = 8 * torch.finfo(dtype).eps, max(abs(value), 1)
        if size**2 > torch.finfo(dtype).max:
            size, aa = 1.0, 0.0  # the derivative itself overflows
            got[5][i] = 0
        sizes = (size, 1, size, 2, size, size**2)
        for t, expected, scale in zip(got, (y, of_x, of_alpha, xx, mixed, aa), sizes, strict=True):
            assert abs(t[i].item() - expected) <= eps * max(scale, abs(expected)), (value, t[i], expected)


def value_and_gradients(function: Any, *inputs: Tensor, dim: int = 1) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    y = function(*leaves, dim)
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


@pytest.mark.card
@pytest.mark.parametrize("function", [ops.snake, ops.snake_ref])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_identity_where_alpha_x_overflows(function: Any, dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    for x, alpha in ((most, 1e10), (-most, -4.0), (most / 2, most), (1e30, most)):
        at = torch.full((21,), x, dtype=dtype)
        y, dx, dalpha = value_and_gradients(function, at, torch.full_like(at, alpha), dim=0)
        assert torch.equal(y, at)
        assert torch.equal(dx, torch.ones_like(at))
        assert torch.equal(dalpha, torch.zeros_like(at))


@pytest.mark.card
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [0.0, 1.5, INF, -INF, NAN])
@pytest.mark.parametrize("alpha", [0.0, 1.5, INF, -INF, NAN])
def test_what_is_not_finite_comes_out_as_in_pytorch(x: float, alpha: float, dtype: torch.dtype) -> None:
    for size in (1, 37):
        at = torch.full((size, 2), 0.5, dtype=dtype)
        at[size // 2, 1] = x
        alphas = torch.tensor([1.0, alpha], dtype=dtype)
        ours, plain = (value_and_gradients(f, at, alphas) for f in (ops.snake, ops.snake_ref))
        # With an infinite alpha, PyTorch's gradient of x is NaN, by 0 * infinity; ours is its mean, 1.
        for a, b in zip(ours[: 1 if abs(alpha) == INF else 3], plain, strict=False):
            torch.testing.assert_close(a, b, equal_nan=True, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_number_that_is_not_finite(value: float) -> None:
    alpha = torch.tensor([1.0, 0.0, -2.0, 0.3])
    check_nonfinite(lambda x: ops.snake(x, alpha), lambda x: ops.snake_ref(x, alpha), value)


# ---- shapes and dtypes -------------------------------------------------------------------------------------


@pytest.mark.card
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_dim(dim: int, channels_last: bool) -> None:
    x = torch.randn(3, 5, 4, 7, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    alpha = torch.randn(x.size(dim), dtype=torch.float64)
    y = ops.snake(x, alpha, dim)
    assert y.stride() == x.stride()
    expected = ops.snake(x.movedim(dim, 1).contiguous(), alpha).movedim(1, dim)
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=0)


@pytest.mark.card
def test_one_channel_of_a_long_signal_is_cut_into_segments() -> None:
    x = torch.randn(3, 1, 100_003, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    for ours, plain in zip(
        torch.autograd.grad(ops.snake(x, alpha).sum(), (x, alpha)),
        torch.autograd.grad(ops.snake_ref(x, alpha).sum(), (x, alpha)),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.card
@pytest.mark.parametrize("wide_alpha", [True, False])
def test_it_promotes_to_the_wider_dtype(wide_alpha: bool) -> None:
    x, alpha = torch.randn(2, 4, 3), torch.randn(4)
    x, alpha = (x.bfloat16(), alpha) if wide_alpha else (x, alpha.bfloat16())
    y, *gradients = value_and_gradients(ops.snake, x, alpha)
    plain_y, *plain = value_and_gradients(ops.snake_ref, x.float(), alpha.float())
    assert y.dtype == ops.snake_ref(x, alpha).dtype == torch.float32
    torch.testing.assert_close(y, plain_y)
    for t, ours, expected in zip((x, alpha), gradients, plain, strict=True):
        assert ours.dtype == t.dtype
        torch.testing.assert_close(ours, expected.to(t.dtype))


@pytest.mark.card
def test_a_penalty_on_the_gradient_of_alpha_alone() -> None:
    results = []
    for function in (ops.snake, ops.snake_ref):
        x = torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(2, 3, 5).requires_grad_()
        alpha = torch.tensor([0.0, 0.5, -2.0], dtype=torch.float64, requires_grad=True)
        (dalpha,) = torch.autograd.grad(function(x, alpha).sum(), alpha, create_graph=True)
        results.append(torch.autograd.grad(dalpha.square().sum(), (x, alpha)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.card
def test_no_weight_gradients_leaves_alpha_out() -> None:
    x, alpha = torch.randn(2, 3, 5, requires_grad=True), torch.ones(3, requires_grad=True)
    y = ops.snake(x, alpha)
    with no_weight_gradients():
        dx, dalpha = torch.autograd.grad(y.sum(), (x, alpha), create_graph=True, allow_unused=True)
    assert dalpha is None
    of_x, of_alpha = torch.autograd.grad(dx.square().sum(), (x, alpha))
    assert of_x.abs().sum() > 0
    assert of_alpha.abs().sum() > 0


@pytest.mark.card
def test_alpha_gradient_of_a_large_batch_is_summed_in_blocks() -> None:
    for shape in ((200_000, 2), (1, 2, 200_000)):
        x = torch.full(shape, 1 / 3)
        alpha = torch.zeros(2, requires_grad=True)
        ops.snake(x, alpha).sum().backward()
        assert alpha.grad is not None
        assert (alpha.grad / (200_000 / 9) - 1).abs().max() < 1e-6
