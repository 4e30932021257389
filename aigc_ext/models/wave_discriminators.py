"""Discriminators of waves: several small networks, each of which sees the wave in another arrangement.

- Of periods (Kong, Kim, Bae 2020, "HiFi-GAN", https://arxiv.org/abs/2010.05646, section 2.3): the samples in
  rows of `period`, and convolutions down the columns, which see every `period`-th sample.
- Of resolutions (Jang et al. 2021, "UnivNet", https://arxiv.org/abs/2106.07889, section 2.3): the logarithms
  of magnitudes of a short-time Fourier transform as an image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from aigc_ext.config import Count, Range
from aigc_ext.losses.spectral import FLOOR, Frames, magnitudes
from aigc_ext.models.checks import check_labels
from aigc_ext.models.settings import ClassCount, DiscriminatorConfig, LayerCount, Network, takes
from aigc_ext.nn import Conv2d

_MOST_WIDE = 8  # times the channels of the first layer
_LOG_FLOOR = math.log(FLOOR)


@dataclass(frozen=True)
class WaveDiscriminatorConfig(DiscriminatorConfig):
    family: Literal["waveform"] = field(default="waveform", kw_only=True)
    periods: Sequence[Annotated[int, Range(ge=1, le=1024)]] = (2, 3, 5, 7)
    """Samples of a row, of each discriminator of periods."""
    windows: Sequence[Annotated[int, Range(ge=16, le=16384)]] = (128, 256, 512)
    """Length of the Hann window in samples, of each discriminator of resolutions; a frame begins every
    quarter."""
    channels: Count = 16
    """Channels of the first layer of each; twice as many in each further one, up to 8 times."""
    layers: LayerCount = 3
    """Convolutions of each that have strides: of 3 samples of a column, or 2 frequencies."""
    normalize: bool = False
    """Weight normalisation of all layers."""
    num_classes: ClassCount = 0


class WaveDiscriminator(Network):
    """Maps a wave `[N, T]` in [-1, 1] to the logits of all its discriminators. Its arguments are the fields
    of `WaveDiscriminatorConfig`.

    Raises:
        ValueError: there are neither periods nor windows.
    """

    media: ClassVar[Literal["image", "audio", "text"]] = "audio"

    @takes(WaveDiscriminatorConfig)
    def __init__(self, settings: WaveDiscriminatorConfig) -> None:
        super().__init__(settings)
        if not settings.periods and not settings.windows:
            raise ValueError("periods and windows are both empty, but one must have an entry")
        views: list[_View] = [_Period(period, settings) for period in settings.periods]
        views += [_Resolution(window, settings) for window in settings.windows]
        self.views = nn.ModuleList(views)
        classes, width = settings.num_classes, views[0].width
        self.embedding = nn.Embedding(classes, width) if classes else None

    def forward(self, wave: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """Of each discriminator the logits `[N, places]`; positive means real.

        Args:
            wave: `[N, T]`, floating point.
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0. They add
                a projection of the last features to all logits of a discriminator, as in `models.mlp`.

        Raises:
            ValueError: `wave` or `c` has the wrong shape or dtype.
        """
        return self.judge(wave, c)[0]

    def judge(self, wave: Tensor, c: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Logits, and the features of all layers before them, for `losses.feature_matching`."""
        if wave.dim() != 2 or wave.shape[1] < 1 or not wave.is_floating_point():
            raise ValueError(f"the wave is {wave.dtype} {list(wave.shape)}, but must be floats [N, T], T > 0")
        check_labels(c, len(wave), self.num_classes)
        all_logits, all_features = [], []
        for view in self.views:
            logits, features = view(wave)
            if self.embedding is not None:
                projected = (self.embedding(c) * features[-1].mean((2, 3))).sum(1, keepdim=True)
                logits = logits + projected
            all_logits.append(logits)
            all_features += features
        return all_logits, all_features


class _View(nn.Module, ABC):
    """A wave as an image `[N, 1, H, W]`, and convolutions over it."""

    def __init__(
        self, settings: WaveDiscriminatorConfig, kernel: tuple[int, int], stride: tuple[int, int]
    ) -> None:
        super().__init__()
        wrap = weight_norm if settings.normalize else _unchanged
        padding = (kernel[0] // 2, kernel[1] // 2)
        widths = [settings.channels << i for i in range(settings.layers + 1)]
        widths = [min(width, _MOST_WIDE * settings.channels) for width in widths]
        before, layers = 1, []
        for i, width in enumerate(widths):
            step = stride if i < settings.layers else 1
            layers.append(
                wrap(Conv2d(before, width, kernel, stride=step, padding=padding, act="lrelu", gain=1.0))
            )
            before = width
        self.layers = nn.ModuleList(layers)
        self.head = wrap(Conv2d(before, 1, (3, 1), padding=(1, 0)))
        self.width = before

    @abstractmethod
    def image(self, wave: Tensor) -> Tensor:
        """The wave in this arrangement."""

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.image(wave)
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return self.head(x).flatten(1), features


class _Period(_View):
    def __init__(self, period: int, settings: WaveDiscriminatorConfig) -> None:
        super().__init__(settings, (5, 1), (3, 1))
        self.period = period

    def image(self, wave: Tensor) -> Tensor:
        """Samples that are `period` apart below each other; the last row is filled with the mirror image, or
        with silence where that is too short."""
        missing = -wave.shape[1] % self.period
        mode = "reflect" if missing < wave.shape[1] else "constant"
        padded = F.pad(wave[:, None], (0, missing), mode=mode)
        return padded.unflatten(2, (-1, self.period))


class _Resolution(_View):
    def __init__(self, window: int, settings: WaveDiscriminatorConfig) -> None:
        super().__init__(settings, (3, 3), (2, 1))
        self.frames = Frames(window, window // 4, window)

    def image(self, wave: Tensor) -> Tensor:
        """Frequencies below each other; from about 0 for silence to 1 for full scale."""
        levels = magnitudes(wave, self.frames).add(FLOOR).log()
        return (1 - levels / _LOG_FLOOR)[:, None].to(wave.dtype)


def _unchanged(layer: nn.Module) -> nn.Module:
    return layer
