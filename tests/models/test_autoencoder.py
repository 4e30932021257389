from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from aigc_ext.models import (
    Autoencoder,
    PatchDiscriminator,
    build_discriminator,
    build_network,
)
from aigc_ext.nn.split_batch import split_batch
from aigc_ext.sampling import Sampler

SMALL: dict[str, Any] = {
    "channels": (8, 12),
    "code_dim": 4,
    "num_codes": 16,
    "levels": (5, 4),
    "image_shape": (1, 8, 8),
}
KINDS: dict[str, dict[str, Any]] = {
    "kl": {"bottleneck": "kl"},
    "vector": {"bottleneck": "kl", "single_code": True, "output_act": "sigmoid", "attention": True},
    "vq": {"bottleneck": "vq", "revive_below": 0.5, "output_act": "tanh"},
    "fsq": {"bottleneck": "fsq", "stem": 1},
}


def make(kind, **more):
    return Autoencoder(**{**SMALL, **KINDS[kind], **more})


def images(network, count=3):
    low, high = network.value_range
    return low + (high - low) * torch.rand(count, *network.image_shape)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_comes_out(kind, classes):
    network = make(kind, num_classes=classes)
    c = [torch.arange(3) % 3] if classes else []
    x = images(network)
    places = (4,) if kind == "fsq" else (2,)
    expected = (4,) if kind == "vector" else (2 if kind == "fsq" else 4, *places, *places)
    assert network.code_shape == expected
    codes = network.encode(x, *c)
    assert codes.shape == (3, *expected)
    made = network(x, *c)
    assert made.shape == x.shape
    assert torch.equal(made, network.decode(codes, *c))
    given = network.reconstruct(x, *c)
    assert given.output.shape == x.shape
    assert given.target is x
    assert list(given.penalties) == {"kl": ["kl"], "vector": ["kl"], "vq": ["commitment"], "fsq": []}[kind]
    if kind in ("vq", "fsq"):
        indices = network.codes(x, *c)
        assert indices.dtype == torch.int64
        assert indices.shape == (3, *places, *places)
        torch.testing.assert_close(network.decode_codes(indices, *c), made)
        assert given.codes is not None
        assert given.codes.counts.sum() == indices.numel()
        torch.testing.assert_close(network.activate(given.output), made)
    if kind == "vector":
        assert made.min() >= 0
        assert made.max() <= 1
    rebuilt = build_network(network.config)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt(x, *c), made)
    if classes:
        assert not torch.equal(network(x, (c[0] + 1) % 3), made)
        with pytest.raises(ValueError, match="c is None, but this network is conditional"):
            network(x)


@pytest.mark.parametrize(
    ("sides", "settings"), [(28, {}), (32, {}), (28, {"channels": (8, 8, 8), "stem": 1})]
)
@pytest.mark.parametrize("kind", KINDS)
def test_sides_that_the_stride_divides(kind, sides, settings):
    network = make(kind, **{"image_shape": (3, sides, sides), **settings})
    assert network(images(network, 1)).shape == (1, 3, sides, sides)
    with pytest.raises(ValueError, match=r"image_shape is \(3, 30, 28\), but .* must be multiples of [24]"):
        make(kind, image_shape=(3, 30, 28), stem=2, channels=(8, 8))


def test_all_parameters_learn():
    for kind in KINDS:
        network = make(kind, num_classes=2)
        given = network.reconstruct(images(network), torch.tensor([0, 1, 1]))
        (given.output.square().mean() + sum(given.penalties.values())).backward()
        idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        # Attention starts as the identity, and only its gain learns at first.
        assert [name for name in idle if ".query" not in name and ".key" not in name] == [
            name for name in idle if ".value" in name or ".out" in name
        ]


def test_the_code_of_a_gaussian_is_drawn_by_row():
    network = make("kl")
    x = images(network, 4)
    torch.manual_seed(1)
    whole = network.reconstruct(x).output
    parts = []
    for start in (0, 2):
        torch.manual_seed(1)
        with split_batch(4, start):
            parts.append(network.reconstruct(x[start : start + 2]).output)
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(whole, network(x))


def test_imagined_rows_are_those_of_all():
    network = make("kl", num_classes=2)
    c = torch.tensor([0, 1, 0, 1])
    torch.manual_seed(1)
    whole = network.imagine(4, c)
    torch.manual_seed(1)
    torch.testing.assert_close(network.imagine(4, c, rows=torch.tensor([1, 3])), whole[[1, 3]])


@pytest.mark.parametrize("kind", ["kl", "vector"])
def test_the_decoder_is_a_generator_of_samples(kind):
    sampler = Sampler(make(kind).decoder)
    together = sampler.sample([3, 1, 4])
    assert together.shape == (3, 8, 8, 1)
    assert (sampler.sample([4]) == together[2:]).all()
    assert (together[0] != together[1]).any()
    assert (sampler.sample([3], truncation=0) == sampler.sample([1], truncation=0)).all()
    conditional = Sampler(make(kind, num_classes=2).decoder)
    assert (conditional.sample([3], [0]) != conditional.sample([3], [1])).any()


def test_parts_teach_a_codebook_what_the_whole_batch_does():
    """Also which rows replace codes that nobody uses."""
    whole, apart = make("vq").double(), None
    apart = copy.deepcopy(whole)
    for step in range(3):
        x = images(whole, 4).double() + step
        with torch.no_grad():
            whole.learn_codes(whole.reconstruct(x).codes)
            parts = []
            for start in (0, 2):
                with split_batch(4, start):
                    parts.append(apart.reconstruct(x[start : start + 2]).codes)
            apart.learn_codes(type(parts[0])(*(a + b for a, b in zip(*parts, strict=True))))
        pairs = zip(whole.quantizer.named_buffers(), apart.quantizer.buffers(), strict=True)
        for (name, one), other in pairs:
            torch.testing.assert_close(one, other, msg=name)
    assert not torch.equal(whole.quantizer.codebook, make("vq").quantizer.codebook.double())


def test_a_forward_alone_teaches_the_codebook_nothing():
    network = make("vq")
    before = copy.deepcopy(network.state_dict())
    network.reconstruct(images(network))
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_bad_settings_and_inputs_are_named():
    with pytest.raises(ValueError, match="single_code is True, but must be False: the bottleneck is 'vq'"):
        make("vq", single_code=True)
    with pytest.raises(ValueError, match="the bottleneck is 'kl', but must be 'vq' or 'fsq'"):
        make("kl").codes(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="posterior is of the bottleneck 'kl', but this one is 'fsq'"):
        make("fsq").posterior(torch.zeros(1, 1, 8, 8))
    network = make("vq")
    with pytest.raises(ValueError, match=r"images has shape \(1, 1, 8, 4\), but must be \(N, 1, 8, 8\)"):
        network(torch.zeros(1, 1, 8, 4))
    with pytest.raises(ValueError, match="indices are from 0 to 16, but must be from 0 to 15"):
        network.decode_codes(torch.tensor([[[0, 16], [1, 2]]]))
    with pytest.raises(ValueError, match=r"indices are torch.int32 of shape \(1, 2, 2\), but must be"):
        network.decode_codes(torch.zeros(1, 2, 2, dtype=torch.int32))


# ---- the discriminator of patches --------------------------------------------------------------------------


@pytest.mark.parametrize("spectral", [False, True])
def test_a_patch_has_a_logit(spectral):
    network = PatchDiscriminator(image_shape=(3, 16, 12), channels=4, layers=2, spectral=spectral)
    x = torch.rand(2, 3, 16, 12)
    logits, features = network.judge(x)
    assert logits.shape == (2, 4 * 3)
    assert [tuple(f.shape) for f in features] == [(2, 4, 8, 6), (2, 8, 4, 3), (2, 16, 4, 3)]
    rebuilt = build_discriminator(network.config)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(x), network.eval()(x))


def test_a_patch_sees_its_surroundings_only():
    network = PatchDiscriminator(image_shape=(1, 32, 32), channels=4, layers=2)
    x = torch.rand(1, 1, 32, 32, requires_grad=True)
    network(x).view(8, 8)[0, 0].backward()
    assert x.grad is not None
    assert x.grad[0, 0, 0, 0] != 0
    assert not x.grad[0, 0, 20:].any()


def test_the_label_adds_a_projection_to_all_logits():
    network = PatchDiscriminator(image_shape=(1, 8, 8), channels=4, layers=1, num_classes=2)
    x = torch.rand(2, 1, 8, 8)
    difference = network(x, torch.tensor([0, 0])) - network(x, torch.tensor([1, 1]))
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))
    assert difference.any()
    with pytest.raises(ValueError, match="layers is 4, but must be fewer"):
        PatchDiscriminator(image_shape=(1, 8, 8), layers=4)
