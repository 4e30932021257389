"""Class coverage: does a generator make every class of its data, and recognisably?

A small convolutional network is trained on the real, labelled images and then says what it sees in the
generated ones. It needs no downloaded weights and no GPU, so that a training run on any labelled dataset can
be judged offline. The share of confident answers measures how recognisable the samples are; how the confident
answers spread over the classes measures mode coverage (after the classifier-based scores of Salimans et al.,
"Improved Techniques for Training GANs", 2016). Neither measures diversity *within* a class: one perfect image
per class, repeated, gets full marks.

A network trained on real images alone is sure of anything, uniform noise included (measured on MNIST: it
calls every noise image an 8 with probability > 0.9). A quarter as many noise images therefore join each
training batch, with the uniform distribution as their target (Hendrycks et al., "Deep Anomaly Detection with
Outlier Exposure", 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MAX_SIDE = 32  # pixels: larger images are averaged down to this, which bounds the cost
_MAX_SHIFT = 2  # pixels of random translation while training
_BATCH = 64
_HELD_OUT_EVERY = 10
_LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class ClassCoverage:
    """What a :class:`SampleClassifier` sees in a set of images.

    Attributes:
        num_images: how many images were judged.
        num_classes: how many classes the classifier knows.
        num_classes_found: classes whose confident answers are at least ``min_share`` of all the images.
        confident_fraction: share of the images, in [0, 1], whose best class has a probability above
            ``confidence``.
        histogram: confident answers per class; the sum is ``confident_fraction * num_images``.
        confidence: the threshold that was used, a probability.
        min_share: the threshold that was used, a fraction of ``num_images``.
        classifier_accuracy: see :attr:`SampleClassifier.accuracy`.
    """

    num_images: int
    num_classes: int
    num_classes_found: int
    confident_fraction: float
    histogram: tuple[int, ...]
    confidence: float
    min_share: float
    classifier_accuracy: float


class SampleClassifier:
    """A small classifier of one dataset's images, made by :meth:`train`, that judges generated images.

    Attributes:
        image_shape: (C, H, W) of the images that it was trained on and that it accepts.
        num_classes: how many classes it knows.
        accuracy: its accuracy, in [0, 1], on the tenth of the real images that it was not trained on. A
            classifier that is bad at real images says nothing about generated ones.
        real_coverage: what it sees in those real images, at the default thresholds: the mark of a perfect
            generator.
    """

    def __init__(
        self, network: nn.Module, held_out_images: Tensor, held_out_labels: Tensor, num_classes: int
    ) -> None:
        self._network = network.eval()
        channels, height, width = held_out_images.shape[1:]
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.num_classes = num_classes
        answers = self.probabilities(held_out_images).argmax(dim=1)
        self.accuracy = (answers == held_out_labels).double().mean().item()
        self.real_coverage = self.evaluate(held_out_images)

    @classmethod
    def train(cls, images: Tensor, labels: Tensor, seed: int = 0, steps: int = 500) -> SampleClassifier:
        """Trains on the CPU; 5,000 MNIST digits take about 10 s on one thread.

        The same arguments give the same classifier, bit for bit, on the same machine with the same number of
        threads. PyTorch's global random state is neither read nor changed.

        Args:
            images: uint8, (N, C, H, W), the real images. Sides above 32 pixels are averaged down to 32.
            labels: int64, (N,), from 0 to the number of classes - 1; every class needs at least 2 images.
            seed: decides the split, the initial weights, the order and the noise; from 0 up.
            steps: optimiser steps, each on at most 64 images. They fix the time that training takes, whatever
                the size of the dataset.

        Raises:
            TypeError: images are not a uint8 tensor, or labels not an int64 one.
            ValueError: a shape, a label, the seed or the number of steps is out of range.
        """
        _check_images("images", images)
        num_classes = _check_labels(labels, len(images))
        if seed < 0:
            raise ValueError(f"seed is {seed}, but must be at least 0")
        if steps < 1:
            raise ValueError(f"steps is {steps}, but must be at least 1")

        images, labels = images.cpu(), labels.cpu()
        random = torch.Generator().manual_seed(seed)
        kept, held_out = _stratified_split(labels, random)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the layers' own initialisation takes no generator
            network = _build_network(images.shape[1], num_classes)
        _fit(network, _prepare(images[kept]), labels[kept], steps, random)
        return cls(network, images[held_out], labels[held_out], num_classes)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities, float32, (N, num_classes), of uint8 images (N, C, H, W)."""
        _check_images("images", images, self.image_shape)
        return torch.cat([self._network(_prepare(part.cpu())).softmax(dim=1) for part in images.split(512)])

    def evaluate(self, images: Tensor, confidence: float = 0.9, min_share: float = 0.01) -> ClassCoverage:
        """Judges images.

        Args:
            images: uint8, (N, C, H, W), N at least 1.
            confidence: an answer counts when its probability is above this; in [0, 1).
            min_share: a class is found when its confident answers are at least this share of all images; in
                (0, 1].

        Raises:
            TypeError: images are not a uint8 tensor.
            ValueError: images have another shape than the training images, or a threshold is out of range.
        """
        if not 0 <= confidence < 1:
            raise ValueError(f"confidence is {confidence}, but must be in [0, 1)")
        if not 0 < min_share <= 1:
            raise ValueError(f"min_share is {min_share}, but must be in (0, 1]")
        probability, answer = self.probabilities(images).max(dim=1)
        histogram = torch.bincount(answer[probability > confidence], minlength=self.num_classes)
        return ClassCoverage(
            num_images=len(images),
            num_classes=self.num_classes,
            num_classes_found=int((histogram >= min_share * len(images)).sum()),
            confident_fraction=int(histogram.sum()) / len(images),
            histogram=tuple(histogram.tolist()),
            confidence=confidence,
            min_share=min_share,
            classifier_accuracy=self.accuracy,
        )


def class_coverage(fakes: Tensor, reals: Tensor, labels: Tensor, seed: int = 0) -> ClassCoverage:
    """Trains a :class:`SampleClassifier` on reals and labels and judges fakes, all at the default settings.

    Use the class itself to judge several sets of samples, or to see its answers on real images.

    Args:
        fakes: uint8, (M, C, H, W), generated images.
        reals: uint8, (N, C, H, W), real images.
        labels: int64, (N,), the classes of reals.
        seed: see :meth:`SampleClassifier.train`.

    Raises:
        TypeError, ValueError: as :meth:`SampleClassifier.train` and :meth:`SampleClassifier.evaluate`.
    """
    _check_images("reals", reals)
    _check_images("fakes", fakes, tuple(reals.shape[1:]))  # before the seconds that training takes
    return SampleClassifier.train(reals, labels, seed).evaluate(fakes)


def _check_images(name: str, images: Tensor, image_shape: tuple[int, ...] | None = None) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} is a {type(images).__name__}, but must be a torch.Tensor")
    if images.dtype != torch.uint8:
        raise TypeError(f"{name} has dtype {images.dtype}, but must be torch.uint8")
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(images.shape)}, but must be (N, C, H, W) with every size at least 1"
        )
    shape = tuple(images.shape[1:])
    if image_shape is not None and shape != image_shape:
        raise ValueError(f"{name} has images of shape {shape}, but must have the real images' {image_shape}")


def _check_labels(labels: Tensor, num_images: int) -> int:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels is a {type(labels).__name__}, but must be a torch.Tensor")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels has dtype {labels.dtype}, but must be torch.int64")
    if labels.shape != (num_images,):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, but must be ({num_images},), one label an image"
        )
    if labels.min() < 0:
        raise ValueError(f"labels has the value {int(labels.min())}, but must be at least 0")
    # Also keeps bincount, which allocates up to the largest label, within the size of the input.
    if labels.max() >= num_images:
        raise ValueError(
            f"labels has the value {int(labels.max())}, but must be below {num_images}, the number of images"
        )
    counts = torch.bincount(labels)
    if len(counts) < 2:
        raise ValueError(f"labels has {len(counts)} class, but must have at least 2")
    if counts.min() < 2:
        raise ValueError(
            f"labels has {int(counts.min())} images of class {int(counts.argmin())}, "
            f"but needs at least 2 of each class from 0 to {len(counts) - 1}"
        )
    return len(counts)


def _stratified_split(labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices to train on, and indices held out: of each class a tenth, rounded up or down."""
    order = torch.randperm(len(labels), generator=random)
    order = order[labels[order].argsort(stable=True)]
    is_held_out = torch.arange(len(order)) % _HELD_OUT_EVERY == 0
    return order[~is_held_out], order[is_held_out]


def _prepare(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [0, 1] with no side above 32 pixels."""
    size = (min(images.shape[2], _MAX_SIDE), min(images.shape[3], _MAX_SIDE))
    # In parts, so that a large dataset never exists as float32 in its full resolution.
    return torch.cat([F.adaptive_avg_pool2d(part.float() / 255, size) for part in images.split(512)])


def _build_network(channels: int, num_classes: int) -> nn.Module:
    def block(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 16, kernel=5),
        *block(16, 32, kernel=3),
        *block(32, 64, kernel=3),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, num_classes),
    )


def _fit(network: nn.Module, images: Tensor, labels: Tensor, steps: int, random: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    height, width = images.shape[2:]
    padded = F.pad(images, [_MAX_SHIFT] * 4)
    batch = min(_BATCH, len(images))
    for indices in itertools.islice(_batches(len(images), batch, random), steps):
        top, left = torch.randint(2 * _MAX_SHIFT + 1, (2,), generator=random).tolist()
        x = padded[indices, :, top : top + height, left : left + width]
        noise = _noise_like(x[: max(1, batch // 4)], random)
        real_logits, noise_logits = network(torch.cat([x, noise])).split([batch, len(noise)])
        cross_entropy_with_uniform = -noise_logits.log_softmax(dim=1).mean()
        loss = F.cross_entropy(real_logits, labels[indices]) + cross_entropy_with_uniform
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _batches(length: int, batch: int, random: torch.Generator) -> Iterator[Tensor]:
    """Shuffled epochs without end, each without its incomplete last batch."""
    while True:
        order = torch.randperm(length, generator=random)
        yield from order[: length - length % batch].split(batch)


def _noise_like(images: Tensor, random: torch.Generator) -> Tensor:
    """Images that show nothing: the odd ones uniform noise, the even ones with all their pixels shuffled."""
    noise = torch.rand(images.shape, generator=random)
    pixels = images[::2].flatten(2)
    noise[::2] = pixels[:, :, torch.randperm(pixels.shape[2], generator=random)].view_as(images[::2])
    return noise
