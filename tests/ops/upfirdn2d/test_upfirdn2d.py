"""upfirdn2d and the functions made from it: against SciPy, bad arguments and filters, beyond the property
suite."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.signal import upfirdn
from torch import Tensor

from aigc_ext import no_weight_gradients, ops
from tests.ops.suite import case_id, seeded


def along(values: np.ndarray, f: np.ndarray, up: int, down: int, pad: tuple[int, int]) -> np.ndarray:
    """The last axis, by SciPy. It does not pad, so zero pixels are added and outputs are cut off."""
    before, after = pad
    lead = -(-max(before, 0) // up)  # whole zero pixels; the surplus after upsampling is cut off below
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(lead, len(f) + abs(after) + 1)])
    full = upfirdn(f, padded, up, 1, axis=-1)
    begin = lead * up - before + len(f) - 1  # "valid": where the filter lies inside
    size = (values.shape[-1] * up + before + after - len(f)) // down + 1
    return full[..., begin : begin + (size - 1) * down + 1 : down]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=2),
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
    st.lists(st.integers(-2, 5), min_size=4, max_size=4),
    st.lists(st.integers(1, 6), min_size=2, max_size=2),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_it_is_scipys(
    sides: list[int], factors: list[int], pads: list[int], taps: list[int], flip: bool, seed: int
) -> None:
    up, down = factors[:2], factors[2:]
    for d in range(2):  # something must be left
        short = taps[d] - sides[1 - d] * up[d] - pads[2 * d] - pads[2 * d + 1]
        pads[2 * d + 1] += max(short, 0)
    x, fy, fx = seeded((2, 3, *sides), seed), seeded((taps[1],), seed + 1), seeded((taps[0],), seed + 2)
    y = ops.upfirdn2d(x, torch.outer(fy, fx), up, down, pads, flip, gain=0.7)
    turn = slice(None, None, -1 if flip else 1)
    expected = along(x.numpy(), fx.numpy()[turn], up[0], down[0], (pads[0], pads[1]))
    expected = along(expected.swapaxes(2, 3), fy.numpy()[turn], up[1], down[1], (pads[2], pads[3])).swapaxes(
        2, 3
    )
    np.testing.assert_allclose(y.numpy(), 0.7 * expected, rtol=1e-12, atol=1e-13)


# The CPU's kernels have loops of their own for these taps and factors, which differ by how a row ends and by
# the parity of the padding: the widths lie around one and several blocks of every instruction set.
@pytest.mark.parametrize("taps", [4, 12])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wide_rows(taps: int, up: int, down: int, dtype: torch.dtype) -> None:
    f = seeded((taps,), 1).to(dtype)
    for width in (1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 131):
        x = seeded((1, 2, 9, width), width).to(dtype)
        for pad in ([taps - 1] * 4, [taps // 2, taps, taps - 2, taps], [-1, taps * 2, 3, taps]):
            y = ops.upfirdn2d(x, f, up, down, pad, gain=2)
            expected = ops.upfirdn2d_ref(x.double(), f.double(), up, down, pad, gain=2)
            wrong = (y.double() - expected).abs().max().item() if y.numel() else 0.0
            limit = taps * torch.finfo(dtype).eps * f.abs().sum().item() ** 2 * x.abs().max().item() * 2
            assert y.shape == expected.shape
            assert wrong <= limit, (width, pad, wrong, limit)


# Where the rows allow it, the output is written past the cache. The values must not show that.
@pytest.mark.parametrize(("width", "up"), [(256, 2), (264, 2), (259, 2), (512, 1), (516, 1)])
def test_a_large_output_is_that_of_its_parts(width: int, up: int) -> None:
    x, f = torch.randn(1, 16, 512 // up * 2, width), ops.setup_filter([1, 3, 3, 1])
    y = ops.upsample2d(x, f, up)
    assert (x.numel() + y.numel()) * 4 >= 32 << 20
    parts = [ops.upsample2d(part, f, up) for part in x.split(2, 1)]
    assert torch.equal(y, torch.cat(parts, 1))


X, F4 = torch.zeros(2, 3, 5, 6), torch.ones(4)
BAD = [
    ({"x": torch.zeros(3, 5, 6)}, RuntimeError, ("x has shape [3, 5, 6]", "[N, C, H, W]")),
    ({"x": torch.zeros(2, 3, 0, 6)}, RuntimeError, ("x has shape [2, 3, 0, 6]", "at least one row")),
    ({"x": X.int()}, RuntimeError, ("x is int32", "must be float")),
    ({"f": torch.ones(2, 2, 2)}, RuntimeError, ("f has shape [2, 2, 2]", "one or two dimensions")),
    ({"f": torch.ones(0)}, RuntimeError, ("f has shape [0]", "at least one tap")),
    ({"f": torch.ones(4).int()}, RuntimeError, ("f is int32", "float32")),
    (
        {"f": torch.ones(4, device="meta")},
        RuntimeError,
        ("f is on meta", "must be on cpu"),
    ),
    ({"f": [1.0]}, TypeError, ("f is [1.0] (list)", "a tensor or None")),
    ({"x": None}, TypeError, ("x is None", "must be a tensor")),
    ({"up": 0}, ValueError, ("up is 0", "from 1")),
    ({"down": [1, 0]}, ValueError, ("down is [1, 0]", "from 1")),
    ({"up": [1, 2, 3]}, ValueError, ("up is [1, 2, 3]", "2 integers")),
    ({"up": 1.5}, TypeError, ("up is 1.5", "an integer")),
    ({"padding": [1, 2, 3]}, ValueError, ("padding is [1, 2, 3]", "2 or 4")),
    ({"padding": "same"}, TypeError, ("padding is 'same'",)),
    ({"padding": [-3, -1, 0, 0]}, RuntimeError, ("along x", "padding [-3, -1]", "is 2", "4 taps")),
    ({"gain": float("nan")}, ValueError, ("gain is nan", "finite")),
    ({"gain": "1"}, TypeError, ("gain is '1'",)),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD, ids=case_id)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.upfirdn2d(**{"x": X, "f": F4, **arguments})
    for part in ("upfirdn2d", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


@pytest.mark.parametrize("arguments", [BAD[0][0], BAD[1][0], BAD[3][0], BAD[15][0]], ids=case_id)
def test_the_native_op_refuses_it_too(arguments: dict[str, Any]) -> None:
    good: dict[str, Any] = {"x": X, "f": F4, "padding": [0] * 4}
    x, f, padding = (good | arguments).values()
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match="upfirdn2d: "):
            torch.ops.aigc.upfirdn2d(x.to(device), f.to(device), 1, 1, 1, 1, *padding, False, 1.0)


def test_huge_factors_and_paddings_are_refused_before_anything_overflows() -> None:
    for arguments in ((1 << 40, 1, 1, 1, 0, 0, 0, 0), (1, 1, 1, 1, 1 << 62, 1 << 62, 0, 0)):
        with pytest.raises(RuntimeError, match="upfirdn2d: "):
            torch.ops.aigc.upfirdn2d(X, F4, *arguments, False, 1.0)


class TestSetupFilter:
    def test_none_is_one(self) -> None:
        assert torch.equal(ops.setup_filter(None), torch.ones(1, 1))

    def test_few_taps_become_an_outer_product_and_many_stay(self) -> None:
        few = ops.setup_filter([1, 3, 3, 1])
        assert few.shape == (4, 4)
        torch.testing.assert_close(few, torch.outer(*[torch.tensor([1.0, 3, 3, 1]) / 8] * 2))
        assert ops.setup_filter(range(1, 9)).shape == (8,)
        assert ops.setup_filter(range(1, 9), separable=False).shape == (8, 8)
        assert ops.setup_filter([1, 2], separable=True).shape == (2,)

    def test_options(self) -> None:
        f = [1.0, 2, 3, 4, 5, 6, 7, 8]
        assert torch.equal(ops.setup_filter(f, normalize=False), torch.tensor(f))
        assert torch.equal(ops.setup_filter(f, normalize=False, flip_filter=True), torch.tensor(f[::-1]))
        assert ops.setup_filter(f).sum().item() == pytest.approx(1)
        assert ops.setup_filter(f, gain=4).sum().item() == pytest.approx(2)  # used along both axes
        assert ops.setup_filter([1, 1], gain=4).sum().item() == pytest.approx(4)
        assert ops.setup_filter(torch.ones(3, dtype=torch.float64), device="cpu").dtype == torch.float32
        assert ops.setup_filter([1, 3, 3, 1], device="meta").shape == (4, 4)

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (([],), "f has shape [0]"),
            ((torch.ones(2, 2, 2),), "f has shape [2, 2, 2]"),
            (([1, -1],), "the sum of f is 0"),
            ((torch.ones(2, 2), None, True, False, 1, True), "f has shape [2, 2]"),
        ],
    )
    def test_bad(self, arguments: tuple[Any, ...], part: str) -> None:
        with pytest.raises(ValueError, match="setup_filter") as error:
            ops.setup_filter(*arguments)
        assert part in str(error.value)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 12])
def test_sizes_and_brightness(taps: int) -> None:
    x, f = torch.ones(1, 1, 40, 42), ops.setup_filter([1.0] * taps)
    for y, size in (
        (ops.filter2d(x, f), (40, 42)),
        (ops.upsample2d(x, f, up=2), (80, 84)),
        (ops.upsample2d(x, f, up=[3, 1]), (40, 126)),
        (ops.downsample2d(x, f, down=2), (20, 21)),
        (ops.downsample2d(x, f, down=[1, 4]), (10, 42)),
        (ops.filter2d(x, f, padding=1), (42, 44)),
    ):
        assert y.shape[2:] == size
    # away from the borders, where taps are a multiple of up
    torch.testing.assert_close(ops.filter2d(x, f)[0, 0, 20, 20].item(), 1.0)
    torch.testing.assert_close(ops.downsample2d(x, f)[0, 0, 10, 10].item(), 1.0)
    if taps % 2 == 0:
        torch.testing.assert_close(ops.upsample2d(x, f)[0, 0, 40, 41].item(), 1.0)


def test_a_filter_that_is_no_outer_product_is_not_taken_for_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 9, 9)
    f = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1]))
    for row, column in ((0, 0), (1, 2), (3, 3)):
        bent = f.clone()
        bent[row, column] += 1e-3
        torch.testing.assert_close(
            ops.upfirdn2d(x.double(), bent.double()), ops.upfirdn2d_ref(x.double(), bent.double())
        )


def test_no_weight_gradients_leaves_out_the_filters() -> None:
    x, f = torch.ones(1, 1, 5, 5, requires_grad=True), torch.ones(3, requires_grad=True)

    def gradients() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(ops.upfirdn2d(x, f).sum(), (x, f), allow_unused=True)

    assert all(g is not None for g in gradients())
    with no_weight_gradients():
        dx, df = gradients()
    assert dx is not None
    assert df is None
