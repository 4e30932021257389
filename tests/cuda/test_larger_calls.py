"""Calls that are larger than those of the property suite, which runs on a card too (`@pytest.mark.card`)."""

from __future__ import annotations

import pytest

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
