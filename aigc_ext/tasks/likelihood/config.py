"""The settings of a run that learns a likelihood: `TrainConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from aigc_ext.config import Config, Count, Fraction, NonNegative, Range
from aigc_ext.data.text import SMALLEST_VOCABULARY
from aigc_ext.models.settings import SequenceConfig
from aigc_ext.models.transformer import TransformerConfig
from aigc_ext.tasks.optimization import AdamConfig, EMAConfig
from aigc_ext.training.config import RunConfig

# The order of the keys in config.json.
_KEYS = (
    " preset seed data held_out caption text network optim ema ramp_kimg warmup_kimg batch batch_gpu kimg"
    " tick snap keep grid sampler nonfinite_limit metric_items log precision workers device threads"
    " deterministic malloc "
)


@dataclass(frozen=True)
class TextConfig(Config):
    """How texts and captions become tokens."""

    vocabulary: Annotated[int, Range(ge=SMALLEST_VOCABULARY, le=1 << 20)] = 4096
    """The most different tokens, which are learned from the texts to train on."""
    source: Annotated[int, Range(ge=1, le=1 << 15)] = 96
    """The most tokens of a source text or a caption; longer ones are cut off."""
    target: Annotated[int, Range(ge=1, le=1 << 15)] = 30
    """The most tokens of a target text."""


@dataclass(frozen=True)
class SamplerConfig(Config):
    """How previews are sampled; see `models.transformer`."""

    temperature: NonNegative = 1.0
    """The logits are divided by it; 0 takes the most probable."""
    top_k: Count | None = None
    """Only so many of the most probable are possible; null: all."""
    top_p: Annotated[float, Range(gt=0, le=1)] = 1.0
    """Only the most probable that have this probability together are possible."""


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """All settings of a run that learns a likelihood."""

    fixed: ClassVar[tuple[str, ...]] = (*RunConfig.fixed, "network", "text", "caption", "held_out")
    measured: ClassVar[tuple[str, ...]] = ("precision",)

    preset: str = "prior"
    network: SequenceConfig = field(default_factory=TransformerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    caption: bool = False
    """Tokens of images: learn them from the images' captions, which stand in front of them."""
    held_out: Fraction = 0.1
    """Fraction of the items that are never trained on; their likelihood is the metric."""
    optim: AdamConfig = field(default_factory=lambda: AdamConfig(lr=1e-3, beta2=0.99, weight_decay=0.01))
    ema: EMAConfig = field(default_factory=EMAConfig)
    ramp_kimg: NonNegative = 0.0
    """Thousands of items over which values with an `_end` or `_start` change, along half a cosine."""
    warmup_kimg: NonNegative = 0.0
    """Thousands of items over which the learning rate rises from 0, on a line."""
    grid: tuple[Count, Count] = (8, 4)
    """Columns and rows of the previews' samples."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    metric_items: Count = 1000
    """The most held-out items of which the likelihood is computed at each snapshot."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """The dtype of the network's arithmetic (autocast); weights and losses are float32. auto: a new run of
    more than two minutes, in one process, measures both and keeps bfloat16 if it is faster by a tenth; other
    runs take float32."""

    @classmethod
    def key_names(cls) -> Sequence[str]:
        return sorted(cls.hints(), key=lambda key: _KEYS.index(f" {key} "))
