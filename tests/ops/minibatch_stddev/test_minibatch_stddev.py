"""minibatch_stddev: against its definition, and bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from aigc_ext import ops
from tests.ops.minibatch_stddev.case import stddev_calls
from tests.ops.suite import case_id


def by_definition(x: Tensor, group_size: int | None, num_channels: int) -> Tensor:
    """Group by group, run by run."""
    n, c = x.shape[:2]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = n if group_size is None else min(group_size, n)
    groups = n // size if size else 0
    rows = []
    for sample in range(n):
        group = wide[sample % groups :: groups]
        runs = [
            torch.sqrt(part.var(0, correction=0) + 1e-8).mean().expand(1, *x.shape[2:])
            for part in group.split(c // num_channels, dim=1)
        ]
        rows.append(torch.cat([x[sample], *(run.to(x.dtype) for run in runs)]))
    return torch.stack(rows) if rows else torch.cat([x, x[:, :1].repeat(1, num_channels, 1, 1)], 1)


@pytest.mark.card
@settings(max_examples=60, deadline=None)
@given(stddev_calls())
def test_it_is_its_definition(call: Any) -> None:
    x = call.inputs["x"].requires_grad_()
    ours, expected = ops.minibatch_stddev(x, **call.options), by_definition(x, **call.options)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    (slope,), (expected_slope,) = (torch.autograd.grad((y * weights).sum(), x) for y in (ours, expected))
    torch.testing.assert_close(slope, expected_slope)


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"),
    [
        ({"x": torch.zeros(4, 3, 5)}, RuntimeError, ("x has shape [4, 3, 5]", "[N, C, H, W]")),
        ({"x": torch.zeros(4, 3, 5, 5).int()}, RuntimeError, ("x is int32",)),
        ({"x": torch.zeros(6, 3, 5, 5)}, RuntimeError, ("6 samples", "group_size 4")),
        ({"num_channels": 2}, RuntimeError, ("3 channels", "num_channels 2")),
        ({"num_channels": 0}, ValueError, ("num_channels is 0",)),
        ({"group_size": 0}, ValueError, ("group_size is 0",)),
        ({"x": 1.0}, TypeError, ("x is 1.0",)),
    ],
    ids=case_id,
)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.minibatch_stddev(**{"x": torch.zeros(4, 3, 5, 5), **arguments})
    for part in ("minibatch_stddev", *parts):
        assert part in str(error.value)
