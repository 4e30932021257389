from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aigc_ext import ops
from tests.ops.group_norm_act.case import OPTIONAL, inputs
from tests.ops.suite import check_nonfinite, with_layout

IMAGES = torch.randn(3, 6, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.card
def test_it_is_torchs_norms():
    x, weight, bias = IMAGES, torch.randn(6).double(), torch.randn(6).double()
    torch.testing.assert_close(
        ops.group_norm_act(x, 2, weight, bias, act="relu", gain=1.0),
        F.group_norm(x, 2, weight, bias).relu(),
    )
    torch.testing.assert_close(
        ops.group_norm_act(x, 6, weight, bias, act="swish", gain=1.0),
        F.silu(F.instance_norm(x, weight=weight, bias=bias)),
    )
    torch.testing.assert_close(ops.group_norm_act(x, 1), F.layer_norm(x, x.shape[1:]))


@pytest.mark.card
def test_a_scale_and_shift_of_each_sample_follow_the_parameters_and_the_residual_them():
    given = inputs((3, 6, 5, 7), 1, OPTIONAL)
    x, weight, bias, scale, shift, residual = given.values()
    y = ops.group_norm_act(**given, num_groups=3, act="tanh")
    z = F.group_norm(x, 3, weight, bias) * scale[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(y, (z + residual).tanh())


@pytest.mark.card
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_beside_float32_parameters(dtype):
    given = {k: v.float() for k, v in inputs((3, 6, 5, 7), 1, OPTIONAL).items()}
    given["x"], given["residual"] = given["x"].to(dtype), given["residual"].to(dtype)
    leaves = [t.requires_grad_() for t in given.values()]
    y = ops.group_norm_act(**given, num_groups=2, act="swish")
    assert y.dtype == dtype
    gradients = torch.autograd.grad(y.float().square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.float().square().sum() for g in gradients]).sum(), leaves)
    assert [g.dtype for g in gradients] == [g.dtype for g in second] == [t.dtype for t in leaves]
    float32: Any = {k: t.float() for k, t in given.items()}
    wide = ops.group_norm_act(**float32, num_groups=2, act="swish")
    torch.testing.assert_close(y.float(), wide, rtol=1e-2, atol=1e-2)
    assert ops.group_norm_act(IMAGES.to(dtype), 2, residual=IMAGES.float()).dtype == torch.float32


@pytest.mark.card
def test_a_single_element_has_no_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    bias = torch.randn(3, requires_grad=True)
    y = ops.group_norm_act(x, 3, None, bias, eps=1e-12)
    assert torch.equal(y, bias.expand(4, 3))
    dx, dbias = torch.autograd.grad(y.sum(), (x, bias))
    assert torch.equal(dx, torch.zeros(4, 3))
    assert torch.equal(dbias, torch.full((3,), 4.0))


@pytest.mark.card
def test_a_large_mean_costs_no_digits_of_the_variance():
    x = 1000 + IMAGES.float()
    y = ops.group_norm_act(x, 2)
    torch.testing.assert_close(y.double(), F.group_norm(x.double(), 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 70, 33, 30), (2, 64, 40, 40)], ids=str)
def test_units_at_once_and_stage_by_stage_have_the_same_bits(layout, shape):
    """Which of the two it is depends on the number of threads."""
    given: Any = {k: with_layout(v.float(), layout) for k, v in inputs(shape, 1, OPTIONAL).items()}
    leaves = [t.requires_grad_() for t in given.values()]
    before = torch.get_num_threads()

    def results():
        y = ops.group_norm_act(**given, num_groups=2, act="swish")
        gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in gradients]).sum(), leaves)
        return [y.detach(), *gradients, *second]

    try:
        torch.set_num_threads(1)
        first = results()
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, first, results())), f"{threads} threads"
    finally:
        torch.set_num_threads(before)


@pytest.mark.card
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("act", ["linear", "relu", "swish"])
def test_what_is_not_finite_spreads_over_its_group(value, act):
    check_nonfinite(
        lambda x: ops.group_norm_act(x, 2, act=act), lambda x: ops.group_norm_act_ref(x, 2, act=act), value
    )


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"x": "x"}, TypeError, "x is 'x'"),
        ({"weight": 1.0}, TypeError, "weight is 1.0"),
        ({"num_groups": 2.0}, TypeError, "num_groups is 2.0, but must be an int"),
        (
            {"num_groups": 4},
            RuntimeError,
            "num_groups is 4, but must be at least 1 and divide the 6 channels",
        ),
        ({"num_groups": 0}, RuntimeError, "num_groups is 0"),
        ({"eps": -1.0}, RuntimeError, "eps is -1"),
        ({"act": "gelu"}, ValueError, "act is 'gelu'"),
        ({"x": torch.zeros(3)}, RuntimeError, r"x has shape \[3\], but must be \[N, C, ...\]"),
        ({"bias": torch.zeros(5)}, RuntimeError, r"bias has shape \[5\], but must be \[6\]"),
        ({"scale": torch.zeros(6)}, RuntimeError, r"scale has shape \[6\], but must be \[3, 6\]"),
        ({"shift": torch.zeros(3, 6, 1)}, RuntimeError, r"shift has shape \[3, 6, 1\], but must be \[3, 6\]"),
        (
            {"residual": torch.zeros(3, 6, 5, 1)},
            RuntimeError,
            r"residual has shape \[3, 6, 5, 1\], but x has",
        ),
    ],
)
def test_a_wrong_argument_is_named(changed, error, match):
    with pytest.raises(error, match=match):
        ops.group_norm_act(**{"x": IMAGES.float(), "num_groups": 2, **changed})
