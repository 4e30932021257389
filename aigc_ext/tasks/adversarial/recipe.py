"""The parts of a recipe that are computed: from the data, the networks and a run's progress."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import nn

from aigc_ext.config import ConfigError
from aigc_ext.data import Dataset
from aigc_ext.ops.gan_loss import RELATIVISTIC
from aigc_ext.tasks.adversarial.config import TrainConfig
from aigc_ext.tasks.adversarial.objective import Critic, SeveralLosses
from aigc_ext.tasks.optimization import between, ramp, rates, warm_up
from aigc_ext.training.runtime import resolve_device
from aigc_ext.training.task import Progress

_LONG = 10_000  # steps


def complete(config: TrainConfig, data: Dataset) -> TrainConfig:
    """The config with a value for every null that depends on the data or the device, as for a GAN
    (`tasks.gan.recipe.complete`)."""
    if data.licence and not config.data.licence:
        config = config.override("data.licence", data.licence)
    if config.loss.gamma is None:
        gamma = 0.0002 * math.prod(data.item_shape[-2:]) / config.batch
        config = config.override("loss.gamma", gamma)
    if config.ema.kimg is None:
        config = config.override("ema.kimg", config.batch * 10 / 32)
    if config.channels_last is None:
        on_cpu = resolve_device(config.device).type == "cpu"
        config = config.override("channels_last", on_cpu and data.kind == "images")
    return config


def check(config: TrainConfig, data: Dataset, generator: nn.Module) -> None:
    """Raises ConfigError for settings that contradict each other, or don't suit the data or the network."""
    loss, augment = config.loss, config.augment
    if config.data.cond and not data.num_classes:
        raise ConfigError(f"data.cond is true, but {data.describe_unlabelled()}")
    if config.data.cond and not hasattr(generator, "num_classes"):
        raise ConfigError("data.cond is true, but must be false: the network takes no labels")
    if augment.blur_sigma:
        raise ConfigError(f"augment.blur_sigma is {augment.blur_sigma}, but must be 0 in this task")
    if augment.kind != "noaug" and data.kind != "images":
        raise ConfigError(f"augment.kind is {augment.kind!r}, but must be 'noaug': {data.name} has no images")
    if augment.kind != "noaug" and not loss.adversarial:
        raise ConfigError(
            f"augment.kind is {augment.kind!r}, but must be 'noaug': with loss.adversarial 0 there is no "
            "discriminator"
        )
    if augment.kind == "ada" and (loss.kind == "wgan" or loss.kind in RELATIVISTIC):
        raise ConfigError(
            f"augment.kind is 'ada', but loss.kind is {loss.kind!r}, whose logits of real images mean "
            "nothing by themselves; use 'fixed'"
        )
    if loss.judged != "reconstructions" and getattr(generator, "bottleneck", None) != "kl":
        raise ConfigError(
            f"loss.judged is {loss.judged!r}, but must be 'reconstructions': only a generator with the "
            "bottleneck 'kl' makes samples by itself"
        )
    for key, value in config.flat().items():
        if key.endswith(("_end", "p_start", "kimg_start")) and value is not None and not config.ramp_kimg:
            raise ConfigError(f"{key} is {value}, but must be null: ramp_kimg is 0, so that there is no ramp")


class Schedule(NamedTuple):
    """The settings that change from step to step, for the step that begins `at` a point of the run."""

    at: Progress
    penalize: bool
    adversarial: bool  # do the terms that need the discriminator count?
    g_rates: dict[str, Any]  # of the optimizers
    d_rates: dict[str, Any]
    ema_decay: float
    augment_p: float | None  # the probability of `fixed`


def schedule(config: TrainConfig, at: Progress) -> Schedule:
    """The schedule of the step that begins at this point, for a completed config."""
    position, augment = ramp(config.ramp_kimg, at.nimg), config.augment
    warm = warm_up(config.warmup_kimg, at.nimg + config.batch)
    p_start = augment.p if augment.p_start is None else augment.p_start
    return Schedule(
        at,
        *kind_of_step(config, at.step),
        g_rates=rates(config.g_optim, position, warm),
        d_rates=rates(config.d_optim, position, warm),
        ema_decay=config.ema.decay(at.nimg + config.batch, config.batch, position),
        augment_p=between(p_start, augment.p, position) if augment.kind == "fixed" else None,
    )


def kind_of_step(config: TrainConfig, step: int) -> tuple[bool, bool]:
    """Does a step compute R1, and do the terms that need the discriminator count?"""
    loss = config.loss
    penalizes = bool(loss.adversarial and loss.gamma) and step % loss.r1_interval == 0
    return penalizes, loss.adversarial > 0 and step * config.batch >= loss.start_kimg * 1000


def kinds_of_steps(config: TrainConfig) -> list[tuple[bool, bool]]:
    """The kinds of the steps in one period or, if something begins later, in the run; of a very long one
    those at its start."""
    loss, steps = config.loss, 1
    if loss.adversarial:
        steps = math.ceil(config.total_images / config.batch) if loss.start_kimg else loss.r1_interval
    return [kind_of_step(config, step) for step in range(min(_LONG, steps))]


def make_critic(discriminator: nn.Module, config: TrainConfig, augment: nn.Module | None) -> Critic:
    """The discriminator's side of a completed config."""
    loss = config.loss
    assert loss.gamma is not None, "complete has not been called"
    return Critic(
        discriminator,
        SeveralLosses(loss.kind, label_smoothing=loss.label_smoothing),
        gamma=loss.gamma,
        r1_interval=loss.r1_interval,
        r2=loss.r2,
        augment=augment,
    )
