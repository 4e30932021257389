from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from aigc_ext.models import MLPGenerator
from aigc_ext.sampling import Latents, LatentsError, Sampler, fit_target, project
from tests.sampling.stand_in import stand_in


def networks(kind, num_classes=0):
    if kind == "w":
        return Sampler(stand_in(num_classes=num_classes))
    torch.manual_seed(3)
    generator = MLPGenerator((1, 8, 8), z_dim=4, hidden=(16, 16), num_classes=num_classes)
    with torch.no_grad():
        generator.head.weight.mul_(4)
    return Sampler(generator)


@pytest.mark.parametrize("kind", ["z", "w"])
@pytest.mark.parametrize("classes", [0, 3])
def test_an_image_of_the_network_is_found(kind, classes):
    sampler = networks(kind, classes)
    class_ = 2 if classes else None
    target = sampler.sample([77], class_)[0]
    shown: list[Any] = []
    found = project(sampler, target, steps=150, class_=class_, on_step=shown.append)
    assert found.latents.space == kind
    assert found.latents.values.shape == ((1, 3, 5) if kind == "w" else (1, 4))
    assert shown == found.distances
    assert len(shown) == 150
    assert found.distance == min(shown)
    # Far nearer than other images are to each other.
    others = sampler.sample(range(20), class_).astype(float)
    spread = ((others - others.mean(0)) ** 2).mean()
    assert ((found.image.astype(float) - target) ** 2).mean() < 0.05 * spread
    assert np.array_equal(sampler.render(found.latents.values, found.latents.classes)[0], found.image)
    if kind == "w":
        assert (found.latents.values == found.latents.values[:, :1]).all()  # one w for all layers


def test_the_same_arguments_give_the_same_bits():
    sampler = networks("w")
    target = sampler.sample([7])[0]
    state = torch.get_rng_state()
    first, again, other = (project(sampler, target, steps=12, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.latents.values, again.latents.values)
    assert first.distances == again.distances
    assert first.distances != other.distances
    assert not sampler.generator.training
    assert all(parameter.grad is None for parameter in sampler.generator.parameters())


def test_the_distance_is_that_of_the_features():
    sampler = networks("w")
    target = sampler.sample([7])[0]
    seen = []

    def brightness(images):
        seen.append((float(images.detach().min()), float(images.detach().max()), images.dtype))
        return [images.mean((2, 3)), images[:, :1]]

    found = project(sampler, target, steps=30, features=brightness)
    assert all(low >= 0 and high <= 1 and dtype == torch.float32 for low, high, dtype in seen)
    a, b = (torch.from_numpy(image / 255).permute(2, 0, 1)[None] for image in (found.image, target))
    expected = (
        sum(float((x - y).square().mean()) for x, y in zip(brightness(a), brightness(b), strict=True)) / 2
    )
    assert found.distance == pytest.approx(expected, rel=0.2, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("w", {"target": np.zeros((8, 7, 3), np.uint8)}, "the target is 7x8 RGB, but must be 8x8 RGB"),
        ("w", {"target": np.zeros((8, 8, 1), np.uint8)}, "the target is 8x8 L, but must be 8x8 RGB"),
        ("w", {"target": np.zeros((8, 8, 3))}, "images are float64"),
        ("w", {"steps": 0}, "steps is 0, but must be an integer of at least 1"),
        ("w", {"lr": 0.0}, "lr is 0.0, but must be a finite number above 0"),
        ("w", {"class_": 1}, "classes is 1, but this generator is unconditional"),
        ("z", {"space": "w"}, "no mapping network"),
        ("c", {}, "class is None, but this generator is conditional: give the image's, from 0 to 1"),
    ],
)
def test_wrong_arguments(kind, options, message):
    sampler = networks("w", 2) if kind == "c" else networks(kind)
    with pytest.raises(ValueError, match=message):
        project(sampler, **{"target": sampler.sample([0])[0], **options})


def test_fit_target():
    wide = np.zeros((4, 16, 3), np.uint8)
    wide[:, 2:14] = (255, 0, 0)
    fitted = fit_target(wide, (8, 8, 3))  # the middle 4x4, twice as large
    assert (fitted == (255, 0, 0)).all()
    assert fit_target(wide, (8, 8, 1)).shape == (8, 8, 1)
    assert (fit_target(wide, (8, 8, 1)) == 76).all()  # red's share of luma
    assert np.abs(fit_target(wide, (2, 2, 4)).astype(int) - (255, 0, 0, 255)).max() <= 1
    assert np.array_equal(fit_target(wide, wide.shape), wide)


def test_latents_on_disk(tmp_path):
    latents = Latents(torch.randn(2, 4), [1, 0], {"model_sha256": "ab"})
    latents.save(tmp_path / "a.safetensors")
    read = Latents.load(tmp_path / "a.safetensors")
    assert torch.equal(read.values, latents.values)
    assert (read.space, read.classes, read.metadata) == ("z", [1, 0], {"model_sha256": "ab"})
    for tensors, message in (
        ({"w": torch.zeros(1, 2)}, r"hold w \[1, 2\], but must hold z"),
        ({"z": torch.zeros(1, 2), "w": torch.zeros(1, 2, 3)}, r"hold w \[1, 2, 3\], z \[1, 2\], but"),
        ({"x": torch.zeros(1, 2)}, r"hold x \[1, 2\], but"),
        ({}, "hold nothing, but"),
        ({"z": torch.zeros(2, 2), "classes": torch.zeros(1).long()}, r"classes \[1\] .* must hold \[2\]"),
        ({"z": torch.zeros(2, 2), "classes": torch.zeros(2)}, r"classes \[2\] of torch.float32, but"),
        ({"w": torch.zeros(1, 2, 3), "classes": torch.zeros(1).long()}, "w have their class in them"),
    ):
        safetensors.torch.save_file(tensors, tmp_path / "b.safetensors")
        with pytest.raises(LatentsError, match=message):
            Latents.load(tmp_path / "b.safetensors")
    (tmp_path / "c").write_text("x" * 100)
    with pytest.raises(LatentsError, match="are no safetensors file"):
        Latents.load(tmp_path / "c")
    with pytest.raises(LatentsError, match="cannot be read"):
        Latents.load(tmp_path / "missing")
