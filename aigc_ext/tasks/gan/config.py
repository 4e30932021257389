"""The settings of a GAN run: `TrainConfig`, which extends the settings of all runs (`training.config`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from aigc_ext.config import Config, Count, Fraction, NonNegative, Positive, Range
from aigc_ext.models import (
    GeneratorConfig,
    ImageDiscriminatorConfig,
    MLPDiscriminatorConfig,
    MLPGeneratorConfig,
)
from aigc_ext.tasks.optimization import AdamConfig, EMAConfig
from aigc_ext.training.config import RunConfig

# The order of the keys in config.json.
_KEYS = (
    " preset seed data generator discriminator loss g_optim d_optim ema augment ramp_kimg batch batch_gpu"
    " n_dis step kimg tick snap keep grid nonfinite_limit metrics metric_images log precision channels_last"
    " workers device threads deterministic malloc "
)


@dataclass(frozen=True)
class LossConfig(Config):
    kind: Literal["logistic", "minimax", "hinge", "lsgan", "wgan", "relativistic", "relativistic_avg"] = (
        "logistic"
    )
    """The adversarial loss; see `aigc_ext.losses.AdversarialLoss`."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the real images, for the discriminator (logistic and minimax)."""
    l2_weight: NonNegative = 0.0
    """Half of it is the weight of the mean squares of the discriminator's logits and the generator's
    images."""
    gamma: NonNegative | None = 0.0
    """Weight of R1: gamma/2 times the mean of |dD/dx|^2 is added to the discriminator's loss. 0 turns it off;
    null: computed from the image size, see `tasks.gan.recipe`."""
    gamma_end: NonNegative | None = None
    """The value of gamma at the end of the ramp; null: constant."""
    r1_interval: Count = 16
    """R1 is computed only in every n-th step, and multiplied by n, this number (lazy regularisation)."""
    r2: bool = False
    """Also apply the penalty at the generated images, in the same steps and with the same weight."""
    attack: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Adversarial training of the discriminator: it learns from real images that were changed against it by
    at most this much in each pixel, of 1 between black and white. 0 turns it off."""
    path_weight: NonNegative = 0.0
    """Weight of the path length regulariser (generators with a mapping network); 0 turns it off."""
    path_interval: Count = 4
    """Path lengths are regularised only in every n-th generator step, with n times the weight."""
    path_every: Count = 2
    """Path lengths are computed of every n-th sample."""
    path_decay: Annotated[float, Range(gt=0, le=1)] = 0.01
    """The fraction by which the running mean of path lengths moves towards each new mean."""
    mixing: Annotated[float, Range(ge=0, le=1)] = 0.0
    """Fraction of the samples with styles from two latents (generators with a mapping network)."""


@dataclass(frozen=True)
class AugmentConfig(Config):
    """The augmentation of the discriminator's images; see `tasks.gan.augment`."""

    kind: Literal["noaug", "ada", "fixed", "diffaug"] = "noaug"
    """ada: with a probability adapted to how confident D is about real images; fixed: with a given
    probability; diffaug: always."""
    p: Annotated[float, Range(ge=0, le=1)] = 0.2
    """The probability of `fixed`."""
    p_start: Annotated[float, Range(ge=0, le=1)] | None = None
    """The probability at the start of the ramp; null: constant."""
    target: Annotated[float, Range(gt=0, lt=1)] = 0.6
    """The mean of sign(D(real)) that ada maintains."""
    interval: Count = 4
    """Number of steps between ada's adjustments."""
    kimg: Positive = 500.0
    """Thousands of images in which ada's probability can go from 0 to 1."""
    blit: bool = True
    """Mirroring, quarter turns and shifts by whole pixels (ada and fixed)."""
    geometric: bool = True
    """Scaling, rotation, squeezing and shifts by any distance (ada and fixed)."""
    color: bool = True
    """Brightness, contrast, hue and saturation (ada and fixed)."""
    policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
    """The changes that diffaug applies."""
    blur_sigma: NonNegative | None = 0.0
    """Standard deviation in pixels of a Gaussian blur after the augmentation, at the start of training; see
    `tasks.gan.blur`. 0 turns it off; null: computed from the image size, see `tasks.gan.recipe`."""
    blur_kimg: Positive = 200.0
    """Thousands of images over which the blur fades linearly to nothing."""


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """All settings of a GAN run."""

    fixed: ClassVar[tuple[str, ...]] = (*RunConfig.fixed, "generator", "discriminator")
    measured: ClassVar[tuple[str, ...]] = ("precision",)
    before: ClassVar[Mapping[str, Any]] = {**RunConfig.before, "step": None, "metrics": ()}

    generator: GeneratorConfig = field(default_factory=MLPGeneratorConfig)
    discriminator: ImageDiscriminatorConfig = field(default_factory=MLPDiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    g_optim: AdamConfig = field(default_factory=AdamConfig)
    d_optim: AdamConfig = field(default_factory=AdamConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    ramp_kimg: NonNegative = 0.0
    """Thousands of images over which values with an `_end` or `_start` change, along half a cosine."""
    n_dis: Count = 1
    """The generator learns only in every n_dis-th step, the discriminator in every step."""
    step: Literal["auto", "eager", "native", "traced", "compiled"] | None = "auto"
    """How a step is computed, with equal results up to rounding; see `tasks.gan.step`. eager: by autograd;
    native: two `mlp` networks on the CPU, in one op; traced: the operations of the eager step, recorded once
    and then run without autograd; compiled: the same through Inductor, which needs a C++ compiler. auto:
    native where it fits; elsewhere on the CPU, a new run of more than two minutes measures the others first
    and keeps the fastest. null is eager: a run that an older version began goes on with it."""
    grid: tuple[Count, Count] = (8, 8)
    """Columns and rows of the sample grids."""
    metrics: tuple[Literal["fd", "kid", "pr", "coverage"], ...] | None = None
    """Metrics computed at every snapshot except one requested by a signal; see `aigc_ext.metrics`. null: a
    new run takes fd, and coverage of labelled data, if they should cost less than a tenth of its time."""
    metric_images: Annotated[int, Range(ge=2)] = 5000
    """Number of generated images for the metrics."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """The dtype of the networks' arithmetic (autocast); weights and losses are float32. auto: a new run of
    more than two minutes, in one process, measures both and keeps bfloat16 if it is faster by a tenth; other
    runs take float32."""
    channels_last: bool | None = None
    """Memory format of images and convolutions; null: on for convolutional networks on the CPU."""

    @classmethod
    def key_names(cls) -> Sequence[str]:
        return sorted(cls.hints(), key=lambda key: _KEYS.index(f" {key} "))

    def to_dict(self) -> dict[str, Any]:
        """The config of a run that an older version began has no `step`, and gets none."""
        return {key: value for key, value in super().to_dict().items() if (key, value) != ("step", None)}
