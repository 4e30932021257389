from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from aigc_ext import ops
from aigc_ext.nn import BatchNormAct1d, BatchNormAct2d, GroupNormAct, fuse_
from tests.ops.suite import case_id

IMAGES = torch.randn(6, 4, 5, 7) * 2 + 3


@pytest.mark.parametrize("shape", [(6, 4, 5, 7), (6, 4), (6, 4, 9)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"affine": False, "eps": 1e-3},
        {"track_running_stats": False},
    ],
    ids=str,
)
def test_it_is_torchs_with_an_activation(shape, options):
    ours, torchs = (BatchNormAct2d, nn.BatchNorm2d) if len(shape) == 4 else (BatchNormAct1d, nn.BatchNorm1d)
    plain = torchs(4, **options).double()
    layer = ours(4, **options, act="tanh", gain=2.0, clamp=1.5).double()
    if plain.affine:
        nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    layer.load_state_dict(plain.state_dict())
    for mode in (True, True, False):  # the second one moves statistics that are the data's
        plain.train(mode), layer.train(mode)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        expected = (2 * plain(x).tanh()).clamp(-1.5, 1.5)
        y = layer(x)
        torch.testing.assert_close(y, expected)
        leaves = (x, *layer.parameters())
        gradients = torch.autograd.grad((y**2).sum(), leaves)
        expected_gradients = torch.autograd.grad((expected**2).sum(), (x, *plain.parameters()))
        torch.testing.assert_close(gradients, expected_gradients)
        torch.testing.assert_close(layer.state_dict(), plain.state_dict())
    assert isinstance(layer, torchs)
    assert "act='tanh', gain=2.0, clamp=1.5" in repr(layer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_beside_float32_parameters(dtype):
    layer, plain = BatchNormAct2d(4, act="relu", gain=1.0), nn.BatchNorm2d(4)
    x = IMAGES.to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), plain(x.float()).relu(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(layer.running_var, plain.running_var)
    y.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.card
def test_the_variance_of_numbers_far_from_zero():
    x = torch.randn(64, 3, 16, 16) + 30_000
    for x_ in (x, x.contiguous(memory_format=torch.channels_last)):
        y = ops.batch_norm_act(x_, training=True)
        torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(3), rtol=1e-3, atol=0)


def test_an_empty_batch_moves_nothing():
    layer = BatchNormAct2d(4)
    before = copy.deepcopy(layer.state_dict())
    assert layer(IMAGES[:0]).shape == (0, 4, 5, 7)
    after = layer.state_dict()
    assert torch.equal(after["running_mean"], before["running_mean"])
    assert torch.equal(after["running_var"], before["running_var"])


def test_gradients_of_the_weights_are_not_computed_where_nobody_wants_them():
    layer = BatchNormAct2d(4, act="lrelu")
    x = IMAGES.clone().requires_grad_()
    with ops.no_weight_gradients():
        layer(x).square().sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    assert x.grad is not None


def test_a_dcgan_generator_is_fused():
    plain = nn.Sequential(
        nn.ConvTranspose2d(8, 6, 4, 1, 0, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(True),
        nn.ConvTranspose2d(6, 3, 4, 2, 1),
        nn.Tanh(),
    )
    fused = copy.deepcopy(plain)
    report = fuse_(fused)
    assert [run.kind for run in report.fused] == ["BatchNorm2d+ReLU", "ConvTranspose2d+Tanh"]
    z = torch.randn(5, 8, 1, 1)
    for mode in (True, False):
        plain.train(mode), fused.train(mode)
        torch.testing.assert_close(fused(z), plain(z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    plain.train(), fused.train()
    plain(z).square().sum().backward(), fused(z).square().sum().backward()
    for ours, torchs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, torchs.grad, rtol=1e-3, atol=1e-4)


def call(**changes):
    arguments = {"x": IMAGES, "running_mean": torch.zeros(4), "running_var": torch.ones(4)} | changes
    return ops.batch_norm_act(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x is \[1.0\] \(list\), but must be a tensor"),
        ({"weight": 1.0}, TypeError, r"weight is 1.0 \(float\), but must be a tensor or None"),
        ({"running_var": None}, ValueError, "running_mean and running_var must be given together"),
        (
            {"running_mean": None, "running_var": None},
            ValueError,
            "without training, running_mean and running_var must be given",
        ),
        (
            {"x": IMAGES[:1, :, :1, :1], "training": True},
            ValueError,
            r"more than one element per channel, but x has shape \[1, 4, 1, 1\]",
        ),
        ({"momentum": 1.5}, ValueError, "momentum is 1.5, but must be from 0 to 1"),
        ({"eps": -1.0}, RuntimeError, "eps is -1, but must be at least 0 and finite"),
        ({"weight": torch.ones(3)}, RuntimeError, r"weight has shape \[3\], but must be \[4\]"),
        ({"weight": torch.ones(4, dtype=torch.int64)}, RuntimeError, "weight is int64, but must be float64"),
        ({"x": torch.ones(4)}, RuntimeError, r"x has shape \[4\], but must be \[N, C, ...\]"),
        ({"act": "mish"}, ValueError, "act is 'mish'"),
    ],
    ids=case_id,
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize("shape", [(6, 4, 5, 7), (6, 4), (6, 4, 9)], ids=str)
@pytest.mark.parametrize("options", [{}, {"affine": False, "eps": 1e-3}], ids=str)
def test_group_norm_is_torchs_with_an_activation(shape, options):
    plain = nn.GroupNorm(2, 4, **options).double()
    layer = GroupNormAct(2, 4, **options, act="tanh", gain=2.0, clamp=1.5).double()
    if plain.affine:
        nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    layer.load_state_dict(plain.state_dict())
    x, residual = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale, shift = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def along(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(6, 4, *[1] * (len(shape) - 2))

    expected = (2 * (plain(x) * along(scale) + along(shift) + residual).tanh()).clamp(-1.5, 1.5)
    y = layer(x, scale, shift, residual)
    torch.testing.assert_close(y, expected)
    inputs = (x, scale, shift, residual)
    gradients = torch.autograd.grad(y.square().sum(), (*inputs, *layer.parameters()))
    expected_gradients = torch.autograd.grad(expected.square().sum(), (*inputs, *plain.parameters()))
    torch.testing.assert_close(gradients, expected_gradients)
    assert isinstance(layer, nn.GroupNorm)
    assert "act='tanh', gain=2.0, clamp=1.5" in repr(layer)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))


def test_group_norm_is_instance_and_layer_norm_too():
    x = IMAGES.double()
    instance, layer = GroupNormAct(4, 4, affine=False, act="relu", gain=1.0), GroupNormAct(1, 4)
    torch.testing.assert_close(instance(x), nn.InstanceNorm2d(4)(x).relu())
    torch.testing.assert_close(layer.double()(x), nn.LayerNorm(x.shape[1:]).double()(x))


def test_a_group_norm_that_is_invalid_is_refused():
    with pytest.raises(ValueError, match="act is 'gelu'"):
        GroupNormAct(2, 4, act="gelu")
    with pytest.raises(ValueError, match="num_channels"):
        GroupNormAct(3, 4)
