"""The objectives of the two networks of a GAN, including the gradients of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext.losses import AdversarialLoss, LossStats, path_length, r1_of_logits
from aigc_ext.nn.split_batch import batch_rand, batch_randn
from aigc_ext.tasks.gan.blur import blurred
from aigc_ext.training.parts import Part, kept, random_numbers, trained


class Mixing(NamedTuple):
    """Style mixing (Karras et al., 2019, section 3.1): from layer `cutoff` on, a sample has the styles of
    a second latent."""

    z: Tensor  # (N, z_dim)
    cutoff: Tensor  # (N,), int64; the number of layers or more means no mixing


class StepInputs(NamedTuple):
    """The inputs of the two losses of a step, or of a part of it."""

    real: Tensor
    fake: Tensor
    z: Tensor
    labels: Tensor | None
    penalize: bool
    mixing: Mixing | None = None
    seed: int | None = None  # for networks and augmentation; None: PyTorch's generators
    start: int = 0  # this part's first row in the step's batch of `total`
    total: int | None = None
    gamma: float | Tensor | None = None  # for this step, a 0-d tensor not 0; None: the objective's own
    blur_sigma: float | None = None

    def random(self, purpose: int) -> AbstractContextManager[None]:
        """Inside, a part has the random numbers of its rows in the whole batch, different for each
        purpose."""
        seed = None if self.seed is None else self.seed + purpose
        total = len(self.z) if self.total is None else self.total
        return random_numbers(seed, self.z.device, self.start, total)

    def part(self, part: Part) -> StepInputs:
        rows, start, total = part
        real, fake, z = self.real[rows], self.fake[rows], self.z[rows]
        labels = None if self.labels is None else self.labels[rows]
        mixing = self.mixing and Mixing(self.mixing.z[rows], self.mixing.cutoff[rows])
        return self._replace(
            real=real, fake=fake, z=z, labels=labels, mixing=mixing, start=start, total=total
        )


GENERATE, DISCRIMINATE, JUDGE, STRETCH, ATTACK = range(5)


@dataclass(eq=False)
class Objective:
    """The objectives of a pair of networks, including the gradients of their parameters.

    Args:
        discriminator: maps (N, C, H, W) images, and (N,) int64 labels if there are any, to logits.
        loss: the adversarial loss.
        gamma: weight of R1; D's loss gets `gamma / 2 * mean |dD/dx|^2` (Mescheder et al., 2018). May be set
            between steps.
        r1_interval: factor of R1, for callers who ask for it only once in as many steps (lazy regularisation;
            Karras et al., 2020).
        r2: apply the penalty at the generated images too.
        path_weight: weight of the path length regulariser of G.
        augment: applied to all images that D sees; R1 and R2 are differentiated through it.
        blur_sigma: standard deviation in pixels of a Gaussian blur after `augment`, likewise; see
            `tasks.gan.blur`. May be set between steps.
        autocast: the dtype of both networks' arithmetic under autocast, or None.
        attack: adversarial training of D: before it learns from real images, they are changed against it by
            at most `attack`, by one step along the sign of the gradient from a random point (Wong, Rice,
            Kolter, "Fast is better than free: Revisiting adversarial training", 2020). In units of the
            images' values. 0 turns it off.
        value_range: of the images, in which an attack stays.
    """

    discriminator: nn.Module
    loss: AdversarialLoss
    _: KW_ONLY
    gamma: float = 0.0
    r1_interval: int = 1
    r2: bool = False
    path_weight: float = 0.0
    augment: Callable[[Tensor], Tensor] | None = None
    blur_sigma: float = 0.0
    autocast: torch.dtype | None = None
    attack: float = 0.0
    value_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        self._device = next(self.discriminator.parameters()).device
        self._not_measured = torch.full((), torch.nan, device=self._device)

    def arithmetic(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self._device.type, self.autocast)

    def discriminator_backward(self, inputs: StepInputs) -> tuple[Tensor, LossStats, Tensor, Tensor]:
        """Accumulates the gradient of D's loss; returns the loss, its statistics, R1 and R2 (NaN if not
        computed)."""
        gamma = self.gamma if inputs.gamma is None else inputs.gamma
        if self.attack:
            inputs = inputs._replace(real=self._attacked(inputs))
        with inputs.random(DISCRIMINATE):
            if not inputs.penalize or (not isinstance(gamma, Tensor) and gamma == 0):
                loss, stats = self.loss.discriminator_backward(
                    self._logits(inputs.real, inputs), self._logits(inputs.fake, inputs)
                )
                return loss, stats, self._not_measured, self._not_measured
            real = inputs.real.detach().requires_grad_()
            fake = inputs.fake.detach().requires_grad_(self.r2)
            real_logits, fake_logits = self._logits(real, inputs), self._logits(fake, inputs)
            penalty = r1 = self._slope(real_logits, real)
            r2 = self._not_measured
            if self.r2:
                r2 = self._slope(fake_logits, fake)
                penalty = r1 + r2
            factor = gamma / 2 * self.r1_interval
            if isinstance(factor, Tensor):
                factor = factor.to(penalty.dtype)
            # Only the parameters' gradients: the images' are not needed.
            loss, stats = self.loss.discriminator_backward(
                real_logits,
                fake_logits,
                penalty=factor * penalty,
                inputs=trained(self.discriminator),
            )
            return loss, stats, r1.detach(), r2.detach()

    def _slope(self, logits: Tensor, images: Tensor) -> Tensor:
        return r1_of_logits(logits, images)

    def generator_backward(self, fake: Tensor, inputs: StepInputs) -> Tensor:
        """Accumulates the gradient of G's loss on `fake`, the images with G's graph; returns the loss."""
        with inputs.random(JUDGE):
            real_logits = None
            if self.loss.relativistic:
                with torch.no_grad():
                    real_logits = self._logits(inputs.real, inputs)
            return self.loss.generator_backward(self._logits(fake, inputs), real_logits, images=fake)

    def generate(self, generator: Any, inputs: StepInputs) -> Tensor:
        """G(z), in float32 or G's dtype without autocast."""
        with inputs.random(GENERATE), self.arithmetic():
            if inputs.mixing is None:
                images = with_labels(generator, inputs.labels)(inputs.z)
            else:
                images = generator.synthesis(_styles(generator, inputs))
        return images.float() if self.autocast else images

    def path_length_backward(
        self, generator: Any, inputs: StepInputs, mean: Tensor, every: int
    ) -> tuple[Tensor, Tensor]:
        """Accumulates the gradient of `path_weight * mean((|J^T y| - mean)^2)` over every `every`-th sample;
        returns the regulariser and the mean length, both 0 for a part without such samples."""
        total = inputs.total or len(inputs.z)
        # This part's rows among the samples 0, every, 2 * every, ... of the whole batch.
        count, first = -(-total // every), -(-inputs.start // every)
        rows = slice(first * every - inputs.start, None, every)
        z, labels = inputs.z[rows], None if inputs.labels is None else inputs.labels[rows]
        mixing = inputs.mixing and Mixing(inputs.mixing.z[rows], inputs.mixing.cutoff[rows])
        if not len(z):
            zero = torch.zeros((), device=z.device)
            return zero, zero
        chosen = inputs._replace(z=z, labels=labels, mixing=mixing, start=first, total=count)
        with chosen.random(STRETCH):
            with self.arithmetic(), kept(list(generator.buffers())):
                y = batch_randn(len(z), *inputs.fake.shape[1:], device=z.device)
                lengths = path_length(generator.synthesis, _styles(generator, chosen), y)
            # Scaled so that the mean over the parts' results is the mean over the whole batch's samples.
            share = total / len(inputs.z) / count
            loss = self.path_weight * (lengths - mean).square().sum() * share
            loss.backward()
        return loss.detach(), lengths.detach().sum() * share

    def _attacked(self, inputs: StepInputs) -> Tensor:
        """The real images after a step by which D takes them for fakes."""
        real, (low, high) = inputs.real, self.value_range
        with inputs.random(ATTACK), kept(list(self.discriminator.buffers())):
            start = batch_rand(*real.shape, device=real.device, dtype=real.dtype) * 2 - 1
            x = (real + self.attack * start).clamp(low, high).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._logits(x, inputs).sum(), x)
        # A step of 1.25 reaches the sides of the box from most points in it.
        moved = x.detach() - 1.25 * self.attack * gradient.sign()
        return torch.minimum(torch.maximum(moved, real - self.attack), real + self.attack).clamp(low, high)

    def _logits(self, images: Tensor, inputs: StepInputs) -> Tensor:
        if self.augment is not None:
            images = self.augment(images)
        # After the augmentation, which would change sigma by zooming and add sharp edges.
        images = blurred(images, self.blur_sigma if inputs.blur_sigma is None else inputs.blur_sigma)
        with self.arithmetic():
            return with_labels(self.discriminator, inputs.labels)(images)


def with_labels(network: nn.Module, labels: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The network as a function of its first argument, with the labels, if any, already given."""
    if labels is None:
        return network
    return lambda x: network(x, labels)


def _styles(generator: Any, inputs: StepInputs) -> Tensor:
    """The styles of each layer, (N, num_ws, w_dim), mixed if requested."""
    w: Tensor = generator.mapping(inputs.z, inputs.labels)
    if inputs.mixing is None:
        return w
    others = generator.mapping(inputs.mixing.z, inputs.labels)
    layers = torch.arange(w.size(1), device=w.device)
    return torch.where((layers >= inputs.mixing.cutoff[:, None])[:, :, None], others, w)
