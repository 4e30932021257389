from __future__ import annotations

import pytest
import torch

from aigc_ext import ops


@pytest.mark.card
@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_of_many_pieces(rows: int) -> None:
    """More pieces than the CUDA kernel has blocks along y, of which a card takes 65,535, and tests/simt
    two."""
    x = torch.randn(rows, 2, 4 * 8192 + 5)
    mean, var, weight, bias = torch.randn(2), torch.rand(2) + 0.5, torch.randn(2), torch.randn(2)
    x.requires_grad_()

    def results(function) -> tuple[torch.Tensor, ...]:
        y = function(x, mean, var, weight, bias, False, act="lrelu")
        return y.detach(), *torch.autograd.grad(y.square().sum(), x)

    for ours, expected in zip(results(ops.batch_norm_act), results(ops.batch_norm_act_ref), strict=True):
        torch.testing.assert_close(ours, expected)
