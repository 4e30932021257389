"""How do time and memory of a training step grow with the batch, the channels, the resolution and the
threads?

From one size of DCGAN (batch norm, strided convolutions) and one of StyleGAN2 with R1 and path lengths, one
of them is changed at a time. The contenders are some of `aigc_ext.bench.step`'s, whose first steps it
compares.
`peak_mb` is the peak of what a step allocates in PyTorch's memory, beyond what it finds there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from aigc_ext.bench.step import Size, case_of
from aigc_ext.bench.timing import Case, Setting

CONTENDERS = (
    "eager",
    "eager, channels_last",
    "aigc_ext",
    "aigc_ext, eager step",
    "aigc_ext, channels_last bf16",
)


def cases(setting: Setting) -> Iterable[Case]:
    for name, penalize in (("dcgan", False), ("stylegan2", True)):
        for size in sizes(name, setting.quick):
            case = case_of(size, penalize, setting, CONTENDERS)
            channels = size.discriminator.get("channels", size.discriminator.get("channel_max"))
            yield replace(case, op="scaling", case=f"{case.case}, {channels} channels", memory=True)


def sizes(preset: str, quick: bool) -> Iterable[Size]:
    side, batch, channels = (8, 4, 4) if quick else (32, 16, 32)
    yield size_of(preset, side, batch, channels)
    if quick:
        return
    for other in (4, 64):
        yield size_of(preset, side, other, channels)
    for other in (8, 64):
        yield size_of(preset, side, batch, other)
    for other in (16, 64):
        yield size_of(preset, other, batch, channels)


def size_of(preset: str, side: int, batch: int, channels: int) -> Size:
    if preset == "dcgan":
        return Size(preset, side, batch, {"channels": channels}, {"channels": channels})
    widths: dict[str, Any] = {"channel_base": side * channels, "channel_max": channels}
    latents = {"z_dim": 64, "w_dim": 64, "mapping_layers": 2}
    return Size(preset, side, batch, {**latents, **widths}, widths)
