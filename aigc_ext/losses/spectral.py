"""Spectra of waves, and losses between those of two.

Shapes: waves `[N, T]`, floating point with full scale from -1 to 1, mel spectrograms `[N, n_mels, frames]`.
Each loss is a 0-d tensor, the mean over the N waves; gradients flow to both arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOOR = 1e-4
"""The smallest magnitude that a logarithm is taken of, 80 dB below full scale. Below it a spectrum is not
heard, but its logarithm would have the largest gradients."""
_FAINT = 1e-3  # root mean square of the magnitudes of what is hardly heard
_EPSILON = 1e-9  # of a squared magnitude, whose root would have no gradient at 0


class Frames(NamedTuple):
    """How a wave is cut into frames.

    Attributes:
        n_fft: length of the Fourier transform.
        hop: samples from one frame to the next.
        window: length of the Hann window in the middle of the transform.
    """

    n_fft: int
    hop: int
    window: int


def magnitudes(wave: Tensor, frames: Frames) -> Tensor:
    """The magnitudes `[N, n_fft // 2 + 1, ceil(T / hop)]` of the short-time Fourier transform; a full-scale
    sine has about 0.5, whatever the window: they are divided by the window's sum. Frame i is in the middle of
    the i-th hop, and the wave is continued by its mirror image, as far as it goes, then by silence.

    Raises:
        ValueError: the wave has another shape, or the frames contradict each other.
    """
    return torch.view_as_real(transform(wave, frames)).square().sum(-1).add(_EPSILON**2).sqrt()


def transform(wave: Tensor, frames: Frames) -> Tensor:
    """The complex transform of which `magnitudes` are the magnitudes."""
    if wave.dim() != 2 or wave.shape[1] < 1:
        raise ValueError(f"the wave has shape {list(wave.shape)}, but must have [N, T], T > 0")
    n_fft, hop, window = frames
    if not 1 <= hop <= window <= n_fft:
        raise ValueError(f"{frames} must have 1 <= hop <= window <= n_fft")
    if wave.dtype in (torch.float16, torch.bfloat16):
        wave = wave.float()
    length = wave.shape[1]
    before = (n_fft - hop) // 2
    after = -(-length // hop) * hop - length + n_fft - hop - before
    mirrored = min(before, after, length - 1)
    padded = F.pad(wave[:, None], (mirrored, mirrored), mode="reflect")[:, 0] if mirrored else wave
    padded = F.pad(padded, (before - mirrored, after - mirrored))
    shape = hann(window, n_fft, wave.device, wave.dtype)
    return torch.stft(padded, n_fft, hop, n_fft, shape, center=False, return_complex=True) / shape.sum()


def hann(window: int, n_fft: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The periodic Hann window in the middle of `n_fft` zeros."""
    before = (n_fft - window) // 2
    shape = torch.hann_window(window, device=device, dtype=dtype)
    return F.pad(shape, (before, n_fft - window - before))


def mel(hertz: float) -> float:
    """The pitch of a frequency, 2595 log10(1 + f / 700) (O'Shaughnessy 1987, "Speech Communication")."""
    return 2595 * math.log10(1 + hertz / 700)


def hertz(mels: float) -> float:
    """The frequency of a pitch."""
    return 700 * (10 ** (mels / 2595) - 1)


def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float = 0.0, f_max: float | None = None
) -> Tensor:
    """A bank of triangular filters `[n_mels, n_fft // 2 + 1]`, float32 (Davis and Mermelstein 1980,
    "Comparison of parametric representations for monosyllabic word recognition"): the corners are evenly
    spaced in mel from `f_min` to `f_max` Hz (None: half the sample rate), each filter rises from 0 at one
    corner to 1 at the next and falls to 0 at the one after, and is then divided by its sum: it is a weighted
    mean.

    Raises:
        ValueError: the frequencies are out of order, or a filter has no frequency of the transform.
    """
    nyquist = sample_rate / 2
    f_max = nyquist if f_max is None else f_max
    if not 0 <= f_min < f_max <= nyquist:
        raise ValueError(f"f_min is {f_min} and f_max {f_max}, but must be 0 <= f_min < f_max <= {nyquist}")
    if n_mels < 1:
        raise ValueError(f"n_mels is {n_mels}, but must be at least 1")
    low, high = mel(f_min), mel(f_max)
    corners = [hertz(low + (high - low) * i / (n_mels + 1)) for i in range(n_mels + 2)]
    # In NumPy, so that it is also computed where a network is made without memory, on the device "meta".
    edges = np.array(corners)
    frequencies = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    left, top, right = (edges[i : n_mels + i, None] for i in range(3))
    rising, falling = (frequencies - left) / (top - left), (right - frequencies) / (right - top)
    filters = np.minimum(rising, falling).clip(min=0)
    sums = filters.sum(1, keepdims=True)
    if not sums.all():
        empty = int(np.argmin(sums[:, 0]))
        raise ValueError(
            f"n_mels is {n_mels}, but must be less or n_fft ({n_fft}) more: filter {empty}, about "
            f"{corners[empty + 1]:.0f} Hz, has no frequency of the transform"
        )
    return torch.from_numpy((filters / sums).astype(np.float32))


class MelSpectrogram(nn.Module):
    """The logarithms of the amplitudes that a mel filter bank sees, not less than that of `FLOOR`.

    Args:
        sample_rate: of the waves.
        frames: how they are cut.
        n_mels, f_min, f_max: of `mel_filters`.
    """

    filters: Tensor

    def __init__(
        self, sample_rate: int, frames: Frames, n_mels: int, f_min: float = 0.0, f_max: float | None = None
    ) -> None:
        super().__init__()
        self.sample_rate, self.frames, self.n_mels = sample_rate, frames, n_mels
        filters = mel_filters(sample_rate, frames.n_fft, n_mels, f_min, f_max)
        # They follow from the arguments, so that they are in no state_dict.
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """`[N, T]` to `[N, n_mels, ceil(T / hop)]`."""
        spectrum = magnitudes(wave, self.frames)
        return (self.filters.to(spectrum.dtype) @ spectrum).clamp(min=FLOOR).log()

    def extra_repr(self) -> str:
        return f"{self.sample_rate}, {tuple(self.frames)}, {self.n_mels}"


MEL_SCALES = ((64, 8), (128, 16), (256, 32), (512, 48), (1024, 64))
"""Windows of `multi_scale_mel` at 8 kHz, and numbers of filters, each of which has a frequency."""


def mel_scales(sample_rate: int) -> list[tuple[int, int]]:
    """`MEL_SCALES` at another rate: windows of about the same duration, by a power of two."""
    factor = 2 ** max(0, round(math.log2(sample_rate / 8000)))
    return [(factor * window, n_mels) for window, n_mels in MEL_SCALES]


def multi_scale_mel(
    output: Tensor, target: Tensor, sample_rate: int, scales: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """The mean absolute difference of log-mel spectrograms, averaged over several windows, from short ones
    that tell when something is heard to long ones that tell its pitch (Yamamoto et al. 2020 for spectra;
    Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN", section 3.5, for mels). A frame
    begins every quarter of a window.

    Args:
        scales: windows in samples and numbers of mel filters; None: `mel_scales`.
    """
    _check_pair(output, target)
    losses = []
    for window, n_mels in mel_scales(sample_rate) if scales is None else scales:
        spectrogram = _spectrogram(sample_rate, window, n_mels, output.device)
        losses.append((spectrogram(output) - spectrogram(target)).abs().mean())
    return torch.stack(losses).mean()


@functools.lru_cache(maxsize=64)
def _spectrogram(sample_rate: int, window: int, n_mels: int, device: torch.device) -> MelSpectrogram:
    return MelSpectrogram(sample_rate, Frames(window, window // 4, window), n_mels).to(device)


RESOLUTIONS = (Frames(256, 32, 128), Frames(512, 64, 256), Frames(1024, 128, 512))
"""Of `multi_resolution_stft`: windows of 16, 32 and 64 ms at 8 kHz."""


def multi_resolution_stft(
    output: Tensor, target: Tensor, resolutions: Sequence[Frames] = RESOLUTIONS
) -> Tensor:
    """The spectral convergence `|S - S'| / |S|` (Frobenius norms of the magnitudes of a wave; |S| is not less
    than that of a spectrum 60 dB below full scale) and the mean absolute difference of log magnitudes, not
    less than those of `FLOOR`, summed, and averaged over several resolutions (Yamamoto, Song and Kim 2020,
    "Parallel WaveGAN", equations 3 to 6)."""
    _check_pair(output, target)
    losses = []
    for frames in resolutions:
        ours, theirs = magnitudes(output, frames), magnitudes(target, frames)
        difference = torch.linalg.vector_norm((ours - theirs).flatten(1), dim=1)
        # A target of silence has no norm to divide by: an item of a long pause would outweigh all others.
        least = _FAINT * math.sqrt(theirs[0].numel())
        convergence = difference / torch.linalg.vector_norm(theirs.flatten(1), dim=1).clamp(min=least)
        logs = (ours.clamp(min=FLOOR).log() - theirs.clamp(min=FLOOR).log()).abs()
        losses.append(convergence.mean() + logs.mean())
    return torch.stack(losses).mean()


def feature_matching(output: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """The mean absolute difference of a discriminator's features of a network's output and of its target,
    averaged over the layers (Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity
    metric"; Kumar et al. 2019, "MelGAN", equation 4).

    Raises:
        ValueError: there are none, or their numbers or shapes differ.
    """
    if len(output) != len(target) or not output:
        raise ValueError(
            f"there are {len(output)} and {len(target)} features, but must be as many, at least 1"
        )
    for ours, theirs in zip(output, target, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"features have shapes {list(ours.shape)} and {list(theirs.shape)}, but must agree"
            )
    return torch.stack([(a - b).abs().mean() for a, b in zip(output, target, strict=True)]).mean()


def _check_pair(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(f"the shapes are {list(output.shape)} and {list(target.shape)}, but must be equal")
