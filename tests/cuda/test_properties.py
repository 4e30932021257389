"""The property suite of tests/ops, whose tests take their device from the fixture `device`, on a card."""

from __future__ import annotations

import pytest

from tests.ops.suite import LAYOUTS, OpCase, check_call
from tests.ops.test_properties import (  # noqa: F401
    per_case,
    test_a_large_call_is_within_the_error_budget,
    test_decomposed_is_the_reference,
    test_fullgraph_compile_trains,
    test_functional_transforms,
    test_gradients_are_right_to_second_order,
    test_inputs_and_their_surroundings_are_left_alone,
    test_memory_format_is_kept,
    test_opcheck,
    test_penalty_inside_one_compiled_graph,
    test_third_derivative_is_the_references,
    test_values_and_gradients_are_within_the_error_budget,
)

pytestmark = pytest.mark.cuda

SCALE = 32  # 5 million elements and more: every block of a card's grid has several turns


@per_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_larger_call_is_within_the_error_budget(case: OpCase, layout: str) -> None:
    call = case.large_call(SCALE)
    for dtype in case.dtypes:
        check_call(case, call, dtype, layout, seed=2)
