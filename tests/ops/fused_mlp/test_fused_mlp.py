"""What the property suite does not ask of fused_mlp: its double backward, frozen layers, hooks, errors."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aigc_ext import no_weight_gradients, ops
from aigc_ext.models import MLPDiscriminator
from aigc_ext.nn import Linear
from aigc_ext.nn.layers import run_linears
from tests.ops.fused_mlp.case import mlp_calls
from tests.ops.suite import Call, total

ACTS = ["lrelu", "tanh", "linear"]


def network(
    sizes: tuple[int, ...] = (5, 7, 4, 2), seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    weights = [leaf(out, features) for features, out in pairwise(sizes)]
    return leaf(3, sizes[0]), weights, [leaf(out) for out in sizes[1:]]


def slope(function, x: Tensor, weights, biases, acts, gains, dy: Tensor) -> Tensor:
    """The gradient of the network in x alone, as a gradient penalty takes it."""
    y = function(x, weights, biases, acts, gains=gains)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    return dx


@settings(max_examples=40)
@given(mlp_calls(small=True), st.data())
def test_gradients_of_a_penalty_are_the_references(call: Call, data: st.DataObject) -> None:
    acts, gains = call.options["acts"], call.options["gains"]
    names = sorted(call.inputs)
    frozen = data.draw(st.sets(st.sampled_from([n for n in names if n != "x"])))

    def gradients(function: Callable[..., Tensor], order: int) -> list[Tensor]:
        inputs = {n: t for n in names if (t := call.inputs[n]) is not None}
        leaves = {n: t.clone().requires_grad_(n not in frozen) for n, t in inputs.items()}
        weights = [leaves[f"w{i}"] for i in range(len(acts))]
        biases = [leaves[f"b{i}"] for i in range(len(acts))]
        out = [*leaves["x"].shape[:-1], weights[-1].shape[0]]
        dy = torch.linspace(-1, 2, math.prod(out), dtype=torch.float64).reshape(out).requires_grad_()
        with no_weight_gradients():
            value = (slope(function, leaves["x"], weights, biases, acts, gains, dy) ** 2).sum()
        wanted = [*(leaf for leaf in leaves.values() if leaf.requires_grad), dy]
        found: list[Tensor] = []
        for _ in range(order):
            if not value.requires_grad:
                break
            found = [
                torch.zeros_like(leaf) if g is None else g
                for leaf, g in zip(
                    wanted,
                    torch.autograd.grad(value, wanted, create_graph=True, allow_unused=True),
                    strict=True,
                )
            ]
            value = total((g**2).sum() for g in found)
        return found

    for order in (1, 2):
        for ours, plain in zip(
            gradients(ops.fused_mlp, order), gradients(ops.fused_mlp_ref, order), strict=True
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("acts", [ACTS, ["tanh", "sigmoid", "softplus"], ["relu", "lrelu", "linear"]])
def test_numeric_second_derivative_of_the_slope(acts: list[str]) -> None:
    x, weights, biases = network()
    dy = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, dy: Tensor, *parameters: Tensor) -> Tensor:
        return slope(ops.fused_mlp, x, parameters[:3], parameters[3:], acts, None, dy)

    assert torch.autograd.gradcheck(function, (x, dy, *weights, *biases))
    assert torch.autograd.gradgradcheck(function, (x, dy, *weights, *biases))


def test_computes_only_the_gradients_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["aigc_ext.ops.fused_mlp"]
    asked = []

    def spy(*arguments):
        asked.append(arguments[-3:])
        return backward(*arguments)

    backward = module._backward
    monkeypatch.setattr(module, "_backward", spy)
    x, weights, biases = network()
    for parameter in (weights[0], biases[0], weights[1]):
        parameter.requires_grad_(False)
    ops.fused_mlp(x.detach(), weights, biases, ACTS).sum().backward()
    assert asked == [(False, 0b100, 0b110)]
    assert all(t.grad is None for t in (weights[0], biases[0], weights[1]))
    assert all(t.grad is not None for t in (weights[2], biases[1], biases[2]))
    with no_weight_gradients():
        torch.autograd.grad(ops.fused_mlp(x, weights, biases, ACTS).sum(), x)
    assert asked[1] == (True, 0, 0)


def test_without_gradients_nothing_is_kept() -> None:
    x, weights, biases = network()
    with torch.no_grad():
        _, saved = torch.ops.aigc.fused_mlp(x, weights, biases, ",".join(ACTS), [0.2] * 3, [1.0] * 3, False)
    assert saved == []
    with pytest.raises(RuntimeError, match="a gradient needs save=True"):
        torch.ops.aigc.fused_mlp(x, weights, biases, ",".join(ACTS), [0.2] * 3, [1.0] * 3, False)


def test_autocast_casts_as_for_linear() -> None:
    x, weights, biases = network(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.fused_mlp(x, weights, biases, ACTS)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert [w.grad.dtype for w in weights if w.grad is not None] == [torch.float32] * 3
    torch.testing.assert_close(y.float(), ops.fused_mlp(x, weights, biases, ACTS), rtol=0.1, atol=0.1)


def test_hooks_and_subclasses_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [Linear(4, 6, act="lrelu"), Linear(6, 2)]
    x = torch.randn(3, 4)
    expected = layers[1](layers[0](x))
    torch.testing.assert_close(run_linears(layers, x), expected)
    seen = []
    handle = layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(run_linears(layers, x), expected)
    assert len(seen) == 1
    handle.remove()

    class Twice(Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    other = Twice(6, 2)
    other.load_state_dict(layers[1].state_dict())
    torch.testing.assert_close(run_linears([layers[0], other], x), expected * 2)
    patched = Linear(6, 2)
    monkeypatch.setattr(patched, "forward", lambda input: input[:, :2] * 3)
    torch.testing.assert_close(run_linears([layers[0], patched], x), patched(layers[0](x)))
    replaced: Any = [layers[0], torch.nn.Identity()]
    torch.testing.assert_close(run_linears(replaced, x), layers[0](x))
    clamped = [Linear(4, 6, act="lrelu", clamp=0.01), Linear(6, 2, bias=False)]
    torch.testing.assert_close(run_linears(clamped, x), clamped[1](clamped[0](x)))


def test_a_parametrized_layer_uses_its_weight() -> None:
    D = MLPDiscriminator((1, 4, 4), (8, 6))
    torch.nn.utils.parametrizations.spectral_norm(D.layers[0])
    D.eval()
    x = torch.randn(2, 1, 4, 4)
    expected = D.head(D.layers[1](D.layers[0](x.flatten(1))))
    torch.testing.assert_close(D(x), expected)


W, B = [torch.ones(3, 2), torch.ones(1, 3)], [torch.ones(3), torch.ones(1)]


@pytest.mark.parametrize(
    ("x", "weights", "biases", "acts", "options", "error", "message"),
    [
        (torch.ones(4, 2), [], [], [], {}, ValueError, "weights has 0 tensors, but must have 1 to 62"),
        (torch.ones(4, 2), W, B[:1], ["relu"] * 2, {}, ValueError, "biases has 1 entries, but weights has 2"),
        (torch.ones(4, 2), W, B, ["relu"], {}, ValueError, "acts has 1 entries"),
        (torch.ones(4, 2), W, B, "relu", {}, ValueError, "acts is 'relu', but must be a sequence"),
        (torch.ones(4, 2), W, B, ["relu", "gelu"], {}, ValueError, "act is 'gelu'"),
        (torch.ones(4, 2), W, B, ["relu"] * 2, {"gains": [1.0]}, ValueError, "gains has 1 entries"),
        (torch.ones(4, 2), W, B, ["relu"] * 2, {"gains": [1, math.nan]}, ValueError, "gain is nan"),
        (torch.ones(4, 2), W, [B[0], None], ["relu"] * 2, {}, TypeError, r"biases\[1\] is None"),
        ("x", W, B, ["relu"] * 2, {}, TypeError, "x is 'x'"),
        (torch.ones(4, 3), W, B, ["relu"] * 2, {}, RuntimeError, r"weights\[0\] has shape \[3, 2\]"),
        (torch.ones(()), W, B, ["relu"] * 2, {}, RuntimeError, r"x has shape \[\]"),
        (torch.ones(4, 2), W, [B[1], B[1]], ["relu"] * 2, {}, RuntimeError, r"biases\[0\] has shape \[1\]"),
        (torch.ones(4, 2).double(), W, B, ["relu"] * 2, {}, RuntimeError, r"weights\[0\] is float32"),
        (torch.ones(4, 2).int(), W, B, ["relu"] * 2, {}, RuntimeError, "x is int32"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(x, weights, biases, acts, options, error, message, device) -> None:
    def move(t: Any) -> Any:
        return t.to(device) if isinstance(t, Tensor) else t

    with pytest.raises(error, match=message):
        ops.fused_mlp(move(x), [*map(move, weights)], [*map(move, biases)], acts, **options)


def test_a_mix_of_devices_is_named() -> None:
    meta = [w.to("meta") for w in W]
    with pytest.raises(RuntimeError, match=r"weights\[0\] is on meta, but must be on cpu"):
        ops.fused_mlp(torch.ones(4, 2), meta, B, ["relu"] * 2)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 1), (2, 1), (4,)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_gradient_of_the_wrong_shape_is_refused(shape: tuple[int, ...], device: str) -> None:
    """Its memory is looked at as rows: a smaller one would be read past its end."""
    x, weights, biases = (
        torch.ones(4, 2, device=device),
        [w.to(device) for w in W],
        [b.to(device) for b in B],
    )
    arguments = ("relu,relu", [0.0, 0.0], [1.0, 1.0])
    _, saved = torch.ops.aigc.fused_mlp(x, weights, biases, *arguments, True)
    dy = torch.ones(shape, device=device)
    given = (x, weights, biases, saved, *arguments, True, 0b11, 0b11)
    with pytest.raises(RuntimeError, match=r"dy has shape .* must be that of x, \[4, 2\]"):
        torch.ops.aigc.fused_mlp_backward(dy, *given)
    with pytest.raises(RuntimeError, match="dy has shape"):
        torch.ops.aigc.fused_mlp_double_backward(torch.ones_like(x), dy, *given)
    with pytest.raises(RuntimeError, match="u has shape"):
        torch.ops.aigc.fused_mlp_double_backward(x[:2], torch.ones(4, 1, device=device), *given)


def test_more_names_than_layers_are_refused() -> None:
    with pytest.raises(RuntimeError, match="acts has more names than there are weights, which are 2"):
        torch.ops.aigc.fused_mlp(torch.ones(4, 2), W, B, "relu,relu,relu", [0.0] * 2, [1.0] * 2, False)
