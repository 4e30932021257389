from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aigc_ext.nn import BiasAct, Linear
from aigc_ext.ops.activations import ACTIVATIONS

FORMULAS = {
    "linear": lambda v: v,
    "relu": lambda v: math.sqrt(2) * F.relu(v),
    "lrelu": lambda v: math.sqrt(2) * F.leaky_relu(v, 0.2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": lambda v: F.softplus(v, threshold=40),
    "swish": lambda v: math.sqrt(2) * F.silu(v),
}


def test_every_activation_has_a_formula_here():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("act", FORMULAS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs_linear_and_the_activation(act, bias):
    layer = Linear(5, 3, bias=bias, act=act, dtype=torch.float64)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = FORMULAS[act](F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act", FORMULAS)
@pytest.mark.parametrize(("dim", "shape"), [(1, (2, 3, 4, 5)), (-1, (2, 3)), (0, (3,))])
def test_bias_act_is_a_bias_and_the_activation(act, dim, shape):
    layer = BiasAct(3, act=act, dim=dim, dtype=torch.float64)
    assert not layer.bias.any()
    nn.init.normal_(layer.bias)
    x = torch.randn(shape, dtype=torch.float64)
    expected = FORMULAS[act]((x.movedim(dim, -1) + layer.bias).movedim(-1, dim))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda **k: Linear(4, 4, **k), lambda **k: BiasAct(4, **k)], ids=["Linear", "BiasAct"]
)
def test_alpha_gain_and_clamp(make):
    layer = make(act="lrelu", alpha=0.5, gain=3.0, clamp=0.75)
    x = torch.randn(20, 4)
    v = make(act="linear")
    v.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), (3 * F.leaky_relu(v(x), 0.5)).clamp(-0.75, 0.75))
    assert (layer(x).abs() == 0.75).any()


@pytest.mark.parametrize(
    "layer", [Linear(3, 2, act="swish"), BiasAct(3, act="swish")], ids=["Linear", "BiasAct"]
)
def test_second_derivatives(layer):
    layer = copy.deepcopy(layer).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(call, (x, *parameters.values()))


def test_linear_has_torchs_parameters():
    torch.manual_seed(0)
    ours = Linear(5, 3, act="relu")
    torch.manual_seed(0)
    theirs = nn.Linear(5, 3)
    assert isinstance(ours, nn.Linear)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert Linear(5, 3, bias=False).bias is None
    assert Linear(5, 3, device="meta", dtype=torch.bfloat16).weight.dtype == torch.bfloat16
    assert BiasAct(5, device="meta", dtype=torch.bfloat16).bias.is_meta


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(make_copy):
    model = nn.Sequential(Linear(3, 4, act="lrelu", clamp=1.0), BiasAct(4, act="tanh", gain=2.0))
    x = torch.randn(2, 3)
    torch.testing.assert_close(make_copy(model)(x), model(x), rtol=0, atol=0)


def test_repr_says_what_was_asked():
    assert repr(Linear(3, 4, act="lrelu", alpha=0.1, gain=1.0)) == (
        "Linear(in_features=3, out_features=4, bias=True, act='lrelu', alpha=0.1, gain=1.0)"
    )
    assert repr(BiasAct(3, act="tanh", clamp=256)) == "BiasAct(3, dim=1, act='tanh', clamp=256)"


@pytest.mark.parametrize(
    "make", [lambda **k: Linear(4, 4, **k), lambda **k: BiasAct(4, **k)], ids=["Linear", "BiasAct"]
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"act": "gelu"}, "act is 'gelu', but must be one of linear, relu, lrelu"),
        ({"alpha": math.nan}, "alpha is nan, but must be finite"),
        ({"gain": math.inf}, "gain is inf, but must be finite"),
        ({"clamp": -1.0}, "clamp is -1.0, but must be None or at least 0"),
        ({"clamp": math.nan}, "clamp is nan, but must be None or at least 0"),
    ],
)
def test_wrong_arguments_are_named_where_the_layer_is_made(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_negative_num_channels():
    with pytest.raises(ValueError, match="num_channels is -3, but must be at least 0"):
        BiasAct(-3)
