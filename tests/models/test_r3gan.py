from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

import aigc_ext
from aigc_ext import models
from aigc_ext.losses import AdversarialLoss, r1_penalty, r2_penalty
from aigc_ext.models import R3GANDiscriminator, R3GANGenerator
from aigc_ext.models.r3gan import _Residual

_TINY: dict[str, Any] = {"channel_max": 4, "group_size": 4}


def _with_branches(network):
    """With weights in the last convolution of each block, which are zero at first."""
    for name, weight in network.named_parameters():
        if name.endswith("conv3.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    return network


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (4, 16, 24), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_shapes(shape, num_classes):
    generator = R3GANGenerator(shape, z_dim=7, num_classes=num_classes, **_TINY)
    discriminator = R3GANDiscriminator(shape, num_classes=num_classes, **_TINY)
    c = torch.tensor([0, 2, 1, 2, 0]) if num_classes else None
    images = generator(torch.randn(5, 7), c)
    assert images.shape == (5, *shape)
    assert discriminator(images, c).shape == (5, 1)


@pytest.mark.parametrize(
    "network",
    [
        R3GANGenerator((3, 16, 8), 5, 64, 20, blocks=1, group_size=6, expansion=3, num_classes=2),
        R3GANDiscriminator((1, 16, 8), 64, 8, blocks=3, group_size=2, expansion=1, num_classes=2),
    ],
    ids=lambda network: type(network).__name__,
)
def test_it_is_made_again_from_its_config(network):
    is_generator = isinstance(network, R3GANGenerator)
    build = models.build_generator if is_generator else models.build_discriminator
    again = build(network.config)
    assert again.config == network.config
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ("side", "widths", "millions"),
    [(32, [768] * 4, (20.73, 20.68)), (256, [768, 768, 768, 768, 384, 192, 96], (23.06, 23.01))],
)
def test_widths_and_parameters_of_the_default(side, widths, millions):
    with torch.device("meta"):
        networks = [network((3, side, side)) for network in (R3GANGenerator, R3GANDiscriminator)]
    blocks = sum(2 * (2 * w * 2 * w + 9 * 16 * 2 * w + 2 * 2 * w) for w in widths)  # two in each stage
    changes = sum(a * b for a, b in pairwise(widths) if a != b)
    coarse, fine = widths[0], widths[-1]
    ends = [64 * coarse + 16 * coarse + 3 * fine + 3, 4 * fine + 16 * coarse + coarse]
    for network, end, million in zip(networks, ends, millions, strict=True):
        count = sum(p.numel() for p in network.parameters())
        assert network.widths == tuple(widths)
        assert count == blocks + changes + end
        assert count / 1e6 == pytest.approx(million, abs=0.005)


@pytest.mark.parametrize(
    ("size", "options", "widths"),
    [
        ((28, 28), {}, (768, 768, 768)),
        ((56, 56), {}, (768, 768, 768, 432)),  # 438, whose double is no multiple of 16
        ((48, 96), {}, (768, 768, 512, 256)),  # the longer side
        ((16, 16), {"channel_base": 112, "channel_max": 20}, (16, 8, 7)),  # 20, 14 and 7: less than a group
        ((8, 8), {"channel_max": 7, "expansion": 3}, (5, 5)),
    ],
    ids=str,
)
def test_widths_are_rounded_down_to_whole_groups(size, options, widths):
    with torch.device("meta"):
        for network in (R3GANGenerator((3, *size), **options), R3GANDiscriminator((3, *size), **options)):
            assert network.widths == widths


def test_transitions_widen_where_the_pixels_are_fewest():
    options: dict[str, Any] = {"channel_base": 64, "channel_max": 8, "group_size": 4}  # 8, 8 and 4 channels
    generator = R3GANGenerator((3, 16, 16), **options)
    discriminator = R3GANDiscriminator((3, 16, 16), **options)
    kinds = ["Sequential", "Upsample2d", "Sequential", "Conv2d", "Upsample2d", "Sequential"]
    mirrored = [kind.replace("Up", "Down") for kind in kinds[::-1]]
    assert [type(layer).__name__ for layer in generator.layers] == kinds
    assert [type(layer).__name__ for layer in discriminator.layers] == mirrored


def test_it_starts_as_its_shortcuts_and_as_fixup_says():
    generator = R3GANGenerator((3, 16, 16), channel_max=64).requires_grad_(False)
    blocks = [module for module in generator.modules() if isinstance(module, _Residual)]
    assert len(blocks) == 6
    he = math.sqrt(2 / (1 + 0.2**2)) * 6 ** (-1 / 4)
    for block in blocks:
        x = torch.randn(1, 64, 4, 4)
        assert torch.equal(block(x), x)
        assert block.conv1.weight.std() == pytest.approx(he / math.sqrt(64), rel=0.05)
        assert block.conv2.weight.std() == pytest.approx(he / math.sqrt(16 * 9), rel=0.05)
        for layer in (block.conv1, block.conv2):
            assert layer.bias is not None
            assert not layer.bias.any()
        assert block.conv3.bias is None


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
@torch.no_grad()
def test_variances_at_the_start(shape):
    smooth = torch.randn(32, shape[0], 1, 1).expand(-1, *shape)
    pixels, logits = [], []
    for _ in range(12):  # with so few channels a single network may be far off
        pixels.append(R3GANGenerator(shape, channel_max=16)(torch.randn(32, 64)))
        logits.append(R3GANDiscriminator(shape, channel_max=16)(smooth))
    # Less than 1: bilinear resampling averages pixels of the constant, and sees zeros around the images.
    assert 0.25 < torch.cat(pixels).square().mean() < 1
    assert 0.2 < torch.cat(logits).square().mean() < 4


def test_an_image_does_not_depend_on_its_batch():
    generator = _with_branches(R3GANGenerator((1, 16, 16), num_classes=2, **_TINY)).double().eval()
    z, c = torch.randn(5, 64, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    together = generator(z, c)
    torch.testing.assert_close(generator(z[3:4], c[3:4]), together[3:4], rtol=1e-12, atol=1e-12)
    assert torch.equal(generator(z, c), together)


def test_labels_make_a_difference():
    generator, discriminator = (
        network((1, 8, 8), num_classes=2, **_TINY) for network in (R3GANGenerator, R3GANDiscriminator)
    )
    z, x = torch.randn(1, 64).expand(2, -1), torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    c = torch.tensor([0, 1])
    assert not torch.equal(*generator(z, c))
    assert not torch.equal(*discriminator(x, c))


def test_a_step_with_r1_and_r2_is_plain_pytorchs():
    discriminator = R3GANDiscriminator((3, 16, 8), channel_base=64, group_size=4, num_classes=2)
    discriminator = _with_branches(discriminator).double()
    real, fake = torch.randn(2, 3, 3, 16, 8, dtype=torch.float64)
    c = torch.tensor([0, 1, 1])

    def step():
        def critic(x):
            return discriminator(x, c)

        discriminator.zero_grad()
        r1, r2 = r1_penalty(critic, real), r2_penalty(critic, fake)
        loss = AdversarialLoss("relativistic").discriminator(critic(real), critic(fake))[0] + 5 * (r1 + r2)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in discriminator.named_parameters()}
        return {"r1": r1.detach(), "r2": r2.detach(), "loss": loss.detach(), **gradients}

    ours = step()
    with aigc_ext.decompose():
        theirs = step()
    assert all(value.any() for value in ours.values()), "a gradient of 0 compares nothing"
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_channels_last_and_bfloat16(dtype, autocast):
    generator = _with_branches(R3GANGenerator((3, 16, 16), **_TINY))
    discriminator = _with_branches(R3GANDiscriminator((3, 16, 16), **_TINY))
    z = torch.randn(3, 64)
    images = generator(z)
    logits = discriminator(images)
    weights = torch.float32 if autocast else dtype
    for network in (generator, discriminator):
        network.to(dtype=weights, memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype, enabled=autocast):
        images_last = generator(z.to(weights))
        logits_last = discriminator(images_last)
    assert images_last.dtype == logits_last.dtype == dtype
    assert images_last.is_contiguous(memory_format=torch.channels_last)
    error = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(images_last.float(), images, rtol=error, atol=error)
    torch.testing.assert_close(logits_last.float(), logits, rtol=error, atol=error)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: R3GANGenerator((3, 7, 8)), "height and width must be even and at least 8"),
        (lambda: R3GANGenerator(z_dim=0), "z_dim is 0, but must be at least 1"),
        (lambda: R3GANDiscriminator(channel_max=0), "channel_max is 0, but must be at least 1"),
        (lambda: R3GANGenerator(channel_base=31), "channel_base is 31, but must be at least the .* 32"),
        (lambda: R3GANDiscriminator(blocks=0), "blocks is 0, but must be at least 1"),
        (
            lambda: R3GANGenerator(channel_max=3, group_size=4, expansion=5),
            "expansion is 5, but 5 times a width from 1 to 3 must be a multiple of group_size 4, or less",
        ),
        (lambda: R3GANDiscriminator(**_TINY)(torch.randn(2, 3, 8, 8)), r"images has shape \(2, 3, 8, 8\)"),
        (lambda: R3GANGenerator(**_TINY)(torch.randn(2, 63)), r"z has shape \(2, 63\)"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
