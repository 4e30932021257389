"""Images from `Sampler` and from the generator itself, 1 and 16 of them, for every family of generators at
modest widths.

- plain PyTorch: the same generator of PyTorch's layers (`aigc_ext.bench.plain`), called on a batch of
  latents, then `to_uint8`. A seed's image may differ in its last bits with what is in the batch.
- aigc_ext generator: ours, called like that.
- Sampler: draws the latents of each seed from its own random stream, gives NumPy images (N, H, W, C), and a
  seed is the same image in any batch, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc_ext.bench.plain import plain
from aigc_ext.data import to_uint8
from aigc_ext.models import (
    DCGANGenerator,
    MLPGenerator,
    R3GANGenerator,
    SNGANGenerator,
    StyleGAN2Generator,
    StyleGAN3Generator,
)
from aigc_ext.sampling import Sampler
from benchmarks.harness import Case, Setting

STYLE: dict[str, Any] = {"z_dim": 128, "w_dim": 128, "channel_base": 2048, "channel_max": 128}
GENERATORS: dict[str, Callable[[], Any]] = {
    "mlp, 28x28": MLPGenerator,
    "dcgan, 64x64": DCGANGenerator,
    "sngan, 32x32": partial(SNGANGenerator, (3, 32, 32), channels=64),
    "stylegan2, 32x32": partial(StyleGAN2Generator, (3, 32, 32), mapping_layers=4, **STYLE),
    "stylegan3-t, 32x32": partial(StyleGAN3Generator, (3, 32, 32), "t", **STYLE),
    "r3gan, 32x32": partial(R3GANGenerator, (3, 32, 32), channel_max=128, blocks=1),
}
TINY: dict[str, Any] = {"z_dim": 8, "w_dim": 8, "mapping_layers": 1, "channel_base": 32, "channel_max": 4}
QUICK: dict[str, Callable[[], Any]] = {
    "mlp, 4x4": partial(MLPGenerator, (1, 4, 4), z_dim=8, hidden=(8, 8)),
    "stylegan2, 8x8": partial(StyleGAN2Generator, (3, 8, 8), **TINY),
}


def images_of(generator: Any, value_range: tuple[float, float], z: Tensor) -> Tensor:
    with torch.no_grad():
        return to_uint8(generator(z), value_range)


def levels(images: Any) -> Tensor:
    """As float (N, H, W, C), of which one level more or less is as good."""
    if isinstance(images, Tensor):
        return images.permute(0, 2, 3, 1).float().cpu()
    return torch.from_numpy(images).float()


def cases(setting: Setting) -> Iterable[Case]:
    for name, build in (QUICK if setting.quick else GENERATORS).items():
        torch.manual_seed(0)
        generator = build().eval().to(setting.device)
        plainly, sampler = plain(generator), Sampler(generator)
        for n in (1, 16):
            seeds = range(n)
            z = torch.stack(
                [torch.randn(sampler.z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            ).to(setting.device)
            contenders: dict[str, Callable[[], Any]] = {
                "plain PyTorch": partial(images_of, plainly, sampler.value_range, z),
                "aigc_ext generator": partial(images_of, generator, sampler.value_range, z),
                "aigc_ext Sampler": partial(sampler.sample, seeds),
            }
            image = "image" if n == 1 else "images"
            yield Case(
                "sampling", f"{name}, {n} {image}", contenders, outputs=levels, rtol=0, atol=1, turn=0.02
            )
