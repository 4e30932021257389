"""Spectra of waves, and losses between those of two."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from aigc_ext.losses import feature_matching, multi_resolution_stft, multi_scale_mel
from aigc_ext.losses.spectral import FLOOR, Frames, MelSpectrogram, hertz, magnitudes, mel, mel_filters

FRAMES = Frames(256, 64, 128)


def tone(frequency: float, count: int = 2048, amplitude: float = 1.0) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * frequency * torch.arange(count) / 8000 + 0.4)[None]


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def test_magnitudes_are_those_of_the_definition() -> None:
    wave = noise(0, 1, 640).double()
    found = magnitudes(wave, FRAMES)
    assert found.shape == (1, 129, 10)
    window = torch.hann_window(128, dtype=torch.float64)
    start = 5 * 64 + 32 - 64  # frame 5 is in the middle of the sixth hop
    piece = wave[0, start : start + 128] * window
    expected = np.abs(np.fft.rfft(piece.numpy(), 256)) / window.sum().item()
    np.testing.assert_allclose(found[0, :, 5], expected, atol=1e-8)


@pytest.mark.parametrize("frames", [FRAMES, Frames(512, 80, 320), Frames(64, 16, 64)])
def test_a_sine_of_full_scale_has_a_half_whatever_the_window(frames: Frames) -> None:
    spectrum = magnitudes(tone(1000), frames)[0, :, 5:-5]
    assert spectrum.amax(0) == pytest.approx(0.5, abs=0.02)
    assert (spectrum.argmax(0) * 8000 / frames.n_fft - 1000).abs().max() <= 8000 / frames.n_fft


@pytest.mark.parametrize("count", [1, 7, 64, 65, 1000])
def test_a_wave_of_any_length_has_a_frame_for_each_hop(count: int) -> None:
    found = magnitudes(noise(1, 2, count), FRAMES)
    assert found.shape == (2, 129, -(-count // 64))
    assert found.isfinite().all()


def test_spectra_of_wrong_waves() -> None:
    with pytest.raises(ValueError, match=r"the wave has shape \[3\], but must have \[N, T\]"):
        magnitudes(noise(0, 3), FRAMES)
    with pytest.raises(ValueError, match="must have 1 <= hop <= window <= n_fft"):
        magnitudes(noise(0, 1, 99), Frames(64, 16, 128))


def test_mels_follow_the_formula() -> None:
    assert mel(1000) == pytest.approx(999.99, abs=0.01)
    assert hertz(mel(3210.0)) == pytest.approx(3210)
    filters = mel_filters(8000, 512, 20)
    assert filters.shape == (20, 257)
    assert filters.sum(1) == pytest.approx(1, abs=1e-6)
    corners = [hertz(mel(4000) * i / 21) for i in range(22)]
    for row, left, top, right in zip(filters, corners, corners[1:], corners[2:], strict=False):
        places = torch.nonzero(row)[:, 0] * (8000 / 512)
        assert left < places.min()
        assert places.max() < right
        assert abs(row.argmax().item() * 8000 / 512 - top) <= 8000 / 512
    with pytest.raises(ValueError, match=r"n_mels is 64, but must be less or n_fft \(128\) more: filter 0"):
        mel_filters(8000, 128, 64)
    with pytest.raises(ValueError, match="f_min is 5000"):
        mel_filters(8000, 512, 20, f_min=5000)
    with pytest.raises(ValueError, match="n_mels is 0"):
        mel_filters(8000, 512, 0)


def test_a_mel_spectrogram_is_loudest_at_the_tone_and_silent_at_the_floor() -> None:
    spectrogram = MelSpectrogram(8000, Frames(512, 80, 320), 40)
    loud = spectrogram(tone(1000))[0, :, 5:-5]
    top = loud.argmax(0).unique()
    assert len(top) == 1
    assert abs(mel(1000) / mel(4000) * 41 - 1 - top.item()) <= 1
    assert spectrogram(torch.zeros(1, 800)).unique().item() == pytest.approx(math.log(FLOOR))
    assert not spectrogram.state_dict()
    halved = spectrogram(tone(1000, amplitude=0.5))[0, :, 5:-5]
    assert (loud - halved)[top] == pytest.approx(math.log(2), abs=1e-4)


LOSSES = {
    "multi_scale_mel": lambda a, b: multi_scale_mel(a, b, 8000),
    "multi_resolution_stft": multi_resolution_stft,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_waves(name: str) -> None:
    loss, target = LOSSES[name], noise(2, 3, 1500)
    assert loss(target, target) == 0
    near, far = (loss(target + scale * noise(3, 3, 1500), target) for scale in (0.05, 0.5))
    assert 0 < near < far
    # The mean over the waves, so that a batch may be computed in parts.
    output = noise(4, 3, 1500)
    parts = [loss(output[i : i + 1], target[i : i + 1]) for i in range(3)]
    assert torch.stack(parts).mean() == pytest.approx(loss(output, target).item(), rel=1e-5)
    assert loss(output, torch.zeros_like(target)).isfinite()
    silent = torch.zeros(2, 600, requires_grad=True)
    loss(silent, noise(5, 2, 600)).backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()
    with pytest.raises(ValueError, match="must be equal"):
        loss(output, target[:, :-1])


def test_gradients_of_losses() -> None:
    target = noise(6, 1, 40).double()
    output = noise(7, 1, 40).double().requires_grad_()
    assert gradcheck(lambda x: multi_resolution_stft(x, target, [Frames(16, 4, 16)]), output)
    assert gradcheck(lambda x: multi_scale_mel(x, target, 8000, [(32, 4)]), output)


def test_a_pause_does_not_outweigh_the_rest() -> None:
    output, target = noise(13, 1, 2000) / 100, 1e-6 * noise(14, 1, 2000)
    assert multi_resolution_stft(output, target) < 10
    assert multi_scale_mel(output, target, 8000) < 10


def test_multi_resolution_stft_by_hand() -> None:
    output, target = noise(8, 1, 640), noise(9, 1, 640)
    ours, theirs = magnitudes(output, FRAMES), magnitudes(target, FRAMES)
    expected = (ours - theirs).norm() / theirs.norm() + (ours.log() - theirs.log()).abs().mean()
    assert multi_resolution_stft(output, target, [FRAMES]) == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
def test_every_rate_has_its_scales(rate: int) -> None:
    assert 0 < multi_scale_mel(noise(10, 1, 3000), noise(11, 1, 3000), rate) < 10


def test_feature_matching() -> None:
    ours = [torch.zeros(2, 3), torch.zeros(2, 5, 5)]
    theirs = [torch.full((2, 3), 2.0), torch.full((2, 5, 5), -1.0)]
    assert feature_matching(ours, theirs) == 1.5
    with pytest.raises(ValueError, match="there are 2 and 1 features"):
        feature_matching(ours, theirs[:1])
    with pytest.raises(ValueError, match="there are 0 and 0 features"):
        feature_matching([], [])
    with pytest.raises(ValueError, match=r"features have shapes \[2, 3\] and \[2, 5, 5\]"):
        feature_matching(ours[:1], theirs[1:])
