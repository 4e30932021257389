"""StyleGAN2's layer with its epilogue, at the widths and resolutions of its synthesis network: ours against
the plain formulation (a grouped convolution with one group per sample) and our formulation in plain PyTorch
(scaled inputs and outputs). modulated_conv2d's choice between weights per sample and shared weights is based
on these figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting

# samples, channels in, channels out, side, kernel
SHAPES = [
    (4, 64, 64, 64, 3),
    (4, 128, 128, 64, 3),
    (1, 128, 128, 64, 3),
    (4, 512, 512, 8, 3),
    (4, 64, 3, 64, 1),
]


def cases(setting: Setting) -> Iterable[Case]:
    for shape in [(2, 3, 5, 8, 3)] if setting.quick else SHAPES:
        yield from cases_of(*shape, setting)


def scaled(
    x: Tensor, w: Tensor, s: Tensor, b: Tensor, noise: Tensor, strength: Tensor, *, padding: int
) -> Tensor:
    d = (s.square() @ w.square().sum((2, 3)).t() + 1e-8).rsqrt()
    y = F.conv2d(x * s[:, :, None, None], w, padding=padding) * d[:, :, None, None]
    return (F.leaky_relu(y + strength * noise + b[:, None, None], 0.2) * 2**0.5).clamp(-256, 256)


def cases_of(n: int, i: int, o: int, side: int, kernel: int, setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    torch.compiler.reset()
    sizes = ((n, i, side, side), (o, i, kernel, kernel), (n, i), (o,), (n, 1, side, side), ())
    x, w, s, b, noise, strength = (torch.randn(size, device=setting.device) for size in sizes)
    options: dict[str, Any] = {"padding": kernel // 2, "act": "lrelu", "clamp": 256.0}

    def plain(*tensors: Any) -> Tensor:
        return ops.modulated_conv2d_ref(*tensors, **options)

    def form(*tensors: Any) -> Tensor:
        return scaled(*tensors, padding=kernel // 2)

    contenders: dict[str, Callable[..., Tensor]] = {"eager": plain, "eager, scaled": form}
    for contender, mode in setting.compile_modes().items():
        contenders[f"{contender}, scaled"] = setting.compiled(form, mode, dynamic=False)
    contenders["aigc_ext"] = partial(ops.modulated_conv2d, **options)
    name = f"{n}x{i}x{side}x{side} to {o}, {kernel}x{kernel}"
    tolerance: dict[str, Any] = {
        "rtol": 1e-3,
        "atol": 1e-3,
    }  # sums of 9 * in_channels products, in another order
    inputs = (x, w, s, b, noise, strength)
    with torch.no_grad():
        yield Case(
            "modulated_conv2d",
            f"forward, {name}",
            {k: partial(run, *inputs) for k, run in contenders.items()},
            graphs=("eager", "aigc_ext"),
            **tolerance,
        )
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    dy = torch.randn(n, o, side, side, device=setting.device)

    def train(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves), leaves[:4], dy)

    yield Case(
        "modulated_conv2d",
        f"forward + backward, {name}",
        {k: partial(train, run) for k, run in contenders.items()},
        outputs=lambda gradients: gradients[0],
        graphs=("eager", "aigc_ext"),
        **tolerance,
    )
