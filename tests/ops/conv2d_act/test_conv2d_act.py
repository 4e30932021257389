"""conv2d_act and its transposed form: bad arguments, autocast, penalties and the choice of the kernel, beyond
the property suite."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aigc_ext import no_weight_gradients, ops
from aigc_ext.losses import r1_penalty
from aigc_ext.ops.conv3x3 import has_conv3x3
from tests.ops.suite import case_id

X, W = torch.zeros(2, 4, 6, 6), torch.zeros(6, 4, 3, 3)
BAD = [
    ({"x": torch.zeros(4, 6, 6)}, RuntimeError, ("x has shape [4, 6, 6]", "[N, C, H, W]")),
    ({"x": torch.zeros(2, 4, 0, 6)}, RuntimeError, ("x has shape [2, 4, 0, 6]", "at least 1")),
    ({"x": torch.zeros(2, 3, 6, 6)}, RuntimeError, ("x has shape [2, 3, 6, 6]", "4 channels")),
    ({"w": torch.zeros(6, 4, 3)}, RuntimeError, ("w has shape [6, 4, 3]", "kH, kW]")),
    ({"w": torch.zeros(6, 4, 7, 3)}, RuntimeError, ("x has shape", "along y nothing is left", "7")),
    ({"groups": 4}, RuntimeError, ("groups is 4", "must divide 6")),
    ({"groups": 0}, RuntimeError, ("groups is 0",)),
    ({"stride": 0}, RuntimeError, ("stride is 0", "at least 1")),
    ({"padding": [0, -1]}, RuntimeError, ("along x", "padding -1")),
    ({"b": torch.zeros(5)}, RuntimeError, ("b has shape [5]", "[6]")),
    ({"b": torch.zeros(6).double()}, RuntimeError, ("b is float64", "must be float32")),
    ({"w": W.double()}, RuntimeError, ("w is float64", "must be float32")),
    ({"x": X.int()}, RuntimeError, ("x is int32", "must be float")),
    ({"w": torch.zeros(6, 4, 3, 3, device="meta")}, RuntimeError, ("w is on meta", "must be on cpu")),
    ({"stride": [1, 2, 3]}, TypeError, ("stride is [1, 2, 3]", "[y, x]")),
    ({"padding": "same"}, TypeError, ("padding is 'same'", "an integer or two")),
    ({"act": "gelu"}, ValueError, ("act is 'gelu'",)),
    ({"x": [[1.0]]}, TypeError, ("x is [[1.0]] (list)", "must be a tensor")),
    ({"b": 1.0}, TypeError, ("b is 1.0 (float)", "must be a tensor or None")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD, ids=case_id)
def test_bad_argument(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.conv2d_act(**{"x": X, "w": W, "b": torch.zeros(6), **arguments})
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


def test_bad_output_padding() -> None:
    with pytest.raises(RuntimeError, match="output_padding along y is 2, but must be from 0 to 1"):
        ops.conv_transpose2d_act(X, torch.zeros(4, 6, 3, 3), stride=2, output_padding=2)


def test_a_backward_needs_a_fitting_dy() -> None:
    geometry = [1, 1], [0, 0], [1, 1], [0, 0], 1, False
    with pytest.raises(RuntimeError, match=r"dy has shape \[2, 6, 4, 5\], but must be \[2, 6, 4, 4\]"):
        torch.ops.aigc.convolution_backward(torch.zeros(2, 6, 4, 5), X, W, *geometry, True, True)


@pytest.mark.card
@pytest.mark.parametrize(
    ("stride", "dilation", "output_padding"), [(2, 1, 1), (1, 2, 1), ([1, 3], 2, [1, 2])]
)
def test_output_padding_has_a_second_derivative(stride: Any, dilation: int, output_padding: Any) -> None:
    torch.manual_seed(0)
    x, w = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((1, 2, 3, 2), (2, 3, 2, 2))
    )
    options: dict[str, Any] = {
        "stride": stride,
        "dilation": dilation,
        "output_padding": output_padding,
        "act": "tanh",
    }

    def function(x: Tensor, w: Tensor) -> Tensor:
        return ops.conv_transpose2d_act(x, w, **options)

    torch.autograd.gradcheck(function, (x, w))
    torch.autograd.gradgradcheck(function, (x, w))


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.dtypes: dict[str, list[torch.dtype]] = {}
        self.weight_gradients = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name()
        self.names.append(name)
        if name.startswith("aigc::"):
            self.dtypes.setdefault(name, []).append(args[0].dtype)
        computes_one = name == "aigc::convolution_backward" and args[-1]  # need_w
        self.weight_gradients += computes_one or name == "aigc::conv3x3_weight_gradient"
        return function(*args, **(kwargs or {}))


def discriminator(convolve: Any, transposed: Any) -> Any:
    """A small residual discriminator; its first two layers are wide enough for Winograd's convolution."""
    torch.manual_seed(0)
    w = [
        torch.randn(size, dtype=torch.float64).mul_(0.1).requires_grad_()
        for size in ((32, 32, 3, 3), (33, 32, 3, 3), (33, 32, 1, 1), (33, 2, 3, 3), (1, 2, 4, 4))
    ]
    b = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in (32, 33, 2)]

    def run(x: Tensor) -> Tensor:
        h = convolve(x, w[0], b[0], padding=1, act="swish")
        h = convolve(h, w[1], b[1], padding=1, act="swish") + convolve(x, w[2])
        h = transposed(h, w[3], b[2], stride=2, padding=1, act="tanh")
        return convolve(h, w[4], None, stride=2, padding=1).flatten(1).sum(1)

    return run, [*w, *b]


@pytest.mark.card
def test_r1_through_a_discriminator_is_plain_pytorchs() -> None:
    ours, parameters = discriminator(ops.conv2d_act, ops.conv_transpose2d_act)
    plain, plain_parameters = discriminator(ops.conv2d_act_ref, ops.conv_transpose2d_act_ref)
    x = torch.randn(2, 32, 32, 32, dtype=torch.float64)
    with Calls() as calls:
        value = r1_penalty(ours, x)
    assert "aigc::convolution" in calls.names
    if has_conv3x3(x):
        assert "aigc::conv3x3" in calls.names
    assert "aigc::convolution_backward" in calls.names
    assert calls.weight_gradients == 0
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(plain(leaf).sum(), leaf, create_graph=True)
    expected = slope.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(value, expected)
    for got, want in zip(
        torch.autograd.grad(value, parameters, allow_unused=True),
        torch.autograd.grad(expected, plain_parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("size", [(2, 4, 6, 6), (1, 32, 32, 32)], ids=["convolution", "conv3x3"])
def test_a_channels_last_filter_makes_channels_last_images_as_in_conv2d(size: tuple[int, ...]) -> None:
    x = torch.randn(size).requires_grad_()
    w = torch.randn(size[1], size[1], 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    y, plain = (f(x, w, padding=1) for f in (ops.conv2d_act, F.conv2d))
    assert y.stride() == plain.stride()
    if size[1] == 4:
        dx, dw = torch.autograd.grad(y, (x, w), torch.randn_like(y))
        assert (dx.stride(), dw.stride()) == (x.stride(), w.stride())


@pytest.mark.parametrize("act", ["linear", "lrelu"])
def test_no_weight_gradients_leaves_out_the_bias_too(act: str) -> None:
    x, w, b = (t.detach().requires_grad_() for t in (X + 1, W + 1, torch.ones(6)))
    with no_weight_gradients():
        y = ops.conv2d_act(x, w, b, act=act)
        dx, dw, db = torch.autograd.grad(y.sum(), (x, w, b), allow_unused=True)
    assert dx is not None
    assert dw is None
    assert db is None


def test_autocast_is_that_of_conv2d() -> None:
    x, w, b = torch.randn(2, 4, 6, 6), torch.randn(6, 4, 3, 3), torch.randn(6)
    with torch.autocast("cpu", torch.bfloat16):
        y, plain = (f(x, w, b, padding=1) for f in (ops.conv2d_act, F.conv2d))
        assert ops.conv2d_act(x, w, b, act="lrelu").dtype == torch.bfloat16
    assert y.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(y, plain)


# What oneDNN was seen to get wrong in bfloat16: the shapes of x and w, and the rest.
WRONG_IN_ONEDNN = [
    # with AVX512_BF16: the gradient of w reads beyond an image that is one pixel wide
    ((3, 6, 13, 1), (5, 6, 2, 2), {"stride": 2, "padding": [0, 1]}),
    ((2, 4, 12, 1), (6, 2, 4, 4), {"stride": 2, "padding": [1, 2], "groups": 2}),
    ((3, 8, 4, 1), (8, 7, 3, 3), {"stride": 2, "padding": 1, "transposed": True}),
    ((3, 4, 3, 1), (6, 2, 2, 1), {"stride": 2, "padding": [0, 1], "dilation": [1, 3], "groups": 2}),
    # with AMX: anything
    ((3, 7, 11, 3), (6, 7, 3, 3), {"stride": 2}),
    (
        *((1, 3, 6, 1), (3, 3, 2, 3)),
        {"stride": [1, 3], "padding": [0, 2], "output_padding": [0, 1], "dilation": 2, "transposed": True},
    ),
]
# What is left to it (1x1 to 7x7 filters, as networks have them).
LEFT_TO_ONEDNN = [
    *(
        ((2, 3 * c, side, side), (4 * c, 3 * c, taps, taps), {"stride": stride, "padding": (taps - 1) // 2})
        for c, side, taps, stride in [
            *((1, 2, 4, 2), (1, 4, 5, 2), (5, 8, 4, 2), (2, 7, 3, 2), (1, 28, 5, 1), (10, 9, 7, 1)),
            *((1, 5, 1, 2), (3, 14, 3, 2)),
        ]
    ),
    ((3, 32, 4, 4), (32, 16, 4, 4), {"stride": 2, "padding": 1, "transposed": True}),
    ((2, 16, 33, 41), (8, 16, 3, 3), {"stride": 2}),
    ((1, 8, 17, 16), (8, 8, 3, 3), {"stride": 2, "transposed": True}),
]


@pytest.mark.parametrize(
    ("case", "converted"),
    [*((case, True) for case in WRONG_IN_ONEDNN), *((case, False) for case in LEFT_TO_ONEDNN)],
    ids=str,
)
def test_bfloat16_is_not_left_to_onednn_where_that_is_wrong(
    case: tuple[Any, ...], converted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("aigc_ext.ops.conv2d_act"), "widened", lambda x: False)
    x_shape, w_shape, options = case
    options = dict(options)
    run = ops.conv_transpose2d_act if options.pop("transposed", False) else ops.conv2d_act
    x, w = (torch.randn(shape).bfloat16().requires_grad_() for shape in (x_shape, w_shape))
    with Calls() as calls:
        y = run(x, w, **options)
        torch.autograd.grad(y, (x, w), torch.ones_like(y))
    assert y.dtype == torch.bfloat16
    dtype = torch.float32 if converted else torch.bfloat16
    assert calls.dtypes["aigc::convolution"] == calls.dtypes["aigc::convolution_backward"] == [dtype]


def test_bfloat16_is_right_whatever_the_memory_around_it_holds() -> None:
    """In a process whose unwritten memory is full of large numbers: reading any of it would show, and so
    would a crash of oneDNN."""
    program = Path(__file__).with_name("bfloat16_convolutions.py")
    environment = {**os.environ, "MALLOC_PERTURB_": "128"}
    subprocess.run(
        [sys.executable, str(program), "250"], env=environment, cwd=Path(__file__).parents[3], check=True
    )


@pytest.mark.skipif(not has_conv3x3(X), reason="this backend has no kernel for it")
@pytest.mark.parametrize(
    ("shape", "weight", "options", "taken"),
    [
        ((1, 32, 32, 32), (32, 32, 3, 3), {"padding": 1}, True),
        ((1, 64, 32, 16), (64, 64, 3, 3), {"padding": 1}, True),
        ((2, 32, 16, 16), (32, 32, 3, 3), {"padding": 1}, "but for AVX-512"),
        ((9, 512, 8, 8), (512, 512, 3, 3), {"padding": 1}, "but for AVX-512"),
        ((8, 512, 16, 16), (512, 512, 3, 3), {"padding": 1}, "but for AVX-512"),
        ((16, 512, 16, 16), (512, 512, 3, 3), {"padding": 1}, True),
        ((9, 32, 8, 8), (32, 32, 3, 3), {"padding": 1, "format": torch.channels_last}, True),
        ((9, 512, 8, 8), (512, 512, 3, 3), {"padding": 1, "format": torch.channels_last}, "but for AVX-512"),
        ((10, 32, 8, 7), (32, 32, 3, 3), {"padding": 1, "format": torch.channels_last}, "but for AVX-512"),
        ((2, 31, 16, 16), (32, 31, 3, 3), {"padding": 1}, False),
        ((1, 32, 16, 16), (32, 32, 3, 3), {"padding": 1}, False),
        ((2, 32, 16, 16), (32, 32, 3, 3), {"padding": 3}, False),
        ((2, 32, 16, 16), (32, 32, 3, 3), {"stride": 2}, False),
        ((2, 32, 16, 16), (32, 32, 3, 3), {"dilation": 2}, False),
        ((2, 32, 16, 16), (32, 32, 1, 1), {}, False),
        ((2, 32, 16, 16), (32, 16, 3, 3), {"groups": 2}, False),
    ],
    ids=case_id,
)
@pytest.mark.parametrize("avx512", [False, True], ids=["AVX2", "AVX-512"])
def test_winograd_is_taken_where_it_pays(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    options: dict[str, Any],
    taken: bool | str,
    avx512: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("aigc_ext.ops.conv2d_act"), "_AVX512", avx512)
    if taken == "but for AVX-512":
        taken = not avx512
    options = dict(options)
    format = options.pop("format", torch.contiguous_format)
    with Calls() as calls:
        ops.conv2d_act(torch.randn(shape).to(memory_format=format), torch.randn(weight), **options)
    assert ("aigc::conv3x3" in calls.names) == taken
    assert ("aigc::convolution" in calls.names) != taken


@pytest.mark.skipif(not has_conv3x3(X), reason="this backend has no kernel for it")
@pytest.mark.parametrize("slow", [False, True])
def test_winograd_serves_half_types_where_the_cpu_is_slow_in_them(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("aigc_ext.ops.conv2d_act"), "widened", lambda x: slow)
    with Calls() as calls:
        ops.conv2d_act(X.bfloat16(), W.bfloat16(), padding=1)
    assert ("aigc::conv3x3" in calls.names) == slow
    assert ("aigc::convolution" in calls.names) != slow


@pytest.mark.parametrize(
    ("shape", "weight", "options", "taken"),
    [
        ((8, 64, 16, 16), (64, 64, 1, 1), {"format": torch.channels_last}, "always"),
        ((8, 3, 64, 64), (32, 3, 1, 1), {"format": torch.channels_last}, "always"),
        ((8, 64, 16, 16), (64, 64, 1, 1), {}, "where MKL is slow"),
        ((2, 64, 8, 8), (64, 64, 1, 1), {"format": torch.channels_last}, "never"),
        ((8, 32, 32, 32), (32, 32, 1, 1), {}, "never"),
    ],
    ids=case_id,
)
def test_a_1x1_convolution_of_few_images_goes_to_onednn_where_it_pays(
    shape: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any], taken: str
) -> None:
    format = options.get("format", torch.contiguous_format)
    torch.manual_seed(0)
    x = torch.randn(shape).to(memory_format=format).requires_grad_()
    w = torch.randn(weight).to(memory_format=format).requires_grad_()

    def run(x: Tensor, w: Tensor, convolve: Any) -> list[Tensor]:
        y = convolve(x, w)
        (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        dx.square().sum().backward()
        return [y.detach(), dx.detach(), w.grad]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, PyTorch itself takes oneDNN
    try:
        with torch.profiler.profile() as profile:
            got = run(x, w, ops.conv2d_act)
    finally:
        torch.set_num_threads(threads)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    for result, expected in zip(got, run(wide[0], wide[1], F.conv2d), strict=True):
        torch.testing.assert_close(
            result.double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )
    names = {event.name for event in profile.events()}
    if torch.backends.mkldnn.is_available() and has_conv3x3(x) and taken != "where MKL is slow":
        assert ("aten::mkldnn_convolution" in names) == (taken == "always")
