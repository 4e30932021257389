"""filtered_lrelu beyond the property suite: bad arguments, which path runs, and the bits that are kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from aigc_ext import ops
from aigc_ext.ops.filtered_lrelu import _composed, _one_pass, _route
from tests.ops.suite import case_id, seeded

X, F4 = torch.zeros(2, 3, 8, 8), torch.ones(4)
FORWARD, BACKWARD = torch.ops.aigc.filtered_lrelu.default, torch.ops.aigc.filtered_lrelu_backward.default


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"),
    [
        ({"x": X.int()}, RuntimeError, ("x is int32", "must be float")),
        ({"x": torch.zeros(2, 3, 0, 8)}, RuntimeError, ("x has shape [2, 3, 0, 8]", "at least one row")),
        ({"fu": F4.int()}, RuntimeError, ("fu is int32", "float32")),
        (
            {"padding": [-9, -1, 0, 0]},
            RuntimeError,
            ("along x", "[-9, -1]", "is 6", "4 and 4 taps"),
        ),
        ({"padding": 1 << 62}, RuntimeError, ("padding along x is",)),
        ({"up": 0}, ValueError, ("up is 0", "at least 1")),
        ({"down": [2, 2]}, TypeError, ("down is [2, 2]", "an integer")),
        ({"slope": float("nan")}, ValueError, ("is nan", "finite")),
        ({"gain": torch.ones(1)}, TypeError, ("gain is",)),
    ],
    ids=case_id,
)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.filtered_lrelu(**{"x": X, "fu": F4, "fd": F4, "up": 2, "down": 2, **arguments})
    for part in parts:
        assert part in str(error.value)


NUMBERS = (2, 2, 3, 3, 3, 3, 1.0, 0.2, 0.5, False)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({0: X[0]}, "x has shape [3, 8, 8]"),
        ({1: torch.ones(4)}, "b has shape [4], but must be [3]"),
        ({1: torch.ones(3).double()}, "b is float64, but must be float32"),
        ({2: torch.ones(25)}, "fu has shape [25], but must have one dimension of 1 to 24 taps"),
        ({3: torch.ones(2, 2)}, "fd has shape [2, 2]"),
        ({4: torch.zeros(5, dtype=torch.uint8)}, "mask is uint8 of shape [5]"),
        ({5: 5}, "up is 5, but must be from 1 to 4"),
        ({11: math.inf}, "gain is inf"),
        ({13: -1.0}, "clamp is -1"),
    ],
    ids=case_id,
)
def test_the_native_op_refuses_it_too(changed: dict[int, Any], part: str) -> None:
    arguments = [X, None, F4, F4, None, *NUMBERS, True]
    for at, value in changed.items():
        arguments[at] = value
    with pytest.raises(RuntimeError) as error:
        FORWARD(*arguments)
    assert part in str(error.value)
    assert str(error.value).startswith("filtered_lrelu: ")


def test_the_native_backward_reads_no_mask_or_gradient_of_a_wrong_size() -> None:
    y, mask = FORWARD(X, None, F4, F4, None, *NUMBERS, True)
    dx, db = BACKWARD(y, mask, F4, F4, 8, 8, *NUMBERS, False, True)
    assert (dx.shape, db.shape) == (X.shape, (3,))
    bad = [(y[..., 1:], mask, 8), (y, mask[1:], 8), (y, mask.int(), 8), (y, mask, 9), (y, mask, 0)]
    for dy, some_mask, height in bad:
        with pytest.raises(RuntimeError, match="filtered_lrelu_backward: "):
            BACKWARD(dy, some_mask, F4, F4, height, 8, *NUMBERS, False, True)


def test_the_native_op_says_that_it_has_no_gradient_of_the_filters() -> None:
    f = F4.clone().requires_grad_()
    y, _ = FORWARD(X, None, f, F4, None, *NUMBERS, True)
    with pytest.raises(RuntimeError, match="there is no gradient with respect to fu, fd, mask"):
        y.sum().backward()


def test_a_gradient_needs_the_mask() -> None:
    with pytest.raises(RuntimeError, match="save=True"):
        FORWARD(X.clone().requires_grad_(), None, F4, F4, None, *NUMBERS, False)


def test_what_is_fused() -> None:
    wanted, few, last = F4.clone().requires_grad_(), F4, X.contiguous(memory_format=torch.channels_last)
    most, many = torch.ones(24), torch.ones(8)
    for arguments in (
        (X, few, few, 2, 2),
        (X, None, None, 2, 3),
        (X, most, few, 4, 4),
        (last, many, many, 2, 2),
    ):
        assert _route(*arguments).kernel == "one pass"
    for others in (
        *((X, few, few, 1, 2), (X, few, few, 2, 1), (X, few, few, 5, 2), (X, few, few[None], 2, 2)),
        *((X, torch.ones(25), few, 2, 2), (X, wanted, few, 2, 2), (last, many, few, 2, 2)),
        *((last, many, None, 2, 2),),
    ):
        assert _route(*others).kernel == "composition"
    with torch.no_grad():
        assert _route(X, wanted, few, 2, 2).kernel == "one pass"


@pytest.mark.card
@pytest.mark.parametrize("factors", [(2, 2), (4, 2), (2, 4), (3, 2), (1, 4)])
@pytest.mark.parametrize("padding", [[11, 12, 10, 9], [40, -3, -4, 41]])
def test_both_paths_agree(factors: tuple[int, int], padding: list[int]) -> None:
    up, down = factors
    x = seeded((2, 3, 21, 70), 1).requires_grad_()
    b = seeded((3,), 2).requires_grad_()
    fu, fd = seeded((min(6 * up, 24),), 3), seeded((min(6 * down, 24),), 4)
    left, right, top, bottom = padding
    options = (x, fu, fd, b, up, down, (left, right, top, bottom), 1.5, 0.1, 2.0, True)
    fused, composed = _one_pass(*options), _composed(*options)
    torch.testing.assert_close(fused, composed)
    dy = seeded(fused.shape, 5)
    for ours, others in zip(
        torch.autograd.grad(fused, (x, b), dy), torch.autograd.grad(composed, (x, b), dy), strict=True
    ):
        torch.testing.assert_close(ours, others)


@pytest.mark.card
@pytest.mark.parametrize(("up", "down", "taps"), [(2, 2, 12), (3, 2, 5), (1, 4, 1), (4, 2, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mask_has_two_bits_for_each_upsampled_pixel(
    up: int, down: int, taps: int, dtype: torch.dtype
) -> None:
    """In the order that csrc/filtered_lrelu/filtered_lrelu.h describes, of an image of several bands."""
    x, fu, fd = (
        seeded(shape, seed).to(dtype) for seed, shape in enumerate([(2, 3, 150, 21), (taps,), (taps,)])
    )
    pads = (taps, taps, taps, taps)
    _, mask = FORWARD(x, None, fu, fd, None, up, down, *pads, 1.5, -0.2, 0.5, False, True)
    z = ops.upfirdn2d_ref(x, fu, up=up, padding=pads, gain=up**2)
    phases = math.lcm(up, down)
    columns = z.size(3)
    run = (-(-columns // phases) + 15) // 16 * 2
    bits = mask.reshape(2, 2, 3, z.size(2), phases, run)[..., None] >> torch.arange(8, dtype=torch.uint8) & 1
    bits = bits.flatten(-2).movedim(-2, -1).flatten(-2)[..., :columns].bool()
    t = 1.5 * torch.where(z > 0, z, -0.2 * z)
    clear = ((z.abs() > 1e-5) | (z == 0)) & ((t.abs() - 0.5).abs() > 1e-5)
    assert clear.double().mean() > 0.99
    assert torch.equal(bits[0][clear], (z > 0)[clear])
    assert torch.equal(bits[1][clear], (t.abs() <= 0.5)[clear])


@pytest.mark.card
def test_nan_stays_where_the_filters_carry_it() -> None:
    f = torch.rand(12)
    for value in (float("nan"), float("inf")):
        x = torch.randn(1, 2, 24, 24)
        x[0, 1, 11, 13] = value
        ours, plain = (
            function(x, f, f, up=2, down=2, padding=11, clamp=1.0)
            for function in (ops.filtered_lrelu, ops.filtered_lrelu_ref)
        )
        assert torch.equal(ours.isnan(), plain.isnan())
        assert ours.isfinite().any()
