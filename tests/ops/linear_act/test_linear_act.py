"""linear_act: bad arguments, autocast, no_weight_gradients and compilation, beyond the property suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aigc_ext import no_weight_gradients, ops
from tests.ops.suite import case_id, on_meta

BAD = [
    ({"w": torch.zeros(6, 4)}, RuntimeError, ("x has shape [2, 3, 5]", "must be 4", "w [6, 4]")),
    ({"w": torch.zeros(5)}, RuntimeError, ("w has shape [5]", "[out_features, in_features]")),
    ({"w": torch.zeros(1, 6, 5)}, RuntimeError, ("w has shape [1, 6, 5]", "[out_features, in_features]")),
    ({"w": torch.zeros(())}, RuntimeError, ("w has shape []", "[out_features, in_features]")),
    ({"x": torch.zeros(())}, RuntimeError, ("x has shape []", "must be 5")),
    ({"b": torch.zeros(5)}, RuntimeError, ("b has shape [5]", "must be [6]")),
    ({"b": torch.zeros(6, 1)}, RuntimeError, ("b has shape [6, 1]", "must be [6]")),
    ({"b": torch.zeros(())}, RuntimeError, ("b has shape []", "must be [6]")),
    *(
        (
            {name: torch.zeros(size, dtype=dtype)},
            RuntimeError,
            (f"{name} is {str(dtype)[6:]}", "must be float"),
        )
        for name, size in (("x", (2, 3, 5)), ("w", (6, 5)), ("b", (6,)))
        for dtype in (torch.int64, torch.bool, torch.complex64)
    ),
    ({"w": torch.zeros(6, 5).double()}, RuntimeError, ("w is float64", "must be float32")),
    ({"x": torch.zeros(2, 3, 5).half()}, RuntimeError, ("w is float32", "must be float16")),
    ({"b": torch.zeros(6).bfloat16()}, RuntimeError, ("b is bfloat16", "must be float32")),
    ({"x": [[1.0]]}, TypeError, ("x is [[1.0]] (list)", "must be a tensor")),
    ({"w": None}, TypeError, ("w is None", "must be a tensor")),
    ({"b": 1.0}, TypeError, ("b is 1.0 (float)", "must be a tensor or None")),
    ({"w": torch.zeros(6, 5).to_sparse()}, RuntimeError, ("aigc::linear_act", "SparseCPU")),
    *(
        ({name: torch.zeros(size, device="meta")}, RuntimeError, ("must be on", "meta", "cpu"))
        for name, size in (("x", (2, 3, 5)), ("w", (6, 5)), ("b", (6,)))
    ),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD, ids=case_id)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    good = {"x": torch.randn(2, 3, 5), "w": torch.randn(6, 5), "b": torch.randn(6)}
    with pytest.raises(kind) as error:
        ops.linear_act(**{**good, **arguments})
    for part in ("linear_act", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


@pytest.mark.parametrize("arguments", [a for a, kind, _ in BAD[:8] if kind is RuntimeError], ids=case_id)
def test_the_fake_kernel_refuses_what_the_real_one_refuses(arguments: dict[str, Tensor]) -> None:
    good = {"x": torch.randn(2, 3, 5), "w": torch.randn(6, 5), "b": torch.randn(6)}
    with pytest.raises(RuntimeError, match=r"linear_act: [xwb] has shape"):
        ops.linear_act(**on_meta({**good, **arguments}))


def test_a_backward_without_what_the_forward_had_to_save() -> None:
    x, w = torch.randn(2, 5, requires_grad=True), torch.randn(3, 5)
    for act, clamp in (("lrelu", None), ("linear", 1.0), ("tanh", None)):
        with pytest.raises(RuntimeError, match="needs save=True"):
            torch.ops.aigc.linear_act(x, w, None, act, 0.2, 1.0, clamp, False)
    torch.ops.aigc.linear_act(x, w, None, "linear", 0.0, 1.0, None, False)[0].sum().backward()


@pytest.mark.card
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_inputs_as_in_pytorch(value: float) -> None:
    x = torch.randn(3, 4)
    x[1, 2] = value
    w, b = torch.randn(5, 4), torch.randn(5)
    for act in ("linear", "lrelu", "tanh"):
        ours, plain = ops.linear_act(x, w, b, act), ops.linear_act_ref(x, w, b, act)
        torch.testing.assert_close(ours, plain, equal_nan=True)


# ---- autocast ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_for_linear(amp: torch.dtype) -> None:
    x, w, b = torch.randn(4, 5), torch.randn(3, 5, requires_grad=True), torch.randn(3, requires_grad=True)
    with torch.autocast("cpu", amp):
        y = ops.linear_act(x, w, b, "lrelu")
        expected = F.leaky_relu(F.linear(x, w, b), 0.2) * 2**0.5
    assert y.dtype == expected.dtype == amp
    torch.testing.assert_close(y, expected)
    y.float().sum().backward()
    assert w.grad is not None
    assert b.grad is not None
    assert (w.grad.dtype, b.grad.dtype) == (torch.float32, torch.float32)


def test_autocast_leaves_float64_alone() -> None:
    x, w = torch.randn(4, 5).double(), torch.randn(3, 5).double()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.linear_act(x, w, None, "tanh")
        assert F.linear(x, w).dtype == torch.float64
    torch.testing.assert_close(y, torch.tanh(x @ w.T))


def test_autocast_does_not_turn_integers_into_floats() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="linear_act: x is int64"):
        ops.linear_act(torch.ones(4, 5, dtype=torch.int64), torch.randn(3, 5))


# ---- no_weight_gradients -----------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bias_gradients = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        if func is torch.ops.aigc.bias_act_backward.default:
            self.bias_gradients += args[12]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("act", ["lrelu", "tanh"])
def test_no_weight_gradients_computes_none(act: str) -> None:
    x, w, b = (torch.randn(*size, requires_grad=True) for size in ((4, 5), (3, 5), (3,)))
    products = []
    for inside in (False, True):
        y = ops.linear_act(x, w, b, act)
        with Calls() as calls:
            if inside:
                with no_weight_gradients():
                    dx, dw, db = torch.autograd.grad(y.sum(), (x, w, b), allow_unused=True)
                assert dw is None
                assert db is None
                assert calls.bias_gradients == 0
            else:
                expected = torch.autograd.grad(y.sum(), (x, w, b))[0]
                assert calls.bias_gradients == 1
        products.append(sum(name.startswith("aten::mm") for name in calls.names))
    assert products == [2, 1]
    assert torch.equal(dx, expected)


def test_no_weight_gradients_ends_with_an_exception_and_nests() -> None:
    x, w = torch.randn(4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)

    def weight_gradient() -> Tensor | None:
        return torch.autograd.grad(ops.linear_act(x, w).sum(), (x, w), allow_unused=True)[1]

    with no_weight_gradients():
        with pytest.raises(ZeroDivisionError), no_weight_gradients():
            1 / 0  # noqa: B018
        assert weight_gradient() is None
    assert weight_gradient() is not None


LAYERS = (("lrelu", 7), ("tanh", 6), ("swish", 5), ("linear", 1))


def mlp_parameters(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(4, 7), (7, 6), (6, 5), (5, 1)]
    return [
        torch.randn(*shape, dtype=dtype, generator=generator).div_(2).requires_grad_()
        for k, m in sizes
        for shape in ((m, k), (m,))
    ]


def mlp(function: Any, x: Tensor, parameters: list[Tensor]) -> Tensor:
    for i, (act, _) in enumerate(LAYERS):
        x = function(x, parameters[2 * i], parameters[2 * i + 1], act)
    return x


def batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(8, 4, dtype=dtype, generator=torch.Generator().manual_seed(2)).requires_grad_()


@pytest.mark.parametrize("skip", [False, True])
def test_the_gradient_of_a_penalty_is_complete(skip: bool) -> None:
    x, parameters = batch(), mlp_parameters()

    def gradients(function: Any, skip: bool) -> tuple[Tensor, ...]:
        logits = mlp(function, x, parameters)
        if skip:
            with no_weight_gradients():
                (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        else:
            (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        loss = F.softplus(logits).mean() + 5 * g.square().sum(1).mean()
        return torch.autograd.grad(loss, [x, *parameters])

    expected = gradients(ops.linear_act_ref, False)
    for ours, plain in zip(gradients(ops.linear_act, skip), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
        assert plain.abs().max() > 1e-3


# ---- torch.compile -----------------------------------------------------------------------------------------


def penalty_gradients(network: Any, x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    (g,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    return list(torch.autograd.grad(g.square().sum(), parameters[:-1]))  # it does not depend on the last bias


def expected_penalty_gradients(x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    return penalty_gradients(lambda t: mlp(ops.linear_act_ref, t, parameters), x, parameters)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def test_a_compiled_network_differentiated_twice_from_outside_is_right_or_refused() -> None:
    x, parameters = batch(), mlp_parameters()
    network = torch.compile(lambda t: mlp(ops.linear_act, t, parameters), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(network(x), mlp(ops.linear_act_ref, x, parameters))
    try:
        ours = penalty_gradients(network, x, parameters)
    except RuntimeError as error:
        assert "double backward" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(ours, expected_penalty_gradients(x, parameters))


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="a torch without this option"
)
@pytest.mark.parametrize("skip", [False, True])
def test_autograd_grad_inside_the_compiled_graph_is_right_or_refused(skip: bool) -> None:
    x, parameters = batch(), mlp_parameters()

    def step(x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
        logits = mlp(ops.linear_act, x, parameters)
        if skip:
            with no_weight_gradients():
                (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        else:
            (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return list(torch.autograd.grad(g.square().sum(), parameters[:-1]))

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        try:
            ours = torch.compile(step, fullgraph=True, backend="aot_eager")(x, parameters)
        except RuntimeError:  # Dynamo's own errors are RuntimeErrors too
            return
    torch.testing.assert_close(ours, expected_penalty_gradients(x, parameters))


def test_a_graph_compiled_inside_no_weight_gradients_still_trains_outside() -> None:
    x, parameters = batch(), mlp_parameters()
    network = torch.compile(lambda t: mlp(ops.linear_act, t, parameters), fullgraph=True, backend="aot_eager")
    with no_weight_gradients():  # the first call: here forward and backward are traced
        torch.autograd.grad(network(x).sum(), x)
    ours = torch.autograd.grad(network(x).sum(), parameters)
    torch.testing.assert_close(
        ours, torch.autograd.grad(mlp(ops.linear_act_ref, x, parameters).sum(), parameters)
    )
