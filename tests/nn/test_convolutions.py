from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from aigc_ext import ops
from aigc_ext.nn import (
    Conv2d,
    ConvTranspose2d,
    Downsample2d,
    Filter2d,
    FilteredLReLU,
    FilteredSnake,
    MinibatchStddev,
    ModulatedConv2d,
    Upsample2d,
)

X = torch.randn(2, 4, 8, 10)


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_take_the_state_of_torchs(bias):
    for ours, torchs, reference in (
        (Conv2d, nn.Conv2d, ops.conv2d_act_ref),
        (ConvTranspose2d, nn.ConvTranspose2d, ops.conv_transpose2d_act_ref),
    ):
        plain = torchs(4, 6, 3, stride=2, padding=1, groups=2, bias=bias)
        layer = ours(4, 6, 3, stride=2, padding=1, groups=2, bias=bias, act="lrelu", clamp=0.5)
        layer.load_state_dict(plain.state_dict())
        options: dict[str, Any] = {"stride": 2, "padding": 1, "groups": 2, "act": "lrelu", "clamp": 0.5}
        torch.testing.assert_close(layer(X), reference(X, plain.weight, plain.bias, **options))
        assert "stride=(2, 2)" in repr(layer)
        assert "act='lrelu', clamp=0.5" in repr(layer)
        assert isinstance(layer, torchs)


def test_output_size_of_a_transposed_convolution():
    layer = ConvTranspose2d(4, 3, 3, stride=2, padding=1)
    for size in ([15, 19], [16, 20]):
        assert layer(X, output_size=size).shape[2:] == tuple(size)


def test_filters():
    f = ops.setup_filter([1, 3, 3, 1])
    for layer, expected in (
        (Filter2d(padding=1), ops.filter2d(X, f, 1)),
        (Upsample2d(up=[2, 1]), ops.upsample2d(X, f, [2, 1])),
        (Downsample2d(down=2), ops.downsample2d(X, f, 2)),
    ):
        assert list(layer.state_dict()) == ["resample_filter"]
        assert torch.equal(layer(X), expected)
        assert "taps=[4, 4]" in repr(layer)


def test_filtered_lrelu():
    f = ops.setup_filter(range(1, 13))
    layer = FilteredLReLU(4, f, f, up=2, down=2, padding=11, clamp=1.0)
    assert set(layer.state_dict()) == {"bias", "up_filter", "down_filter"}
    assert layer.bias is not None
    nn.init.normal_(layer.bias)
    expected = ops.filtered_lrelu(X, f, f, layer.bias, 2, 2, 11, clamp=1.0)
    assert torch.equal(layer(X), expected)
    assert layer(X).shape == X.shape
    assert not FilteredLReLU().state_dict()


@pytest.mark.parametrize("log_scale", [False, True])
@pytest.mark.parametrize("beta", [False, True])
def test_filtered_snake(beta, log_scale):
    layer = FilteredSnake(4, beta=beta, log_scale=log_scale, init=0.5)
    assert list(layer.state_dict()) == (["alpha", "beta"] if beta else ["alpha"])
    x, f, half = torch.randn(2, 4, 50), layer.resample_filter, torch.full((4,), 0.5)
    torch.testing.assert_close(layer(x), ops.filtered_snake_ref(x, half, f, f))
    layer(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    assert f"4, beta={beta}, log_scale={log_scale}, init=0.5, taps=12" in repr(layer)


@pytest.mark.parametrize("taps", [2, 12, 24])
def test_the_filter_of_filtered_snake(taps):
    f = FilteredSnake(1, taps=taps, dtype=torch.float64).resample_filter
    assert f.shape == (taps,)
    assert torch.equal(f, f.flip(0))
    torch.testing.assert_close(f.sum(), torch.ones((), dtype=torch.float64))
    response = torch.fft.rfft(f, 1000).abs()
    if taps > 2:
        assert response[250] == pytest.approx(0.5, abs=0.03)  # cut off at a quarter of the doubled rate
        assert response[450:].max() < 0.05
        assert response[:100].min() > 0.9


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"num_channels": -1}, "num_channels is -1"),
        ({"init": 0.0}, "init is 0.0, but must be finite and not 0"),
        ({"init": -1.0, "log_scale": True}, "init is -1.0, but must be finite and above 0"),
        ({"init": float("nan")}, "init is nan"),
        ({"taps": 11}, "taps is 11, but must be even and at least 2"),
        ({"taps": 0}, "taps is 0"),
    ],
)
def test_filtered_snake_refuses(arguments, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        FilteredSnake(**{"num_channels": 4, **arguments})


def test_minibatch_stddev():
    assert torch.equal(MinibatchStddev(2, 2)(X), ops.minibatch_stddev(X, 2, 2))


@pytest.mark.parametrize("up", [1, 2])
def test_modulated_convolution(up):
    layer = ModulatedConv2d(4, 6, 3, up=up, clamp=256)
    names = {"weight", "bias", "noise_strength"} | ({"resample_filter"} if up > 1 else set())
    assert set(layer.state_dict()) == names
    assert layer.bias is not None
    assert layer.noise_strength is not None
    assert layer.noise_strength.shape == ()
    s, noise = torch.randn(2, 4), torch.randn(1, 1, 8 * up, 10 * up)
    nn.init.constant_(layer.noise_strength, 0.3)
    nn.init.normal_(layer.bias)
    f = ops.setup_filter([1, 3, 3, 1]) if up > 1 else None
    expected = ops.modulated_conv2d_ref(
        *(X, layer.weight, s, layer.bias, noise, layer.noise_strength),
        up=up,
        padding=1,
        f=f,
        flip_weight=up == 1,
        act="lrelu",
        clamp=256,
    )
    torch.testing.assert_close(layer(X, s, noise), expected)
    assert layer(X, s).shape == expected.shape


@pytest.mark.parametrize("layer", [Conv2d, ConvTranspose2d, ModulatedConv2d])
def test_a_wrong_activation_is_refused_at_once(layer):
    with pytest.raises(ValueError, match="act is 'gelu'"):
        layer(4, 6, 3, act="gelu")
