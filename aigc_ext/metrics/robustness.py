"""How small a change of an image changes what a network says about it?

The attacks are those of the L-infinity ball: no pixel, in [0, 1], moves by more than epsilon. FGSM is one
step along the sign of the gradient (Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial
Examples", 2015, arXiv:1412.6572). PGD takes many small ones from a random start and projects each back into
the ball (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
arXiv:1706.06083). Random changes of the same size are the control: a network that they fool as well is not
attacked but weak, and one that FGSM fools more often than PGD hides its gradient (Athalye, Carlini, Wagner
2018, arXiv:1802.00420).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aigc_ext.metrics.errors import MetricError

Loss = Callable[[Tensor], Tensor]
"""Images, float32 (N, C, H, W) in [0, 1], to what an attack on each raises, (N,)."""

PGD_STEPS = 20

EPSILONS = (0.02, 0.05, 0.1)
_BATCH = 256


class Judge(NamedTuple):
    """Two functions of images, float32 (N, C, H, W) in [0, 1], and their labels (N,)."""

    right: Callable[[Tensor, Tensor], Tensor]
    """What the network gets right, bool (N,)."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """What the attacks raise, (N,)."""


@dataclass(frozen=True)
class Robustness:
    """Fractions of images, in [0, 1], that a network still gets right.

    Attributes:
        epsilons: the largest change of a pixel, of 1 between black and white.
        clean: without a change.
        random: after changes of random sign, by epsilon in every pixel; one entry for each of `epsilons`.
        fgsm: after one step along the gradient's sign.
        pgd: after many small steps.
    """

    epsilons: tuple[float, ...]
    clean: float
    random: tuple[float, ...]
    fgsm: tuple[float, ...]
    pgd: tuple[float, ...]

    @property
    def in_order(self) -> bool:
        """Does PGD fool the network at least as often as FGSM, and FGSM as random changes? If not, the
        gradient does not show what the network is sensitive to, and the figures are too good."""
        rows = zip(self.random, self.fgsm, self.pgd, strict=True)
        return all(random >= fgsm >= pgd for random, fgsm, pgd in rows)


def random_change(images: Tensor, epsilon: float, random: torch.Generator) -> Tensor:
    """The images, float32 in [0, 1], with every pixel changed by epsilon, up or down, as far as it can be."""
    signs = torch.randint(2, images.shape, generator=random, dtype=images.dtype) * 2 - 1
    return (images + epsilon * signs.to(images.device)).clamp(0, 1)


def fgsm(loss: Loss, images: Tensor, epsilon: float) -> Tensor:
    """The images after one step by epsilon along the sign of the loss's gradient."""
    return (images + epsilon * _gradient(loss, images)[0].sign()).clamp(0, 1)


def pgd(
    loss: Loss,
    images: Tensor,
    epsilon: float | Tensor,
    random: torch.Generator,
    *,
    steps: int = PGD_STEPS,
    step_size: float | None = None,
) -> Tensor:
    """The images after `steps` steps by `step_size` along the gradient's sign, from a uniformly random point
    of the ball; of each image the one with the highest loss on its way.

    Args:
        epsilon: also one for each image, (N, 1, 1, 1).
        step_size: by default 2.5 epsilon / steps, which reaches the ball's faces from anywhere in it.
    """
    step = 2.5 * epsilon / steps if step_size is None else step_size
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    start = torch.rand(images.shape, generator=random, dtype=images.dtype).to(images.device)
    x = low + (high - low) * start
    best, best_loss = x, torch.full((len(x),), -torch.inf, device=x.device)
    for taken in range(steps + 1):
        gradient, losses = _gradient(loss, x)
        better = losses > best_loss
        best = torch.where(better[:, None, None, None], x, best)
        best_loss = torch.where(better, losses, best_loss)
        if taken < steps:
            x = (x + step * gradient.sign()).clamp(low, high)
    return best


def robustness(
    judge: Judge,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float] = EPSILONS,
    *,
    steps: int = PGD_STEPS,
    seed: int = 0,
) -> Robustness:
    """Attacks a network on images that it should get right.

    Args:
        judge: what the network gets right.
        images: float32 (N, C, H, W) in [0, 1].
        labels: (N,), what the judge takes.
        epsilons: each in (0, 1].
        steps: of PGD.
        seed: of the random changes and of PGD's starts.

    Raises:
        MetricError: there is no image, no step, or an epsilon is out of range.
    """
    if not len(images):
        raise MetricError("robustness needs at least one image")
    if steps < 1:
        raise MetricError(f"steps is {steps}, but must be at least 1")
    for epsilon in epsilons:
        if not 0 < epsilon <= 1:
            raise MetricError(f"epsilon is {epsilon}, but must be above 0 and at most 1")
    if not epsilons:
        raise MetricError("epsilons is empty, but must have at least one")
    random = torch.Generator().manual_seed(seed)
    counts = torch.zeros(3, len(epsilons), dtype=torch.int64)
    clean = 0
    for x, y in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):

        def of_these(changed: Tensor, y: Tensor = y) -> Tensor:
            return judge.loss(changed, y)

        def count(changed: Tensor, y: Tensor = y) -> int:
            with torch.no_grad():
                return int(judge.right(changed, y).sum())

        clean += count(x)
        for column, epsilon in enumerate(epsilons):
            attacked = (
                random_change(x, epsilon, random),
                fgsm(of_these, x, epsilon),
                pgd(of_these, x, epsilon, random, steps=steps),
            )
            counts[:, column] += torch.tensor([count(changed) for changed in attacked])
    shares = (counts.double() / len(images)).tolist()
    return Robustness(tuple(epsilons), clean / len(images), *(tuple(row) for row in shares))


def smallest_epsilon(
    judge: Judge,
    images: Tensor,
    labels: Tensor,
    *,
    largest: float = 0.5,
    steps: int = PGD_STEPS,
    seed: int = 0,
) -> Tensor:
    """For each image the smallest epsilon with which PGD was seen to fool the network, float64 (N,), by
    bisection to 1/64 of `largest`: 0 if it is wrong without a change, infinite if `largest` does not fool it.
    Arguments are as for `robustness`."""
    random = torch.Generator().manual_seed(seed)
    results = []
    for x, y in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):

        def fooled_by(epsilon: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
            changed = pgd(
                lambda a: judge.loss(a, y), x, epsilon[:, None, None, None].to(x), random, steps=steps
            )
            with torch.no_grad():
                return ~judge.right(changed, y).cpu()

        low = torch.zeros(len(x), dtype=torch.float64)
        high = torch.full_like(low, largest)
        never = ~fooled_by(high)
        for _ in range(6):
            middle = (low + high) / 2
            fooled = fooled_by(middle)
            high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
        with torch.no_grad():
            wrong = ~judge.right(x, y).cpu()
        results.append(high.masked_fill(never, torch.inf).masked_fill(wrong, 0))
    return torch.cat(results)


def of_classifier(network: Callable[[Tensor], Tensor]) -> Judge:
    """Of a network that maps images to logits, (N, classes)."""
    return Judge(
        right=lambda x, y: network(x).argmax(dim=1) == y,
        loss=lambda x, y: F.cross_entropy(network(x), y, reduction="none"),
    )


def of_discriminator(
    network: Callable[[Tensor, Tensor], Tensor], value_range: tuple[float, float], threshold: float
) -> Judge:
    """Of a discriminator of real images: right is what it answers with more than the threshold, such as its
    median answer to generated images. (Zero is a boundary for some losses only.)

    Args:
        network: maps images in `value_range` and labels to answers, (N,) or (N, 1).
    """
    low, high = value_range

    def answer(x: Tensor, y: Tensor) -> Tensor:
        return network(x * (high - low) + low, y).flatten()

    return Judge(right=lambda x, y: answer(x, y) > threshold, loss=lambda x, y: -answer(x, y))


def _gradient(loss: Loss, images: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of each image's loss, and the losses."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        losses = loss(x)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return gradient, losses.detach()
