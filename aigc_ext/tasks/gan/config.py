"""What a GAN's run is told: `TrainConfig`, beside what every run is told (`training.config`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from aigc_ext.config import Config, Count, Fraction, NonNegative, Positive, Range
from aigc_ext.models import (
    DiscriminatorConfig,
    GeneratorConfig,
    MLPDiscriminatorConfig,
    MLPGeneratorConfig,
)
from aigc_ext.training.config import RunConfig

# The order of the keys in config.json.
_KEYS = (
    " preset seed data generator discriminator loss g_optim d_optim ema augment ramp_kimg batch batch_gpu"
    " n_dis kimg tick snap keep grid nonfinite_limit metrics metric_images log precision channels_last"
    " workers device threads deterministic malloc "
)


@dataclass(frozen=True)
class LossConfig(Config):
    kind: Literal["logistic", "minimax", "hinge", "lsgan", "wgan", "relativistic", "relativistic_avg"] = (
        "logistic"
    )
    """The adversarial loss; see `aigc_ext.losses.AdversarialLoss`."""
    label_smoothing: Fraction = 0.0
    """Of the real images' label, for the discriminator (logistic and minimax)."""
    l2_weight: NonNegative = 0.0
    """Half of it weighs the mean square of the discriminator's logits, and of the generator's images."""
    gamma: NonNegative | None = 0.0
    """Weight of R1: the discriminator's loss gets gamma/2 times the mean of |dD/dx|^2. 0 turns it off; null
    is a number for the size of the images, see `tasks.gan.recipe`."""
    gamma_end: NonNegative | None = None
    """What gamma becomes by the end of the ramp; null: it stays."""
    r1_interval: Count = 16
    """R1 is taken every so many steps, times this number (lazy regularisation)."""
    r2: bool = False
    """Take the penalty at the generated images too, at the same steps and with the same weight."""
    path_weight: NonNegative = 0.0
    """Weight of the path length regulariser (generators with a mapping network); 0 turns it off."""
    path_interval: Count = 4
    """It is taken every so many of the generator's steps, times this number..."""
    path_every: Count = 2
    """... on every n-th sample, n being this number..."""
    path_decay: Annotated[float, Range(gt=0, le=1)] = 0.01
    """... with a running mean that moves by this share of the way."""
    mixing: Annotated[float, Range(ge=0, le=1)] = 0.0
    """Share of the samples that get styles of two latents (generators with a mapping network)."""


@dataclass(frozen=True)
class AdamConfig(Config):
    lr: Positive = 1e-4
    """Adam's learning rate."""
    beta1: Fraction = 0.9
    """Decay of its running mean of the gradient."""
    beta2: Fraction = 0.999
    """Decay of its running mean of the gradient's square."""
    eps: Positive = 1e-8
    """Added to the root of that mean."""
    weight_decay: NonNegative = 0.0
    """Decoupled from the gradient, as in AdamW."""
    lr_end: Positive | None = None
    """What lr becomes by the end of the ramp; null: it stays."""
    beta2_end: Fraction | None = None
    """What beta2 becomes by the end of the ramp; null: it stays."""


@dataclass(frozen=True)
class EMAConfig(Config):
    """The averaged generator. A half-life in images, unlike a decay, means the same for every batch size."""

    kimg: NonNegative | None = 10.0
    """Half-life in thousands of images; 0 makes the average equal to the generator; null is 10/32 of the
    batch size."""
    kimg_start: NonNegative | None = None
    """What the half-life is at the start of the ramp; null: the same."""
    rampup: Annotated[float, Range(gt=0)] | None = 0.05
    """The half-life is at most this share of the images seen so far, to forget the start; null is off."""

    def decay(self, nimg: int, batch: int, ramp: float = 1.0) -> float:
        """The EMA decay of the step that ends at `nimg` images seen, at a point of the ramp from 0 to 1."""
        assert self.kimg is not None, "recipe.complete has not been called"
        start = self.kimg if self.kimg_start is None else self.kimg_start
        half_life = 1000 * (start + ramp * (self.kimg - start))
        if self.rampup is not None:
            half_life = min(half_life, nimg * self.rampup)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


@dataclass(frozen=True)
class AugmentConfig(Config):
    """What the discriminator sees in the place of an image; see `tasks.gan.augment`."""

    kind: Literal["noaug", "ada", "fixed", "diffaug"] = "noaug"
    """ada: with a probability that follows how sure D is of real images; fixed: with a given one; diffaug:
    always."""
    p: Annotated[float, Range(ge=0, le=1)] = 0.2
    """The probability of `fixed`."""
    p_start: Annotated[float, Range(ge=0, le=1)] | None = None
    """What it is at the start of the ramp; null: the same."""
    target: Annotated[float, Range(gt=0, lt=1)] = 0.6
    """ada holds the mean of sign(D(real)) here."""
    interval: Count = 4
    """ada looks every so many steps..."""
    kimg: Positive = 500.0
    """... and could go from 0 to 1 in so many thousands of images."""
    blit: bool = True
    """Mirroring, quarter turns and shifts by whole pixels (ada and fixed)."""
    geometric: bool = True
    """Scaling, rotation, squeezing and shifts by any distance (ada and fixed)."""
    color: bool = True
    """Brightness, contrast, hue and saturation (ada and fixed)."""
    policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
    """The changes of diffaug."""
    blur_sigma: NonNegative | None = 0.0
    """Behind any of these, a Gaussian blur of so many pixels (standard deviation) at the start of training;
    see `tasks.gan.blur`. 0 turns it off; null is a number for the size of the images, see
    `tasks.gan.recipe`."""
    blur_kimg: Positive = 200.0
    """It fades linearly, to nothing after so many thousands of images."""


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Everything that decides a run's result."""

    fixed: ClassVar[tuple[str, ...]] = (*RunConfig.fixed, "generator", "discriminator")

    generator: GeneratorConfig = field(default_factory=MLPGeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=MLPDiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    g_optim: AdamConfig = field(default_factory=AdamConfig)
    d_optim: AdamConfig = field(default_factory=AdamConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    ramp_kimg: NonNegative = 0.0
    """Thousands of images over which the values with an `_end` or `_start` go there along half a cosine."""
    n_dis: Count = 1
    """The generator learns in every n_dis-th step only, the discriminator in each."""
    grid: tuple[Count, Count] = (8, 8)
    """Columns and rows of the sample grids."""
    metrics: tuple[Literal["fd", "kid", "pr", "coverage"], ...] = ()
    """Taken at every snapshot but the one that a signal asks for; see `aigc_ext.metrics`."""
    metric_images: Annotated[int, Range(ge=2)] = 5000
    """How many generated images they are taken of."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic (autocast); weights and losses are float32."""
    channels_last: bool = False
    """Memory format of images and convolutions."""

    @classmethod
    def key_names(cls) -> Sequence[str]:
        return sorted(cls.hints(), key=lambda key: _KEYS.index(f" {key} "))
