"""The Fréchet distance of reconstructions, usually called rFID where the features are Inception's: how an
autoencoder changes a set of images as a whole, which distances from pixel to pixel do not tell."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from aigc_ext._progress import tracked
from aigc_ext.data import ImageDataset
from aigc_ext.metrics.classifier import shuffled
from aigc_ext.metrics.compute import batch_size
from aigc_ext.metrics.errors import MetricError
from aigc_ext.metrics.extractors import FeatureExtractor, extract
from aigc_ext.metrics.frechet import Moments, frechet_distance


class Reconstructor(Protocol):
    """The interface of `models.Autoencoder` that the distance needs."""

    def reconstructions(self, items: Tensor, c: Tensor | None = None, /) -> Any:
        """Of uint8 images (N, C, H, W) and, with classes, their labels: uint8 (N, H, W, C), NumPy's."""


class ReconstructionDistance:
    """The Fréchet distance between images and their reconstructions by a network; it can be called
    repeatedly.

    Lower is better, 0 at best. Both sets are of the same images, so that a perfect autoencoder has 0, however
    few they are; of others the distance depends on how many: compare only at the same number.

    Args:
        images: those that are reconstructed. They tell what the network does to others if they were held out
            from its training.
        extractor: of the features.
        num_images: at most so many of them, chosen by the seed.

    Attributes:
        count: how many images are compared.

    Raises:
        MetricError: there are fewer than 2 images, or `num_images` is less.
    """

    def __init__(
        self, images: ImageDataset, extractor: FeatureExtractor, *, num_images: int = 5000, seed: int = 0
    ) -> None:
        if num_images < 2:
            raise MetricError(f"num_images is {num_images}, but must be at least 2")
        if len(images) < 2:
            raise MetricError(f"rfd needs at least 2 images, but has {len(images)} of {images.name}")
        self._images, self._extractor = images, extractor
        self._order = shuffled(len(images), seed)[:num_images]
        self.count = len(self._order)
        self._real: Moments | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.count} images of {self._images!r}>"

    def __call__(self, network: Reconstructor) -> float:
        """The distance, for a network that is told the labels if it has classes.

        Raises:
            MetricError: the images are of another shape than the network's, or have other classes.
        """
        classes, shape = getattr(network, "num_classes", 0), getattr(network, "image_shape", None)
        if classes and classes != self._images.num_classes:
            raise MetricError(
                f"the network has {classes} classes, but {self._images.name} has {self._images.num_classes}"
            )
        if shape is not None and tuple(shape) != self._images.image_shape:
            raise MetricError(
                f"the network is for images of shape {tuple(shape)}, but those of {self._images.name} have "
                f"{self._images.image_shape}"
            )
        real, made = self._real, None
        parts = self._order.split(batch_size(self._images.image_shape))
        for indices in tracked("reconstructed images", parts, self.count):
            items, labels = self._images.read(indices)
            given = network.reconstructions(items, labels) if classes else network.reconstructions(items)
            images = torch.from_numpy(given).permute(0, 3, 1, 2).contiguous()
            made = _added(made, extract(self._extractor, images))
            if self._real is None:
                real = _added(real, extract(self._extractor, items))
        self._real = real
        assert real is not None
        assert made is not None
        return frechet_distance(real, made)


def _added(so_far: Moments | None, features: Tensor) -> Moments:
    new = Moments.of(features)
    return new if so_far is None else so_far.merge(new)
