from __future__ import annotations

import pytest
import torch

from aigc_ext import models
from aigc_ext.losses import r1_penalty
from aigc_ext.models import SNGANDiscriminator, SNGANGenerator


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (4, 16, 24), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_shapes(shape, num_classes):
    generator = SNGANGenerator(shape, z_dim=7, channels=4, num_classes=num_classes)
    discriminator = SNGANDiscriminator(shape, channels=4, num_classes=num_classes)
    c = torch.tensor([0, 2, 1, 2, 0]) if num_classes else None
    images = generator(torch.randn(5, 7), c)
    assert images.shape == (5, *shape)
    assert images.abs().max() <= 1
    assert discriminator(images, c).shape == (5, 1)


@pytest.mark.parametrize(
    "network",
    [SNGANGenerator((3, 16, 8), 5, 6, 2), SNGANDiscriminator((1, 16, 8), 6, 2)],
    ids=lambda network: type(network).__name__,
)
def test_it_is_made_again_from_its_config(network):
    is_generator = isinstance(network, SNGANGenerator)
    build = models.build_generator if is_generator else models.build_discriminator
    again = build(network.config)
    assert again.config == network.config
    again.load_state_dict(network.state_dict())


def test_blocks_are_the_papers_at_32x32():
    assert [block.down for block in SNGANDiscriminator().blocks] == [True, True, False, False]
    assert len(SNGANGenerator().blocks) == 3


def test_all_layers_of_the_discriminator_have_spectral_norm_one():
    discriminator = SNGANDiscriminator((3, 16, 16), channels=5, num_classes=4)
    x, c = torch.randn(2, 3, 16, 16), torch.tensor([1, 3])
    for _ in range(60):  # an iteration of the power method in each
        discriminator(x, c)
    norms = {
        name: torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        for name, layer in discriminator.named_modules()
        if "weight" in getattr(layer, "parametrizations", {})
    }
    assert len(norms) == sum("original" in name for name, _ in discriminator.named_parameters())
    for name, norm in norms.items():
        assert norm == pytest.approx(1, abs=0.02), name


def test_a_forward_pass_is_one_iteration_of_the_power_method():
    discriminator = SNGANDiscriminator((1, 8, 8), channels=4, num_classes=2)
    seen = []
    for name, module in discriminator.named_modules():
        if name.endswith("parametrizations.weight.0"):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    discriminator(torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))
    assert len(seen) == len(set(seen)) == 9


def test_labels_make_a_difference():
    generator, discriminator = (
        network((1, 8, 8), channels=4, num_classes=2).eval()
        for network in (SNGANGenerator, SNGANDiscriminator)
    )
    z, x = torch.randn(1, 128).expand(2, -1), torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    c = torch.tensor([0, 1])
    assert not torch.equal(*generator(z, c))
    assert not torch.equal(*discriminator(x, c))


def test_a_gradient_penalty_goes_through_the_spectral_norm():
    discriminator = SNGANDiscriminator((1, 16, 16), channels=4)
    r1_penalty(discriminator, torch.randn(3, 1, 16, 16)).backward()
    gradient = discriminator.get_parameter("blocks.0.conv1.parametrizations.weight.original").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SNGANGenerator((3, 7, 8)), "height and width must be even and at least 8"),
        (lambda: SNGANGenerator(z_dim=0), "z_dim is 0, but must be at least 1"),
        (lambda: SNGANDiscriminator(channels=0), "channels is 0, but must be at least 1"),
        (lambda: SNGANDiscriminator()(torch.randn(2, 3, 8, 8)), r"images has shape \(2, 3, 8, 8\)"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
