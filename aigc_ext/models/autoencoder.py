"""Convolutional autoencoders of images with one of three bottlenecks.

- `kl`: the code of an image is a Gaussian (Kingma and Welling 2013, "Auto-Encoding Variational Bayes",
  https://arxiv.org/abs/1312.6114), of the whole image (`single_code`) or one for each place of its coarsest
  features; the decoder makes images of codes from N(0, 1).
- `vq`: each place has the nearest code of a learned codebook (van den Oord, Vinyals, Kavukcuoglu 2017,
  https://arxiv.org/abs/1711.00937; Esser, Rombach, Ommer 2021, "Taming Transformers for High-Resolution Image
  Synthesis", https://arxiv.org/abs/2012.09841).
- `fsq`: each place has a point of a fixed grid (Mentzer et al. 2023, https://arxiv.org/abs/2309.15505).

Encoder and decoder mirror each other. A first convolution, of stride `stem`, makes the finest features; each
further entry of `channels` halves the sides. Every resolution has `blocks` residual blocks: group norm, swish
and 3x3 convolution, twice, and a shortcut. The decoder doubles sides by nearest neighbours and a convolution.
Labels, if any, add an embedding to the coarsest features of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.config import Count, Fraction, NonNegative, Range
from aigc_ext.data.pixels import normalize, to_uint8
from aigc_ext.losses.reconstruction import gaussian_kl
from aigc_ext.models.checks import check_input, check_labels
from aigc_ext.models.reconstruction import Reconstruction
from aigc_ext.models.settings import (
    ClassCount,
    ImageShape,
    LayerCount,
    Network,
    ReconstructorConfig,
    Widths,
    takes,
)
from aigc_ext.nn import (
    Conv2d,
    FiniteScalarQuantizer,
    GroupNormAct,
    Linear,
    Quantized,
    SelfAttention2d,
    VectorQuantizer,
)
from aigc_ext.nn.quantize import CodeStatistics, code_counts
from aigc_ext.nn.split_batch import batch_randn, whole_batch_part

_LOG_VARIANCES = (-30.0, 20.0)  # whose exp float32 holds


@dataclass(frozen=True)
class AutoencoderConfig(ReconstructorConfig):
    family: Literal["autoencoder"] = field(default="autoencoder", kw_only=True)
    image_shape: ImageShape = (3, 32, 32)
    channels: Widths = (64, 128)
    """Channels at each resolution, the finest first; each further one halves the sides."""
    stem: Annotated[int, Range(ge=1, le=16)] = 2
    """Stride of the encoder's first convolution and of the decoder's last."""
    blocks: LayerCount = 1
    """Residual blocks at each resolution."""
    attention: bool = False
    """Self-attention at the coarsest resolution."""
    bottleneck: Literal["kl", "vq", "fsq"] = "kl"
    """The kind of the codes: Gaussian, of a learned codebook, or of a grid."""
    single_code: bool = False
    """One code for the whole image, instead of one for each place (kl)."""
    code_dim: Count = 16
    """Numbers of a code (kl and vq)."""
    num_codes: Annotated[int, Range(ge=2, le=1 << 20)] = 256
    """Size of the codebook (vq)."""
    levels: Sequence[Annotated[int, Range(ge=2, le=1 << 20)]] = (8, 5, 5)
    """Levels of each number of a code (fsq)."""
    code_decay: Fraction = 0.99
    """Decay of the moving averages that the codebook consists of (vq)."""
    revive_below: NonNegative = 0.0
    """A code that fewer places of a batch choose, in the moving average, is replaced by one of their features
    (vq); 0 replaces none."""
    output_act: Literal["linear", "tanh", "sigmoid"] = "linear"
    """The activation of the pixels, which are in [0, 1] with sigmoid, else in [-1, 1]."""
    num_classes: ClassCount = 0


class Autoencoder(Network):
    """Encodes images, and decodes codes.

    Its arguments are the fields of `AutoencoderConfig`.

    Attributes:
        decoder: a generator (`forward(z, c=None)`, `z_dim`, `image_shape`, `num_classes`, `value_range`),
            from which `sampling.Sampler` draws if the bottleneck is `kl`.
        value_range: of the images.
        code_shape: of an image's codes, without the batch: (code_dim,), or (code_dim, h, w) for each place.
        penalties: the names of those that `reconstruct` returns.
        num_codes: with vq and fsq, how many codes there are.

    Raises:
        ValueError: the sides are not divisible by `stem * 2 ** (len(channels) - 1)`, or `single_code` is set
            for another bottleneck than kl.
    """

    channels: Sequence[int]
    bottleneck: str

    @takes(AutoencoderConfig)
    def __init__(self, settings: AutoencoderConfig) -> None:
        super().__init__(settings)
        stride = settings.stem << (len(settings.channels) - 1)
        _, height, width = settings.image_shape
        if height % stride or width % stride:
            raise ValueError(
                f"image_shape is {tuple(settings.image_shape)}, but height and width must be multiples of "
                f"{stride}, which is stem * 2 ** (len(channels) - 1)"
            )
        if settings.single_code and settings.bottleneck != "kl":
            raise ValueError(
                f"single_code is True, but must be False: the bottleneck is {settings.bottleneck!r}, whose "
                "codes have places"
            )
        places = (height // stride, width // stride)
        penalties: dict[str, tuple[str, ...]] = {"kl": ("kl",), "vq": ("commitment",), "fsq": ()}
        self.penalties = penalties[settings.bottleneck]
        self.quantizer: VectorQuantizer | FiniteScalarQuantizer | None = None
        code_dim = settings.code_dim
        if settings.bottleneck == "vq":
            self.quantizer = VectorQuantizer(
                *(settings.num_codes, code_dim),
                beta=1.0,
                ema=True,
                decay=settings.code_decay,
                revive_below=settings.revive_below,
            )
        elif settings.bottleneck == "fsq":
            self.quantizer = FiniteScalarQuantizer(settings.levels)
            code_dim = self.quantizer.code_dim
            self.num_codes = self.quantizer.num_codes
        self.code_shape: tuple[int, ...] = (code_dim,) if settings.single_code else (code_dim, *places)
        self.encoder = _Encoder(settings, places, 2 * code_dim if settings.bottleneck == "kl" else code_dim)
        self.decoder = _Decoder(settings, places, code_dim)
        self.value_range = self.decoder.value_range

    def encode(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """The codes of images (N, C, H, W) in `value_range`: (N, *code_shape). With kl the means of the
        Gaussians, else the chosen codes.

        Args:
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.

        Raises:
            ValueError: `images` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network (all methods).
        """
        if self.quantizer is None:
            return self.posterior(images, c)[0]
        return self._quantized(images, c).codes

    def posterior(self, images: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances of the Gaussian codes, each (N, *code_shape). kl only.

        Raises:
            ValueError: also if the bottleneck is another one.
        """
        if self.quantizer is not None:
            raise ValueError(f"posterior is of the bottleneck 'kl', but this one is {self.bottleneck!r}")
        mean, log_variance = self._features(images, c).chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCES)

    def codes(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """The numbers of the chosen codes, int64 (N, h, w), from 0 to num_codes - 1; -1 for features that are
        not finite. vq and fsq.

        Raises:
            ValueError: also if the bottleneck is kl.
        """
        self._check_discrete()
        return self._quantized(images, c).indices

    def decode(self, codes: Tensor, c: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) of codes (N, *code_shape); with linear output not clamped to `value_range`."""
        return self.activate(self.decoder.outputs(codes, c))

    def decode_codes(self, indices: Tensor, c: Tensor | None = None) -> Tensor:
        """Images of the numbers of codes, int64 (N, h, w). vq and fsq.

        Raises:
            ValueError: also if the bottleneck is kl, or a number (on the CPU) is that of no code.
        """
        quantizer = self._check_discrete()
        places = self.code_shape[1:]
        if indices.dtype != torch.int64 or indices.shape[1:] != places:
            raise ValueError(
                f"indices are {indices.dtype} of shape {tuple(indices.shape)}, but must be torch.int64 of "
                f"shape (N, {places[0]}, {places[1]})"
            )
        if indices.is_cpu and indices.numel():
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= quantizer.num_codes:
                raise ValueError(
                    f"indices are from {low} to {high}, but must be from 0 to {quantizer.num_codes - 1}"
                )
        return self.decode(quantizer.lookup(indices), c)

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """The images as they are after encoding and decoding (with kl of the means), (N, C, H, W)."""
        return self.decode(self.encode(images, c), c)

    def reconstructions(self, items: Tensor, c: Tensor | None = None) -> np.ndarray:
        """The same for images as a `data.Dataset` has them, uint8 (N, C, H, W), without a graph: uint8 (N, H,
        W, C)."""
        weight = self.get_parameter("decoder.last.weight")
        images = normalize(items.to(weight.device), self.value_range).to(weight.dtype)
        with torch.no_grad():
            made = to_uint8(self(images, c if c is None else c.to(weight.device)), self.value_range)
        return made.permute(0, 2, 3, 1).cpu().contiguous().numpy()

    def reconstruct(self, images: Tensor, c: Tensor | None = None) -> Reconstruction:
        """For training: with kl of a code drawn from the Gaussian, and the divergence `kl` in nats; with vq
        the `commitment`, the mean squared distance of the features to their codes."""
        if self.quantizer is None:
            mean, log_variance = self.posterior(images, c)
            noise = batch_randn(*mean.shape, device=mean.device, dtype=mean.dtype)
            codes = mean + (log_variance / 2).exp() * noise
            return Reconstruction(
                self.decoder.outputs(codes, c), images, {"kl": gaussian_kl(mean, log_variance)}
            )
        features = self._features(images, c)
        found = self._quantize(features)
        output = self.decoder.outputs(found.codes, c)
        return Reconstruction(output, images, self._penalties(found), self._use(features, found.indices))

    def imagine(self, count: int, c: Tensor | None = None, *, rows: Tensor | None = None) -> Tensor:
        """For training: the output, before `activate`, for codes from N(0, 1) that are drawn by row of the
        batch; of some `rows` only, an int64 tensor, if it is given. kl only."""
        parameter = self.get_parameter("decoder.last.weight")
        z = batch_randn(count, *self.code_shape, device=parameter.device, dtype=parameter.dtype)
        if rows is not None:
            z, c = z[rows], None if c is None else c[rows]
        return self.decoder.outputs(z, c)

    def activate(self, output: Tensor) -> Tensor:
        """Images of the output that the terms of a loss are computed from."""
        return self.decoder.activate(output)

    def learn_codes(self, statistics: CodeStatistics) -> None:
        """Updates the codebook by the statistics of a whole batch (vq)."""
        if isinstance(self.quantizer, VectorQuantizer):
            self.quantizer.learn(statistics)

    def _features(self, images: Tensor, c: Tensor | None) -> Tensor:
        check_input("images", images, tuple(self.image_shape), self.get_parameter("decoder.last.weight"))
        check_labels(c, images.shape[0], self.num_classes)
        features: Tensor = self.encoder(images, c)
        return features

    def _quantize(self, features: Tensor) -> Quantized:
        """Without updating a codebook, which training does once for all parts of a batch."""
        if isinstance(self.quantizer, VectorQuantizer):
            found: Quantized = self.quantizer(features, learn=False)
        else:
            found = self._check_discrete()(features)
        return found

    def _quantized(self, images: Tensor, c: Tensor | None) -> Quantized:
        return self._quantize(self._features(images, c))

    def _penalties(self, found: Quantized) -> dict[str, Tensor]:
        return {"commitment": found.loss} if isinstance(self.quantizer, VectorQuantizer) else {}

    def _use(self, features: Tensor, indices: Tensor) -> CodeStatistics:
        features = features.detach()
        if isinstance(self.quantizer, VectorQuantizer):
            first, total = whole_batch_part(len(features))
            places = math.prod(self.code_shape[1:])
            return self.quantizer.gather(features, indices, first * places, total * places)
        none = features.new_empty(0)
        return CodeStatistics(code_counts(indices, self._check_discrete().num_codes), none, none, none)

    def _check_discrete(self) -> VectorQuantizer | FiniteScalarQuantizer:
        if self.quantizer is None:
            raise ValueError(
                "the bottleneck is 'kl', but must be 'vq' or 'fsq': Gaussian codes have no numbers"
            )
        return self.quantizer


class _Encoder(nn.Module):
    def __init__(self, settings: AutoencoderConfig, places: tuple[int, int], outputs: int) -> None:
        super().__init__()
        widths, stem = settings.channels, settings.stem
        first = _convolution(settings.image_shape[0], widths[0], stem)
        layers: list[nn.Module] = [first]
        for i, width in enumerate(widths):
            if i:
                layers.append(_convolution(widths[i - 1], width, 2))
            layers += [_Block(width) for _ in range(settings.blocks)]
        if settings.attention:
            layers.append(SelfAttention2d(widths[-1]))
        self.layers = nn.Sequential(*layers)
        self.embedding = nn.Embedding(settings.num_classes, widths[-1]) if settings.num_classes else None
        self.norm = _norm(widths[-1])
        inputs = widths[-1] * math.prod(places) if settings.single_code else widths[-1]
        self.last = Linear(inputs, outputs) if settings.single_code else Conv2d(inputs, outputs, 1)

    def forward(self, images: Tensor, c: Tensor | None) -> Tensor:
        x = self.layers(images)
        if self.embedding is not None:
            x = x + self.embedding(c)[:, :, None, None]
        x = self.norm(x)
        features: Tensor = self.last(x.flatten(1) if isinstance(self.last, Linear) else x)
        return features


class _Decoder(nn.Module):
    """See `Autoencoder.decoder`."""

    def __init__(self, settings: AutoencoderConfig, places: tuple[int, int], code_dim: int) -> None:
        super().__init__()
        self.image_shape, self.num_classes = settings.image_shape, settings.num_classes
        self._code_shape = (code_dim,) if settings.single_code else (code_dim, *places)
        if settings.bottleneck == "kl":
            self.z_dim = math.prod(self._code_shape)
        self.value_range = (0.0, 1.0) if settings.output_act == "sigmoid" else (-1.0, 1.0)
        self._act, self._stem = settings.output_act, settings.stem
        widths = settings.channels
        self._coarsest = (widths[-1], *places)
        self.first: nn.Module = (
            Linear(code_dim, math.prod(self._coarsest))
            if settings.single_code
            else Conv2d(code_dim, widths[-1], 1)
        )
        self.embedding = nn.Embedding(settings.num_classes, widths[-1]) if settings.num_classes else None
        layers: list[nn.Module] = [SelfAttention2d(widths[-1])] if settings.attention else []
        for i in reversed(range(len(widths))):
            layers += [_Block(widths[i]) for _ in range(settings.blocks)]
            if i:
                layers.append(_Up(widths[i], widths[i - 1]))
        self.layers = nn.Sequential(*layers, _norm(widths[0]))
        self.last = Conv2d(widths[0], settings.image_shape[0] * settings.stem**2, 3, padding=1)

    def outputs(self, codes: Tensor, c: Tensor | None = None) -> Tensor:
        check_input("codes", codes, self._code_shape, self.get_parameter("last.weight"))
        check_labels(c, codes.shape[0], self.num_classes)
        x = self.first(codes)
        x = x.unflatten(1, self._coarsest) if x.dim() == 2 else x
        if self.embedding is not None:
            x = x + self.embedding(c)[:, :, None, None]
        return F.pixel_shuffle(self.last(self.layers(x)), self._stem)

    def activate(self, output: Tensor) -> Tensor:
        if self._act == "linear":
            return output
        return output.tanh() if self._act == "tanh" else output.sigmoid()

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) of codes (N, z_dim) from N(0, 1)."""
        return self.activate(self.outputs(z.reshape(-1, *self._code_shape), c))


class _Block(nn.Module):
    """Group norm, swish and convolution, twice, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels), _norm(channels)
        self.conv1, self.conv2 = (Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return x + y


class _Up(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return y


def _norm(channels: int) -> GroupNormAct:
    """At most 8 groups, of 4 channels at least: alone, a channel would lose its mean."""
    groups = next(n for n in (8, 4, 2, 1) if n == 1 or (channels % n == 0 and channels >= 4 * n))
    return GroupNormAct(groups, channels, act="swish", gain=1.0)


def _convolution(inputs: int, outputs: int, stride: int) -> Conv2d:
    """Of any stride, which divides the sides by it."""
    if stride == 1:
        return Conv2d(inputs, outputs, 3, padding=1)
    if stride % 2:  # what lies between would need other padding on each side
        return Conv2d(inputs, outputs, stride, stride=stride)
    return Conv2d(inputs, outputs, 2 * stride, stride=stride, padding=stride // 2)
