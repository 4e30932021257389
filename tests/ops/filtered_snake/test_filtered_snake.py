"""filtered_snake beyond the property suite: bad arguments, the definition, ends, lengths, routes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import no_weight_gradients, ops
from aigc_ext.ops.filtered_snake import _route
from tests.ops.suite import case_id, check_nonfinite, seeded, total

X, A, F12 = torch.zeros(2, 3, 8), torch.ones(3), torch.ones(12) / 12
NATIVE = torch.ops.aigc


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"),
    [
        ({"x": torch.zeros(3, 8)}, RuntimeError, ("x has shape [3, 8]", "[N, C, L]")),
        ({"x": torch.zeros(2, 3, 0)}, RuntimeError, ("x has shape [2, 3, 0]", "at least 1")),
        ({"x": X.int()}, RuntimeError, ("x is int32", "must be float64")),
        ({"x": [1.0]}, TypeError, ("x is [1.0] (list)", "must be a tensor")),
        ({"alpha": torch.ones(4)}, RuntimeError, ("alpha has shape [4]", "[3]", "[2, 3, 8]")),
        ({"alpha": torch.ones(3, 1)}, RuntimeError, ("alpha has shape [3, 1]",)),
        ({"alpha": None}, TypeError, ("alpha is None", "must be a tensor")),
        ({"beta": torch.ones(2)}, RuntimeError, ("beta has shape [2]", "[3]")),
        ({"beta": 1.0}, TypeError, ("beta is 1.0 (float)", "a tensor or None")),
        ({"beta": A.long()}, RuntimeError, ("beta is int64",)),
        ({"fu": torch.ones(2, 2)}, RuntimeError, ("fu has shape [2, 2]", "one dimension")),
        ({"fd": torch.ones(0)}, RuntimeError, ("fd has shape [0]", "at least one tap")),
        ({"fd": F12.int()}, RuntimeError, ("fd is int32",)),
        ({"fd": None}, TypeError, ("fd is None",)),
        ({"fu": F12.to("meta")}, RuntimeError, ("fu is on meta", "cpu")),
    ],
    ids=case_id,
)
@pytest.mark.parametrize("composed", [False, True])
def test_bad_argument(
    arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...], composed: bool
) -> None:
    taps = 129 if composed and not {"fu", "fd"} & set(arguments) else 12
    with pytest.raises(kind) as error:
        ops.filtered_snake(**{"x": X, "alpha": A, "fu": torch.ones(taps), "fd": F12, **arguments})
    for part in ("filtered_snake", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


@pytest.mark.card
def test_native_ops_check_their_arguments() -> None:
    x, a, f = torch.zeros(2, 3, 8), torch.ones(3), torch.ones(12)
    with pytest.raises(RuntimeError, match=r"filtered_snake: fu has shape \[129\].* 1 to 128 taps"):
        NATIVE.filtered_snake(x, a, None, torch.ones(129), f)
    with pytest.raises(RuntimeError, match="filtered_snake: alpha is bfloat16, but must be float32"):
        NATIVE.filtered_snake(x.bfloat16(), a.bfloat16(), None, f, f)
    with pytest.raises(RuntimeError, match=r"filtered_snake_backward: dy has shape \[1, 3, 8\]"):
        NATIVE.filtered_snake_backward(x[:1], x, a, None, f, f, True)
    with pytest.raises(RuntimeError, match=r"double_backward: v has shape \[2, 3, 7\]"):
        NATIVE.filtered_snake_double_backward(x[..., 1:], None, None, x, x, a, None, f, f, True)
    with pytest.raises(RuntimeError, match=r"double_backward: w_alpha has shape \[2\]"):
        NATIVE.filtered_snake_double_backward(x, a[1:], None, x, x, a, None, f, f, True)
    with pytest.raises(RuntimeError, match="w_beta is a tensor, but must be None, as beta is"):
        NATIVE.filtered_snake_double_backward(x, a, a, x, x, a, None, f, f, True)


# ---- the definition ----------------------------------------------------------------------------------------


def by_the_sums(x: Tensor, alpha: Tensor, fu: Tensor, fd: Tensor, beta: Tensor | None) -> Tensor:
    """The two sums of the docstring, number by number."""
    length = x.size(2)
    pu, pd = (fu.numel() - 1) // 2, fd.numel() // 2

    def value(signal: Tensor, i: int) -> Tensor:
        return signal[..., min(max(i, 0), signal.size(-1) - 1)]

    z = torch.zeros(*x.shape[:2], 2 * length, dtype=x.dtype)
    for j in range(2 * length):
        for k in range(fu.numel()):
            if (j + pu - k) % 2 == 0:
                z[..., j] += 2 * fu[k] * value(x, (j + pu - k) // 2)
    divisor = alpha if beta is None else beta
    t = z + (alpha[:, None] * z).sin().square() / divisor[:, None]
    y = torch.zeros_like(x)
    for i in range(length):
        for k in range(fd.numel()):
            y[..., i] += fd[k] * value(t, 2 * i + pd - k)
    return y


@pytest.mark.parametrize("function", [ops.filtered_snake, ops.filtered_snake_ref])
@pytest.mark.parametrize("has_beta", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 19])
def test_it_is_what_the_docstring_says(function: Any, has_beta: bool, length: int) -> None:
    for taps_u, taps_d in ((12, 12), (1, 1), (2, 5), (7, 4), (31, 12)):
        x, alpha = seeded((1, 2, length), 1), seeded((2,), 2)
        fu, fd = seeded((taps_u,), 3), seeded((taps_d,), 4)
        beta = seeded((2,), 5) if has_beta else None
        got, expected = function(x, alpha, fu, fd, beta), by_the_sums(x, alpha, fu, fd, beta)
        torch.testing.assert_close(got.to("cpu"), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.card
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_convolutions_that_a_user_writes(dtype: torch.dtype) -> None:
    x, alpha = torch.randn(2, 3, 100, dtype=dtype), torch.rand(3, dtype=dtype) + 0.5
    f = torch.rand(12, dtype=dtype) - 0.3
    f = f + f.flip(0)
    weight = f.expand(3, 1, 12)
    z = F.pad(x, (5, 5), mode="replicate")
    z = 2 * F.conv_transpose1d(z, weight, stride=2, groups=3)[..., 15:-15]
    t = z + (alpha[:, None] * z).sin().square() / alpha[:, None]
    y = F.conv1d(F.pad(t, (5, 6), mode="replicate"), weight, stride=2, groups=3)
    torch.testing.assert_close(ops.filtered_snake(x, alpha, f, f), y)


@pytest.mark.card
def test_a_constant_stays_one_to_the_ends() -> None:
    f = torch.hann_window(14, periodic=False, dtype=torch.float64)[1:-1]
    f = f / f.sum()
    x = torch.tensor([0.7, -2.0], dtype=torch.float64)[:, None].expand(1, 2, 30)
    alpha, beta = torch.tensor([1.5, 0.0], dtype=torch.float64), torch.tensor([2.0, 1.0], dtype=torch.float64)
    expected = x + (alpha[:, None] * x).sin().square() / beta[:, None]
    torch.testing.assert_close(ops.filtered_snake(x, alpha, f, f, beta), expected)


@pytest.mark.card
def test_nothing_folds_back_into_the_band() -> None:
    """Of a tone of 0.3 cycles an element the sine's square makes one of 0.6, which would fold to 0.4."""
    x = (2 * math.pi * 0.3 * torch.arange(1000, dtype=torch.float64)).cos()[None, None]
    alpha, time = torch.ones(1, dtype=torch.float64), torch.arange(64, dtype=torch.float64) - 31.5
    f = torch.kaiser_window(64, periodic=False, beta=6.0, dtype=torch.float64) * torch.sinc(time / 2)
    f = f / f.sum()

    def folded(y: Tensor) -> float:
        spectrum = torch.fft.rfft(y[0, 0, 50:-50] * torch.hann_window(900, dtype=torch.float64)).abs()
        return float(spectrum[350:370].max())  # 360 of 900

    assert folded(ops.filtered_snake(x, alpha, f, f)) < 0.01 * folded(ops.snake(x, alpha))


# ---- parameters --------------------------------------------------------------------------------------------


@pytest.mark.card
@pytest.mark.parametrize("has_beta", [False, True])
def test_a_logarithmic_scale_is_that_of_the_logarithms(has_beta: bool) -> None:
    x, f = seeded((2, 3, 20), 1), seeded((12,), 2)
    logs = [seeded((3,), 3 + i).requires_grad_() for i in range(2 if has_beta else 1)]
    numbers = [t.detach().exp().requires_grad_() for t in logs]
    y = ops.filtered_snake(x, logs[0], f, f, logs[1] if has_beta else None, log_scale=True)
    plain = ops.filtered_snake(x, numbers[0], f, f, numbers[1] if has_beta else None)
    assert torch.equal(y, plain)
    of_logs = torch.autograd.grad(y.sum(), logs)
    for of_log, of_number, number in zip(
        of_logs, torch.autograd.grad(plain.sum(), numbers), numbers, strict=True
    ):
        torch.testing.assert_close(of_log, of_number * number.detach())


@pytest.mark.card
def test_parameters_of_a_half_type_are_computed_with_in_float32() -> None:
    x, f = torch.randn(2, 3, 40).bfloat16(), torch.rand(12) / 6
    alpha = torch.rand(3).bfloat16().requires_grad_()
    y = ops.filtered_snake(x, alpha, f, f)
    assert y.dtype == torch.bfloat16
    (dalpha,) = torch.autograd.grad(y.float().sum(), alpha)
    assert dalpha.dtype == torch.bfloat16
    wide = alpha.detach().float().requires_grad_()
    expected = ops.filtered_snake(x.float(), wide, f, f)
    torch.testing.assert_close(y, expected.bfloat16())
    torch.testing.assert_close(
        dalpha, torch.autograd.grad(expected.sum(), wide)[0].bfloat16(), rtol=0.02, atol=1e-3
    )
    assert ops.filtered_snake(x, wide, f, f).dtype == torch.float32  # the wider one


@pytest.mark.card
def test_no_weight_gradients_leaves_the_parameters_out() -> None:
    x, f = torch.randn(2, 3, 9, requires_grad=True), torch.rand(12)
    alpha, beta = (torch.ones(3, requires_grad=True) for _ in range(2))
    y = ops.filtered_snake(x, alpha, f, f, beta)
    with no_weight_gradients():
        dx, dalpha, dbeta = torch.autograd.grad(
            y.sum(), (x, alpha, beta), create_graph=True, allow_unused=True
        )
    assert dalpha is None
    assert dbeta is None
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(dx.square().sum(), (x, alpha, beta)))


@pytest.mark.card
@pytest.mark.parametrize("which", ["alpha", "beta"])
def test_a_penalty_on_the_gradient_of_one_parameter(which: str) -> None:
    results = []
    for function in (ops.filtered_snake, ops.filtered_snake_ref):
        x, fu, fd = seeded((2, 3, 9), 1).requires_grad_(), seeded((5,), 2), seeded((12,), 3)
        parameters: dict[str, Any] = {
            k: seeded((3,), i).exp().requires_grad_() for i, k in enumerate(("alpha", "beta"))
        }
        y = function(x, fu=fu, fd=fd, **parameters)
        (slope,) = torch.autograd.grad(y.square().sum(), parameters[which], create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), (x, *parameters.values())))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("has_beta", [False, True])
def test_one_number_that_is_not_finite(value: float, has_beta: bool) -> None:
    alpha, f = torch.tensor([1.0, 0.0, -2.0, 0.3]), torch.tensor([0.1, 0.4, 0.4, 0.1])
    beta = torch.tensor([1.0, 2.0, -0.5, 0.3]) if has_beta else None
    check_nonfinite(
        lambda x: ops.filtered_snake(x, alpha, f, f, beta),
        lambda x: ops.filtered_snake_ref(x, alpha, f, f, beta),
        value,
    )


@pytest.mark.card
@pytest.mark.parametrize("has_beta", [False, True])
def test_it_only_filters_where_alpha_x_overflows(has_beta: bool) -> None:
    most, f = torch.finfo(torch.float32).max, torch.tensor([0.5, 0.5])
    x = torch.full((1, 2, 37), most / 4, requires_grad=True)
    alpha = torch.tensor([1e10, -8.0], requires_grad=True)
    beta = torch.tensor([1e-3, 2.0], requires_grad=True) if has_beta else None
    y = ops.filtered_snake(x, alpha, f, f, beta)
    assert torch.equal(y, x)
    leaves = [t for t in (x, alpha, beta) if t is not None]
    dx, *of_parameters = torch.autograd.grad(y, leaves, torch.ones_like(y))
    torch.testing.assert_close(dx, torch.ones_like(x))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in of_parameters)


# ---- lengths, formats, routes ------------------------------------------------------------------------------


def to_second_order(function: Any, tensors: dict[str, Tensor]) -> list[Tensor]:
    leaves = {k: t.clone().requires_grad_() for k, t in tensors.items() if k not in ("fu", "fd")}
    y = function(**{**tensors, **leaves})
    cotangent = seeded(y.shape, 90).to(y).requires_grad_()
    slopes = torch.autograd.grad(y, [*leaves.values()], cotangent, create_graph=True)
    value = total((s * seeded(s.shape, 91 + i).to(s)).sum() for i, s in enumerate(slopes))
    return [y, *slopes, *torch.autograd.grad(value, [cotangent, *leaves.values()])]


@pytest.mark.card
@pytest.mark.parametrize("length", [511, 513, 1023, 1026, 2050])
@pytest.mark.parametrize("taps", [(12, 12), (31, 6), (127, 128)])
def test_segments_meet(length: int, taps: tuple[int, int]) -> None:
    """Signals are cut into segments, of 1024 on the CPU and 512 on a GPU. The last one may be shorter than
    what the filters of the one before it reach."""
    tensors = {"x": seeded((1, 2, length), 1), "alpha": seeded((2,), 2), "beta": seeded((2,), 3).exp()}
    tensors |= {"fu": seeded((taps[0],), 4) / taps[0], "fd": seeded((taps[1],), 5) / taps[1]}
    ours, plain = (to_second_order(f, tensors) for f in (ops.filtered_snake, ops.filtered_snake_ref))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.card
@pytest.mark.parametrize("taps", [12, 130])
def test_channels_last_is_kept(taps: int) -> None:
    f = seeded((taps,), 1) / taps**0.5
    tensors = {"x": seeded((2, 5, 30), 2), "alpha": seeded((5,), 3), "fu": f, "fd": f}
    last = {**tensors, "x": tensors["x"].transpose(1, 2).contiguous().transpose(1, 2)}
    ours, contiguous = (to_second_order(ops.filtered_snake, t) for t in (last, tensors))
    assert ours[0].stride() == last["x"].stride()
    assert contiguous[0].is_contiguous()
    for a, b in zip(ours, contiguous, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.card
def test_the_filters_have_gradients_by_the_composition() -> None:
    results = []
    for function in (ops.filtered_snake, ops.filtered_snake_ref):
        x, alpha = seeded((2, 3, 15), 1).requires_grad_(), seeded((3,), 2).requires_grad_()
        fu, fd = seeded((5,), 3).requires_grad_(), seeded((4,), 4).requires_grad_()
        y = function(x, alpha, fu, fd)
        slopes = torch.autograd.grad(y.square().sum(), (x, alpha, fu, fd), create_graph=True)
        second = torch.autograd.grad(total(s.square().sum() for s in slopes), (x, alpha, fu, fd))
        results.append((y, *slopes, *second))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_routes() -> None:
    f = torch.ones(12)
    assert _route(f, f).kernel == "one pass"
    assert _route(torch.ones(128), f).kernel == "one pass"
    assert _route(f, torch.ones(129)).kernel == "composition"
    assert _route(f.clone().requires_grad_(), f).kernel == "composition"
    with torch.no_grad():
        assert _route(f.clone().requires_grad_(), f).kernel == "one pass"


def test_the_native_op_has_no_gradient_of_a_filter() -> None:
    x, alpha, f = torch.randn(1, 3, 8), torch.ones(3), torch.ones(12, requires_grad=True)
    with pytest.raises(RuntimeError, match="filtered_snake: there is no gradient with respect to fu, fd"):
        NATIVE.filtered_snake(x, alpha, None, f, f).sum().backward()
