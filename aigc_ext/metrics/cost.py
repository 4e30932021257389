"""What metrics cost in time, estimated before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from aigc_ext.data import ImageDataset
from aigc_ext.metrics.classifier import TRAINING_IMAGES, untrained_features
from aigc_ext.metrics.compute import MAX_REALS, ImageSource
from aigc_ext.metrics.extractors import RandomFeatures

_TRIED = 16  # images


class MetricSeconds(NamedTuple):
    once: float
    """For the real images, and for the classifier's training."""
    each: float
    """For the generated images of one snapshot."""

    def total(self, snapshots: float) -> float:
        return self.once + self.each * snapshots


def estimate_seconds(
    dataset: ImageDataset, source: ImageSource, num_images: int, device: torch.device
) -> MetricSeconds:
    """What `fd`, and `coverage` of a labelled dataset, take of so many images: measured on 16 of them, as if
    nothing were in the cache. `kid` and `pr` also compare all pairs of images."""
    sampled = source.sample(range(_TRIED))
    images = torch.from_numpy(sampled).permute(0, 3, 1, 2).contiguous()
    if dataset.num_classes:
        look: Callable[[torch.Tensor], torch.Tensor] = untrained_features(images.shape[1], device)
    else:
        look = RandomFeatures(images.shape[1], device=device)
    look(images)  # the first call of each is slower
    began = time.perf_counter()
    source.sample(range(_TRIED))
    made = time.perf_counter()
    look(images)
    sampling, looking = (made - began) / _TRIED, (time.perf_counter() - made) / _TRIED
    # A backward takes about two forwards.
    training = 3 * TRAINING_IMAGES * looking if dataset.num_classes else 0.0
    return MetricSeconds(
        once=min(MAX_REALS, len(dataset)) * looking + training,
        each=num_images * (sampling + looking),
    )
