"""Every family: a seed gives the same float image, to the last bit, in any batch and at any position."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigc_ext import decompose
from aigc_ext.models import (
    DCGANGenerator,
    MLPGenerator,
    R3GANGenerator,
    SNGANGenerator,
    StyleGAN2Generator,
    StyleGAN3Generator,
)
from aigc_ext.ops import _apart
from aigc_ext.sampling import Sampler
from aigc_ext.sampling import sampler as module

# Odd widths, which leave tails in all loops, and wide enough for conv3x3 in some layers.
STYLE2: dict[str, Any] = {"z_dim": 37, "w_dim": 35, "mapping_layers": 2, "channel_base": 1024}
STYLE3: dict[str, Any] = {**STYLE2, "channel_max": 35, "num_layers": 4, "num_critical": 1, "margin_size": 4}
GENERATORS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLPGenerator((3, 9, 11), z_dim=37, hidden=(130, 77)),
    "mlp-cond": lambda: MLPGenerator((1, 9, 11), z_dim=37, hidden=(130, 77), num_classes=3),
    "dcgan": lambda: DCGANGenerator((3, 32, 32), z_dim=37, channels=17),
    "dcgan-cond": lambda: DCGANGenerator((3, 28, 28), z_dim=37, channels=9, num_classes=3),
    "sngan": lambda: SNGANGenerator((3, 32, 32), z_dim=37, channels=33),
    "sngan-cond": lambda: SNGANGenerator((3, 16, 16), z_dim=37, channels=12, num_classes=3),
    "r3gan": lambda: R3GANGenerator((3, 32, 32), z_dim=37, channel_max=48, blocks=1),
    "r3gan-cond": lambda: R3GANGenerator((3, 16, 16), 37, channel_max=32, output_act="tanh", num_classes=3),
    "stylegan2": lambda: StyleGAN2Generator((3, 32, 32), output_act="tanh", **STYLE2, channel_max=67),
    "stylegan2-cond": lambda: StyleGAN2Generator((3, 16, 16), num_classes=3, **STYLE2, channel_max=33),
    "stylegan3-t": lambda: StyleGAN3Generator((3, 32, 32), "t", **STYLE3),
    "stylegan3-r-cond": lambda: StyleGAN3Generator((1, 16, 16), "r", num_classes=3, **STYLE3),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    generator = GENERATORS[name]()
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.count_nonzero() == 0:  # so that every layer shows in the images
                parameter.normal_(0, 0.1)
    return generator


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are the bytes of the generator's floats, where every bit shows."""

    def as_bytes(images: Tensor, value_range: tuple[float, float]) -> Tensor:
        return images.flatten(1).contiguous().view(torch.uint8)

    monkeypatch.setattr(module, "_as_bytes", as_bytes)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_is_the_same_in_any_batch(name: str, threads: int, bits: None) -> None:
    sampler = Sampler(build(name))
    options: list[dict[str, Any]] = [{}]
    if sampler.style_based:
        options += [{"truncation": 0.7, "truncation_cutoff": 2, "noise_mode": "none"}]
        options += [{"noise_mode": "random"}]
    seeds = [0, 2**63 - 1, *range(5, 20)]
    rng = random.Random(0)
    for option in options:
        alone = {seed: sampler.sample([seed], **option)[0] for seed in seeds}
        assert len({image.tobytes() for image in alone.values()}) == len(seeds)
        for count in (1, 3, 16, 17, 2):
            chosen = rng.sample(seeds, count)
            chosen[-1] = chosen[0]
            for seed, image in zip(chosen, sampler.sample(chosen, **option), strict=True):
                assert np.array_equal(image, alone[seed])


@pytest.mark.parametrize("name", ["mlp", "stylegan2-cond"])
def test_latents_are_the_same_in_any_batch(name: str, bits: None) -> None:
    sampler = Sampler(build(name))
    seeds = list(range(19))
    classes = sampler.resolve_classes(seeds)
    sampled = sampler.sample(seeds)
    if sampler.style_based:
        w = sampler.map(seeds)
        assert torch.equal(w[:3], sampler.map(seeds[:3]))
        assert np.array_equal(sampler.render(w), sampled)
        assert np.array_equal(sampler.render(w[4:7]), sampled[4:7])
    z = sampler._draw(seeds)
    assert np.array_equal(sampler.render(z, classes), sampled)
    first, *_, last = sampler.interpolate([3, 4], 1 if classes else None, frames=18, loop=False, space="z")
    assert np.array_equal([first, last], sampler.sample([3, 4], 1 if classes else None))


def sizes_of_calls(monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]) -> list[int]:
    """The batch sizes of the calls of `kind` from now on."""
    sizes: list[int] = []
    forward = kind.forward

    def counted(self: nn.Module, z: Tensor, c: Tensor | None = None) -> Tensor:
        sizes.append(len(z))
        images: Tensor = forward(self, z, c)
        return images

    monkeypatch.setattr(kind, "forward", counted)
    return sizes


def test_an_image_costs_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of_calls(monkeypatch, MLPGenerator)
    Sampler(build("mlp")).sample(range(16 + 16 + 7))
    assert sizes == [16, 16, 4, 2, 1]


def attach_hook(generator: Any) -> None:
    generator.head.register_forward_hook(lambda *call: None)


def replace_forward(generator: Any) -> None:
    generator.head.forward = generator.head.forward


def replace_layer(generator: Any) -> None:
    generator.layers[0] = nn.Sequential(nn.Linear(37, 130), nn.Tanh())


def parametrize(generator: Any) -> None:
    nn.utils.parametrizations.spectral_norm(generator.layers[0])


@pytest.mark.parametrize(
    "change", [attach_hook, replace_forward, replace_layer, parametrize, lambda generator: generator.double()]
)
def test_what_is_not_ours_makes_one_image_at_a_time(
    change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, bits: None
) -> None:
    generator = build("mlp")
    sampler = Sampler(generator)
    change(generator)
    if change is replace_layer:
        monkeypatch.setattr(MLPGenerator, "forward", lambda self, z, c=None: through(self, z))
    sizes = sizes_of_calls(monkeypatch, MLPGenerator)
    images = sampler.sample(range(5))
    assert sizes == [1] * 5
    assert all(np.array_equal(sampler.sample([seed])[0], images[seed]) for seed in range(5))


def through(generator: Any, z: Tensor) -> Tensor:
    for layer in [*generator.layers, generator.head]:
        z = layer(z)
    return z.unflatten(1, (3, 9, 11))


def test_decomposed_and_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of_calls(monkeypatch, MLPGenerator)
    sampler = Sampler(build("mlp"))
    with decompose():
        sampler.sample(range(3))
    with torch.autocast("cpu", torch.bfloat16):
        sampler.sample(range(3))
    assert sizes == [1] * 6


@pytest.mark.parametrize("name", ["sngan", "stylegan2", "dcgan"])
def test_where_no_convolution_takes_a_batch(name: str, monkeypatch: pytest.MonkeyPatch, bits: None) -> None:
    sampler = Sampler(build(name))
    expected = sampler.sample(range(6))
    monkeypatch.setattr(_apart, "_gives_the_same", lambda *call: False)
    assert np.array_equal(sampler.sample(range(6)), expected)


def test_images_are_those_of_the_generator() -> None:
    for name in GENERATORS:
        generator = build(name).eval()
        sampler = Sampler(generator)
        classes = sampler.resolve_classes(range(3))
        z = sampler._draw(range(3))
        with torch.no_grad():
            made = generator(z) if classes is None else generator(z, torch.tensor(classes))
        expected = module.to_uint8(made, generator.value_range).permute(0, 2, 3, 1).numpy()
        assert np.abs(sampler.sample(range(3)).astype(int) - expected).max() <= 1


def test_previews_while_training_change_nothing(bits: None) -> None:
    generator = build("sngan").train()
    generator.blocks[0].eval()
    modes = [m.training for m in generator.modules()]
    buffers = [buffer.clone() for buffer in generator.buffers()]
    sampler = Sampler(generator)
    state = torch.get_rng_state()
    images = sampler.sample(range(4))
    assert [m.training for m in generator.modules()] == modes
    assert all(map(torch.equal, buffers, generator.buffers()))
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.1)
    later = sampler.sample(range(4))
    assert not np.array_equal(later, images)
    assert np.array_equal(later[2], sampler.sample([2])[0])
