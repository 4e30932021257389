"""Finding the latents of a given image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from aigc_ext.sampling.latents import Latents
from aigc_ext.sampling.png import check_images, to_pil
from aigc_ext.sampling.sampler import Sampler

Features = Callable[[Tensor], Sequence[Tensor]]
_CANDIDATES = 256
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Projection:
    """The result of `project`.

    Attributes:
        latents: one point, on the CPU; `Sampler.render(latents.values, latents.classes)` is `image`.
        image: uint8 (H, W, C).
        distance: from the target to the image before rounding.
        distances: the distance of the point tried in each step.
    """

    latents: Latents
    image: np.ndarray
    distance: float
    distances: list[float]


def pyramid(images: Tensor) -> list[Tensor]:
    """The images (N, C, H, W) and their averages over 2x2, 4x4, ... pixels, as long as both sides have at
    least 4."""
    levels = [images]
    while min(levels[-1].shape[2:]) >= 8:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def project(
    sampler: Sampler,
    target: np.ndarray,
    *,
    steps: int = 500,
    space: str | None = None,
    class_: int | None = None,
    lr: float = 0.1,
    seed: int = 0,
    features: Features = pyramid,
    on_step: Callable[[float], Any] | None = None,
) -> Projection:
    """Searches for the point of latent space whose image is closest to a given one.

    The search is that of Karras et al. 2020 (https://arxiv.org/abs/1912.04958, appendix D), with other
    distances and without optimising the noise images, which stay as they are in the network: Adam with a
    learning rate that ramps up and down, and noise on the latents that vanishes over the first three
    quarters. In w it starts at the mean. In z it starts at the best of 256 random points and keeps |z|² near
    z_dim, as for the latents seen in training.

    Args:
        target: uint8 (H, W, C) of the generator's image shape; see `fit_target`.
        steps: at least 1.
        space: "w", one vector for all layers, or "z". By default "w" if there is one.
        class_: the image's class, for a conditional generator.
        lr: the largest learning rate.
        seed: the seed of all random numbers. The same arguments give the same result on the same device.
        features: maps float32 images (N, C, H, W) in [0, 1] to tensors; the distance is the mean of their
            mean squared differences. A pretrained perceptual network gives closer resemblance.
        on_step: called with the distance after each step.

    Raises:
        ValueError: an argument is not valid.
    """
    target = check_images(target[None])[0]
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"steps is {steps!r}, but must be an integer of at least 1")
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr is {lr}, but must be a finite number above 0")
    space = sampler.resolve_space(space)
    if sampler.num_classes and class_ is None:
        raise ValueError(
            f"class is None, but this generator is conditional: give the image's, from 0 to "
            f"{sampler.num_classes - 1}"
        )
    classes = sampler.resolve_classes([0], class_)
    height, width, channels = sampler.sample([0], classes).shape[1:]
    if target.shape != (height, width, channels):
        raise ValueError(
            f"the target is {_described(target.shape)}, but must be {_described((height, width, channels))}, "
            "as the network makes them"
        )

    search = _Search(sampler, classes, space, features, target)
    rng = torch.Generator().manual_seed(seed)
    point, spread = search.start(rng)
    point.requires_grad_()
    optimizer = torch.optim.Adam([point], lr=lr, betas=(0.9, 0.999))
    best, best_distance, distances = point.detach().clone(), math.inf, []
    was_training = sampler.generator.training
    sampler.generator.eval()
    try:
        for step in range(steps):
            done = step / steps
            for group in optimizer.param_groups:
                group["lr"] = lr * _ramp(done)
            noise = torch.randn(point.shape, generator=rng).to(point.device, point.dtype)
            tried = point + noise * (0.05 * spread * max(0.0, 1 - done / 0.75) ** 2)
            distance = search.distance(tried)
            value = float(distance.detach())
            if value < best_distance:  # false for NaN
                best, best_distance = tried.detach().clone(), value
            distances.append(value)
            (point.grad,) = torch.autograd.grad(distance + search.penalty(tried), point)
            optimizer.step()
            if on_step is not None:
                on_step(value)
    finally:
        sampler.generator.train(was_training)
    if best_distance == math.inf:
        raise ValueError("the network's images of all points that were tried are not finite")
    values = search.latents(best).float().cpu()
    latents = Latents(values, classes if space == "z" else None, {"distance": repr(best_distance)})
    return Projection(latents, sampler.render(values, latents.classes)[0], best_distance, distances)


def fit_target(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Converts a uint8 image (H, W, C) to another shape (H, W, C): crops it centrally to the aspect ratio,
    scales it, and converts between grey, RGB and RGBA."""
    height, width, channels = shape
    picture = to_pil(check_images(image[None])[0])
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return np.array(picture.convert(_MODES[channels])).reshape(height, width, channels)


class _Search:
    """The distance as a function of one point: z (1, z_dim) or w (1, w_dim)."""

    def __init__(
        self,
        sampler: Sampler,
        classes: list[int] | None,
        space: str,
        features: Features,
        target: np.ndarray,
    ) -> None:
        self.sampler, self.space, self.features = sampler, space, features
        self.parameter = next(sampler.generator.parameters())
        self.c = None if classes is None else torch.tensor(classes, device=self.parameter.device)
        pixels = torch.from_numpy(target).to(self.parameter.device).permute(2, 0, 1)[None]
        with torch.no_grad():
            self.target = [level.detach() for level in features(pixels.float() / 255)]

    def start(self, rng: torch.Generator) -> tuple[Tensor, float]:
        """The starting point, and the spread of this space's points around their mean."""
        z = torch.randn(_CANDIDATES, self.sampler.z_dim, generator=rng)
        z = z.to(self.parameter.device, self.parameter.dtype)
        with torch.no_grad():
            if self.space == "z":
                distances = torch.stack([self.distance(one) for one in z.split(1)])
                return z[distances.nan_to_num(math.inf).argmin()][None].clone(), 1.0
            c = None if self.c is None else self.c.expand(_CANDIDATES)
            w = self.sampler.generator.mapping(z, c)[:, 0]
            mean = w.mean(0, keepdim=True)
            return mean, float((w - mean).square().sum(1).mean().sqrt() / math.sqrt(w.shape[1]))

    def latents(self, point: Tensor) -> Tensor:
        return point[:, None].repeat(1, self.sampler.generator.num_ws, 1) if self.space == "w" else point

    def distance(self, point: Tensor) -> Tensor:
        generator = self.sampler.generator
        if self.space == "w":
            made = generator.synthesis(self.latents(point), noise_mode="const")
        else:
            made = generator(point) if self.c is None else generator(point, self.c)
        low, high = self.sampler.value_range
        found = self.features((made.float() - low) / (high - low))
        return torch.stack([F.mse_loss(a, b) for a, b in zip(found, self.target, strict=True)]).mean()

    def penalty(self, point: Tensor) -> Tensor:
        if self.space == "w":
            return point.new_zeros(())
        return 1e-3 * (point.square().mean() - 1).square()


def _ramp(done: float) -> float:
    """The learning rate's factor: up over the first twentieth of the steps, down along a cosine over the last
    quarter."""
    down = min(1.0, (1 - done) / 0.25)
    return min(1.0, done / 0.05 + 1e-3) * (0.5 - 0.5 * math.cos(math.pi * down))


def _described(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]} {_MODES[shape[2]]}"
