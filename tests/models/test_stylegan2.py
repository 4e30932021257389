from __future__ import annotations

import pytest
import torch

from aigc_ext import models
from aigc_ext.losses import r1_penalty
from aigc_ext.models import StyleGAN2Discriminator, StyleGAN2Generator
from aigc_ext.models.style import EqualizedConv2d, EqualizedLinear
from aigc_ext.nn.split_batch import split_batch
from tests.models import style_checks
from tests.models.style_checks import disturb, rms


def small_generator(shape=(3, 16, 16), width=16, **options):
    options = {"z_dim": 8, "w_dim": 12, "mapping_layers": 2, "channel_base": 64 * 16} | options
    return StyleGAN2Generator(shape, channel_max=width, **options)


def small_discriminator(shape=(3, 16, 16), width=16, **options):
    return StyleGAN2Discriminator(shape, channel_base=64 * 16, channel_max=width, **options)


@pytest.mark.parametrize(
    ("shape", "num_ws"),
    [((1, 28, 28), 6), ((3, 32, 32), 8), ((3, 64, 48), 8), ((4, 8, 20), 4)],
    ids=str,
)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_shapes(shape, num_ws, num_classes):
    generator = small_generator(shape, num_classes=num_classes)
    discriminator = small_discriminator(shape, num_classes=num_classes)
    assert generator.num_ws == num_ws
    for batch in (5, 1, 0):
        c = torch.arange(batch) % 3 if num_classes else None
        images = generator(torch.randn(batch, 8), c)
        assert images.shape == (batch, *shape)
        assert discriminator(images, c).shape == (batch, 1)


def test_it_is_made_again_from_its_config():
    style_checks.check_config(small_generator((3, 16, 8), num_classes=2), models.build_generator)
    discriminator = small_discriminator((1, 8, 16), num_classes=2, cmap_dim=5, mapping_layers=1, group_size=2)
    style_checks.check_config(discriminator, models.build_discriminator)


def test_the_networks_of_the_paper_have_its_size():
    """Parameters at 1024x1024, as published."""
    networks = StyleGAN2Generator((3, 1024, 1024)), StyleGAN2Discriminator((3, 1024, 1024))
    assert [sum(p.numel() for p in n.parameters()) for n in networks] == [30_370_060, 29_012_513]
    assert networks[0].num_ws == 18


def test_w_its_mean_and_truncation():
    style_checks.check_mapping(small_generator(w_dim=32, mapping_layers=8))


def test_in_evaluation_a_latent_means_one_image():
    style_checks.check_evaluation(disturb(small_generator()).double())


def test_noise():
    generator = disturb(small_generator())
    w = generator.mapping(torch.randn(4, 8))
    images = {mode: generator.synthesis(w, mode) for mode in ("random", "const", "none")}
    assert torch.equal(generator.synthesis(w, "const"), images["const"])
    assert not torch.equal(generator.synthesis(w, "random"), images["random"])
    assert all(rms(images["none"] - images[mode]) > 1e-2 for mode in ("random", "const"))
    same = generator.synthesis(w[:1].expand(4, -1, -1), "random")
    assert rms(same[0] - same[1]) > 1e-2  # each sample has its own

    torch.manual_seed(5)
    whole = generator.synthesis(w, "random")
    for part in (slice(0, 1), slice(1, 4)):
        torch.manual_seed(5)
        with split_batch(4, part.start):
            torch.testing.assert_close(generator.synthesis(w[part], "random"), whole[part])
    z = torch.randn(2, 8)
    assert not torch.equal(generator(z), generator(z))  # in training mode it is random


def test_each_w_decides_from_its_resolution_on():
    generator = disturb(small_generator()).eval()
    w = generator.mapping(torch.randn(2, 8)).contiguous().requires_grad_()
    (slope,) = torch.autograd.grad(generator.synthesis(w, "const").square().sum(), w)
    assert (slope.abs().amax(2) > 1e-3).all()

    # The last one is that of RGB alone, whose convolution is linear in it: half way in w is half way in RGB.
    ends = [w.detach().clone() for _ in range(3)]
    ends[1][:, -1] += 1
    ends[2][:, -1] += 0.5
    first, second, middle = (generator.synthesis(end, "const") for end in ends)
    torch.testing.assert_close(middle, (first + second) / 2, rtol=1e-4, atol=1e-4)
    assert rms(first - second) > 1e-2


def test_labels_make_a_difference():
    generator, discriminator = small_generator(num_classes=3).eval(), small_discriminator(num_classes=3)
    z, x, c = (
        torch.randn(1, 8).expand(3, -1),
        torch.randn(1, 3, 16, 16).expand(3, -1, -1, -1),
        torch.arange(3),
    )
    assert torch.pdist(generator(z, c).flatten(1)).min() > 1e-1
    assert discriminator(x, c).unique().numel() == 3
    # A label's size is normalised away: only its direction counts.
    logits = discriminator(x, c)
    with torch.no_grad():
        discriminator.label_mapping.embedding.weight.mul_(3)
    torch.testing.assert_close(discriminator(x, c), logits, rtol=1e-4, atol=1e-5)


def test_activations_start_at_unit_scale():
    generator = small_generator((3, 32, 32), width=48, channel_base=48 * 32, w_dim=48)
    discriminator = small_discriminator((3, 32, 32), width=48, num_classes=2)
    scales: dict[str, float] = {}
    for network in (generator, discriminator):
        for name, module in network.named_modules():
            module.register_forward_hook(lambda m, x, y, name=name: scales.__setitem__(name, rms(y)))
    generator(torch.randn(8, 8))
    smooth = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), size=(32, 32), mode="bicubic")
    discriminator(smooth, torch.arange(8) % 2)
    half = [name for name in scales if name.endswith(("conv2", "skip"))]  # two such outputs are added
    assert len(scales) > 50
    for name, scale in scales.items():
        assert 0.3 < scale * (1.4 if name in half else 1) < 3, (name, scale)


def test_activations_are_clamped():
    x, w = 1e6 * torch.randn(2, 16, 4, 4), torch.randn(2, 12)
    assert small_generator().layers[0](x, w, "none").abs().max() == 256
    assert small_generator().to_rgb[0](x, w).abs().max() == 256
    assert small_discriminator().blocks[0].conv1(x).abs().max() == 256
    assert small_discriminator().blocks[0].conv2(x).abs().max().item() == pytest.approx(256 * 0.5**0.5)


def test_scaled_weights():
    """Equally large steps of Adam change layers of any fan-in equally."""
    x = torch.randn(2, 6)
    linear = EqualizedLinear(6, 5, act="lrelu", rate=0.01, bias=2.0)
    assert 0.3 < linear.weight.std() / 100 < 3
    torch.testing.assert_close(
        linear(x),
        2**0.5 * torch.nn.functional.leaky_relu(x @ linear.weight.t() * 0.01 / 6**0.5 + 2.0, 0.2),
    )
    conv = EqualizedConv2d(6, 4, 3, act="linear")
    image = torch.randn(2, 6, 5, 5)
    expected = torch.nn.functional.conv2d(image, conv.weight / 54**0.5, conv.bias, padding=1)
    torch.testing.assert_close(conv(image), expected)


def test_groups_follow_each_other():
    """So a batch in parts of whole groups has the same logits."""
    discriminator = small_discriminator(group_size=2)
    images = torch.randn(6, 3, 16, 16)
    logits = discriminator(images)
    torch.testing.assert_close(torch.cat([discriminator(images[:2]), discriminator(images[2:])]), logits)
    assert rms(torch.cat([discriminator(images[:3]), discriminator(images[3:])]) - logits) > 1e-3
    # 6 samples are two groups of 3 where 4 do not fit, and each knows only of its own group
    x = torch.randn(6, 16, 4, 4, requires_grad=True)
    discriminator = small_discriminator(group_size=4)
    extra = discriminator._with_deviation(x)[:, -1]
    assert torch.equal(extra[0], extra[2])
    (slope,) = torch.autograd.grad(extra[0, 0, 0], x)
    assert [bool(s.any()) for s in slope] == [True] * 3 + [False] * 3
    assert discriminator._with_deviation(x[:5])[:, -1].max() < 1e-3


def test_gradients_of_the_discriminator():
    discriminator = disturb(small_discriminator((1, 8, 8), width=3, num_classes=2, cmap_dim=4)).double()
    x, c = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda x: discriminator(x, c), x.requires_grad_())


def test_penalties_are_those_of_plain_pytorch():
    discriminator = disturb(small_discriminator(width=6, num_classes=2)).double()
    x, c = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 1, 0])

    def discriminator_loss():
        return r1_penalty(lambda x: discriminator(x, c), x) + discriminator(x, c).square().mean()

    style_checks.check_decomposed(discriminator_loss, discriminator)
    generator = disturb(small_generator(width=6)).double().eval()
    z = torch.randn(3, 8, dtype=torch.float64)
    style_checks.check_decomposed(lambda: style_checks.path_length(generator, z), generator)


def test_half_types_and_channels_last():
    style_checks.check_dtypes(small_generator(), small_discriminator())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StyleGAN2Generator((3, 7, 8)), "height and width must be even and at least 8"),
        (lambda: small_generator(z_dim=0), "z_dim is 0, but must be at least 1"),
        (lambda: small_generator(channel_base=9), "channel_base is 9, but must be at least .* 16"),
        (lambda: StyleGAN2Generator(channel_max=0), "channel_max is 0, but must be at least 1"),
        (lambda: StyleGAN2Discriminator(channel_max=0), "channel_max is 0, but must be at least 1"),
        (lambda: small_generator().mapping(torch.randn(2, 9)), r"z has shape \(2, 9\)"),
        (lambda: small_generator().mapping(torch.randn(2, 8), truncation_cutoff=7), "must be from 0 to 6"),
        (lambda: small_generator().mapping(torch.randn(2, 8), truncation=torch.inf), "truncation is inf"),
        (lambda: small_generator().synthesis(torch.randn(2, 12)), r"w has shape \(2, 12\)"),
        (lambda: small_generator()(torch.randn(2, 8), noise_mode="off"), "noise_mode is 'off'"),
        (lambda: small_generator()(torch.randn(2, 8), torch.tensor([0, 1])), "c was given"),
        (lambda: small_discriminator(group_size=0), "group_size is 0, but must be at least 1"),
        (lambda: small_discriminator()(torch.randn(2, 3, 8, 8)), r"images has shape \(2, 3, 8, 8\)"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
