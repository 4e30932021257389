"""A causal Transformer over tokens: the codes of images, or text (Vaswani et al. 2017, "Attention is all you
need").

Its blocks are those of the usual language models: RMSNorm before each half (Zhang, Sennrich 2019, "Root mean
square layer normalization"), rotary positions (Su et al. 2021, "RoFormer"), attention without biases, and a
gated MLP (Shazeer 2020, "GLU variants improve Transformer") whose gate is tanh(a) * sigmoid(b), by the op
`gated_act`. The embedding of the tokens is also the last layer.

Where a token is read, so are the one before it and, in images, the one above that which is predicted next,
each by a matrix of its own: a causal convolution of the embeddings. A single layer of attention can then find
what followed the same token before; without it that takes two (Olsson et al. 2022, "In-context learning and
induction heads", "smeared keys").

A row of tokens is one of

- the codes of an image, in the order of its rows of pixels, with a class in front or nothing;
- `prefix` tokens of a caption, then these codes;
- at most `source` tokens of a text, SEPARATOR, its target, END, and PAD up to the length of all rows.

What stands in front of the codes or the separator, the condition, is read but not predicted.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext import _files
from aigc_ext.config import ConfigError, Count, Fraction, NonNegative, Range
from aigc_ext.data.pixels import to_uint8
from aigc_ext.data.text import PAD, SEPARATOR, Vocabulary
from aigc_ext.models.checks import check_labels
from aigc_ext.models.decoding import (
    CHUNK,
    UNKNOWN,
    Choice,
    check_number,
    chunks,
    whole_numbers,
    write_rows,
)
from aigc_ext.models.settings import (
    ClassCount,
    LayerCount,
    Network,
    OutsideRun,
    ReconstructorConfig,
    SequenceConfig,
    takes,
)
from aigc_ext.nn.split_batch import batch_rand
from aigc_ext.ops import gated_act

_MAX_LENGTH = 1 << 16
_ROTARY_BASE = 10_000.0
_EPS = 1e-6
_GROUP = 8  # rows of a text: fewer make the products of matrices slow


@dataclass(frozen=True)
class TransformerConfig(SequenceConfig):
    family: Literal["transformer"] = field(default="transformer", kw_only=True)
    vocabulary: OutsideRun[Count] = 512
    """Number of different tokens."""
    outputs: OutsideRun[Count] = 512
    """The first tokens, those that are predicted."""
    length: OutsideRun[Annotated[int, Range(ge=1, le=_MAX_LENGTH)]] = 64
    """Tokens of a row."""
    prefix: OutsideRun[Annotated[int, Range(ge=0, lt=_MAX_LENGTH)]] = 0
    """Tokens of the caption in front."""
    source: OutsideRun[Annotated[int, Range(ge=0, lt=_MAX_LENGTH)]] = 0
    """The most tokens of a source text; 0 if rows do not consist of a source text and its target."""
    width: Count = 256
    """Channels between the layers."""
    heads: Count = 4
    """Heads of attention, which share the width."""
    layers: LayerCount = 6
    """Blocks of attention and MLP."""
    hidden: Count = 512
    """Channels inside the MLPs, after the gate."""
    dropout: Fraction = 0.0
    """Fraction of each block's results that is set to 0 in training."""
    source_weight: NonNegative = 0.0
    """How much the tokens of a source text count in training: from them it learns the language."""
    condition_dropout: Fraction = 0.1
    """Fraction of the items that are learned without their class or caption, so that the network can also do
    without; `guidance` needs it."""
    num_classes: ClassCount = 0
    tokenizer: OutsideRun[str] = ""
    """The vocabulary of texts and captions, as JSON of the library `tokenizers`; "" if there are none."""
    codec: OutsideRun[ReconstructorConfig | None] = None
    """The autoencoder whose codes the tokens are. The network has its weights, which are not trained."""
    code_shape: OutsideRun[tuple[Count, Count] | None] = None
    """Rows and columns of an image's codes."""

    def __post_init__(self) -> None:
        if isinstance(self.codec, Mapping):
            object.__setattr__(self, "codec", _codec_settings(self.codec))
        super().__post_init__()
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"width is {self.width}, but must be a multiple of 2 * heads, {2 * self.heads}: each head "
                "turns pairs of channels"
            )
        if self.outputs > self.vocabulary:
            raise ConfigError(
                f"outputs is {self.outputs}, but must be at most vocabulary, {self.vocabulary}: it counts "
                "the first of these tokens"
            )
        for name in ("prefix", "source"):
            if getattr(self, name) >= self.length:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, but must be less than length, {self.length}"
                )
        if (self.codec is None) != (self.code_shape is None):
            raise ConfigError("codec and code_shape must be given together, or neither")
        if self.code_shape is not None and math.prod(self.code_shape) != self.length - self.prefix:
            raise ConfigError(
                f"code_shape is {self.code_shape}, but must have length - prefix codes, "
                f"{self.length - self.prefix}"
            )

    def architecture(self) -> dict[str, Any]:
        found = super().architecture()
        return found if self.codec is None else {**found, "codec": self.codec.architecture()}


class Transformer(Network):
    """Predicts each token of a row from those before it and a condition; see the module.

    Its arguments are the fields of `TransformerConfig`. Once trained it samples: images if it has a `codec`,
    else texts if it has a `tokenizer`, else rows of tokens.

    Attributes:
        trained_classes: the classes that had items; None for all.
    """

    of_data = ("codec.",)
    settings: TransformerConfig
    trained_classes: Sequence[int] | None = None

    @takes(TransformerConfig)
    def __init__(self, settings: TransformerConfig) -> None:
        super().__init__(settings)
        width = settings.width
        self.embedding = nn.Embedding(settings.vocabulary, width)
        # What a row begins with: its class, or the last vector if there is none.
        self.start = nn.Embedding(settings.num_classes + 1, width)
        above = () if settings.code_shape is None else (settings.code_shape[1] - 1,)
        self.offsets = sorted({1, *above} - {0})
        self.near = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in self.offsets)
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.apply(_initialise)
        for block in self.blocks:
            # The sum of all blocks then begins with the variance of one (Radford et al. 2019, GPT-2).
            for last in (block.get_submodule("join"), block.get_submodule("down")):
                nn.init.normal_(last.get_parameter("weight"), 0.0, 0.02 / math.sqrt(2 * settings.layers))
        self.codec: nn.Module | None = None
        if settings.codec is not None:
            self.codec = settings.codec.network(settings.codec).eval().requires_grad_(False)
        vars(self)["media"] = "text" if settings.codec is None else "image"
        self._vocabulary = Vocabulary.from_json(settings.tokenizer) if settings.tokenizer else None

    @classmethod
    def row_meanings(
        cls, settings: TransformerConfig, tensors: Mapping[str, Tensor]
    ) -> dict[str, list[Hashable]]:
        """A code is the same only if the autoencoder is, a token of texts if it is of the same bytes."""
        tokens = Vocabulary.from_json(settings.tokenizer).tokens() if settings.tokenizer else []
        codec = {
            name: value.cpu().contiguous() for name, value in tensors.items() if name.startswith(cls.of_data)
        }
        known_by = _files.sha256(safetensors.torch.save(codec))
        codes = settings.vocabulary - len(tokens)
        return {
            "embedding.weight": [*((known_by, code) for code in range(codes)), *tokens],
            "start.weight": [*((settings.num_classes, c) for c in range(settings.num_classes)), "none"],
        }

    def train(self, mode: bool = True) -> Transformer:
        super().train(mode)
        if self.codec is not None:
            self.codec.eval()  # it has learned
        return self

    def forward(self, items: Tensor, c: Tensor | None = None) -> Tensor:
        """The logits of every token of `items`, int64 (N, T) with T up to `length`, from those before it and
        the class `c` (N,), if there are classes: (N, T, `outputs`) in the dtype of the weights.

        Raises:
            ValueError: `items` or `c` has the wrong shape, dtype or range (as far as it is known on the CPU).
        """
        self._check(items)
        check_labels(c, len(items), self.settings.num_classes)
        return self._logits(self._read(items, self._starts(len(items), c)))

    def loss(self, items: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sum of the nats of all tokens that are predicted, float32 (float64 for a network in float64),
        and their number. The arguments are those of `forward`; each text has a target.

        In training mode, `condition_dropout` hides classes and captions, and the tokens of a source count
        too, `source_weight` each. Random numbers are those of `nn.split_batch`.
        """
        settings = self.settings
        self._check(items)
        check_labels(labels, len(items), settings.num_classes)
        starts = self._starts(len(items), labels)
        if self.training and settings.condition_dropout and self._conditional:
            hidden = batch_rand(len(items), device=items.device) < settings.condition_dropout
            starts = starts.masked_fill(hidden, settings.num_classes)
            items = torch.where(hidden[:, None], self._without_caption(items), items)
        weights = self._weights(items)
        nats = self.embedding.weight.new_zeros(())
        for rows in self._of_a_length(weights):
            targets, wanted = items[rows], weights[rows]
            if items.device.type != "cpu":  # the number of targets would have to be waited for
                features = self._read(targets, starts[rows])
                targets = targets.where(wanted > 0, 0)  # a caption's tokens are no outputs
            else:
                used = int(wanted.any(0).nonzero().max()) + 1
                targets, wanted = targets[:, :used], wanted[:, :used]
                chosen = wanted > 0
                features = self._read(targets, starts[rows])[chosen]
                targets, wanted = targets[chosen], wanted[chosen]
            logits = self._logits(features).flatten(0, -2)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            each = F.cross_entropy(logits, targets.flatten(), reduction="none")
            nats = nats + (each * wanted.flatten()).sum()
        return nats, weights.sum()

    def _weights(self, items: Tensor) -> Tensor:
        """By how much each token counts (N, T)."""
        settings = self.settings
        weights = torch.ones_like(items, dtype=torch.float32)
        if settings.source:
            separators = items == SEPARATOR
            weight = settings.source_weight if self.training else 0.0
            weights = weights.masked_fill(separators.cumsum(1) <= separators, weight)
            return weights.masked_fill(items == PAD, 0.0)
        weights[:, : settings.prefix] = 0.0
        return weights

    def _of_a_length(self, weights: Tensor) -> Sequence[Tensor | slice]:
        """Rows of a batch in groups, so that those of texts are not computed where nearly all have ended."""
        in_order = self.training and self.settings.dropout  # in which random numbers are drawn
        if not self.settings.source or in_order or weights.device.type != "cpu":
            return [slice(0, len(weights))]
        lengths = weights.shape[1] - (weights.flip(1) > 0).to(torch.int8).argmax(1)
        return lengths.argsort().split(max(_GROUP, -(-len(weights) // 4)))

    def sample(
        self,
        seeds: Sequence[int],
        classes: Sequence[int] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> np.ndarray | list[str]:
        """Items of the seeds; one seed gives the same item, whatever else is asked for with it.

        Args:
            seeds: integers from 0 to 2**63 - 1.
            classes: one for each seed, for a network with classes; by default they come from the seeds.
            prompts: for each seed the source of which to write the target, or the caption of the image; by
                default no caption.
            temperature, top_k, top_p, guidance: as for `sample_tokens`.

        Returns:
            uint8 images (N, H, W, C), texts, or int64 tokens (N, length): see `media`.

        Raises:
            ValueError: an argument is not possible, or a network for texts has no prompts.
        """
        tokens = self.sample_tokens(
            *(seeds, classes),
            given=self._given(seeds, prompts),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
        )
        if self.codec is not None:
            return self._decode(tokens, seeds)
        if self._vocabulary is not None:
            return [self._vocabulary.target_of(row) for row in tokens.tolist()]
        return tokens.numpy()

    @torch.no_grad()
    def sample_tokens(
        self,
        seeds: Sequence[int],
        classes: Sequence[int] | None = None,
        *,
        given: Sequence[Sequence[int]] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> Tensor:
        """Rows of tokens, int64 (N, length) on the CPU.

        Args:
            seeds, classes: as for `sample`.
            given: for each seed the tokens with which its row begins.
            temperature: the logits are divided by it; 0 takes the most probable token.
            top_k: only so many of the most probable tokens are possible; None for all.
            top_p: only the most probable tokens that have this probability together (Holtzman et al. 2020,
                "The curious case of neural text degeneration").
            guidance: the logits are those without the condition and this number times what the condition
                changes (Ho, Salimans 2022, "Classifier-free diffusion guidance"); 1 for none.
        """
        seeds, chosen = whole_numbers("seeds", seeds, 2**63 - 1), self._classes_of(seeds, classes)
        choice = Choice(temperature, top_k, top_p)
        check_number("guidance", guidance, "a finite number of at least 0", guidance >= 0)
        if guidance != 1 and not self._conditional:
            raise ValueError(f"guidance is {guidance}, but must be 1: there are neither classes nor captions")
        rows = torch.full((len(seeds), self.settings.length), UNKNOWN)
        for row, tokens in zip(rows, given or (), strict=False):
            row[: len(tokens)] = torch.as_tensor(tokens, dtype=torch.int64)
        if self.settings.prefix and given is None:
            rows[:, : self.settings.prefix] = self.settings.outputs + PAD
        classless = self.settings.num_classes
        starts = torch.tensor([classless] * len(seeds) if chosen is None else chosen, dtype=torch.int64)
        training = self.training
        self.eval()
        try:
            write_rows(self, rows, starts, seeds, choice, guidance)
        finally:
            self.train(training)
        return rows

    def new_cache(self, rows: int) -> Cache:
        """For `step` with so many rows."""
        settings, new = self.settings, self.embedding.weight.new_zeros
        shape = (2, rows, settings.heads, settings.length, settings.width // settings.heads)
        return Cache(new(rows, settings.length, settings.width), [new(shape) for _ in self.blocks])

    def step(self, tokens: Tensor | None, c: Tensor, position: int, cache: Cache) -> Tensor:
        """The logits (N, `outputs`) of the tokens at a position, as `forward` gives them.

        Args:
            tokens: those at the position before, (N,); at position 0, which has none, c is read.
            c: the classes (N,); `num_classes` for none.
            cache: of the same rows, filled for all positions before; this one is added.
        """
        x = (self.start(c) if tokens is None else self.embedding(tokens))[:, None]
        cache.inputs[:, position] = x[:, 0]
        for offset, near in zip(self.offsets, self.near, strict=True):
            if offset <= position:
                x = x + near(cache.inputs[:, position - offset])[:, None]
        turns = _turns(position, 1, self.settings, x)
        for block, memory in zip(self.blocks, cache.layers, strict=True):
            x = block(x, turns, memory, position)
        return self._logits(self.norm(x))[:, 0]

    def _given(self, seeds: Sequence[int], prompts: Sequence[str] | None) -> list[list[int]] | None:
        """The tokens with which the rows of these prompts begin."""
        settings, vocabulary = self.settings, self._vocabulary
        if prompts is None:
            if settings.source:
                raise ValueError("prompts is None, but this network needs a source text for each seed")
            return None
        if vocabulary is None:
            raise ValueError("prompts are given, but this network has no captions and reads no text")
        if isinstance(prompts, str) or len(prompts) != len(seeds):
            raise ValueError(f"prompts must be a list of texts, one for each of the {len(seeds)} seeds")
        if settings.source:
            return [vocabulary.begin(prompt, settings.source) for prompt in prompts]
        return [
            [settings.outputs + token for token in vocabulary.padded(prompt, settings.prefix)]
            for prompt in prompts
        ]

    def _classes_of(self, seeds: Sequence[int], classes: Sequence[int] | None) -> list[int] | None:
        """A class for each seed: without `classes` the next random number after those of its tokens."""
        count = self.settings.num_classes
        if classes is not None:
            if not count:
                raise ValueError("classes are given, but this network is unconditional: it has no classes")
            found = whole_numbers("classes", classes, count - 1)
            if len(found) != len(seeds):
                raise ValueError(
                    f"classes has {len(found)} entries, but must have one per seed, {len(seeds)}"
                )
            return found
        if not count:
            return None
        known, rng, found = self.trained_classes or range(count), torch.Generator(), []
        for seed in seeds:
            torch.rand(self.settings.length, dtype=torch.float64, generator=rng.manual_seed(seed))
            found.append(known[int(torch.randint(len(known), (), generator=rng))])
        return found

    def _decode(self, tokens: Tensor, seeds: Sequence[int]) -> np.ndarray:
        """Images of the codes, each from the same place in a batch of the same size."""
        assert self.codec is not None
        assert self.settings.code_shape is not None
        codec: Any = self.codec
        device = self.embedding.weight.device
        codes = tokens[:, self.settings.prefix :].unflatten(1, self.settings.code_shape)
        height, width = codec.image_shape[1:]
        images = np.empty((len(codes), height, width, codec.image_shape[0]), np.uint8)
        with torch.no_grad():
            for wanted, places in chunks(seeds):
                part = codes.new_zeros(CHUNK, *codes.shape[1:])
                part[places] = codes[wanted]
                made = to_uint8(codec.decode_codes(part.to(device)), codec.value_range)
                images[wanted] = made.permute(0, 2, 3, 1).cpu().numpy()[places]
        return images

    @property
    def _conditional(self) -> bool:
        return self.settings.num_classes > 0 or self.settings.prefix > 0

    def _check(self, items: Tensor) -> None:
        most, vocabulary = self.settings.length, self.settings.vocabulary
        if items.ndim != 2 or not 1 <= items.shape[1] <= most or items.dtype != torch.int64:
            raise ValueError(
                f"items are {items.dtype} of shape {tuple(items.shape)}, but must be int64 (N, T), "
                f"with T from 1 to {most}"
            )
        if items.device.type == "cpu" and items.numel():
            low, high = (int(bound) for bound in items.aminmax())
            if low < 0 or high >= vocabulary:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"items have the token {wrong}, but must have tokens from 0 to {vocabulary - 1}"
                )

    def _starts(self, count: int, c: Tensor | None) -> Tensor:
        if c is not None:
            return c
        return torch.full((count,), self.settings.num_classes, device=self.embedding.weight.device)

    def _without_caption(self, items: Tensor) -> Tensor:
        hidden = items.new_full((len(items), self.settings.prefix), self.settings.outputs + PAD)
        return torch.cat([hidden, items[:, self.settings.prefix :]], 1)

    def _read(self, items: Tensor, starts: Tensor) -> Tensor:
        """The features (N, T, width) from which `_logits` predicts each of the items."""
        inputs = torch.cat([self.start(starts)[:, None], self.embedding(items[:, :-1])], 1)
        x = inputs
        for offset, near in zip(self.offsets, self.near, strict=True):
            if offset < x.shape[1]:
                x = x + F.pad(near(inputs[:, :-offset]), (0, 0, offset, 0))
        turns = _turns(0, x.shape[1], self.settings, x)
        for block in self.blocks:
            x = block(x, turns)
        features: Tensor = self.norm(x)
        return features

    def _logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.embedding.weight[: self.settings.outputs])


class Cache(NamedTuple):
    """What has been computed for all earlier positions: the embeddings (N, length, width) and, for each
    layer, keys and values (2, N, heads, length, width / heads)."""

    inputs: Tensor
    layers: list[Tensor]


class _Block(nn.Module):
    """Attention, then the gated MLP, each added to its input."""

    def __init__(self, settings: TransformerConfig) -> None:
        super().__init__()
        width, hidden = settings.width, settings.hidden
        self.settings = settings
        self.read = nn.RMSNorm(width, eps=_EPS)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.join = nn.Linear(width, width, bias=False)
        self.think = nn.RMSNorm(width, eps=_EPS)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self,
        x: Tensor,
        turns: tuple[Tensor, Tensor],
        memory: Tensor | None = None,
        position: int = 0,
    ) -> Tensor:
        """`memory`: the keys and values of the rows so far, if x is the one token at `position`."""
        heads = self.qkv(self.read(x)).unflatten(2, (3, self.settings.heads, -1)).transpose(1, 3)
        q, k, v = heads.unbind(2)
        q, k = _turned(q, turns), _turned(k, turns)
        if memory is not None:
            memory[:, :, :, position] = torch.stack((k[:, :, 0], v[:, :, 0]))
            k, v = memory[:, :, :, : position + 1]
        found = F.scaled_dot_product_attention(q, k, v, is_causal=memory is None)
        x = x + self._dropped(self.join(found.transpose(1, 2).flatten(2)))
        inner = gated_act(self.up(self.think(x)).flatten(0, 1)).unflatten(0, x.shape[:2])
        return x + self._dropped(self.down(inner))

    def _dropped(self, x: Tensor) -> Tensor:
        p = self.settings.dropout
        if not self.training or p == 0:
            return x
        # For whole rows: the random numbers of a row must not depend on how long the others are.
        numbers = batch_rand(len(x), self.settings.length, x.shape[2], device=x.device)[:, : x.shape[1]]
        return x * ((numbers >= p) / (1 - p)).to(x.dtype)


def _turns(position: int, count: int, settings: TransformerConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (count, width / heads / 2) of the angles of `count` positions."""
    half = settings.width // settings.heads // 2
    # In float64 on the CPU, so that the angles of late positions have no error.
    positions = torch.arange(position, position + count, dtype=torch.float64)
    rates = _ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = positions[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    return cos.to(like.device, like.dtype), sin.to(like.device, like.dtype)


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Heads (N, heads, T, channels), of which each channel of the first half is turned together with the one
    of the second half."""
    (a, b), (cos, sin) = x.chunk(2, -1), turns
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, 0.0, 0.02)


def _codec_settings(values: Mapping[str, Any]) -> ReconstructorConfig:
    arguments = dict(values)
    family = arguments.pop("family", None)
    if family not in ReconstructorConfig.families:
        known = ", ".join(ReconstructorConfig.families)
        raise ConfigError(f"codec.family is {family!r}, but must be one of {known}")
    return cast(Any, ReconstructorConfig.families[family])(**arguments)
