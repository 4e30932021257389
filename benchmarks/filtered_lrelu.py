"""StyleGAN3's activation: up 2, down 2, 12 + 12 taps, against its definition in plain PyTorch, depthwise
convolutions that skip the inserted zeros, and torch.compile of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting

SHAPE = (4, 64, 64, 64)
TAPS = 12


def cases(setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    torch.compiler.reset()
    shape = (2, 3, 16, 16) if setting.quick else SHAPE
    x, b = torch.randn(shape, device=setting.device), torch.randn(shape[1], device=setting.device)
    f = ops.setup_filter(torch.signal.windows.hann(TAPS + 2)[1:-1], device=setting.device)
    row, column = (
        f.reshape(size).expand(shape[1], *size[1:]).contiguous()
        for size in ((1, 1, 1, TAPS), (1, 1, TAPS, 1))
    )
    options: dict[str, Any] = {"up": 2, "down": 2, "padding": TAPS - 1, "clamp": 256.0}

    def eager(x: Tensor, b: Tensor) -> Tensor:
        return ops.filtered_lrelu_ref(x, f, f, b, **options)

    def convolutions(x: Tensor, b: Tensor) -> Tensor:
        groups, pad = shape[1], TAPS - 1
        x = F.pad(x + b[:, None, None], [TAPS // 2] * 4)  # 12 of the upsampled image's 11, and one is cut off
        x = F.conv_transpose2d(x, column * 2, stride=(2, 1), groups=groups)[:, :, 2 * pad // 2 + 1 :]
        x = x[:, :, : 2 * shape[2] + pad]
        x = F.conv_transpose2d(x, row * 2, stride=(1, 2), groups=groups)[..., 2 * pad // 2 + 1 :]
        x = x[..., : 2 * shape[3] + pad]
        x = (F.leaky_relu(x, 0.2) * 2**0.5).clamp(-256, 256)
        x = F.conv2d(x, column, stride=(2, 1), groups=groups)
        return F.conv2d(x, row, stride=(1, 2), groups=groups)

    contenders: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "eager": eager,
        "depthwise convolutions": convolutions,
    }
    for contender, mode in setting.compile_modes().items():
        contenders[f"{contender} of the convolutions"] = setting.compiled(convolutions, mode, dynamic=False)
    contenders["aigc_ext"] = lambda x, b: ops.filtered_lrelu(x, f, f, b, **options)
    name = f"up 2, down 2, {TAPS} + {TAPS} taps, {'x'.join(map(str, shape))}"
    with torch.no_grad():
        yield Case(
            "filtered_lrelu",
            f"forward, {name}",
            {k: partial(run, x, b) for k, run in contenders.items()},
            graphs=("eager", "aigc_ext"),
            atol=1e-4,
        )
    x.requires_grad_()
    b.requires_grad_()
    dy = torch.randn_like(eager(x, b))

    def train(run: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(x, b), (x, b), dy)

    yield Case(
        "filtered_lrelu",
        f"forward + backward, {name}",
        {k: partial(train, run) for k, run in contenders.items()},
        outputs=lambda gradients: gradients[0],
        graphs=("eager", "aigc_ext"),
        atol=1e-4,
    )
