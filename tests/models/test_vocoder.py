"""The vocoder, and the discriminators of waves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from aigc_ext.models import (
    Vocoder,
    VocoderConfig,
    WaveDiscriminator,
    WaveDiscriminatorConfig,
    build_discriminator,
    build_network,
)
from aigc_ext.models.vocoder import _basis

SMALL = VocoderConfig(n_mels=12, n_fft=256, window=160, hop=40, channels=8, upsample=(5,), dilations=(1, 3))
JUDGE = WaveDiscriminatorConfig(periods=(2, 3), windows=(64, 128), channels=4, layers=2)


def vocoder(**changes: Any) -> Vocoder:
    network = build_network(replace(SMALL, **changes))
    assert isinstance(network, Vocoder)
    return network


def discriminator(**changes: Any) -> WaveDiscriminator:
    network = build_discriminator(replace(JUDGE, **changes))
    assert isinstance(network, WaveDiscriminator)
    return network


def waves(*shape: int) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", [{}, {"upsample": (2, 5)}, {"upsample": (4,), "kernel": 5}])
def test_a_wave_has_the_length_of_the_one_that_is_given(changes: dict[str, Any]) -> None:
    network = vocoder(**changes).eval()
    wave = waves(2, 430)
    assert network(wave).shape == wave.shape
    mels = network.spectrogram(wave)
    assert mels.shape == (2, 12, 11)
    assert network.vocode(mels).shape == (2, 440)
    assert torch.equal(network.vocode(mels)[:, :430], network(wave))
    assert network(waves(1, 1)).shape == (1, 1)
    again = build_network(network.config)
    assert again.config == network.config
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(wave), network(wave))


def test_training_sees_the_target_and_all_weights_learn() -> None:
    network, wave = vocoder(), waves(3, 400).requires_grad_()
    made = network.reconstruct(wave)
    assert made.target is wave
    assert not made.penalties
    (network.activate(made.output) - made.target.detach()).square().mean().backward()
    assert wave.grad is None  # the mels are what they are
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_last_transform_keeps_the_level_of_a_sine() -> None:
    size, bins, which = 32, 17, 5
    frames = torch.zeros(1, 2 * bins, 40)
    turn = 2 * math.pi * which / size * 8 * torch.arange(40)
    frames[0, which], frames[0, bins + which] = turn.cos(), turn.sin()
    wave = torch.nn.functional.conv_transpose1d(frames, _basis(size), stride=8)[0, 0]
    expected = torch.cos(2 * math.pi * which / size * torch.arange(len(wave)))
    torch.testing.assert_close(wave[size:-size], expected[size:-size], atol=1e-3, rtol=0)


def test_it_learns_a_tone() -> None:
    torch.manual_seed(0)
    network = vocoder(channels=32)
    wave = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(800) / 8000)[None]
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    first = last = math.nan
    for _ in range(40):
        loss = (network(wave) - wave).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if math.isnan(first) else first), loss.item()
    assert last < 0.5 * first


def test_recordings_in_and_out_are_16_bits() -> None:
    network = vocoder().eval()
    made = network.reconstructions(torch.randint(-9000, 9000, (2, 300), dtype=torch.int16))
    assert made.dtype == torch.int16
    assert made.shape == (2, 300)
    with torch.no_grad():
        network.get_parameter("layers.8.bias").fill_(3.0)
    loud = network.reconstructions(torch.zeros(1, 300, dtype=torch.int16))
    assert loud.max() == 32767  # clipped, not wrapped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample": (3,)}, "hop is 40, but must be a multiple of the product of upsample, 3"),
        (
            {"upsample": (5, 8)},
            "hop is 40, but must be a multiple of the product of upsample, 40, and at least twice",
        ),
        ({"window": 300}, r"window is 300, but must be from hop \(40\) to n_fft \(256\)"),
        ({"kernel": 4}, "kernel is 4, but must be odd"),
        ({"channels": 1}, "channels is 1, but must be at least 2"),
        ({"n_mels": 200}, "n_mels is 200, but must be less or n_fft"),
    ],
)
def test_wrong_settings(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocoder(**changes)


def test_wrong_inputs() -> None:
    network = vocoder()
    with pytest.raises(ValueError, match=r"the wave is torch.int16 \[1, 9\], but must be floats \[N, T\]"):
        network(torch.zeros(1, 9, dtype=torch.int16))
    with pytest.raises(
        ValueError, match=r"the mels are torch.float32 \[1, 9, 9\], but must be floats \[N, 12, frames\]"
    ):
        network.vocode(torch.zeros(1, 9, 9))


def test_each_discriminator_has_logits_and_features() -> None:
    network = discriminator()
    wave = waves(3, 250).requires_grad_()
    logits = network(wave)
    assert len(logits) == 4
    assert all(each.dim() == 2 and len(each) == 3 for each in logits)
    judged, features = network.judge(wave)
    assert all(torch.equal(a, b) for a, b in zip(logits, judged, strict=True))
    assert len(features) == 4 * 3
    # A row of a batch is judged by itself, and gradients come back to the wave, twice for R1.
    alone = network(wave[1:2])
    assert all(torch.allclose(a[1:2], b, atol=1e-5) for a, b in zip(logits, alone, strict=True))
    (gradient,) = torch.autograd.grad(sum(each.mean() for each in logits), wave, create_graph=True)
    assert gradient.any()
    gradient.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert build_discriminator(network.config).config == network.config


def test_a_period_sees_every_nth_sample() -> None:
    network = discriminator(periods=(3,), windows=())
    (image,) = (view.image(torch.arange(7.0)[None]) for view in network.views)  # type: ignore[operator]
    assert image[0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 5, 4]]
    assert network(waves(1, 1))[0].isfinite().all()


def test_labels_and_normalisation_of_discriminators() -> None:
    network = discriminator(num_classes=2, normalize=True)
    wave = waves(2, 200)
    one, other = network(wave, torch.tensor([0, 0])), network(wave, torch.tensor([1, 1]))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="c"):
        network(wave)
    with pytest.raises(ValueError, match="periods and windows are both empty"):
        discriminator(periods=(), windows=())
    with pytest.raises(
        ValueError, match=r"the wave is torch.float32 \[2, 1, 200\], but must be floats \[N, T\]"
    ):
        discriminator()(wave[:, None])
