"""conv3x3: bad arguments, autocast, no_weight_gradients and accuracy, beyond the property suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aigc_ext import no_weight_gradients, ops
from aigc_ext.ops.conv3x3 import has_conv3x3
from tests.ops.suite import case_id, check_budget

pytestmark = pytest.mark.skipif(
    not has_conv3x3(torch.empty(0)), reason="this backend has no kernel: conv3x3 is PyTorch's"
)

BAD = [
    ({"x": torch.zeros(3, 5, 5)}, RuntimeError, ("x has shape [3, 5, 5]", "[N, C, H, W]")),
    ({"x": torch.zeros(2, 3, 0, 5)}, RuntimeError, ("x has shape [2, 3, 0, 5]", "at least 1")),
    (
        {"x": torch.zeros(2, 4, 5, 5)},
        RuntimeError,
        ("x has shape [2, 4, 5, 5]", "3 channels", "[6, 3, 3, 3]"),
    ),
    ({"w": torch.zeros(6, 3, 3)}, RuntimeError, ("w has shape [6, 3, 3]", "3, 3]")),
    ({"w": torch.zeros(6, 3, 5, 5)}, RuntimeError, ("w has shape [6, 3, 5, 5]", "3, 3]")),
    ({"w": torch.zeros(0, 3, 3, 3)}, RuntimeError, ("w has shape [0, 3, 3, 3]",)),
    ({"padding": 3}, RuntimeError, ("padding is 3", "0, 1 or 2")),
    ({"padding": -1}, RuntimeError, ("padding is -1", "0, 1 or 2")),
    ({"x": torch.zeros(2, 3, 2, 5), "padding": 0}, RuntimeError, ("padding [0, 0]", "at least 3 high")),
    ({"w": torch.zeros(6, 3, 3, 3).double()}, RuntimeError, ("w is float64", "must be float32")),
    ({"w": torch.zeros(6, 3, 3, 3, device="meta")}, RuntimeError, ("w is on meta", "must be on cpu")),
    ({"x": torch.zeros(2, 3, 5, 5).int(), "w": torch.zeros(6, 3, 3, 3).int()}, RuntimeError, ("x is int32",)),
    ({"x": [[1.0]]}, TypeError, ("x is [[1.0]] (list)", "must be a tensor")),
    ({"w": None}, TypeError, ("w is None", "must be a tensor")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD, ids=case_id)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    good = {"x": torch.randn(2, 3, 5, 5), "w": torch.randn(6, 3, 3, 3)}
    with pytest.raises(kind) as error:
        ops.conv3x3(**{**good, **arguments})
    for part in ("conv3x3", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


@pytest.mark.parametrize("arguments", [a for a, _, _ in BAD[:9]], ids=case_id)
def test_the_fake_kernel_refuses_what_the_real_one_refuses(arguments: dict[str, Any]) -> None:
    good = {"x": torch.randn(2, 3, 5, 5), "w": torch.randn(6, 3, 3, 3), "padding": 1}
    call = {**good, **arguments}
    x, w = call["x"].to("meta"), call["w"].to("meta")
    with pytest.raises(RuntimeError, match="conv3x3: "):
        torch.ops.aigc.conv3x3(x, w, None, call["padding"], call["padding"], False)


def test_a_weight_gradient_needs_a_fitting_dy() -> None:
    with pytest.raises(
        RuntimeError, match=r"dy has shape \[2, 6, 4, 5\], but must be \[2, out_channels, 5, 5\]"
    ):
        torch.ops.aigc.conv3x3_weight_gradient(torch.zeros(2, 6, 4, 5), torch.zeros(2, 3, 5, 5), 1, 1)


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def penalty(convolve: Any, x: Tensor, w: Tensor) -> Tensor:
    y = torch.tanh(convolve(x, w)).sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    return gradient.square().sum()


def test_inside_no_weight_gradients_none_is_computed_and_the_penalty_s_is_complete() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8, 7, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    with no_weight_gradients(), Calls() as calls:
        value = penalty(ops.conv3x3, x, w)
    assert calls.names.count("aigc::conv3x3") == 2
    assert "aigc::conv3x3_weight_gradient" not in calls.names
    expected = penalty(ops.conv3x3_ref, x, w)
    torch.testing.assert_close(value, expected)
    for got, want in zip(
        torch.autograd.grad(value, (x, w)), torch.autograd.grad(expected, (x, w)), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_autocast_is_that_of_conv2d() -> None:
    x, w = torch.randn(2, 3, 5, 5), torch.randn(6, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.conv3x3(x, w).dtype == torch.bfloat16
        assert ops.conv3x3(x.double(), w.double()).dtype == torch.float64


def test_nan_reaches_its_neighbours_and_no_tile_farther() -> None:
    x, w = torch.zeros(1, 1, 12, 12), torch.ones(1, 1, 3, 3)
    x[0, 0, 5, 6] = float("nan")
    reached = ops.conv3x3(x, w)[0, 0].isnan()
    assert reached[4:7, 5:8].all()
    for farther in (reached[:3], reached[8:], reached[:, :4], reached[:, 9:]):
        assert not farther.any()


def test_sums_of_many_products_are_within_the_error_budget() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 256, 16, 16), torch.randn(32, 256, 3, 3)
    truth = F.conv2d(x.double(), w.double(), padding=1)
    ours, plain = (f(x, w, padding=1) for f in (ops.conv3x3, F.conv2d))
    check_budget(ours, plain, truth, torch.float32, "conv3x3, 2304 products")
