from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import firwin

from aigc_ext import models
from aigc_ext.models import StyleGAN2Discriminator, StyleGAN3Generator
from aigc_ext.models.stylegan3 import _Layer, lowpass
from tests.models import style_checks
from tests.models.style_checks import disturb, rms


def small_generator(shape=(3, 16, 16), variant="t", width=12, **options):
    small = {"z_dim": 8, "w_dim": 12, "channel_base": 64 * 12, "num_layers": 4}
    return StyleGAN3Generator(shape, variant, channel_max=width, **(small | options))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 48), (4, 9, 20)], ids=str)
@pytest.mark.parametrize(("variant", "num_classes"), [("t", 0), ("r", 3)])
def test_shapes(shape, variant, num_classes):
    generator = small_generator(shape, variant, num_classes=num_classes)
    assert generator.num_ws == 6
    for batch in (2, 1, 0):
        c = torch.arange(batch) % 3 if num_classes else None
        assert generator(torch.randn(batch, 8), c).shape == (batch, *shape)


def test_it_is_made_again_from_its_config():
    generator = small_generator(
        (3, 16, 8), "r", num_classes=2, num_critical=1, margin_size=4, output_scale=0.5
    )
    style_checks.check_config(generator, models.build_generator)


def test_the_layers_of_the_paper_at_1024():
    generator = StyleGAN3Generator((3, 1024, 1024))
    assert round(sum(p.numel() for p in generator.parameters()) / 1e6, 1) == 22.3  # millions, table 1
    signals = [generator.input.signal.rate]
    for layer in generator.layers:
        assert isinstance(layer, _Layer)
        assert min(layer.up, layer.down) == 2  # the nonlinearity has twice the larger rate
        signals.append(signals[-1] * layer.up / layer.down)
    assert signals[0] == 16
    assert signals[-3:] == [1024] * 3
    assert sorted(signals) == signals
    assert [layer.get_parameter("weight").shape[0] for layer in generator.layers[-3:]] == [51, 32, 32]


@pytest.mark.parametrize(
    ("taps", "cutoff", "transition", "rate"),
    [(12, 2, 12, 64), (24, 8, 10, 64), (12, 16, 7.4, 64), (12, 3, 30, 32), (12, 4, 1, 64), (13, 4, 9, 32)],
)
def test_the_filters_are_those_of_scipy(taps, cutoff, transition, rate):
    expected = firwin(taps, cutoff, width=transition, fs=rate)
    np.testing.assert_allclose(lowpass(taps, cutoff, transition, rate).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("taps", [24, 25])
def test_radial_filters_are_low_pass_and_the_same_in_all_directions(taps):
    radial = lowpass(taps, cutoff=8, transition=10, rate=64, radial=True)
    assert radial.shape == (taps, taps)
    assert radial.sum().item() == pytest.approx(1)
    line = lowpass(taps, cutoff=8, transition=10, rate=64)
    position = torch.arange(taps) - (taps - 1) / 2

    def response(f, frequency, angle):
        x, y = frequency * math.cos(angle) / 64, frequency * math.sin(angle) / 64
        return (f * (2 * math.pi * (x * position + y * position[:, None])).cos()).sum().item()

    for angle in (0, 0.3, math.pi / 4, 1.2):
        assert response(radial, 2, angle) == pytest.approx(1, abs=0.02)  # in the passband
        assert response(radial, 8, angle) == pytest.approx(response(radial, 8, 0), abs=5e-3)
        assert 0.4 < response(radial, 8, angle) < 0.6
        assert abs(response(radial, 16, angle)) < 0.01  # in the stopband
    assert response(line * line[:, None], 8, math.pi / 4) > 0.7  # the separable filter depends on the angle


def _error(x, y):
    return rms(x - y) / rms(y)


@pytest.mark.parametrize(
    ("shape", "variant", "dtype"),
    [((3, 32, 32), "t", torch.float64), ((1, 24, 36), "t", torch.float32), ((1, 28, 28), "r", torch.float32)],
    ids=str,
)
@torch.no_grad()
def test_the_image_moves_with_its_input(shape, variant, dtype):
    """By whole pixels of the image, which are fractions of pixels in the coarser layers."""
    generator = disturb(small_generator(shape, variant, width=16)).to(dtype).eval()
    z = torch.randn(2, 8, dtype=dtype)
    images = generator(z)
    side = max(shape[1:])
    for right, down in ((1, 0), (0, 5), (3, 2)):
        generator.input.transform[0, 2], generator.input.transform[1, 2] = right / side, down / side
        moved = generator(z)
        assert _error(moved, images) > 0.03
        visible = images[:, :, down:, right:], moved[:, :, : shape[1] - down, : shape[2] - right]
        assert _error(*visible) < 2e-3


@torch.no_grad()
def test_a_quarter_turn_of_the_input_is_one_of_the_image():
    """Up to rounding in variant r, whose filters all have the symmetry of a square. Not in variant t."""
    errors = {}
    for variant in "tr":
        generator = disturb(small_generator((1, 28, 28), variant)).double().eval()
        z = torch.randn(2, 8, dtype=torch.float64)
        images = generator(z)
        generator.input.transform[:2, :2] = torch.tensor([[0, -1], [1, 0]])
        errors[variant] = _error(generator(z), images.rot90(1, (2, 3)))
    assert errors["r"] < 1e-12
    assert errors["t"] > 0.05
    # For other angles the filters behind the nonlinearity must be radially symmetric, and so two-dimensional,
    # except in the last layers, which fill the square of the image's frequencies.
    assert [layer.down_filter.dim() for layer in small_generator(variant="r").layers] == [2, 2, 1, 1]
    assert [layer.down_filter.dim() for layer in small_generator(variant="t").layers] == [1, 1, 1, 1]


@torch.no_grad()
def test_w_turns_and_shifts_the_input():
    generator = small_generator((1, 28, 28), "r").double().eval()
    w = generator.mapping(torch.randn(1, 8, dtype=torch.float64))
    generator.input.affine.bias[:] = torch.tensor([0, 3, 0.25, -0.5])  # its length does not matter
    turned = generator.synthesis(w)
    generator.input.affine.bias[:] = torch.tensor([1, 0, 0, 0])
    generator.input.transform[:2] = torch.tensor([[0, -1, 0.25], [1, 0, -0.5]])
    torch.testing.assert_close(generator.synthesis(w), turned)


@torch.no_grad()
def test_frequencies_beyond_the_sampling_rate_fade_out():
    generator = small_generator(width=16).eval()
    w = torch.zeros(1, 12)
    assert 0.5 < rms(generator.input(w)) < 2
    generator.input.transform[:2, :2] *= 100
    slow = generator.input.frequencies.norm(dim=1) < 0.08  # still below
    assert not slow.any()
    assert rms(generator.input(w)) == 0


def test_the_magnitude_follows_the_input_for_the_calls_to_come():
    generator = small_generator()
    z = 0.5 * torch.randn(64, 8)
    inputs = []
    generator.layers[1].register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    images = generator.eval()(z)
    assert generator.layers[1].magnitude == 1
    torch.testing.assert_close(generator.train()(z), images)
    factor = 1 - 0.5 ** (64 / 20000)
    expected = 1 + factor * (rms(inputs[1]) ** 2 - 1)
    assert generator.layers[1].magnitude.item() == pytest.approx(expected, rel=1e-5)
    assert all(layer.magnitude != 1 for layer in (*generator.layers, generator.to_rgb))
    # To the layer, an input scaled by 2 whose magnitude (a mean square) is 4 times as large is the same.
    layer, x, w = generator.eval().layers[2], inputs[0], torch.randn(64, 12)
    before = layer(x, w)
    layer.magnitude.mul_(4)
    torch.testing.assert_close(layer(2 * x, w), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["t", "r"])
def test_activations_start_at_unit_scale(variant):
    generator = small_generator((3, 32, 32), variant, width=48, channel_base=48 * 64, num_layers=6)
    scales: dict[str, float] = {}
    for name, module in generator.named_modules():
        module.register_forward_hook(lambda m, x, y, name=name: scales.__setitem__(name, rms(y)))
    generator(torch.randn(8, 8))
    assert 0.25 / 3 < scales.pop("") < 0.25 * 3
    assert len(scales) > 16
    for name, scale in scales.items():
        assert 0.3 < scale < 3, (name, scale)


def test_activations_are_clamped():
    generator = small_generator()
    x, w = 1e6 * torch.randn(2, 12, 36, 36), torch.randn(2, 12)
    # Behind the clamp there is a filter, which may overshoot a little.
    assert 128 < generator.layers[0](x, w).abs().max() < 2 * 256
    assert generator.to_rgb(x, w).abs().max() == 256


def test_w_its_mean_and_truncation():
    style_checks.check_mapping(small_generator(w_dim=32))


def test_in_evaluation_a_latent_means_one_image():
    style_checks.check_evaluation(disturb(small_generator()).double())


@pytest.mark.parametrize("variant", ["t", "r"])
def test_gradients_are_those_of_plain_pytorch(variant):
    generator = disturb(small_generator(variant=variant, width=4)).double().eval()
    z = torch.randn(2, 8, dtype=torch.float64)
    style_checks.check_decomposed(lambda: style_checks.path_length(generator, z), generator)
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())


@pytest.mark.parametrize("variant", ["t", "r"])
def test_half_types_and_channels_last(variant):
    discriminator = StyleGAN2Discriminator((3, 16, 16), channel_base=256, channel_max=16)
    style_checks.check_dtypes(small_generator(variant=variant), discriminator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_generator(variant="x"), "variant is 'x', but must be one of 't', 'r'"),
        (lambda: small_generator(num_layers=2), "num_layers is 2, but must be above num_critical, 2"),
        (lambda: small_generator((3, 4, 4)), "first_cutoff is 2.0, .* first_cutoff < 2.0"),
        (lambda: small_generator(first_stopband=1.5), "first_stopband 1.5"),
        (lambda: small_generator(margin_size=-1), "margin_size is -1, but must be at least 0"),
        (lambda: small_generator(channel_base=15), "channel_base is 15, but must be at least .* 16"),
        (lambda: small_generator()(torch.randn(2, 8), noise_mode="off"), "noise_mode is 'off'"),
        (lambda: small_generator().synthesis(torch.randn(2, 5, 12)), r"w has shape \(2, 5, 12\)"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
