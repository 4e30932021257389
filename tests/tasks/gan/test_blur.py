"""The blur of what D sees early on: its values, what goes through it, and how it fades."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigc_ext.losses import AdversarialLoss
from aigc_ext.tasks.gan import PRESETS, Objective, StepInputs, Trainer, recipe, replay
from aigc_ext.tasks.gan.blur import blurred
from aigc_ext.training import NonFiniteError
from tests.tasks.gan.helpers import PlainDiscriminator, PlainGenerator, config
from tests.training.helpers import rows_of, tiny_images


def expected(images: Tensor, sigma: float) -> Tensor:
    """The definition: for each pixel the weighted mean of those up to 3 sigma away that exist."""
    reach = math.ceil(3 * sigma)
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(-reach, reach + 1)]
    weight = torch.tensor(weights, dtype=images.dtype)
    kernel = torch.outer(weight, weight)[None, None]
    n, c, height, width = images.shape
    total = F.conv2d(images.reshape(n * c, 1, height, width), kernel, padding=reach)
    return (total / F.conv2d(torch.ones_like(images[:1, :1]), kernel, padding=reach)).view_as(images)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.0, 2.5, 30.0])
def test_it_is_a_gaussian_mean(sigma: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(blurred(x, sigma), expected(x, sigma), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(blurred(x.float(), sigma), expected(x, sigma).float())
    last = x.float().contiguous(memory_format=torch.channels_last)
    assert blurred(last, sigma).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(blurred(last, sigma), blurred(x.float(), sigma))
    # No border gets darker, and a blur wider than the images leaves their mean.
    torch.testing.assert_close(blurred(torch.full_like(x, 5.0), sigma), torch.full_like(x, 5.0))
    if sigma == 30.0:
        mean = x.mean((2, 3), keepdim=True)
        assert ((blurred(x, sigma) - mean).abs() < 0.1 * (x - mean).abs().amax()).all()


def test_it_fades_to_exactly_nothing() -> None:
    x = torch.randn(2, 1, 5, 6)
    assert blurred(x, 0.0) is x
    changes = [(blurred(x, sigma) - x).abs().max() for sigma in (1.0, 0.5, 0.25, 0.125, 1e-30)]
    assert changes == sorted(changes, reverse=True)
    assert changes[-2] < 1e-6
    assert changes[-1] == 0
    for sigma in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"sigma is {sigma}, but must be a finite number from 0 on"):
            blurred(x, sigma)


@pytest.mark.parametrize("kind", ["logistic", "relativistic"])
def test_all_that_d_sees_is_blurred_and_penalties_go_through(kind: str) -> None:
    """The objective is that of a discriminator which blurs its input itself, behind the augmentation."""

    class Blurring(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(expected(images.square(), 0.9))

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.Softplus(), nn.Linear(8, 1)).double()
    real, fake = torch.randn(2, 6, 1, 4, 5, dtype=torch.float64)
    inputs = StepInputs(real, fake, torch.zeros(6, 1), None, penalize=True)
    found = []
    blurring: dict[str, Any] = {"augment": torch.square, "blur_sigma": 0.9}
    for discriminator, options in ((plain, blurring), (Blurring(plain), {})):
        objective = Objective(discriminator, AdversarialLoss(kind), gamma=3.0, r2=True, **options)
        plain.zero_grad()
        loss, _, r1, r2 = objective.discriminator_backward(inputs)
        images = fake.clone().requires_grad_()
        gradients = []
        for p in plain.parameters():
            assert p.grad is not None
            gradients.append(p.grad.clone())
        judged = objective.generator_backward(images, inputs)
        found.append((loss, r1, r2, judged, images.grad, *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_the_amount_is_a_function_of_the_images_seen() -> None:
    settings = config(augment__blur_sigma=4.0, augment__blur_kimg=0.4)
    amounts = [recipe.blur_sigma(settings, nimg) for nimg in (0, 100, 200, 399, 400, 401, 10**6)]
    assert amounts == pytest.approx([4, 3, 2, 0.01, 0, 0, 0])
    assert amounts[4:] == [0, 0, 0]
    assert recipe.blur_sigma(config(), 0) == 0


@pytest.mark.parametrize(
    ("shape", "sigma"), [((256, 256), 10), ((1024, 512), 10), ((128, 512), 5), ((28, 28), 1.09375)]
)
def test_stylegan3_r_blurs_by_the_size_of_the_images(shape: tuple[int, int], sigma: float) -> None:
    data = tiny_images(1, (3, *shape))
    augment = recipe.complete(PRESETS["stylegan3-r"], data).augment
    assert (augment.blur_sigma, augment.blur_kimg) == (sigma, 200)
    others = {recipe.complete(PRESETS[name], data).augment.blur_sigma for name in PRESETS}
    assert others == {0, sigma}
    given = recipe.complete(PRESETS["stylegan3-r"].override("augment.blur_sigma", 3.0), data)
    assert given.augment.blur_sigma == 3, "a number means so many pixels"


def test_rows_and_dumps_say_it(tmp_path, monkeypatch) -> None:
    fading = {"augment__blur_sigma": 1.0, "augment__blur_kimg": 0.2}
    done = Trainer.from_config(config(kimg=0.25, **fading), outdir=tmp_path).fit()
    # A row describes its last step, which began 25 images earlier.
    assert [row["blur_sigma"] for row in rows_of(done.run_dir)] == [0.5, 0.0]
    done = Trainer.from_config(config(kimg=0.125), outdir=tmp_path).fit()
    assert [row["blur_sigma"] for row in rows_of(done.run_dir)] == [None]

    networks = PlainGenerator(), PlainDiscriminator()
    options = config(nonfinite_limit=3, **fading)
    trainer = Trainer(*networks, tiny_images(), options, outdir=tmp_path, z_dim=6, value_range=(-1.0, 1.0))
    with torch.no_grad():
        networks[1].last.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError) as error:
        trainer.fit()
    seen = []

    def recorded(x, sigma):
        seen.append(sigma)
        return blurred(x, sigma)

    monkeypatch.setattr("aigc_ext.tasks.gan.objective.blurred", recorded)
    assert replay(error.value.dump, PlainGenerator(), PlainDiscriminator()).reproduced
    assert seen == [0.75] * 3, "of the third step"
