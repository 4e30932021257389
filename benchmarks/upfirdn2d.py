"""Does a polyphase filter beat PyTorch's alternatives? Blur, ×2 upsampling and ÷2 downsampling of StyleGAN's
layers, with its 4 and 12 taps, against the definition (which filters inserted zeros), well-written depthwise
convolutions, and torch.compile of either."""

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


def cases(setting: Setting) -> Iterable[Case]:
    for taps in (4, 12):
        for kind in ("blur", "upsampling", "downsampling"):
            yield from cases_of(kind, taps, setting)


def native(kind: str, taps: int, f: Tensor, channels: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Depthwise convolutions: one pass with the outer product, or two with the vector."""
    square = torch.outer(f, f)[None, None].expand(channels, 1, taps, taps).contiguous()
    row, column = (
        f.reshape(size).expand(channels, *size[1:]).contiguous()
        for size in ((1, 1, 1, taps), (1, 1, taps, 1))
    )
    if kind == "upsampling":
        pad = (taps - 2) // 2

        def one(x: Tensor) -> Tensor:
            return F.conv_transpose2d(x, square * 4, stride=2, padding=pad, groups=channels)

        def two(x: Tensor) -> Tensor:
            y = F.conv_transpose2d(x, column * 2, stride=(2, 1), padding=(pad, 0), groups=channels)
            return F.conv_transpose2d(y, row * 2, stride=(1, 2), padding=(0, pad), groups=channels)

    else:
        stride = 2 if kind == "downsampling" else 1
        before, after = ((taps - 1) // 2, (taps - 2) // 2) if stride == 2 else (taps // 2, (taps - 1) // 2)

        def one(x: Tensor) -> Tensor:
            x = F.pad(x, [before, after, before, after])
            return F.conv2d(x, square, stride=stride, groups=channels)

        def two(x: Tensor) -> Tensor:
            y = F.conv2d(F.pad(x, [0, 0, before, after]), column, stride=(stride, 1), groups=channels)
            return F.conv2d(F.pad(y, [before, after, 0, 0]), row, stride=(1, stride), groups=channels)

    return {"depthwise convolution": one, "two depthwise convolutions": two}


def cases_of(kind: str, taps: int, setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    torch.compiler.reset()  # the number of compiled versions of one function is limited
    shape = (2, 3, 16, 16) if setting.quick else SHAPE
    x = torch.randn(shape, device=setting.device)
    f = torch.signal.windows.hann(taps + 2, device=setting.device)[
        1:-1
    ]  # symmetric: convolution is correlation
    f = f / f.sum()
    f1, f2 = ops.setup_filter(f, separable=True), ops.setup_filter(f, separable=False)
    forms: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
        "blur": (ops.filter2d, {"padding": [taps // 2, (taps - 1) // 2] * 2}),
        "upsampling": (ops.upsample2d, {"up": 2, "gain": 4, "padding": [taps // 2, (taps - 2) // 2] * 2}),
        "downsampling": (ops.downsample2d, {"down": 2, "padding": [(taps - 1) // 2, (taps - 2) // 2] * 2}),
    }
    function, reference = forms[kind]

    def definition(x: Tensor) -> Tensor:
        return ops.upfirdn2d_ref(x, f1, **reference)

    rivals = {"eager": definition, **native(kind, taps, f, shape[1])}
    for contender, mode in setting.compile_modes().items():
        rivals[f"{contender} of eager"] = setting.compiled(definition, mode, dynamic=False)
        rivals[f"{contender} of two convolutions"] = setting.compiled(
            rivals["two depthwise convolutions"], mode, dynamic=False
        )
    contenders = rivals | {"aigc_ext": partial(function, f=f2 if taps < 8 else f1)}
    size = x.numel() * {"blur": 2, "upsampling": 5, "downsampling": 1.25}[kind] * x.element_size()
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        yield Case(
            "upfirdn2d",
            f"forward, {kind}, {taps} taps, {'x'.join(map(str, shape))}",
            {name: partial(run, x) for name, run in contenders.items()},
            bytes=int(size),
            graphs=("eager", "aigc_ext"),
            **tolerance,
        )
    leaf = x.clone().requires_grad_()
    dy = torch.randn_like(function(x, f2))

    def train(run: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(run(leaf), leaf, dy)[0]

    yield Case(
        "upfirdn2d",
        f"forward + backward, {kind}, {taps} taps, {'x'.join(map(str, shape))}",
        {name: partial(train, run) for name, run in contenders.items()},
        bytes=2 * int(size),
        graphs=("eager", "aigc_ext"),
        **tolerance,
    )
