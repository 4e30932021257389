"""Calls that are larger than those of the property suite, which runs on a card too (`@pytest.mark.card`)."""

from __future__ import annotations

import pytest
import torch

from aigc_ext import ops
from tests.ops.suite import LAYOUTS, OpCase, check_call
from tests.ops.test_properties import per_case

pytestmark = pytest.mark.cuda

SCALE = 32  # 5 million elements and more: every block of a card's grid has several turns


@per_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_larger_call_is_within_the_error_budget(case: OpCase, layout: str) -> None:
    call = case.large_call(SCALE)
    for dtype in case.dtypes:
        check_call(case, call, dtype, layout, seed=2)


def test_a_row_of_more_pieces_than_a_grid_has_rows_of_blocks() -> None:
    x = torch.ones(1, 1, 8192 * 65_537 + 3, dtype=torch.bfloat16, device="cuda")
    mean, var = torch.zeros(1, device="cuda"), torch.full((1,), 4.0, device="cuda")
    y = ops.batch_norm_act(x, mean, var, eps=0.0, act="linear", gain=1.0)
    assert bool((y == 0.5).all())
