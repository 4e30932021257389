from __future__ import annotations

import pytest
import torch

from aigc_ext import models
from aigc_ext.losses import r1_penalty
from aigc_ext.models import DCGANDiscriminator, DCGANGenerator


@pytest.mark.parametrize(
    ("shape", "coarsest"),
    [
        ((1, 28, 28), (7, 7)),
        ((3, 64, 64), (4, 4)),
        ((4, 32, 48), (4, 6)),
        ((3, 8, 24), (4, 12)),
        ((3, 12, 8), (6, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_shapes(shape, coarsest, num_classes):
    generator = DCGANGenerator(shape, z_dim=7, channels=4, num_classes=num_classes)
    discriminator = DCGANDiscriminator(shape, channels=4, num_classes=num_classes)
    c = torch.tensor([0, 2, 1, 2, 0]) if num_classes else None
    images = generator(torch.randn(5, 7), c)
    assert images.shape == (5, *shape)
    assert images.abs().max() <= 1
    assert discriminator(images, c).shape == (5, 1)
    assert generator.layers[0].kernel_size == coarsest
    assert discriminator.head.kernel_size == coarsest


@pytest.mark.parametrize(
    "network",
    [
        DCGANGenerator((3, 16, 8), 5, 6, 2),
        DCGANDiscriminator((1, 16, 8), 6),
    ],
    ids=lambda network: type(network).__name__,
)
def test_it_is_made_again_from_its_config(network):
    build = models.build_generator if isinstance(network, DCGANGenerator) else models.build_discriminator
    again = build(network.config)
    assert again.config == network.config
    again.load_state_dict(network.state_dict())


def test_it_is_the_paper_at_64x64():
    generator, discriminator = DCGANGenerator(), DCGANDiscriminator()
    assert [tuple(p.shape) for p in generator.parameters() if p.dim() == 4] == [
        (100, 512, 4, 4),
        (512, 256, 4, 4),
        (256, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 3, 4, 4),
    ]
    assert [tuple(p.shape) for p in discriminator.parameters() if p.dim() == 4] == [
        (64, 3, 4, 4),
        (128, 64, 4, 4),
        (256, 128, 4, 4),
        (512, 256, 4, 4),
        (1, 512, 4, 4),
    ]
    torch.testing.assert_close(
        generator.get_parameter("layers.0.weight").std().item(), 0.02, rtol=0.01, atol=0
    )


def test_labels_make_a_difference():
    generator, discriminator = (
        network((1, 8, 8), channels=4, num_classes=2).eval()
        for network in (DCGANGenerator, DCGANDiscriminator)
    )
    z, x = torch.randn(1, 100).expand(2, -1), torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    c = torch.tensor([0, 1])
    assert not torch.equal(*generator(z, c))
    assert not torch.equal(*discriminator(x, c))


def test_a_gradient_penalty_goes_through_the_batch_norm():
    discriminator = DCGANDiscriminator((1, 16, 16), channels=4)
    r1_penalty(discriminator, torch.randn(6, 1, 16, 16)).backward()
    assert all(p.grad is not None for name, p in discriminator.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DCGANGenerator((3, 7, 8)), r"\(3, 7, 8\), but height and width must be even and at least 8"),
        (lambda: DCGANDiscriminator((3, 4, 8)), r"must be even and at least 8"),
        (lambda: DCGANGenerator(z_dim=0), "z_dim is 0, but must be at least 1"),
        (lambda: DCGANDiscriminator(channels=0), "channels is 0, but must be at least 1"),
        (lambda: DCGANGenerator(num_classes=-1), "num_classes is -1, but must be at least 0"),
        (lambda: DCGANGenerator()(torch.randn(2, 5)), r"z has shape \(2, 5\), but must be \(N, 100\)"),
        (lambda: DCGANDiscriminator()(torch.randn(2, 3, 8, 8)), r"images has shape \(2, 3, 8, 8\)"),
        (lambda: DCGANGenerator()(torch.randn(2, 100), torch.zeros(2)), "c was given, but"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
