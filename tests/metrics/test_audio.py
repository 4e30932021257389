"""Measures of waves, Griffin-Lim, and a classifier of words."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from aigc_ext.data import TensorImages, open_audio, wav_file
from aigc_ext.losses.spectral import Frames, MelSpectrogram, magnitudes, multi_resolution_stft
from aigc_ext.metrics import MetricError
from aigc_ext.metrics.audio import (
    WordClassifier,
    griffin_lim,
    log_spectral_distance,
    magnitudes_of_mels,
    wave_quality,
)
from tests.data.helpers import write


def chord(seed: int, count: int = 4000) -> torch.Tensor:
    """Rising tones, with some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(count) / 8000
    pitch = rng.uniform(100, 200)
    wave = sum(np.sin(2 * np.pi * k * pitch * (1 + time) * time) / k for k in range(1, 12))
    return torch.from_numpy(0.2 * wave + 0.002 * rng.standard_normal(count)).float()[None]


def test_log_spectral_distance_is_in_db() -> None:
    wave = chord(0)
    assert log_spectral_distance(wave, wave).tolist() == [0.0]
    noise = 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    assert log_spectral_distance(noise / 2, noise).tolist() == pytest.approx(
        [20 * math.log10(2)] * 2, rel=1e-3
    )
    assert log_spectral_distance(noise[0] / 2, noise[0]).dim() == 0
    silence = torch.zeros(1, 4000)
    assert log_spectral_distance(1e-7 * noise[:1], silence).item() == 0  # both below the floor
    quality = wave_quality(noise / 2, noise)
    assert quality.lsd == pytest.approx(6.02, abs=0.01)
    assert quality.stft == pytest.approx(multi_resolution_stft(noise / 2, noise).item())
    with pytest.raises(ValueError, match=r"the waves have shapes \[1, 4000\] and \[2, 4000\]"):
        log_spectral_distance(silence, noise)


def test_magnitudes_have_the_mels_that_they_are_made_of() -> None:
    spectrogram = MelSpectrogram(8000, Frames(512, 80, 320), 40)
    wave = chord(1)
    mels = spectrogram(wave)
    found = magnitudes_of_mels(mels, spectrogram)
    assert found.min() >= 0
    again = (spectrogram.filters @ found).log()
    assert (again - mels).abs().mean() < 0.02
    exact = magnitudes(wave, spectrogram.frames)
    assert (found - exact).norm() < 0.6 * exact.norm()


def test_griffin_lim_finds_a_wave_with_these_mels() -> None:
    spectrogram = MelSpectrogram(8000, Frames(512, 80, 320), 60)
    wave = torch.cat((chord(2), chord(3)))
    mels = spectrogram(wave)
    made = griffin_lim(mels, spectrogram, iterations=30)
    assert made.shape == wave.shape
    assert (spectrogram(made) - mels).abs().mean() < 0.35
    assert (
        wave_quality(made, wave).lsd
        < wave_quality(griffin_lim(mels, spectrogram, iterations=0), wave).lsd - 1
    )
    assert torch.equal(made, griffin_lim(mels, spectrogram, iterations=30))
    assert not torch.equal(made, griffin_lim(mels, spectrogram, iterations=30, seed=1))


def test_words_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files, time = {}, np.arange(1600) / 8000
    for i in range(40):
        for word, start, end in (("up", 300, 900), ("down", 900, 300)):
            phase = (start + rng.uniform(-50, 50)) * time + (end - start) * time**2 / 0.4
            wave = 0.3 * np.sin(2 * np.pi * phase) + 0.01 * rng.standard_normal(1600)
            files[f"{word}/{i}.wav"] = wav_file.encode(wav_file.to_int16(wave), 8000)
    data = open_audio(write(tmp_path, files), class_folders=True)
    classifier = WordClassifier.for_dataset(data, steps=60)
    assert classifier.accuracy == 1.0
    waves, labels = data.read(range(0, 80, 7))
    found = classifier.probabilities(waves.float() / 32768)
    assert found.shape == (12, 2)
    assert (found.argmax(1) == labels).all()


def test_what_has_no_words(tmp_path: Path) -> None:
    images = TensorImages("pictures", torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(MetricError, match="pictures has images, but must have recordings"):
        WordClassifier.for_dataset(images)
    data = open_audio(write(tmp_path, {"a.wav": wav_file.encode(np.ones(9, np.int16), 8000)}))
    with pytest.raises(MetricError, match=r"has no labels.*, which a classifier of words needs"):
        WordClassifier.for_dataset(data)
