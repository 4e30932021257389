"""The parts of a recipe that are computed: from the data, the processes and a run's progress."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.data import ImageDataset
from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import MLPGeneratorConfig, StyleGAN2Discriminator
from aigc_ext.ops.gan_loss import RELATIVISTIC
from aigc_ext.tasks.gan.augment import AdaAugment, DiffAugment
from aigc_ext.tasks.gan.config import AugmentConfig, TrainConfig
from aigc_ext.tasks.gan.objective import Objective
from aigc_ext.tasks.optimization import between, ramp, rates
from aigc_ext.training.runtime import resolve_device
from aigc_ext.training.task import Progress

# R3GAN's gamma by image side: the paper's for ImageNet at 32 pixels and FFHQ at 64 and 256.
_R3GAN_GAMMA = ((32, 0.5), (64, 2.0), (256, 150.0))
_SAMPLE = 256  # images
_LONG = 10_000  # steps
_MOST_EMPTY = 100  # classes, or nine times those with images


def complete(config: TrainConfig, data: ImageDataset) -> TrainConfig:
    """The config with a value for every null that depends on the data or the device.

    R1's gamma is 0.0002 * pixels / batch (Karras et al., 2020, "Training Generative Adversarial Networks with
    Limited Data", appendix C); with R2 it is R3GAN's for that size, and a tenth of it by the end of the ramp,
    if there is one.
    The average's half-life is 10/32 of the batch size, in thousands of images. The generator's output is tanh
    if more than a quarter of the data's values are at either end of their range.
    The blur's sigma is 10 pixels, as in the paper (Karras et al., 2021, "Alias-Free Generative Adversarial
    Networks"), for sides of 256 and more; for shorter sides it is the same fraction of the side, to hide the
    same detail.
    Channels are last in memory for convolutional networks on the CPU, where oneDNN is faster with it
    (`benchmarks/step.py`). For a card this is not measured yet.
    """
    height, width = data.image_shape[1:]
    if data.licence and not config.data.licence:
        config = config.override("data.licence", data.licence)
    if config.loss.gamma is None:
        gamma = 0.0002 * height * width / config.batch
        if config.loss.r2:
            gamma = _r3gan_gamma(math.sqrt(height * width))
            if config.loss.gamma_end is None and config.ramp_kimg:
                config = config.override("loss.gamma_end", gamma / 10)
        config = config.override("loss.gamma", gamma)
    if config.ema.kimg is None:
        config = config.override("ema.kimg", config.batch * 10 / 32)
    if config.augment.blur_sigma is None:
        config = config.override("augment.blur_sigma", 10 * min(1.0, min(height, width) / 256))
    if getattr(config.generator, "output_act", "has none") is None:
        act = "tanh" if _saturated(data) > 0.25 else "linear"
        config = config.override("generator.output_act", act)
    if config.channels_last is None:
        on_cpu = resolve_device(config.device).type == "cpu"
        last = on_cpu and not isinstance(config.generator, MLPGeneratorConfig)
        config = config.override("channels_last", last)
    return config


def check_classes(config: TrainConfig, data: ImageDataset) -> None:
    """Raises ConfigError if there are no labels, or so few of the numbers up to the largest that the networks
    would consist of classes without images."""
    if not config.data.cond:
        return
    if not data.num_classes:
        raise ConfigError(f"data.cond is true, but {data.describe_unlabelled()}")
    present = len(data.present_classes)
    empty = data.num_classes - present
    if empty > max(_MOST_EMPTY, 9 * present) and not config.data.many_empty_classes:
        raise ConfigError(
            f"the largest label of {data.name} is {data.num_classes - 1}, but {empty} of the classes up to "
            "it have no image: --renumber-classes numbers the others from 0 on, and "
            "--set data.many_empty_classes=true takes the labels as they are"
        )


def _saturated(data: ImageDataset) -> float:
    """The fraction of the values that are at either end of their range, in images from all over the data."""
    images = _some(data)
    return ((images == 0) | (images == 255)).float().mean().item()


def channel_means(data: ImageDataset) -> Tensor:
    """The mean of each channel, (C,), in [-1, 1], of images from all over the data."""
    return _some(data).double().mean((0, 2, 3)) / 127.5 - 1


def _some(data: ImageDataset) -> Tensor:
    return data.read(range(0, len(data), max(1, len(data) // _SAMPLE)))[0]


def _r3gan_gamma(side: float) -> float:
    """Linear interpolation or extrapolation of the two closest figures, on logarithmic scales."""
    (low, a), (high, b) = _R3GAN_GAMMA[:2] if side < _R3GAN_GAMMA[1][0] else _R3GAN_GAMMA[1:]
    return float(f"{a * (b / a) ** (math.log(side / low) / math.log(high / low)):.3g}")


def spread(data: ImageDataset, count: int) -> list[int]:
    """The positions of at most `count` images from all over the data, the classes taking turns."""
    count = min(count, len(data))
    if not data.num_classes:
        return [i * len(data) // count for i in range(count)]
    classes = data.present_classes
    shown = min(count, len(classes))
    classes = [classes[i * len(classes) // shown] for i in range(shown)]
    places = [(data.labels == label).nonzero().flatten().tolist() for label in classes]
    count = min(count, sum(map(len, places)))
    turns = [0] * len(places)
    while sum(turns) < count:
        for i, own in enumerate(places):
            if turns[i] < len(own) and sum(turns) < count:
                turns[i] += 1
    chosen = [[own[i * len(own) // n] for i in range(n)] for own, n in zip(places, turns, strict=True)]
    return [own[turn] for turn in range(max(turns)) for own in chosen if turn < len(own)]


def check_fits(config: TrainConfig, generator: nn.Module) -> None:
    """Raises ConfigError for settings that contradict each other or don't suit this generator."""
    loss = config.loss
    meaningless = {"wgan": "the sign of D's logits then means nothing"} | dict.fromkeys(
        RELATIVISTIC, "D's logits of real images then mean nothing by themselves"
    )
    if config.augment.kind == "ada" and loss.kind in meaningless:
        raise ConfigError(
            f"augment.kind is 'ada', but loss.kind is {loss.kind!r}: {meaningless[loss.kind]}; use 'fixed'"
        )
    for key, value in config.flat().items():
        if key.endswith(("_end", "_start")) and value is not None and not config.ramp_kimg:
            raise ConfigError(f"{key} is {value}, but must be null: ramp_kimg is 0, so that there is no ramp")
    missing = [name for name in ("mapping", "synthesis", "num_ws") if not hasattr(generator, name)]
    if (loss.mixing or loss.path_weight) and missing:
        key = "mixing" if loss.mixing else "path_weight"
        raise ConfigError(
            f"loss.{key} is {getattr(loss, key)}, but must be 0: {type(generator).__name__} has no "
            f"{missing[0]}, as a generator with a mapping network has"
        )


def smaller_groups(discriminator: nn.Module, part: int) -> str | None:
    """A warning if parts of `part` images don't consist of whole groups of StyleGAN2's minibatch standard
    deviation, otherwise None."""
    if not isinstance(discriminator, StyleGAN2Discriminator) or part % discriminator.group_size == 0:
        return None
    wanted, size = discriminator.group_size, discriminator.group_of(part)
    effect = "is off" if size == 1 else f"is taken in groups of {size}"
    return (
        f"the discriminator gets {part} images at once, no multiple of its group_size, {wanted}: "
        f"its minibatch's standard deviation {effect}"
    )


class Schedule(NamedTuple):
    """The settings that change from step to step, for the step that begins `at` a point of the run."""

    at: Progress
    penalize: bool
    train_generator: bool
    stretch: bool  # compute path lengths
    gamma: float
    blur_sigma: float
    g_rates: dict[str, Any]  # of the optimizers
    d_rates: dict[str, Any]
    ema_decay: float
    augment_p: float | None  # the probability of `fixed`


def schedule(config: TrainConfig, at: Progress) -> Schedule:
    """The schedule of the step that begins at this point, for a completed config."""
    nimg = at.nimg
    loss, augment, position = config.loss, config.augment, ramp(config.ramp_kimg, nimg)
    assert loss.gamma is not None, "complete has not been called"
    p_start = augment.p if augment.p_start is None else augment.p_start
    return Schedule(
        *(at, *kind_of_step(config, at.step)),
        gamma=between(loss.gamma, loss.gamma_end, position),
        blur_sigma=blur_sigma(config, nimg),
        g_rates=rates(config.g_optim, position),
        d_rates=rates(config.d_optim, position),
        ema_decay=config.ema.decay(nimg + config.batch, config.batch * config.n_dis, position),
        augment_p=between(p_start, augment.p, position) if augment.kind == "fixed" else None,
    )


def kind_of_step(config: TrainConfig, step: int) -> tuple[bool, bool, bool]:
    """Does a step compute R1, train the generator, and compute path lengths?"""
    loss, n_dis = config.loss, config.n_dis
    trains = (step + 1) % n_dis == 0
    stretches = loss.path_weight > 0 and trains and step // n_dis % loss.path_interval == 0
    return bool(loss.gamma or loss.gamma_end) and step % loss.r1_interval == 0, trains, stretches


def kinds_of_steps(config: TrainConfig) -> list[tuple[bool, bool, bool]]:
    """The kinds of the steps in one period, or at the start of a very long one."""
    loss, n_dis = config.loss, config.n_dis
    every_r1 = loss.r1_interval if loss.gamma or loss.gamma_end else 1
    every_path = loss.path_interval * n_dis if loss.path_weight else 1
    return [kind_of_step(config, step) for step in range(min(_LONG, math.lcm(every_r1, n_dis, every_path)))]


def blur_sigma(config: TrainConfig, nimg: int) -> float:
    """The sigma of the blur after `nimg` images, in pixels: it falls linearly to 0."""
    augment = config.augment
    assert augment.blur_sigma is not None, "recipe.complete has not been called"
    return augment.blur_sigma * max(0.0, 1 - nimg / (augment.blur_kimg * 1000))


def make_objective(
    discriminator: nn.Module,
    config: TrainConfig,
    augment: nn.Module | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Objective:
    """The objective of a completed config, with gamma and blur as at the start."""
    loss = config.loss
    assert loss.gamma is not None, "complete has not been called"
    assert config.augment.blur_sigma is not None
    return Objective(
        discriminator,
        AdversarialLoss(loss.kind, label_smoothing=loss.label_smoothing, l2_weight=loss.l2_weight),
        gamma=loss.gamma,
        r1_interval=loss.r1_interval,
        r2=loss.r2,
        path_weight=loss.path_weight * loss.path_interval,
        augment=augment,
        blur_sigma=config.augment.blur_sigma,
        autocast=torch.bfloat16 if config.precision == "bfloat16" else None,
        attack=loss.attack * (value_range[1] - value_range[0]),
        value_range=value_range,
    )


def make_augment(config: AugmentConfig, value_range: tuple[float, float]) -> nn.Module | None:
    """The augmentation of D's images, or None."""
    if config.kind == "noaug":
        return None
    if config.kind == "diffaug":
        return DiffAugment(
            **{name: name in config.policy for name in ("color", "translation", "cutout")},
            value_range=value_range,
        )
    p = config.p if config.kind == "fixed" else 0.0
    return AdaAugment(p, config.blit, config.geometric, config.color, value_range)


def adjust_augment(augment: AdaAugment, config: TrainConfig, step: int, acc_real: Tensor) -> None:
    """Adjusts the probability of `ada` after a step, by the fraction of the whole batch's real images that D
    classified as real; NaN is ignored."""
    settings = config.augment
    if settings.kind != "ada":
        return
    augment.observe_mean(2 * acc_real - 1, config.batch)
    if (step + 1) % settings.interval == 0:
        augment.adjust(config.batch * settings.interval, settings.target, settings.kimg)
