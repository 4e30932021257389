"""Sampling from generators with a mapping network, walks, and given latents."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aigc_ext.models import MLPGenerator
from aigc_ext.sampling import Sampler
from aigc_ext.sampling.sampler import CHUNK
from aigc_ext.sampling.walk import curve_points, slerp_points, walk_positions
from tests.sampling.stand_in import stand_in


def mlp(num_classes=0):
    torch.manual_seed(1)
    return MLPGenerator((1, 4, 6), z_dim=7, hidden=(16, 16), num_classes=num_classes)


def z_of(seed, z_dim):
    return torch.randn(z_dim, generator=torch.Generator().manual_seed(seed))


def as_uint8(image):
    return ((image + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()


def close(images, others):
    return np.abs(np.asarray(images, float) - np.asarray(others, float)).max() <= 1


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("noise_mode", [None, "random", "none"])
def test_a_seed_is_the_same_image_in_any_company(classes, noise_mode):
    sampler = Sampler(stand_in(num_classes=classes))
    options = {"truncation": 0.6, "truncation_cutoff": 2, "noise_mode": noise_mode}
    seeds = [5, 21, 0, 1000, 5, *range(30, 60)]
    state = torch.get_rng_state()
    together = sampler.sample(seeds, **options)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)  # what others draw must not matter
    for seed, image in list(zip(seeds, together, strict=True))[:6]:
        assert np.array_equal(sampler.sample([seed], **options)[0], image)
    assert len({image.tobytes() for image in together}) == len(seeds) - 1


def test_noise_seeds_no_other_device(monkeypatch):
    """torch.manual_seed would also seed every CUDA device, now or once there is one."""
    sampler = Sampler(stand_in())
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("CUDA was seeded"))
    sampler.sample([1], noise_mode="random")


def test_truncation_is_in_w():
    generator = stand_in()
    sampler = Sampler(generator)
    z = z_of(12, 6)[None]
    with torch.no_grad():
        for cutoff in (None, 0, 1, 3):
            expected = as_uint8(generator(z, truncation=0.3, truncation_cutoff=cutoff))
            assert close(sampler.sample([12], truncation=0.3, truncation_cutoff=cutoff)[0], expected)
        mean = as_uint8(generator.synthesis(generator.w_avg.expand(1, 3, 5), noise_mode="const"))
    assert close(sampler.sample([1, 2], truncation=0), [mean, mean])
    assert not close(sampler.sample([12], truncation=0.3), sampler.sample([12]))
    assert not close(
        sampler.sample([12], truncation=0.3), sampler.sample([12], truncation=0.3, truncation_cutoff=1)
    )


def test_noise():
    generator = stand_in().train()  # sampled with constant noise all the same
    sampler = Sampler(generator)
    made = {mode: sampler.sample([3], noise_mode=mode)[0] for mode in ("const", "random", "none")}
    assert np.array_equal(made["const"], sampler.sample([3])[0])
    assert len({image.tobytes() for image in made.values()}) == 3
    with torch.no_grad():
        w = generator.mapping(z_of(3, 6)[None])
        assert close(made["none"], as_uint8(generator.synthesis(w, noise_mode="none")))
    assert generator.training


def test_latents_are_rendered_as_sampled():
    sampler = Sampler(stand_in(num_classes=3))
    seeds = list(range(CHUNK + 5))
    w = sampler.map(seeds, 2, 0.5, truncation_cutoff=1)
    assert w.shape == (len(seeds), 3, 5)
    assert close(sampler.render(w), sampler.sample(seeds, 2, 0.5, truncation_cutoff=1))
    z = torch.stack([z_of(seed, 6) for seed in seeds])
    classes = [seed % 3 for seed in seeds]
    assert close(sampler.render(z, classes), sampler.sample(seeds, classes))
    plain = Sampler(mlp())
    assert close(plain.render(z_of(4, 7)[None]), plain.sample([4]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s, p: p.sample([1], truncation_cutoff=1),
            "truncation_cutoff is 1, but this generator",
        ),
        (lambda s, p: p.sample([1], noise_mode="const"), "noise_mode is 'const', but this generator is not"),
        (lambda s, p: s.sample([1], truncation_cutoff=4), "truncation_cutoff is 4, but must be an integer"),
        (lambda s, p: s.sample([1], noise_mode="no"), "noise_mode is 'no', but must be one of const, random"),
        (lambda s, p: p.map([1]), "space is 'w', but this generator has no mapping network"),
        (
            lambda s, p: p.render(torch.zeros(2, 3, 5)),
            "of shape [2, 3, 5], but must be floating point",
        ),
        (lambda s, p: s.render(torch.zeros(2, 5)), "shape [N, 6] or [N, 3, 5]"),
        (lambda s, p: s.render(torch.zeros(0, 6)), "latents are empty"),
        (lambda s, p: p.render(torch.zeros(2, 7, dtype=torch.int64)), "latents are torch.int64"),
        (lambda s, p: s.render(torch.zeros(2, 6), 1), "classes is 1, but this generator is unconditional"),
        (lambda s, p: s.render(torch.zeros(2, 3, 5), 1), "latents in w have their class in them"),
        (lambda s, p: p.interpolate([1]), "seeds has 1 entries, but a walk needs at least 2"),
        (lambda s, p: p.interpolate([1, 2], frames=1), "frames is 1, but must be an integer of at least 2"),
        (lambda s, p: p.interpolate([1, 2], space="w"), "no mapping network"),
        (lambda s, p: p.interpolate([1, 2], space="x"), "space is 'x', but must be 'z' or 'w'"),
        (lambda s, p: s.interpolate([1, 2], curve="x"), "curve is 'x', but must be one of cubic, linear"),
        (lambda s, p: p.interpolate([1, 2], curve="cubic"), "curve is 'cubic', but a walk in z follows"),
        (lambda s, p: s.interpolate([1, 2], noise_mode="x"), "noise_mode is 'x'"),
        (lambda s, p: s.map([]), "seeds is empty, but must hold at least one"),
        (lambda s, p: Sampler(mlp(3)).sample([1], True), "class is True, but must be an integer from 0 to 2"),
        (
            lambda s, p: Sampler(mlp(3)).interpolate([1, 2], [0, 2]),
            "classes [0, 2], but a walk in z needs",
        ),
        (lambda s, p: Sampler(mlp(3)).render(torch.zeros(2, 7)), "needs them, from 0 to 2"),
    ],
)
def test_wrong_arguments_are_refused_at_once(call, message):
    with pytest.raises(ValueError) as error:
        call(Sampler(stand_in()), Sampler(mlp()))
    assert message in str(error.value)


def test_positions():
    assert walk_positions(3, 6, loop=True).tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert walk_positions(3, 5, loop=False).tolist() == [0, 0.5, 1, 1.5, 2]


def test_slerp_goes_at_constant_speed_along_the_great_circle():
    keys = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2]])
    points = slerp_points(keys, walk_positions(3, 12, loop=True))
    quarter = [[2 * math.cos(a), 2 * math.sin(a), 0] for a in (0, math.pi / 8, math.pi / 4, 3 * math.pi / 8)]
    assert torch.allclose(points[:4], torch.tensor(quarter), atol=1e-6)
    assert torch.allclose(points.norm(dim=1), torch.tensor(2.0))
    steps = (points.roll(-1, 0) - points).norm(dim=1)
    assert torch.allclose(steps, steps[0].expand(12), atol=1e-6)
    # No great circle is defined by equal or opposite directions.
    for a, b in (([1.0, 2], [2.0, 4]), ([1.0, 2], [-1.0, -2])):
        first, last = torch.tensor(a), torch.tensor(b)
        points = slerp_points(torch.stack([first, last]), torch.tensor([0.25]).double())
        assert torch.allclose(points, torch.lerp(first, last, 0.25))


def test_curves():
    keys = torch.randn(4, 2, 3)
    at = torch.tensor([0.0, 1, 2, 3]).double()
    for curve in ("linear", "cubic"):
        for loop in (False, True):
            assert torch.allclose(curve_points(keys, at, curve, loop), keys)
    line = torch.arange(5.0)[:, None] * torch.tensor([1.0, -2])
    between = torch.tensor([0.25, 1.5, 3.875]).double()
    for curve in ("linear", "cubic"):  # both reproduce a straight line, to its ends
        assert torch.allclose(curve_points(line, between, curve, False), between[:, None].float() * line[1])
    # Cubic: no corner at a key, nor where a loop closes; linear: corners.
    h = 1e-4
    for key in (1.0, 2.0, 4.0):
        sides = torch.tensor([key - h, key, (key + h) % 4, key % 4]).double()
        for curve, smooth in (("cubic", True), ("linear", False)):
            before, here, after, again = curve_points(keys.double(), sides, curve, True)
            assert torch.allclose((here - before) / h, (after - again) / h, atol=1e-2) == smooth


@pytest.mark.parametrize("space", ["z", "w"])
def test_a_walk_passes_its_seeds(space):
    sampler = Sampler(stand_in(num_classes=2))
    options = {"space": space, "truncation": 0.8, "truncation_cutoff": 2}
    frames = list(sampler.interpolate([4, 9, 1], 1, frames=3 * CHUNK, **options))
    expected = sampler.sample([4, 9, 1], 1, 0.8, truncation_cutoff=2)
    assert len(frames) == 3 * CHUNK
    assert close(frames[::CHUNK], expected)
    ends = list(sampler.interpolate([4, 9], 1, frames=21, loop=False, **options))
    assert len(ends) == 21
    assert close([ends[0], ends[-1]], expected[:2])
    assert not close(ends[10], expected[0])
    if space == "w":
        linear = list(sampler.interpolate([4, 9, 1], 1, frames=3 * CHUNK, curve="linear", **options))
        assert not close(linear, frames)


def test_a_walk_in_w_by_default_where_classes_differ():
    sampler = Sampler(stand_in(num_classes=5))
    frames = list(sampler.interpolate([4, 9], [0, 3], frames=2))
    assert close(frames, sampler.sample([4, 9], [0, 3]))
    with torch.no_grad():
        plain = list(Sampler(mlp()).interpolate([4, 9], truncation=0.5, frames=4, loop=False))
    assert close([plain[0], plain[-1]], Sampler(mlp()).sample([4, 9], truncation=0.5))
