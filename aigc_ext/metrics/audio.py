"""Measures of waves that are made from a mel spectrogram, the wave that is made of one without a network, and
a classifier of spoken words.

Shapes: waves `[N, T]` or `[T]`, floating point with full scale from -1 to 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from aigc_ext.data import Dataset
from aigc_ext.losses.spectral import (
    FLOOR,
    Frames,
    MelSpectrogram,
    hann,
    magnitudes,
    multi_resolution_stft,
    transform,
)
from aigc_ext.metrics.classifier import SampleClassifier
from aigc_ext.metrics.errors import MetricError

_LSD_FRAMES = Frames(512, 64, 256)  # windows of 32 ms at 8 kHz
_FLOOR_DB = -80.0  # against full scale: what is below is silence
_MOMENTUM = 0.99
_TINY = 1e-16


def log_spectral_distance(output: Tensor, target: Tensor, frames: Frames = _LSD_FRAMES) -> Tensor:
    """The root mean square over the frequencies of the difference of the levels in dB, averaged over the
    frames (Gray and Markel 1976, "Distance measures for speech processing"): `[N]`, or a number for `[T]`.
    Levels below
    -80 dB, of full scale, are -80 dB.

    Raises:
        ValueError: the shapes differ.
    """
    ours, theirs = _pair(output, target)
    levels = [
        20 * magnitudes(wave, frames).clamp(min=10 ** (_FLOOR_DB / 20)).log10() for wave in (ours, theirs)
    ]
    distance = (levels[0] - levels[1]).square().mean(1).sqrt().mean(1)
    return distance if output.dim() == 2 else distance[0]


class WaveQuality(NamedTuple):
    """
    Attributes:
        lsd: the log-spectral distance in dB.
        stft: `losses.spectral.multi_resolution_stft`.
    """

    lsd: float
    stft: float


def wave_quality(output: Tensor, target: Tensor) -> WaveQuality:
    """Of one wave `[T]`, or the means over several `[N, T]`."""
    ours, theirs = _pair(output, target)
    lsd = log_spectral_distance(ours, theirs).mean().item()
    return WaveQuality(lsd, multi_resolution_stft(ours, theirs).item())


def magnitudes_of_mels(mels: Tensor, spectrogram: MelSpectrogram, iterations: int = 200) -> Tensor:
    """Magnitudes `[N, n_fft // 2 + 1, frames]` that have these log-mels `[N, n_mels, frames]`, as nearly as
    nonnegative ones can, by the multiplicative updates of Lee and Seung (2001, "Algorithms for non-negative
    matrix factorization") from those that the pseudo-inverse of the filters gives."""
    filters = spectrogram.filters.to(mels)
    amplitudes = mels.exp()
    found = (torch.linalg.pinv(filters) @ amplitudes).clamp(min=FLOOR)
    wanted, gram = filters.T @ amplitudes, filters.T @ filters
    for _ in range(iterations):
        found = found * wanted / (gram @ found).clamp(min=_TINY)
    return found


@torch.no_grad()
def griffin_lim(mels: Tensor, spectrogram: MelSpectrogram, iterations: int = 60, seed: int = 0) -> Tensor:
    """A wave `[N, frames * hop]` of log-mels `[N, n_mels, frames]` without a network: phases that agree with
    the magnitudes in all overlapping frames, by the accelerated algorithm of Perraudin, Balazs and
    Søndergaard (2013, "A fast Griffin-Lim algorithm") from random ones.

    Args:
        spectrogram: by which the mels were made.
        iterations: inverse and forward transforms.
        seed: of the first phases.
    """
    wanted = magnitudes_of_mels(mels, spectrogram)
    frames = spectrogram.frames
    rng = torch.Generator().manual_seed(seed)
    angles = 2 * math.pi * torch.rand(wanted.shape, generator=rng).to(wanted)
    spectrum, previous = torch.polar(wanted, angles), torch.zeros((), dtype=wanted.dtype)
    for _ in range(iterations):
        rebuilt = transform(_inverse(spectrum, frames), frames)
        accelerated = rebuilt + _MOMENTUM * (rebuilt - previous)
        spectrum, previous = wanted * accelerated / accelerated.abs().clamp(min=_TINY), rebuilt
    return _inverse(spectrum, frames)


def _inverse(spectrum: Tensor, frames: Frames) -> Tensor:
    """The wave whose transform is nearest to this one (Griffin and Lim 1984): windowed inverse transforms,
    added up and divided by the sum of the squared windows."""
    n_fft, hop, window = frames
    count = spectrum.shape[-1]
    shape = hann(window, n_fft, spectrum.device, spectrum.real.dtype)
    pieces = torch.fft.irfft(spectrum * shape.sum(), n_fft, dim=1) * shape[:, None]
    total = (count - 1) * hop + n_fft
    fold = torch.nn.Fold((1, total), (1, n_fft), stride=(1, hop))
    added = fold(pieces).flatten(1)
    weights = fold(shape.square()[None, :, None].expand(1, n_fft, count)).flatten(1)
    before = (n_fft - hop) // 2
    inside = slice(before, before + count * hop)
    return added[:, inside] / weights[:, inside].clamp(min=1e-8)


class WordClassifier:
    """Tells apart spoken words by a picture of their mel spectrogram; see `SampleClassifier`, which it
    trains.

    Attributes:
        accuracy: on the tenth of the recordings that it was not trained on.
    """

    def __init__(self, classifier: SampleClassifier, sample_rate: int) -> None:
        self._classifier, self._spectrogram = classifier, _pictures(sample_rate)
        self.accuracy, self.num_classes = classifier.accuracy, classifier.num_classes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.num_classes} words, right about {self.accuracy:.1%}>"

    @classmethod
    def for_dataset(cls, data: Dataset, seed: int = 0, steps: int = 500) -> WordClassifier:
        """Of labelled segments that are a word each, such as `spoken-digits`.

        Args:
            seed, steps: as for `SampleClassifier.train`.

        Raises:
            MetricError: the data have no labels, or are no recordings.
        """
        rate = getattr(data, "sample_rate", None)
        if data.kind != "audio" or rate is None:
            raise MetricError(f"{data.name} has {data.kind}, but must have recordings")
        if not data.num_classes:
            raise MetricError(f"{data.describe_unlabelled()}, which a classifier of words needs")
        spectrogram = _pictures(rate)
        parts = torch.arange(len(data)).split(256)
        pictures = torch.cat([_picture(data.read(part)[0].float() / 32768, spectrogram) for part in parts])
        return cls(SampleClassifier.train(pictures, data.labels, seed, steps), rate)

    def probabilities(self, waves: Tensor) -> Tensor:
        """Of each class, `[N, num_classes]`, for waves `[N, T]` of the data's length."""
        return self._classifier.probabilities(_picture(waves, self._spectrogram))


_PICTURE_RANGE = (math.log(1e-4), math.log(0.3))


def _pictures(sample_rate: int) -> MelSpectrogram:
    return MelSpectrogram(sample_rate, Frames(512, 128, 512), 32)


def _picture(waves: Tensor, spectrogram: MelSpectrogram) -> Tensor:
    """Pictures uint8 `[N, 1, n_mels, frames]`; louder is brighter."""
    low, high = _PICTURE_RANGE
    return (255 * (spectrogram(waves) - low) / (high - low)).round().clamp(0, 255).to(torch.uint8)[:, None]


def _pair(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if output.shape != target.shape or output.dim() not in (1, 2):
        raise ValueError(
            f"the waves have shapes {list(output.shape)} and {list(target.shape)}, but must both have [N, T] "
            "or [T]"
        )
    return (output[None], target[None]) if output.dim() == 1 else (output, target)
