"""`ops._apart`: samples that do not depend on the rest of their batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from aigc_ext.ops import _apart
from aigc_ext.ops._apart import can_be_apart, convolution_apart, is_apart, linears_apart, samples_apart

pytestmark = pytest.mark.skipif(
    not can_be_apart(torch.empty(0)), reason="this library has no kernel of linear_rows"
)
ACTS = ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "softplus", "swish"]


@pytest.fixture
def apart() -> Iterator[None]:
    with torch.no_grad(), samples_apart():
        yield


def layer(features: int, outputs: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(features * 1000 + outputs)
    return (
        torch.randn(outputs, features, generator=rng, dtype=torch.float64).div(features**0.5).to(dtype),
        torch.randn(outputs, generator=rng, dtype=torch.float64).to(dtype),
    )


@pytest.mark.parametrize("features", [1, 3, 8, 15, 16, 17, 100, 511])
@pytest.mark.parametrize("outputs", [1, 7, 16, 31, 200])
def test_a_row_is_the_same_in_any_batch(features: int, outputs: int, apart: None) -> None:
    w, b = layer(features, outputs)
    x = torch.randn(37, features)
    together = ops.linear_act(x, w, b, "tanh")
    for i in range(37):
        assert torch.equal(ops.linear_act(x[i : i + 1], w, b, "tanh")[0], together[i])
    assert torch.equal(ops.linear_act(x[5:30], w, b, "tanh"), together[5:30])
    truth = F.linear(x.double(), w.double(), b.double()).tanh()
    plain = (F.linear(x, w, b).tanh() - truth).abs().max()
    assert (together - truth).abs().max() <= 2 * plain + 2e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chain(dtype: torch.dtype) -> None:
    layers = [layer(19, 40, dtype), *[layer(40, 40, dtype)] * 7]
    weights, biases = [w for w, _ in layers], [b for _, b in layers]
    x = torch.randn(2, 3, 19, dtype=dtype)
    resolved = [ops.activations.resolve_activation(act, None, None, None)[1:] for act in ACTS]
    alphas, gains = [a for a, _ in resolved], [g for _, g in resolved]
    got = linears_apart(x, weights, biases, ",".join(ACTS), alphas, gains)
    truth = ops.fused_mlp_ref(x.double(), [w.double() for w in weights], [b.double() for b in biases], ACTS)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=5e-6 if dtype == torch.float32 else 1e-14)
    assert linears_apart(x[:0], weights, biases, ",".join(ACTS), alphas, gains).shape == (0, 3, 40)


def test_any_number_of_threads(apart: None) -> None:
    w, b = layer(300, 900)
    x = torch.randn(16, 300)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.linear_act(x, w, b))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_other_threads_compute_as_outside(apart: None) -> None:
    x, seen = torch.zeros(1), []

    def look() -> None:
        with torch.no_grad():
            seen.append(is_apart(x))

    other = threading.Thread(target=look)
    other.start()
    other.join()
    assert is_apart(x)
    assert seen == [False]


def test_the_op_and_its_fake() -> None:
    w, b = layer(5, 4)
    arguments = (torch.randn(3, 5), [w], [b], "lrelu", [0.2], [1.0])
    torch.library.opcheck(torch.ops.aigc.linear_rows.default, arguments)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(5), "x has shape [5], but must be [rows, in_features]"),
        (0, torch.ones(3, 5, dtype=torch.float16), "x must be of dtype float32 or float64"),
        (1, [], "there are 0 weights"),
        (1, [torch.ones(4, 6)], "weights[0] has shape [4, 6], but must be [out_features, 5]"),
        (1, [torch.ones(4, 5, dtype=torch.float64)], "weights[0]"),
        (2, [torch.ones(3)], "biases[0] has shape [3], but must be [4]"),
        (3, "no", "act is 'no'"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments(place: int, value: Any, message: str, device: str) -> None:
    def moved(t: Any) -> Any:
        return [moved(one) for one in t] if isinstance(t, list) else t.to(device)

    w, b = layer(5, 4)
    arguments: list[Any] = [torch.randn(3, 5), [w], [b], "lrelu", [0.2], [1.0]]
    arguments[place] = value
    arguments[:3] = [moved(argument) for argument in arguments[:3]]
    with pytest.raises(RuntimeError) as error:
        _apart._linear_rows(*arguments)
    assert message in str(error.value)


def test_a_trial_finds_an_order_that_depends_on_the_batch(apart: None) -> None:
    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if len(x) > 2:  # the same sum in another order
            return F.conv2d(x[:, :4], w[:, :4]) + F.conv2d(x[:, 4:], w[:, 4:], b)
        return F.conv2d(x, w, b)

    torch.manual_seed(0)
    w = torch.randn(5, 8, 3, 3)
    for b in (None, torch.randn(5)):
        for n in (1, 2, 3, 4):
            x = torch.zeros(n, 8, 6, 6)  # which hides the difference, but not from the trial
            convolution_apart(run, ("test", n), x, w, b)
            x = torch.randn(n, 8, 6, 6)
            y = convolution_apart(run, ("test", n), x, w, b)
            assert all(torch.equal(y[i : i + 1], run(x[i : i + 1], w, b)) for i in range(n))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions(channels_last: bool, transposed: bool, apart: None) -> None:
    x, w, b = torch.randn(4, 8, 9, 7), torch.randn(8, 8, 3, 3), torch.randn(8)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    op, plain = (ops.conv_transpose2d_act, F.conv_transpose2d) if transposed else (ops.conv2d_act, F.conv2d)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for stride, padding in ((1, 1), (2, 1), (2, 0)):
        y = op(x, w, b, stride, padding)
        torch.testing.assert_close(y, plain(x, w, b, stride, padding), rtol=1e-4, atol=1e-4)
        assert y.is_contiguous(memory_format=memory_format)
        for i in range(4):
            assert torch.equal(op(x[i : i + 1].clone(), w, b, stride, padding)[0], y[i])


def test_it_holds_only_where_it_can() -> None:
    x = torch.randn(2, 3)
    assert not is_apart(x)
    with samples_apart():
        assert not is_apart(x)  # there may be gradients
        with torch.no_grad(), samples_apart():
            assert is_apart(x)
            assert not is_apart(x.double())
            assert not is_apart(x.half())
    assert not is_apart(x)
    w, b = layer(3, 4)
    with samples_apart():
        w.requires_grad_()
        ops.linear_act(x, w, b).sum().backward()
    assert w.grad is not None
