"""The settings of a run that reconstructs what it is given: `TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from aigc_ext.config import Config, Count, Fraction, NonNegative, Positive, Range
from aigc_ext.models import (
    AutoencoderConfig,
    DiscriminatorConfig,
    PatchDiscriminatorConfig,
    ReconstructorConfig,
)
from aigc_ext.tasks.gan.config import AugmentConfig
from aigc_ext.tasks.optimization import AdamConfig, EMAConfig
from aigc_ext.training.config import RunConfig

# The order of the keys in config.json.
_KEYS = (
    " preset seed data held_out generator discriminator loss g_optim d_optim ema augment warmup_kimg"
    " ramp_kimg batch batch_gpu kimg tick snap keep grid nonfinite_limit metrics metric_images log"
    " channels_last workers device threads deterministic malloc "
)


@dataclass(frozen=True)
class LossConfig(Config):
    """Weights, and how they are meant. A term that compares the output with the item has the key of its name
    in `tasks.adversarial.terms.TERMS`; at least one of these must not be 0."""

    l1: NonNegative = 0.0
    """Weight of the mean absolute difference."""
    l2: NonNegative = 0.0
    """Weight of the mean squared difference."""
    charbonnier: NonNegative = 0.0
    """Weight of the mean of `sqrt(difference^2 + 1e-6)`."""
    bernoulli: NonNegative = 0.0
    """Weight of `-log p` of an item in nats, with its values as probabilities of white pixels (networks with
    `output_act` sigmoid)."""
    mel: NonNegative = 0.0
    """Weight of `losses.multi_scale_mel` (waves)."""
    stft: NonNegative = 0.0
    """Weight of `losses.multi_resolution_stft` (waves)."""
    features: NonNegative = 0.0
    """Weight of `losses.feature_matching`: the distance of the discriminator's features; begins with the
    adversarial term."""
    adversarial: NonNegative = 0.0
    """Weight of the adversarial loss; 0: there is no discriminator."""
    kl: NonNegative = 1.0
    """Weight of the divergence of Gaussian codes, in nats."""
    commitment: NonNegative = 0.25
    """Weight of the mean squared distance of features to their codes."""
    balance: bool = False
    """Scale the gradient of each term at the output by the running mean of its norm, so that the weights are
    fractions of `balance_norm`; see `tasks.adversarial.balance`."""
    balance_norm: Positive = 1.0
    """The norm that the gradients of an item's own losses at its output have together, on average."""
    balance_decay: Fraction = 0.99
    """Decay of the running mean of the norms."""
    start_kimg: NonNegative = 0.0
    """Thousands of items after which the adversarial term begins; the discriminator learns from the first
    on."""
    judged: Literal["reconstructions", "samples", "both"] = "reconstructions"
    """What the discriminator compares with the data: reconstructions, decoded codes from N(0, 1) (kl only),
    or by turns one and the other."""
    kind: Literal["logistic", "minimax", "hinge", "lsgan", "wgan", "relativistic", "relativistic_avg"] = (
        "hinge"
    )
    """The adversarial loss; see `aigc_ext.losses.AdversarialLoss`."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the real items, for the discriminator (logistic and minimax)."""
    gamma: NonNegative | None = 0.0
    """Weight of R1: gamma/2 times the mean of |dD/dx|^2 is added to the discriminator's loss. 0 turns it off;
    null: 0.0002 * pixels / batch."""
    r1_interval: Count = 16
    """R1 is computed only in every n-th step, and multiplied by n, this number (lazy regularisation)."""
    r2: bool = False
    """Also apply the penalty at the judged output, in the same steps and with the same weight."""


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """All settings of a run."""

    fixed: ClassVar[tuple[str, ...]] = (*RunConfig.fixed, "held_out", "generator", "discriminator")

    held_out: Fraction = 0.1
    """Fraction of the data that is never trained on, and serves the metrics; 0: none, and there are none."""
    generator: ReconstructorConfig = field(default_factory=AutoencoderConfig)
    """The network that is trained; its decoder is the generator of a GAN."""
    discriminator: DiscriminatorConfig = field(default_factory=PatchDiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    g_optim: AdamConfig = field(default_factory=AdamConfig)
    d_optim: AdamConfig = field(default_factory=AdamConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    warmup_kimg: NonNegative = 0.0
    """Thousands of items over which both learning rates rise from 0."""
    ramp_kimg: NonNegative = 0.0
    """Thousands of items over which values with an `_end` or `_start` change, along half a cosine."""
    grid: tuple[Count, Annotated[int, Range(ge=1)]] = (8, 4)
    """Columns and rows of a preview: so many items, each with its reconstruction below it."""
    metrics: tuple[Literal["fd", "kid", "pr", "coverage", "rfd"], ...] | None = None
    """Metrics at every snapshot except one requested by a signal; see `aigc_ext.metrics`: of samples (kl),
    and rfd, the Fréchet distance of held-out images' reconstructions. null: a new run takes fd if it should
    cost less than a tenth of its time. The other metrics of reconstructions are always computed."""
    metric_images: Annotated[int, Range(ge=2)] = 5000
    """Number of generated images for the metrics of samples, and the most reconstructed ones for rfd."""
    channels_last: bool | None = None
    """Memory format of images and convolutions; null: on on the CPU."""

    @classmethod
    def key_names(cls) -> Sequence[str]:
        return sorted(cls.hints(), key=lambda key: _KEYS.index(f" {key} "))

    before: ClassVar[Mapping[str, Any]] = {}
