"""How good reconstructions of held-out items are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.data import Dataset, normalize
from aigc_ext.metrics.audio import WaveQuality, wave_quality
from aigc_ext.nn.quantize import code_counts, code_use

BATCH = 64
DRAWS = 8
"""Codes of each item over which the bound on its likelihood is averaged."""


def as_floats(items: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Items as a network takes them: images in its value range, waves in [-1, 1]."""
    if items.dtype == torch.int16:
        return items.float() / 32768
    return normalize(items, value_range)


def sample_rate_of(data: Dataset) -> int:
    """Of recordings, which a dataset of another origin has to tell too."""
    rate = getattr(data, "sample_rate", None)
    if not isinstance(rate, int):
        raise ValueError(f"{data.name} has no sample_rate, which a dataset of recordings must have")
    return rate


def whole_waves(data: Any, device: torch.device) -> Iterator[Tensor]:
    """Waves `[T]` in [-1, 1]: the recordings that the items are from, or else the items."""
    if hasattr(data, "recording"):
        for number in data.groups.unique().tolist():
            yield as_floats(data.recording(number), (-1.0, 1.0)).to(device)
    else:
        for start in range(len(data)):
            yield as_floats(data.read([start])[0][0], (-1.0, 1.0)).to(device)


def mean_squared(output: Tensor, target: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Of each item `(N,)`, with values in [0, 1]; what lies outside the range is clamped, as in a file."""
    low, high = value_range
    return ((output.clamp(low, high) - target) / (high - low)).square().flatten(1).mean(1)


def psnr(errors: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of values in [0, 1]. Below 1e-10, which is less
    than rounding to 8 bits has, it is that of 1e-10."""
    return -10 * errors.clamp(min=1e-10).log10()


def detail(images: Tensor) -> Tensor:
    """The energy of the fine detail of images (N, C, H, W): of each image `(N,)`, the mean square of the
    Laplacian (each pixel against its four neighbours), inside the borders."""
    kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return (
        F.conv2d(images.flatten(0, 1)[:, None], kernel).square().mean((1, 2, 3)).view(len(images), -1).mean(1)
    )


@torch.no_grad()
def reconstruction_quality(
    network: Any, held: Dataset, *, cond: bool, device: torch.device, bernoulli: bool
) -> dict[str, float]:
    """Of a network in eval mode, over all held-out items:

    - `psnr`: in dB, of values in [0, 1]; the mean over the items of each one's.
    - `sharpness` (images): the root of the ratio of the `detail` of reconstructions to that of the items: 1
      if they are as sharp, less if they are blurred; noise raises it too.
    - `nelbo` (kl, with `bernoulli`): the bound on -log p of an item in nats: `losses.bernoulli_nll`, the mean
      over `DRAWS` codes of each item from a fixed seed, plus the divergence. Grey values are probabilities of
      white, so that it is the expectation over dynamic binarisation. `kl` is the divergence.
    - `lsd`, `stft` (waves, instead): the log-spectral distance in dB and `losses.multi_resolution_stft`, the
      means over whole recordings where the data have them; see `metrics.wave_quality`.
    - `perplexity`, `used_codes` (vq, fsq): exp of the entropy of the codes of all items, and the share of the
      codebook that occurs.
    """
    if held.kind == "audio":
        found = [wave_quality(network(wave[None])[0], wave) for wave in whole_waves(held, device)]
        return {
            name: sum(values) / len(found) for name, *values in zip(WaveQuality._fields, *found, strict=True)
        }
    ratios: dict[str, list[Tensor]] = {name: [] for name in ("psnr", "detail", "own_detail", "nelbo", "kl")}
    counts: Tensor | None = None
    rng = torch.Generator().manual_seed(0)
    for items, labels in _batches(held, device):
        target, c = as_floats(items, network.value_range), (labels if cond else None)
        given = (target,) if c is None else (target, c)
        output = network(*given)
        ratios["psnr"].append(psnr(mean_squared(output, target, network.value_range)))
        if held.kind == "images":
            low, high = network.value_range
            ratios["detail"].append(detail(output.clamp(low, high)))
            ratios["own_detail"].append(detail(target))
        bottleneck = getattr(network, "bottleneck", None)
        if bottleneck in ("vq", "fsq"):
            own = code_counts(network.codes(*given), network.num_codes)
            counts = own if counts is None else counts + own
        if bottleneck == "kl" and bernoulli:
            kl, nll = _bound(network, target, c, rng)
            ratios["kl"].append(kl)
            ratios["nelbo"].append(nll + kl)
    means = {name: torch.cat(values).double().mean().item() for name, values in ratios.items() if values}
    if "detail" in means:
        means["sharpness"] = (means.pop("detail") / max(means.pop("own_detail"), 1e-12)) ** 0.5
    if counts is not None:
        means["perplexity"], means["used_codes"] = (value.item() for value in code_use(counts.double()))
    return means


def _bound(network: Any, target: Tensor, c: Tensor | None, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The divergence and the expected -log p of each item."""
    mean, log_variance = network.posterior(target) if c is None else network.posterior(target, c)
    kl = ((mean.square() + log_variance.exp() - log_variance - 1) / 2).flatten(1).sum(1)
    draws = []
    for _ in range(DRAWS):
        noise = torch.randn(mean.shape, generator=rng).to(mean)
        logits = network.decoder.outputs(mean + (log_variance / 2).exp() * noise, c)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        draws.append(losses.flatten(1).sum(1))
    return kl, torch.stack(draws).mean(0)


def _batches(data: Dataset, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(data), BATCH):
        items, labels = data.read(range(start, min(start + BATCH, len(data))))
        yield items.to(device), labels.to(device)
