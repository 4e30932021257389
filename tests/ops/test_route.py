"""What ran, and because of what: the log of `aigc_ext.ops`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from aigc_ext import decompose, ops


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "aigc_ext.ops"]


def test_routes_and_kernels_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aigc_ext")
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    ops.conv2d_act(x, torch.randn(4, 3, 1, 1), torch.randn(4), act="lrelu").sum().backward()
    lines = said(caplog)
    assert "conv2d_act takes convolution: conv3x3 is for 3x3 filters, stride 1 and padding to 2" in lines
    kernel = f"its cpu kernel for {torch.ops.aigc.instruction_set()}"
    assert f"convolution_act runs {kernel}: its tensors are on cpu" in lines
    assert f"bias_act_backward runs {kernel}: its tensors are on cpu" in lines


def test_a_route_says_what_decided(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aigc_ext")
    x, f = torch.randn(1, 2, 8, 8), torch.ones(4)
    ops.filtered_lrelu(x, f, f, None, 1, 2, 6)
    ops.filtered_lrelu(x, f, f, None, 2, 2, 6)
    ops.modulated_conv2d(x.expand(3, -1, -1, -1), torch.randn(4, 2, 3, 3), torch.randn(3, 2), padding=1)
    routes = [line for line in said(caplog) if " takes " in line]
    assert "filtered_lrelu takes composition: with a factor of 1 the image between is no larger" in routes[0]
    assert "filtered_lrelu takes one pass: the image between stays in cache" in routes
    assert "modulated_conv2d takes shared weights: there are several samples" in routes


def test_plain_pytorch_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aigc_ext")
    with decompose():
        ops.bias_act(torch.randn(2, 3))
    torch.func.grad(lambda x: ops.pixel_norm(x).sum())(torch.randn(2, 3))
    assert said(caplog) == [
        "bias_act takes plain PyTorch: it is inside decompose()",
        "pixel_norm takes plain PyTorch: it is inside a torch.func transform",
    ]


def test_nothing_is_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    ops.bias_act(torch.randn(2, 3))
    assert said(caplog) == []


CODE = "import torch; from aigc_ext import ops; ops.bias_act(torch.zeros(2, 3))"


def python(level: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AIGC_LOG": level}
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)


def test_the_environment_turns_it_on() -> None:
    assert "aigc_ext.ops: bias_act runs its cpu kernel for " in python("debug").stderr
    assert python("warning").stderr == python("").stderr == ""


def test_an_unknown_level_is_refused() -> None:
    result = python("loud")
    assert result.returncode == 1
    assert "AIGC_LOG is 'loud', but must be one of debug, info, warning, error, or unset" in result.stderr
