"""Compares values and gradients of our convolutions in bfloat16 with float32: a given number of arbitrary
convolutions, and as many of the kind that networks have. test_conv2d_act.py runs it in a process of its own,
which a fault in the libraries below us may kill."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aigc_ext import ops


def any_kind() -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    transposed = random.random() < 0.5
    groups = random.choice([1, 1, 2])
    in_channels, out_channels = (groups * random.randint(1, 8) for _ in range(2))
    kernel, stride, dilation = ([random.randint(1, most) for _ in range(2)] for most in (4, 3, 3))
    if random.random() < 0.5:
        kernel[1], dilation = kernel[0], [1, 1]
        stride = [random.randint(1, 2)] * 2
    padding, sides = [random.randint(0, 2) for _ in range(2)], [1, 1]
    for d in range(2):
        reach = dilation[d] * (kernel[d] - 1)
        if transposed:
            padding[d] = min(padding[d], reach // 2)
        else:
            sides[d] = max(1, reach + 1 - 2 * padding[d])
        sides[d] += random.choice([0, 0, random.randint(0, 12), random.randint(0, 40)])
    channels = (in_channels, out_channels // groups) if transposed else (out_channels, in_channels // groups)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (
        (random.randint(1, 3), in_channels, *sides),
        (*channels, *kernel),
        {**options, "transposed": transposed},
    )


def of_networks() -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    taps, stride, transposed = random.choice([1, 3, 4, 5, 7]), random.randint(1, 2), random.random() < 0.5
    side = random.randint(2, 32)
    while not transposed and side + 2 * ((taps - 1) // 2) < taps:
        side += 1
    in_channels, out_channels = (random.choice([3, 8, 16, 33, 64]) for _ in range(2))
    channels = (in_channels, out_channels) if transposed else (out_channels, in_channels)
    return (
        (random.randint(1, 4), in_channels, side, side),
        (*channels, taps, taps),
        {"stride": stride, "padding": (taps - 1) // 2, "transposed": transposed},
    )


def check(x_shape: tuple[int, ...], w_shape: tuple[int, ...], options: dict[str, Any], seed: int) -> None:
    options = dict(options)
    torch.manual_seed(seed)
    x, w = torch.randn(x_shape).bfloat16(), torch.randn(w_shape).bfloat16()
    if seed % 3 == 0:
        x = x.contiguous(memory_format=torch.channels_last)
    run: Callable[..., Tensor] = ops.conv_transpose2d_act if options.pop("transposed") else ops.conv2d_act

    def results(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        y = run(*leaves, **options)
        torch.manual_seed(seed + 1)
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.randn(y.shape).bfloat16().to(dtype))]

    for name, got, expected in zip(
        ("y", "dx", "dw"), results(torch.bfloat16), results(torch.float32), strict=True
    ):
        error, size = (got.float() - expected).abs().max().item(), expected.abs().max().item()
        if not error <= 2**-7 * size:
            raise AssertionError(f"{name}: error {error:.3g} of {size:.3g}: {x_shape}, {w_shape}, {options}")


def main() -> None:
    random.seed(0)
    for seed in range(int(sys.argv[1])):
        for kind in (any_kind, of_networks):
            call = kind()
            print(*call, flush=True)  # if the process dies, the last line says where
            check(*call, seed)


main()
