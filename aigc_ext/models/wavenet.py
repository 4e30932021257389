"""WaveNet: a wave, sample by sample, by dilated causal convolutions (van den Oord et al. 2016, "WaveNet: A
Generative Model for Raw Audio", arXiv:1609.03499).

Samples are predicted as one of 256 codes of the mu-law, whose steps grow with the amplitude as hearing's do.
The network reads the code before, and the convolutions see what was before that: with taps k and dilations
d, `(k - 1) * sum(d)` samples. Each layer has the gate tanh(a) * sigmoid(b), by the op `gated_act`, a residual
and a skip connection; a class adds to what comes before the gate. It learns from whole recordings at once;
samples are made one after the other, by the op `wavenet_step_`, with queues of what each layer has seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.config import ConfigError, Count, NonNegative, Range
from aigc_ext.models.checks import check_labels
from aigc_ext.models.settings import ClassCount, Network, OutsideRun, SequenceConfig, Widths, takes
from aigc_ext.ops import WaveNetState, WaveNetWeights, gated_act, wavenet_step_
from aigc_ext.ops.wavenet_step import MAX_LAYERS

CODES = 256
SILENCE = CODES // 2
_MU = 255
_FULL_SCALE = 32768
_STEPS = 2000  # of a call that samples, which cannot be interrupted
_MOST_SECONDS = 3600
_PLACE_NUMBERS = 16  # by which the layers know a class's frame


@dataclass(frozen=True)
class WaveNetConfig(SequenceConfig):
    family: Literal["wavenet"] = field(default="wavenet", kw_only=True)
    sample_rate: OutsideRun[Count] = 8000
    """Samples a second."""
    length: OutsideRun[Count] = 8000
    """Samples of a recording that `sample` makes by default."""
    channels: Count = 48
    """Channels of the residual connection."""
    gates: Count = 48
    """Channels inside the layers, after the gate."""
    skips: Count = 64
    """Channels of the skip connection."""
    hidden: Count = 128
    """Channels of the layer between the skip connection and the logits."""
    taps: Annotated[int, Range(ge=2, le=32)] = 3
    """Of a convolution."""
    dilations: Widths = (1, 3, 9, 27, 81, 243, 729) * 2
    """Distance of the taps, for each layer."""
    frame: NonNegative = 0.025
    """Seconds for which what a class adds stays the same, from a recording's beginning on; 0: it never
    changes, as is right for recordings that begin anywhere."""
    tail: NonNegative = 0.1
    """Seconds of the silence at a recording's end that are learned."""
    num_classes: ClassCount = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dilations) > MAX_LAYERS:
            raise ConfigError(
                f"dilations has {len(self.dilations)} layers, but must have at most {MAX_LAYERS}"
            )

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return max(round(self.frame * self.sample_rate), 1) if self.frame else 1 << 32

    @property
    def frames(self) -> int:
        """How many frames are known; the last one goes on."""
        return -(-self.length // self.hop)

    @property
    def receptive_field(self) -> int:
        """How many samples a prediction depends on."""
        return 1 + (self.taps - 1) * sum(self.dilations)


def encode(samples: Tensor) -> Tensor:
    """The int64 codes of int16 samples: `128 + 128 * sign(x) * log(1 + 255 * |x|) / log(256)`, rounded, for
    an x of full scale 1. Silence, 0, is code 128."""
    x = samples.double() / _FULL_SCALE
    compressed = x.sign() * torch.log1p(_MU * x.abs()) / math.log1p(_MU)
    return (SILENCE + SILENCE * compressed).round().clamp_(0, CODES - 1).long()


def decode(codes: Tensor) -> Tensor:
    """The int16 samples of codes, those that `encode` maps to them."""
    compressed = (codes.double() - SILENCE) / SILENCE
    x = compressed.sign() * torch.expm1(compressed.abs() * math.log1p(_MU)) / _MU
    return (x * _FULL_SCALE).round().clamp_(-_FULL_SCALE, _FULL_SCALE - 1).to(torch.int16)


class WaveNet(Network):
    """Predicts each sample of a recording from those before it and a class; see the module.

    Its arguments are the fields of `WaveNetConfig`.

    Attributes:
        trained_classes: the classes that had items; None for all.
    """

    media = "audio"
    settings: WaveNetConfig
    trained_classes: Sequence[int] | None = None

    @takes(WaveNetConfig)
    def __init__(self, settings: WaveNetConfig) -> None:
        super().__init__(settings)
        self.embedding = nn.Embedding(CODES, settings.channels)
        self.places: nn.Embedding | None = None
        if settings.frame:
            self.places = nn.Embedding(max(settings.num_classes, 1) * settings.frames, _PLACE_NUMBERS)
        self.layers = nn.ModuleList(_Layer(settings, dilation) for dilation in settings.dilations)
        self.hidden_layer = nn.Conv1d(settings.skips, settings.hidden, 1)
        self.output = nn.Conv1d(settings.hidden, CODES, 1)
        _initialise(self.embedding, self.hidden_layer, self.output)

    @classmethod
    def row_meanings(
        cls, settings: WaveNetConfig, tensors: Mapping[str, Tensor]
    ) -> dict[str, list[Hashable]]:
        """A frame of a class is the same wherever both networks have it, however long their recordings."""
        if not settings.frame:
            return {}
        seconds, classes = settings.hop / settings.sample_rate, settings.num_classes
        places = itertools.product(range(max(classes, 1)), range(settings.frames))
        return {"places.weight": [(classes, seconds, *place) for place in places]}

    def forward(self, codes: Tensor, c: Tensor | None = None) -> Tensor:
        """The logits (N, T, 256) of each of the codes, int64 (N, T), from those before it and the classes `c`
        (N,), if there are classes. Before the first there was silence.

        Raises:
            ValueError: `codes` or `c` has the wrong shape, dtype or range (as far as it is known on the CPU).
        """
        self._check(codes)
        check_labels(c, len(codes), self.settings.num_classes)
        return self._logits(self._features(codes, c))[:, :, 0].transpose(1, 2)

    def loss(self, items: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sum of the nats of all samples of recordings, int16 (N, T), and their number, int64.

        Recordings begin at 0 and have silence after them: of the zeros at a recording's end, only the first
        `tail` seconds are counted.

        Raises:
            ValueError: `items` or `labels` has the wrong shape, dtype or range.
        """
        if items.ndim != 2 or items.shape[1] < 1 or items.dtype != torch.int16:
            raise ValueError(
                f"items are {items.dtype} of shape {tuple(items.shape)}, but must be int16 (N, T), T >= 1"
            )
        check_labels(labels, len(items), self.settings.num_classes)
        lengths = self._lengths(items)
        if items.device.type == "cpu":  # one by one, each as long as it is: its activations stay in the cache
            nats = [
                self._nats(items[i : i + 1, :length], None, None if labels is None else labels[i : i + 1])
                for i, length in enumerate(lengths.tolist())
            ]
            # Of no items it is 0, and a function of the weights all the same.
            return torch.stack([*nats, self.embedding.weight[0, 0].float() * 0]).sum(), lengths.sum()
        counted = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
        return self._nats(items, counted, labels), lengths.sum()

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        classes: Sequence[int] | None = None,
        *,
        seconds: float | None = None,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Recordings of the seeds, int16 (N, samples); one seed gives the same recording, whatever else is
        asked for with it.

        Args:
            seeds: integers from 0 to 2**63 - 1.
            classes: one for each seed, for a network with classes; by default they come from the seeds.
            seconds: how long; by default `length` samples.
            temperature: the logits are divided by it; 0 takes the most probable sample.

        Raises:
            ValueError: an argument is not possible.
        """
        count = self.settings.length
        if seconds is not None:
            if not 0 < seconds <= _MOST_SECONDS:
                raise ValueError(
                    f"seconds is {seconds!r}, but must be more than 0 and at most {_MOST_SECONDS}"
                )
            count = max(round(seconds * self.settings.sample_rate), 1)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}, but must be a finite number of at least 0")
        for seed in seeds:
            if not 0 <= seed < 1 << 63:
                raise ValueError(f"seeds has {seed!r}, but must have integers from 0 to {(1 << 63) - 1}")
        chosen = self._classes_of(seeds, classes)
        device = self.embedding.weight.device
        labels = None if chosen is None else torch.tensor(chosen, dtype=torch.int64, device=device)
        weights, condition = self.step_weights(), self.step_condition(len(seeds), labels)
        state = self.new_state(len(seeds))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = torch.empty(len(seeds), count, dtype=torch.int16)
        for start in range(0, count, _STEPS):
            steps = min(_STEPS, count - start)
            uniform = torch.empty(len(seeds), steps, dtype=weights.embedding.dtype)
            for row, rng in zip(uniform, generators, strict=True):
                torch.rand(steps, dtype=uniform.dtype, generator=rng, out=row)
            codes, _ = wavenet_step_(
                state,
                weights,
                condition,
                self.settings.dilations,
                uniform.to(device),
                hop=self.settings.hop,
                temperature=temperature,
            )
            made[:, start : start + steps] = decode(codes.cpu())
        return made.numpy()

    def new_state(self, count: int) -> WaveNetState:
        """For `wavenet_step_`, before the first sample of so many recordings."""
        settings, weight = self.settings, self.embedding.weight
        return WaveNetState(
            weight.new_zeros(count, settings.receptive_field - 1, settings.channels),
            torch.full((count,), SILENCE, device=weight.device),
            torch.zeros(count, dtype=torch.int64, device=weight.device),
        )

    def step_weights(self) -> WaveNetWeights:
        """The weights as `wavenet_step_` takes them."""
        layers = [layer for layer in self.layers if isinstance(layer, _Layer)]
        return WaveNetWeights(
            embedding=self.embedding.weight.detach(),
            # The last number of a filter is for now, tap 0.
            w_gate=torch.stack([layer.gate.weight.detach().flip(2).permute(2, 1, 0) for layer in layers]),
            w_out=torch.stack([layer.out.weight.detach()[:, :, 0].t() for layer in layers]),
            b_out=torch.stack([_bias(layer.out) for layer in layers]),
            w_hidden=self.hidden_layer.weight.detach()[:, :, 0].t().contiguous(),
            b_hidden=_bias(self.hidden_layer),
            w_logits=self.output.weight.detach()[:, :, 0].t().contiguous(),
            b_logits=_bias(self.output),
        )

    def step_condition(self, count: int, c: Tensor | None) -> Tensor:
        """The `condition` of `wavenet_step_` for so many recordings of the classes `c` (N,)."""
        place, rows = self._place(count, c), []
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            rows.append(layer.condition(c, place).detach().expand(count, -1, -1))
        return torch.stack(rows, 2)

    def _place(self, count: int, c: Tensor | None, samples: int | None = None) -> Tensor | None:
        """What the layers know each frame by, (N, frames, numbers), of as many frames as the samples have."""
        if self.places is None:
            return None
        settings = self.settings
        used = settings.frames if samples is None else min(-(-samples // settings.hop), settings.frames)
        frames = torch.arange(used, device=self.embedding.weight.device)
        first = torch.zeros(count, dtype=torch.int64, device=frames.device) if c is None else c
        found: Tensor = self.places(first[:, None] * settings.frames + frames)
        return found

    def _features(self, codes: Tensor, c: Tensor | None) -> Tensor:
        """The skip connections' sum (N, skips, 1, T), channels-last."""
        before = F.pad(codes[:, :-1], (1, 0), value=SILENCE)
        # Of images one pixel high: for those there are convolutions in channels-last, the fastest of the
        # forms on the CPU, in bfloat16 by a third.
        x = self.embedding(before).transpose(1, 2)[:, :, None]
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        place = self._place(len(codes), c, codes.shape[1])
        skip: Tensor | None = None
        for layer in self.layers:
            x, more = layer(x, c, place)
            skip = more if skip is None else skip + more
        assert skip is not None
        return skip

    def _logits(self, features: Tensor) -> Tensor:
        hidden = _conv(self.hidden_layer, features.relu())
        return _conv(self.output, hidden.relu())

    def _nats(self, items: Tensor, counted: Tensor | None, labels: Tensor | None) -> Tensor:
        codes = encode(items)
        logits = self._logits(self._features(codes, labels))[:, :, 0].transpose(1, 2).flatten(0, 1)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        targets = codes if counted is None else codes.masked_fill(~counted, -1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="sum")

    def _lengths(self, items: Tensor) -> Tensor:
        """How many samples are learned of each, (N,)."""
        tail = max(round(self.settings.tail * self.settings.sample_rate), 1)
        places = torch.arange(1, items.shape[1] + 1, device=items.device)
        return (torch.where(items != 0, places, 0).amax(1) + tail).clamp_(max=items.shape[1])

    def _check(self, codes: Tensor) -> None:
        if codes.ndim != 2 or codes.shape[1] < 1 or codes.dtype != torch.int64:
            raise ValueError(
                f"codes are {codes.dtype} of shape {tuple(codes.shape)}, but must be int64 (N, T), T >= 1"
            )
        if codes.device.type == "cpu" and codes.numel():
            low, high = (int(bound) for bound in codes.aminmax())
            if low < 0 or high >= CODES:
                raise ValueError(
                    f"codes have {low if low < 0 else high}, but must have numbers from 0 to {CODES - 1}"
                )

    def _classes_of(self, seeds: Sequence[int], classes: Sequence[int] | None) -> list[int] | None:
        count = self.settings.num_classes
        if classes is not None:
            if not count:
                raise ValueError("classes are given, but this network is unconditional: it has no classes")
            if len(classes) != len(seeds):
                raise ValueError(
                    f"classes has {len(classes)} entries, but must have one per seed, {len(seeds)}"
                )
            for value in classes:
                if not 0 <= value < count:
                    raise ValueError(f"classes has {value!r}, but must have integers from 0 to {count - 1}")
            return [int(value) for value in classes]
        if not count:
            return None
        known = self.trained_classes or range(count)
        # Not the first numbers of the seed, which are those of its samples.
        rng = (torch.Generator().manual_seed(seed ^ (1 << 62)) for seed in seeds)
        return [known[int(torch.randint(len(known), (), generator=each))] for each in rng]


class _Layer(nn.Module):
    """A gated convolution with its residual and skip connection."""

    def __init__(self, settings: WaveNetConfig, dilation: int) -> None:
        super().__init__()
        self.channels, self.skips = settings.channels, settings.skips
        self.gate = nn.Conv1d(settings.channels, 2 * settings.gates, settings.taps, dilation=dilation)
        self.out = nn.Conv1d(settings.gates, settings.channels + settings.skips, 1)
        self.past, self.hop = (settings.taps - 1) * dilation, settings.hop
        self.by_class = (
            nn.Embedding(settings.num_classes, 2 * settings.gates) if settings.num_classes else None
        )
        count = len(settings.dilations)
        with torch.no_grad():
            _normal(self.gate, 1.0)
            _normal(self.out, 1.0)
            # About as large as its input is then the sum of all layers, whose gates make their input smaller.
            self.out.weight[: self.channels] *= 2 / math.sqrt(count)
            self.out.weight[self.channels :] *= 4 / math.sqrt(count)
        if self.by_class is not None:
            nn.init.normal_(self.by_class.weight, 0.0, 0.1)
        self.by_place = nn.Linear(_PLACE_NUMBERS, 2 * settings.gates, bias=False) if settings.frame else None
        if self.by_place is not None:
            nn.init.normal_(self.by_place.weight, 0.0, 0.1 / math.sqrt(_PLACE_NUMBERS))

    def condition(self, c: Tensor | None, place: Tensor | None) -> Tensor:
        """What is added before the gate, (N or 1, frames, 2 * gates)."""
        assert self.gate.bias is not None
        added: Tensor = self.gate.bias[None, None]
        if c is not None and self.by_class is not None:
            added = added + self.by_class(c)[:, None]
        if place is not None and self.by_place is not None:
            added = added + self.by_place(place)
        return added

    def forward(self, x: Tensor, c: Tensor | None, place: Tensor | None) -> tuple[Tensor, Tensor]:
        z = _conv(self.gate, F.pad(x, (self.past, 0)), bias=False)
        added = self.condition(c, place).to(z.dtype)
        if added.shape[1] > 1:  # by frames: they last `hop` samples, the last one until the end
            count = added.shape[1] * self.hop
            frames = added[:, :, None].expand(-1, -1, self.hop, -1).reshape(len(added), count, -1)
            if z.shape[3] > count:
                frames = torch.cat([frames, frames[:, -1:].expand(-1, z.shape[3] - count, -1)], 1)
            added = frames[:, : z.shape[3]]
        z = z + added.transpose(1, 2)[:, :, None]
        y = _conv(self.out, gated_act(z))
        residual, skip = y.split([self.channels, self.skips], 1)
        return x + residual, skip


def _initialise(embedding: nn.Embedding, hidden: nn.Conv1d, output: nn.Conv1d) -> None:
    """Codes begin as waves of their amplitude, so that what is learned of one serves its neighbours, and all
    with the same probability. That saves some hundred steps."""
    assert output.bias is not None
    channels = embedding.weight.shape[1]
    amplitudes = (torch.arange(CODES) + 0.5) / CODES
    with torch.no_grad():
        waves = torch.cos(math.pi * amplitudes[:, None] * torch.arange(1, channels + 1))
        embedding.weight.copy_(waves * math.sqrt(0.5))
        _normal(hidden, math.sqrt(2))
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)


def _normal(conv: nn.Conv1d, gain: float) -> None:
    """Weights whose sum over inputs of variance 1 has the variance gain**2."""
    assert conv.bias is not None
    nn.init.normal_(conv.weight, 0.0, gain / math.sqrt(conv.weight[0].numel()))
    nn.init.zeros_(conv.bias)


def _conv(conv: nn.Conv1d, x: Tensor, bias: bool = True) -> Tensor:
    """Of (N, C, 1, T), channels-last."""
    weight = conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, conv.bias if bias else None, dilation=(1, conv.dilation[0]))


def _bias(conv: nn.Conv1d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()
