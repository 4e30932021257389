"""Class coverage: does a generator make every class of its data, and recognisably?

A small convolutional network is trained on the real, labelled images and then classifies the generated ones.
It needs no downloaded weights and no GPU, so a training run on any labelled dataset can be judged offline.
The fraction of confident predictions measures how recognisable the samples are; their distribution over the
classes measures mode coverage (after the classifier-based scores of Salimans et al., "Improved Techniques for
Training GANs", 2016). Neither measures diversity *within* a class: one perfect image per class, repeated,
gets the full score.

A network trained only on real images is confident about anything, even uniform noise (on MNIST it classifies
every noise image as an 8 with probability > 0.9). Therefore a quarter as many noise images are added to each
training batch, with the uniform distribution as their target (Hendrycks et al., "Deep Anomaly Detection with
Outlier Exposure", 2019).

The input of this network's last layer provides the features in which `metrics.MetricSet` compares generated
images with real ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigc_ext import _files
from aigc_ext._cache import Cache
from aigc_ext._progress import tracked
from aigc_ext.data import ImageDataset
from aigc_ext.metrics.errors import MetricError
from aigc_ext.metrics.robustness import EPSILONS, PGD_STEPS, Robustness, of_classifier, pgd, robustness

_MAX_SIDE = 32  # pixels: larger images are downsampled to this, which bounds the cost
_MAX_SHIFT = 2  # pixels of random translation while training
_BATCH = 64
_HELD_OUT_EVERY = 10
_LEARNING_RATE = 5e-3
_STEPS = 500
_ATTACK_STEPS = 5  # of PGD in adversarial training
_MAX_IMAGES = 20_000  # for training: 500 steps of 64 see each less than twice
TRAINING_IMAGES = _STEPS * (_BATCH + _BATCH // 4)
"""That `SampleClassifier.for_dataset` trains on, noise included."""
_RECIPE = 1  # version of `for_dataset`; increment it when its results change


@dataclass(frozen=True)
class ClassCoverage:
    """The result of a :class:`SampleClassifier` for a set of images.

    Attributes:
        num_images: number of images.
        num_classes: number of classes of the classifier.
        num_classes_found: number of classes whose confident predictions are at least ``min_share`` of all
            images.
        confident_fraction: fraction of the images, in [0, 1], whose most likely class has a probability above
            ``confidence``.
        histogram: confident predictions per class; the sum is ``confident_fraction * num_images``.
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
    """A small classifier for one dataset's images, made by :meth:`train` or :meth:`for_dataset`, which judges
    generated images. Called with images it returns their features: it is a `metrics.FeatureExtractor`.

    Attributes:
        image_shape: (C, H, W) of the images on which it was trained and which it accepts.
        num_classes: number of classes.
        accuracy: its accuracy, in [0, 1], on the tenth of the real images that it was not trained on. A
            classifier that is bad at real images says nothing about generated ones.
        real_coverage: its result for those real images, at the default thresholds: the score of a perfect
            generator.
        name: identifies the weights and the kind of device.
    """

    def __init__(
        self,
        network: nn.Sequential,
        image_shape: tuple[int, int, int],
        num_classes: int,
        held_out_images: Tensor,
        held_out_labels: Tensor,
    ) -> None:
        """`held_out_images` come from `_prepare`."""
        self._network = network.eval().requires_grad_(False)
        self._device = torch.device("cpu")
        self.image_shape = image_shape
        self.num_classes = num_classes
        self._held_out = held_out_images, held_out_labels
        self.name = f"classifier-{_files.sha256(safetensors.torch.save(network.state_dict()))}"
        probabilities = torch.cat([network(part).softmax(dim=1) for part in held_out_images.split(512)])
        self.accuracy = (probabilities.argmax(dim=1) == held_out_labels).double().mean().item()
        self.real_coverage = self.coverage_of(probabilities)

    @classmethod
    def train(
        cls, images: Tensor, labels: Tensor, seed: int = 0, steps: int = _STEPS, *, epsilon: float = 0.0
    ) -> SampleClassifier:
        """Trains on the CPU; 5,000 MNIST digits take about 10 s on one thread.

        The same arguments give the same classifier, bit for bit, on the same machine with the same number of
        threads. PyTorch's global random state is neither read nor changed.

        Args:
            images: uint8, (N, C, H, W), the real images. Sides above 32 pixels are averaged down to 32.
            labels: int64, (N,), from 0 to the number of classes - 1; every class needs at least 2 images.
            seed: determines the split, the initial weights, the order and the noise; at least 0.
            steps: optimizer steps, each on at most 64 images. They determine the training time, whatever the
                size of the dataset.
            epsilon: above 0, it is trained on images that PGD has changed by at most that much in each pixel,
                of 1 between black and white: adversarial training (Madry et al. 2018, arXiv:1706.06083), five
                times as slow. See :meth:`robustness`.

        Raises:
            TypeError: images are not a uint8 tensor, or labels are not an int64 tensor.
            ValueError: a shape, a label, the seed or the number of steps is out of range.
        """
        _check_images("images", images)
        num_classes = _check_labels(labels, len(images))
        if seed < 0:
            raise ValueError(f"seed is {seed}, but must be at least 0")
        if steps < 1:
            raise ValueError(f"steps is {steps}, but must be at least 1")
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon is {epsilon}, but must be from 0 to 1")

        channels, height, width = images.shape[1:]
        prepared = _prepare(images.cpu())
        shape = (channels, height, width)
        return cls._train(prepared, labels.cpu(), shape, num_classes, seed, steps, epsilon)

    @classmethod
    def for_dataset(
        cls,
        dataset: ImageDataset,
        seed: int = 0,
        cache: Cache | None = None,
        device: torch.device | None = None,
        epsilon: float = 0.0,
    ) -> SampleClassifier:
        """The classifier of a dataset. On one kind of machine, the weights depend only on the images, the
        labels and the seed, not on the number of threads.

        It is trained on at most 20,000 of the images, on one thread. Classes without images are left out.

        Args:
            cache: stores the weights, so that they need not be trained again for the same dataset.
            device: where to run it afterwards; by default the CPU.
            epsilon: of adversarial training, see :meth:`train`.

        Raises:
            MetricError: the dataset has no labels, fewer than 2 classes, or a class with 1 image.
        """
        if not dataset.num_classes:
            raise MetricError(
                f"{dataset.name} has no labels to train a classifier on"
                f"{f' ({dataset.why_unlabelled})' if dataset.why_unlabelled else ''}: give an extractor of "
                "features ('random' is one that needs no labels, and says less)"
            )
        if seed < 0:
            raise MetricError(f"seed is {seed}, but must be at least 0")
        order, labels, num_classes = _labels_for_training(dataset, seed)
        prepared = torch.cat([_prepare(dataset.read(part)[0]) for part in order.split(512)])
        stored = None
        if cache is not None:
            key: dict[str, str | int] = {"dataset": dataset.content_hash(), "seed": seed, "recipe": _RECIPE}
            if epsilon:
                key["epsilon"] = repr(epsilon)
            stored = lambda compute: cache.get("classifier", key, compute)  # noqa: E731
        with _one_thread():
            classifier = cls._train(
                prepared, labels, dataset.image_shape, num_classes, seed, _STEPS, epsilon, stored=stored
            )
        if device is not None and device.type != "cpu":
            classifier._network.to(device)
            classifier._device = device
            classifier.name += f"-{device.type}"  # rounding differs between devices
        return classifier

    @classmethod
    def _train(
        cls,
        images: Tensor,
        labels: Tensor,
        image_shape: tuple[int, int, int],
        num_classes: int,
        seed: int,
        steps: int,
        epsilon: float,
        stored: Callable[[Callable[[], dict[str, Tensor]]], dict[str, Tensor]] | None = None,
    ) -> SampleClassifier:
        """`stored` returns stored weights, or calls the function it is given, which trains them."""
        random = torch.Generator().manual_seed(seed)
        kept, held_out = _stratified_split(labels, random)
        with torch.random.fork_rng(devices=[]):
            # The layers' initialisation takes no generator; torch.manual_seed would also change CUDA's.
            torch.default_generator.manual_seed(seed)
            network = _build_network(images.shape[1], num_classes)

        def fit() -> dict[str, Tensor]:
            with torch.enable_grad():
                _fit(network, images[kept], labels[kept], steps, random, epsilon)
            return network.state_dict()

        if stored is None:
            fit()
        else:
            network.load_state_dict(stored(fit))
        with torch.no_grad():
            return cls(network.eval(), image_shape, num_classes, images[held_out], labels[held_out])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.num_classes} classes, {self.accuracy:.1%} right>"

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities, float32 (N, num_classes), of uint8 images (N, C, H, W)."""
        return self._run(lambda x: self._network(x).softmax(dim=1), images)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 (N, 64), of uint8 images (N, C, H, W): the last convolution's activations,
        averaged over each image."""
        # The last layer sees them per position, 1,024 numbers for 28x28 pixels. Averages make the Fréchet
        # distance less noisy: for 2,500 of MNIST's digits it grows 200-fold from real to blurred ones, and
        # 7-fold when a class is missing; with all 1,024 numbers, 12-fold and 4-fold.
        return self._run(lambda x: self._network[:-_HEAD](x).mean(dim=(2, 3)), images)

    def _run(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        _check_images("images", images, self.image_shape)
        parts = [function(_prepare(part.cpu()).to(self._device)) for part in images.split(512)]
        return torch.cat(parts).cpu()

    def robustness(
        self, epsilons: Sequence[float] = EPSILONS, *, steps: int = PGD_STEPS, seed: int = 0
    ) -> Robustness:
        """Its accuracy on the held-out real images after small changes; see `metrics.robustness`.

        Raises:
            MetricError: an epsilon or the number of steps is out of range.
        """
        images, labels = (tensor.to(self._device) for tensor in self._held_out)
        return robustness(of_classifier(self._network), images, labels, epsilons, steps=steps, seed=seed)

    def evaluate(
        self, images: Tensor, confidence: float = 0.9, min_share: float | None = None
    ) -> ClassCoverage:
        """Judges images.

        Args:
            images: uint8, (N, C, H, W), N at least 1.
            confidence: a prediction counts if its probability is above this; in [0, 1).
            min_share: a class is found if its confident predictions are at least this fraction of all images;
                in (0, 1]. By default 1/100 or, with more than 10 classes, a tenth of an equal share.

        Raises:
            TypeError: images are not a uint8 tensor.
            ValueError: the shape differs from that of the training images, or a threshold is out of range.
        """
        _check_thresholds(confidence, min_share)
        return self.coverage_of(self.probabilities(images), confidence, min_share)

    def coverage_of(
        self, probabilities: Tensor, confidence: float = 0.9, min_share: float | None = None
    ) -> ClassCoverage:
        """Like :meth:`evaluate`, from the :meth:`probabilities` of the images."""
        if min_share is None:
            min_share = min(0.01, 0.1 / self.num_classes)
        _check_thresholds(confidence, min_share)
        probability, answer = probabilities.max(dim=1)
        histogram = torch.bincount(answer[probability > confidence], minlength=self.num_classes)
        return ClassCoverage(
            num_images=len(probabilities),
            num_classes=self.num_classes,
            num_classes_found=int((histogram >= min_share * len(probabilities)).sum()),
            confident_fraction=int(histogram.sum()) / len(probabilities),
            histogram=tuple(histogram.tolist()),
            confidence=confidence,
            min_share=min_share,
            classifier_accuracy=self.accuracy,
        )


def class_coverage(fakes: Tensor, reals: Tensor, labels: Tensor, seed: int = 0) -> ClassCoverage:
    """Trains a :class:`SampleClassifier` on reals and labels and judges fakes, with the default settings.

    Use the class itself to judge several sets of samples, or to see its answers on real images.

    Args:
        fakes: uint8, (M, C, H, W), generated images.
        reals: uint8, (N, C, H, W), real images.
        labels: int64, (N,), the classes of reals.
        seed: see :meth:`SampleClassifier.train`.

    Raises:
        TypeError, ValueError: as for :meth:`SampleClassifier.train` and :meth:`SampleClassifier.evaluate`.
    """
    _check_images("reals", reals)
    _check_images("fakes", fakes, tuple(reals.shape[1:]))  # before training, which takes seconds
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


def _check_thresholds(confidence: float, min_share: float | None) -> None:
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence is {confidence}, but must be in [0, 1)")
    if min_share is not None and not 0 < min_share <= 1:
        raise ValueError(f"min_share is {min_share}, but must be in (0, 1]")


def shuffled(count: int, seed: int) -> Tensor:
    """A permutation of 0 to count - 1 that depends only on the seed, not on the library version."""
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    return torch.from_numpy(np.argsort(bits.random_raw(count), kind="stable"))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    # This also limits bincount, which allocates memory up to the largest label.
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
    """Training indices and held-out indices, which are a tenth of each class, rounded up or down."""
    order = torch.randperm(len(labels), generator=random)
    order = order[labels[order].argsort(stable=True)]
    is_held_out = torch.arange(len(order)) % _HELD_OUT_EVERY == 0
    return order[~is_held_out], order[is_held_out]


def _prepare(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [0, 1] with no side above 32 pixels."""
    size = (min(images.shape[2], _MAX_SIDE), min(images.shape[3], _MAX_SIDE))
    # In parts, so that a large dataset is never held as float32 at full resolution.
    return torch.cat([F.adaptive_avg_pool2d(part.float() / 255, size) for part in images.split(512)])


_HEAD = 3  # layers after the last convolution's block


def _build_network(channels: int, num_classes: int) -> nn.Sequential:
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


def untrained_features(channels: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What a `SampleClassifier` does with uint8 images (N, C, H, W), with random weights: to see how long it
    takes."""
    with torch.random.fork_rng(devices=[]):
        network = _build_network(channels, 2).eval().to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return network[:-_HEAD](_prepare(images).to(device)).mean(dim=(2, 3)).cpu()

    return features


def unsuited(dataset: ImageDataset, seed: int = 0) -> str | None:
    """Why no classifier can be trained on a dataset's labels; None if one can be."""
    try:
        _labels_for_training(dataset, seed)
    except MetricError as error:
        return str(error)
    return None


def _labels_for_training(dataset: ImageDataset, seed: int) -> tuple[Tensor, Tensor, int]:
    """Positions of the images to train on, their labels without empty classes, and the number of these."""
    order = shuffled(len(dataset), seed)[:_MAX_IMAGES]
    _, labels = dataset.labels[order].unique(return_inverse=True)
    try:
        return order, labels, _check_labels(labels, len(order))
    except ValueError as error:
        raise MetricError(f"a classifier of {dataset.name} cannot be trained: {error}") from error


def _fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int,
    random: torch.Generator,
    epsilon: float,
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    height, width = images.shape[2:]
    padded = F.pad(images, [_MAX_SHIFT] * 4)
    loss = of_classifier(network).loss
    batch = min(_BATCH, len(images))
    epochs = itertools.islice(_batches(len(images), batch, random), steps)
    for indices in tracked("training a classifier", epochs, steps * batch):
        top, left = torch.randint(2 * _MAX_SHIFT + 1, (2,), generator=random).tolist()
        x = padded[indices, :, top : top + height, left : left + width]
        if epsilon:

            def of_these(changed: Tensor, y: Tensor = labels[indices]) -> Tensor:
                return loss(changed, y)

            x = pgd(of_these, x, epsilon, random, steps=_ATTACK_STEPS)
        noise = _noise_like(x[: max(1, batch // 4)], random)
        real_logits, noise_logits = network(torch.cat([x, noise])).split([batch, len(noise)])
        cross_entropy_with_uniform = -noise_logits.log_softmax(dim=1).mean()
        optimizer.zero_grad()
        (F.cross_entropy(real_logits, labels[indices]) + cross_entropy_with_uniform).backward()
        optimizer.step()
        schedule.step()


def _batches(length: int, batch: int, random: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled epochs, each without its incomplete last batch."""
    while True:
        order = torch.randperm(length, generator=random)
        yield from order[: length - length % batch].split(batch)


def _noise_like(images: Tensor, random: torch.Generator) -> Tensor:
    """Images without content: the odd ones are uniform noise, the even ones have all their pixels
    shuffled."""
    noise = torch.rand(images.shape, generator=random)
    pixels = images[::2].flatten(2)
    noise[::2] = pixels[:, :, torch.randperm(pixels.shape[2], generator=random)].view_as(images[::2])
    return noise
