"""A vocoder: the wave of a mel spectrogram, after HiFi-GAN (Kong, Kim, Bae 2020,
https://arxiv.org/abs/2010.05646), with the alias-free periodic activations of BigVGAN (Lee et al. 2023,
https://arxiv.org/abs/2206.04658) and the inverse Fourier transform of iSTFTNet (Kaneko et al. 2022,
https://arxiv.org/abs/2203.02395) as its last upsampling, which leaves few layers at high rates.

The first convolution and its residual blocks work on the frames of the spectrogram; each of `upsample`
multiplies their rate by a transposed convolution, halves the channels, and has residual blocks of its own.
The last features are the logarithms of magnitudes, and phases, of short frames that overlap fourfold, and are
added up to a wave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.config import Count, Range
from aigc_ext.losses.spectral import FLOOR, Frames, MelSpectrogram
from aigc_ext.models.reconstruction import Reconstruction
from aigc_ext.models.settings import Network, OutsideRun, ReconstructorConfig, takes
from aigc_ext.nn import FilteredSnake

_FULL_SCALE = 32768  # of 16 bits
_OVERLAP = 4
# Of the logarithms of magnitudes: a sine of full scale has 0. A network that diverges still
# has finite gradients.
_LOUDEST = 1.0
_QUIET = -6.0
# What the logarithms of mel amplitudes are centred and divided by.
_MEAN, _SCALE = math.log(FLOOR) / 2 - 1, 3.0
Factor = Annotated[int, Range(ge=2, le=64)]


@dataclass(frozen=True)
class VocoderConfig(ReconstructorConfig):
    family: Literal["vocoder"] = field(default="vocoder", kw_only=True)
    sample_rate: Annotated[OutsideRun[int], Range(ge=1, le=1_536_000)] = 8000
    """Samples a second; a run takes it from its data."""
    n_mels: Annotated[int, Range(ge=1, le=512)] = 32
    """Filters of the mel spectrogram."""
    n_fft: Annotated[int, Range(ge=16, le=16384)] = 512
    """Length of its Fourier transform in samples."""
    window: Annotated[int, Range(ge=16, le=16384)] = 512
    """Length of its Hann window in samples."""
    hop: Annotated[int, Range(ge=4, le=4096)] = 128
    """Samples from one of its frames to the next: `upsample` multiplied, times at least 2 for the last
    transform."""
    channels: Count = 256
    """Channels at the rate of the frames; half as many after each upsampling."""
    upsample: Sequence[Factor] = (8,)
    """Factors of the transposed convolutions."""
    kernel: Annotated[int, Range(ge=3, le=31)] = 3
    """Length of the residual blocks' convolutions, odd."""
    dilations: Sequence[Annotated[int, Range(ge=1, le=1024)]] = (1, 3, 5)
    """Of the residual blocks at each rate, one block each."""
    taps: Annotated[int, Range(ge=2, le=128)] = 12
    """Taps of the filters around the periodic activations, even."""


class Vocoder(Network):
    """Makes waves of mel spectrograms. Its arguments are the fields of `VocoderConfig`.

    Attributes:
        spectrogram: makes the log-mels that it is given.
        value_range: of waves.

    Raises:
        ValueError: `hop` is no multiple of the factors, with at least 2 left for the last transform; `window`
            is not between `hop` and `n_fft`; `kernel` is even or `taps` odd; or a filter has no frequency.
    """

    media: ClassVar[Literal["image", "audio", "text"]] = "audio"
    value_range = (-1.0, 1.0)
    penalties: ClassVar[tuple[str, ...]] = ()
    sample_rate: int
    n_mels: int
    hop: int
    basis: Tensor

    @takes(VocoderConfig)
    def __init__(self, settings: VocoderConfig) -> None:
        super().__init__(settings)
        factors = math.prod(settings.upsample)
        self.head_hop = settings.hop // factors
        if settings.hop % factors or self.head_hop < 2:
            raise ValueError(
                f"hop is {settings.hop}, but must be a multiple of the product of upsample, {factors}, and "
                "at least twice that"
            )
        if not settings.hop <= settings.window <= settings.n_fft:
            raise ValueError(
                f"window is {settings.window}, but must be from hop ({settings.hop}) to n_fft "
                f"({settings.n_fft})"
            )
        if settings.kernel % 2 == 0:
            raise ValueError(f"kernel is {settings.kernel}, but must be odd")
        if settings.channels >> len(settings.upsample) < 1:
            raise ValueError(
                f"channels is {settings.channels}, but must be at least {1 << len(settings.upsample)}: each "
                "factor of upsample halves them"
            )
        frames = Frames(settings.n_fft, settings.hop, settings.window)
        self.spectrogram = MelSpectrogram(settings.sample_rate, frames, settings.n_mels)
        width = settings.channels
        layers: list[nn.Module] = [nn.Conv1d(settings.n_mels, width, 7, padding=3), *_blocks(width, settings)]
        for factor in settings.upsample:
            layers += [FilteredSnake(width, log_scale=True, taps=settings.taps), _Upsample(width, factor)]
            width //= 2
            layers += _blocks(width, settings)
        size = _OVERLAP * self.head_hop
        layers += [
            FilteredSnake(width, log_scale=True, taps=settings.taps),
            nn.Conv1d(width, 2 * (size // 2 + 1), 7, padding=3),
        ]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("basis", _basis(size), persistent=False)
        self.apply(_initialise)
        with torch.no_grad():  # it begins as quiet noise
            self.get_parameter(f"layers.{len(layers) - 1}.bias")[: size // 2 + 1] = _QUIET

    def forward(self, wave: Tensor) -> Tensor:
        """The wave `[N, T]` that is made of the mel spectrogram of a wave `[N, T]`.

        Raises:
            ValueError: it has another shape or dtype.
        """
        return self.activate(self.reconstruct(wave).output)

    def reconstruct(self, wave: Tensor) -> Reconstruction:
        """As `forward`, in the form that training takes."""
        own = self.get_parameter("layers.0.weight").dtype
        if wave.dim() != 2 or not wave.is_floating_point():
            raise ValueError(f"the wave is {wave.dtype} {list(wave.shape)}, but must be floats [N, T]")
        with torch.no_grad():  # the target's spectrum is what it is
            mels = self.spectrogram(wave)
        return Reconstruction(self.vocode(mels.to(own))[:, : wave.shape[1]], wave, {})

    def activate(self, output: Tensor) -> Tensor:
        """The network makes waves; what is beyond full scale is clipped only in a file."""
        return output

    @torch.no_grad()
    def reconstructions(self, waves: Tensor) -> Tensor:
        """What it makes of recordings int16 `[N, T]`, in their form."""
        given = waves.to(self.basis.device).to(self.basis.dtype) / _FULL_SCALE
        made = (self(given) * _FULL_SCALE).round().clamp(-_FULL_SCALE, _FULL_SCALE - 1)
        return made.to(torch.int16).cpu()

    def vocode(self, mels: Tensor) -> Tensor:
        """Waves `[N, frames * hop]` of log-mels `[N, n_mels, frames]`, as `spectrogram` makes them.

        Raises:
            ValueError: they have another shape or dtype.
        """
        if mels.dim() != 3 or mels.shape[1] != self.n_mels or not mels.is_floating_point():
            raise ValueError(
                f"the mels are {mels.dtype} {list(mels.shape)}, but must be floats [N, {self.n_mels}, frames]"
            )
        features: Tensor = self.layers((mels - _MEAN) / _SCALE)
        levels, phases = features.chunk(2, dim=1)
        sizes = _LOUDEST - F.softplus(_LOUDEST - levels)  # at most _LOUDEST, and smooth
        spectrum = torch.cat((sizes.exp() * phases.cos(), sizes.exp() * phases.sin()), dim=1)
        added = F.conv_transpose1d(spectrum, self.basis.to(spectrum.dtype), stride=self.head_hop)[:, 0]
        before = (self.basis.shape[-1] - self.head_hop) // 2
        return added[:, before : before + mels.shape[-1] * self.hop]


class _Block(nn.Module):
    """Twice an alias-free snake and a convolution, the first one dilated, and a shortcut."""

    def __init__(self, width: int, kernel: int, dilation: int, taps: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            FilteredSnake(width, log_scale=True, taps=taps),
            nn.Conv1d(width, width, kernel, dilation=dilation, padding=dilation * (kernel // 2)),
            FilteredSnake(width, log_scale=True, taps=taps),
            nn.Conv1d(width, width, kernel, padding=kernel // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        shifted: Tensor = x + self.layers(x)
        return shifted


def _blocks(width: int, settings: VocoderConfig) -> list[nn.Module]:
    return [_Block(width, settings.kernel, dilation, settings.taps) for dilation in settings.dilations]


class _Upsample(nn.ConvTranspose1d):
    """`factor` outputs for each input, each from two of them; half as many channels."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__(
            width, width // 2, 2 * factor, stride=factor, padding=factor // 2, output_padding=factor % 2
        )


def _basis(size: int) -> Tensor:
    """What a bin's real and imaginary part add to `size` samples, `[2 * bins, 1, size]`: an inverse Fourier
    transform
    whose frames, windowed and added up every quarter, keep the level of a steady sine: a magnitude of 1 is a
    sine of amplitude 1."""
    bins = size // 2 + 1
    angles = 2 * math.pi / size * torch.outer(torch.arange(bins).double(), torch.arange(size).double())
    window = torch.hann_window(size, dtype=torch.float64) * (2 / _OVERLAP)
    return (torch.cat((angles.cos(), -angles.sin())) * window).float()[:, None]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        assert module.bias is not None
        nn.init.zeros_(module.bias)
