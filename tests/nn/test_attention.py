"""SelfAttention2d: what it computes, its formats, a gradient penalty."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.losses import r1_penalty
from aigc_ext.nn import SelfAttention2d
from tests.ops.suite import seeded


def module(**options: Any) -> SelfAttention2d:
    torch.manual_seed(0)
    layer = SelfAttention2d(16, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.gain.fill_(0.7)
    return layer


def plain(layer: SelfAttention2d, x: Tensor) -> Tensor:
    """Written by einsum, from the paper's formula."""
    q, k, v = (
        F.conv2d(x, conv.weight).reshape(len(x), layer.heads, -1, x[0, 0].numel())
        for conv in (layer.query, layer.key or layer.query, layer.value)
    )
    scale = q.size(2) ** -0.5
    if layer.score == "l2":
        scores = -scale * (q[..., :, None] - k[..., None, :]).square().sum(2)
    else:
        scores = scale * torch.einsum("nhdi,nhdj->nhij", q, k)
    o = torch.einsum("nhij,nhdj->nhdi", scores.softmax(-1), v)
    return x + layer.gain * F.conv2d(o.reshape(len(x), -1, *x.shape[2:]), layer.out.weight)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"heads": 2, "score": "l2"},
    {"heads": 2, "qk_channels": 6, "v_channels": 10},
    {"score": "dot", "tied": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_of_a_penalty(options: dict[str, Any], memory_format: Any) -> None:
    layer = module(**options)

    def run(function: Any) -> list[Tensor]:
        x = seeded((2, 16, 5, 3), 1).contiguous(memory_format=memory_format).requires_grad_()
        y = function(x)
        (slope,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
        return [y, slope, *torch.autograd.grad(slope.square().sum(), list(layer.parameters()))]

    for ours, expected in zip(run(layer), run(lambda x: plain(layer, x)), strict=True):
        torch.testing.assert_close(ours, expected)
    x = seeded((2, 16, 5, 3), 1).contiguous(memory_format=memory_format)
    assert layer(x).is_contiguous(memory_format=memory_format)


def test_it_starts_as_the_identity_and_has_one_weight_for_queries_and_keys_of_distances() -> None:
    layer = SelfAttention2d(16, score="l2")
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(layer(x), x)
    assert set(layer.state_dict()) == {"gain", "query.weight", "value.weight", "out.weight"}
    assert "key.weight" in SelfAttention2d(16).state_dict()


def test_r1_through_it() -> None:
    layer = module(score="l2")
    x = seeded((2, 16, 4, 4), 2)
    penalty = r1_penalty(lambda t: layer(t).square().sum((1, 2, 3)), x)
    expected = r1_penalty(lambda t: plain(layer, t).square().sum((1, 2, 3)), x)
    torch.testing.assert_close(penalty, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "cosine"}, "score is 'cosine', but must be 'dot' or 'l2'"),
        ({"heads": 0}, "heads is 0, but must be at least 1"),
        ({"heads": 3, "qk_channels": 4}, "qk_channels is 4, but must be a multiple of heads, 3"),
        ({"heads": 2, "v_channels": 0}, "v_channels is 0, but must be a multiple of heads, 2"),
    ],
)
def test_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfAttention2d(16, **arguments)
