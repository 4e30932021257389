"""How small a change of a real image makes a run's discriminator take it for a fake?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_ext.data import ImageDataset
from aigc_ext.metrics.classifier import shuffled
from aigc_ext.metrics.errors import MetricError
from aigc_ext.metrics.robustness import Robustness, of_discriminator, robustness, smallest_epsilon
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.tasks.initial import read_initial_weights

_CHUNK = 64


class AttackedDiscriminator(NamedTuple):
    robustness: Robustness
    median_epsilon: float
    """Half of the real images are taken for fakes after a change of this size; 0 if half are without one,
    infinite if 0.5 does not suffice."""


def networks_of(source: str | Path) -> tuple[Any, Any]:
    """The averaged generator and the discriminator of a run or checkpoint, in eval mode, on the CPU.

    Raises as `attack_discriminator`.
    """
    weights = read_initial_weights(source)
    weights.check_task("gan")
    networks = []
    for role, build in (("ema", build_generator), ("discriminator", build_discriminator)):
        settings = weights.architectures.get("generator" if role == "ema" else role)
        if settings is None or role not in weights.networks:
            raise MetricError(f"{weights.source} has no discriminator and generator of aigc_ext.models")
        network: Any = build(settings)
        network.load_state_dict(weights.networks[role])
        networks.append(network.eval().requires_grad_(False))
    return networks[0], networks[1]


def attack_discriminator(
    source: str | Path,
    dataset: ImageDataset,
    epsilons: Sequence[float],
    *,
    num_images: int = 500,
    seed: int = 0,
) -> AttackedDiscriminator:
    """Attacks the discriminator of a run or checkpoint on real images, in eval mode, on the CPU. An image is
    real to it if its answer is above the median of its answers to as many images of the averaged generator.

    Raises:
        RunError, CheckpointError, PretrainedError: there is no such run, or it is damaged.
        MetricError: it has no discriminator of ours, its images or classes are not the dataset's, or an
            argument is out of range.
    """
    generator, discriminator = networks_of(source)
    if tuple(generator.image_shape) != tuple(dataset.image_shape):
        raise MetricError(
            f"the generator's images have shape {tuple(generator.image_shape)}, but those of {dataset.name} "
            f"{tuple(dataset.image_shape)}"
        )
    classes = generator.num_classes
    if classes and classes != dataset.num_classes:
        raise MetricError(
            f"the networks have {classes} classes, but {dataset.name} has {dataset.num_classes}"
        )
    chosen = shuffled(len(dataset), seed)[:num_images]
    read = dataset.read(chosen)[0].float() / 255
    labels = dataset.labels[chosen] if classes else torch.zeros(len(chosen), dtype=torch.int64)
    z = torch.randn(len(chosen), generator.z_dim, generator=torch.Generator().manual_seed(seed))

    def answer(images: Tensor, c: Tensor) -> Tensor:
        return discriminator(images, c) if classes else discriminator(images)

    with torch.no_grad():
        fakes = [
            answer(generator(part, *([c] if classes else [])), c)
            for part, c in zip(z.split(_CHUNK), labels.split(_CHUNK), strict=True)
        ]
    judge = of_discriminator(answer, generator.value_range, torch.cat(fakes).median().item())
    result = robustness(judge, read, labels, epsilons, seed=seed)
    least = smallest_epsilon(judge, read, labels, seed=seed)
    return AttackedDiscriminator(result, least.quantile(0.5, interpolation="lower").item())
