"""StyleGAN2: a generator of style-modulated convolutions and a residual discriminator (Karras, Laine,
Aittala, Hellsten, Lehtinen, Aila 2020, https://arxiv.org/abs/1912.04958), conditional as in the ADA paper
(Karras, Aittala, Hellsten, Laine, Lehtinen, Aila 2020, https://arxiv.org/abs/2006.06676).

The coarsest images are those of `models.dcgan`: as small as halving allows, but at least 4 pixels high and
wide. Images whose longer side is r pixels have `min(channel_base // r, channel_max)` channels.

Conditional forms (`num_classes` > 0): the generator's mapping network gets z and an embedding of the label,
each normalised; the discriminator's logit is the inner product of its features and a mapped embedding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from aigc_ext import ops
from aigc_ext.config import Count
from aigc_ext.models.checks import channels_at, check_input, check_labels, halvings_of
from aigc_ext.models.settings import (
    ClassCount,
    GeneratorConfig,
    ImageDiscriminatorConfig,
    ImageShape,
    LayerCount,
    Network,
    OutputAct,
    OutsideRun,
    takes,
)
from aigc_ext.models.style import (
    CLAMP,
    EqualizedConv2d,
    EqualizedLinear,
    MappingNetwork,
    StyleGenerator,
    compute_dtype,
    in_format_of,
)
from aigc_ext.nn import ModulatedConv2d, Upsample2d
from aigc_ext.nn.split_batch import batch_randn


@dataclass(frozen=True)
class StyleGAN2GeneratorConfig(GeneratorConfig):
    family: Literal["stylegan2"] = field(default="stylegan2", kw_only=True)
    image_shape: ImageShape = (3, 256, 256)
    z_dim: Count = 512
    """Length of the latent z."""
    w_dim: Count = 512
    """Length of w."""
    mapping_layers: LayerCount = 8
    """Layers from z to w."""
    channel_base: Count = 32768
    """A layer whose longer side is r pixels has this number divided by r channels."""
    channel_max: Count = 512
    """The largest number of channels of a layer."""
    num_classes: ClassCount = 0
    output_act: OutputAct = None
    """The activation of the RGB image; null: linear, as in the paper, but in a run tanh if much of the data
    is black or white."""


@dataclass(frozen=True)
class StyleGAN2DiscriminatorConfig(ImageDiscriminatorConfig):
    family: Literal["stylegan2"] = field(default="stylegan2", kw_only=True)
    image_shape: ImageShape = (3, 256, 256)
    channel_base: Count = 32768
    """A layer whose longer side is r pixels has this number divided by r channels."""
    channel_max: Count = 512
    """The largest number of channels of a layer."""
    group_size: Count = 4
    """Images per group of the minibatch standard deviation, which the last layers see."""
    num_classes: ClassCount = 0
    cmap_dim: OutsideRun[Count | None] = None
    """Length of the mapped label; null: the number of channels of the coarsest images."""
    mapping_layers: OutsideRun[LayerCount] = 8
    """Layers that map the embedding of the label."""


class StyleGAN2Generator(StyleGenerator):
    """Maps z, by w, to an image: a learned constant, two style-modulated convolutions with noise for each
    resolution, and an RGB image to which every resolution adds (skip architecture).

    Its arguments are the fields of `StyleGAN2GeneratorConfig`.

    Attributes:
        num_ws: one w for each convolution and for the last RGB layer, the coarsest first; each of the other
            RGB layers shares the w of the convolution that follows it.
        w_avg: running mean of w, for truncation.

    Raises:
        ValueError: the sides cannot be halved, or `channel_base` is less than the longer side.
    """

    @takes(StyleGAN2GeneratorConfig)
    def __init__(self, settings: StyleGAN2GeneratorConfig) -> None:
        image_shape, w_dim = settings.image_shape, settings.w_dim
        halvings = halvings_of(image_shape)
        super().__init__(settings, 2 * halvings + 2)
        sizes = [(image_shape[1] >> k, image_shape[2] >> k) for k in reversed(range(halvings + 1))]
        widths = [channels_at(max(size), settings.channel_base, settings.channel_max) for size in sizes]
        self.constant = nn.Parameter(torch.randn(1, widths[0], *sizes[0]))
        layers = [_StyledConv(widths[0], widths[0], w_dim, sizes[0])]
        for before, width, size in zip(widths, widths[1:], sizes[1:]):  # noqa: B905 (widths has one more)
            layers += [_StyledConv(before, width, w_dim, size, up=2), _StyledConv(width, width, w_dim, size)]
        self.layers = nn.ModuleList(layers)
        self.to_rgb = nn.ModuleList(_ToRGB(width, image_shape[0], w_dim) for width in widths)
        self.upsample = Upsample2d()

    def synthesis(self, w: Tensor, noise_mode: str = "random") -> Tensor:
        """Images from styles, roughly in [-1, 1].

        Activations have autocast's dtype (without autocast the weights'), the RGB image at least float32.

        Args:
            w: (N, num_ws, w_dim), as `mapping` returns it.
            noise_mode: "random" for new noise in every pixel (by `nn.split_batch.batch_randn`), "const" for
                the same noise in every call, kept in buffers, "none" for no noise.

        Returns:
            (N, C, H, W), in the dtype of the weights.

        Raises:
            ValueError: `w` has the wrong shape or dtype; `noise_mode` is not one of the three.
        """
        self._check_styles(w, noise_mode)
        dtype = compute_dtype(self.constant)
        wide = torch.promote_types(self.constant.dtype, torch.float32)
        with torch.autocast(w.device.type, enabled=False):
            w = w.to(self.constant.dtype)
            x = self.constant.to(dtype).expand(w.shape[0], -1, -1, -1)
            x = in_format_of(self.constant, x)
            x = self.layers[0](x, w[:, 0], noise_mode)
            image = self.to_rgb[0](x, w[:, 1]).to(wide)
            for k in range(1, len(self.to_rgb)):
                x = self.layers[2 * k - 1](x, w[:, 2 * k - 1], noise_mode)
                x = self.layers[2 * k](x, w[:, 2 * k], noise_mode)
                image = self.upsample(image) + self.to_rgb[k](x, w[:, 2 * k + 1])
            return self._limited(image.to(self.constant.dtype))


class StyleGAN2Discriminator(Network):
    """Maps an image to a logit: residual blocks that halve the sides, the standard deviation over groups of
    samples as one more channel, a convolution and two linear layers; leaky ReLU of slope 0.2.

    A group for the standard deviation consists of `group_size` consecutive samples, so that a batch split
    into whole groups gives the same logits. If the batch size is not a multiple of it, the group size is the
    batch size's largest divisor below `group_size`: 3 for 6 samples and a `group_size` of 4. For 5 samples it
    is 1, and the channel is about 0.

    Its arguments are the fields of `StyleGAN2DiscriminatorConfig`.

    Raises:
        ValueError: the sides cannot be halved, or `channel_base` is less than the longer side.
    """

    grows_before: ClassVar[Mapping[str, int]] = {"blocks": 0}
    group_size: int
    cmap_dim: int

    @takes(StyleGAN2DiscriminatorConfig)
    def __init__(self, settings: StyleGAN2DiscriminatorConfig) -> None:
        image_shape, halvings = settings.image_shape, halvings_of(settings.image_shape)
        sizes = [(image_shape[1] >> k, image_shape[2] >> k) for k in range(halvings + 1)]
        widths = [channels_at(max(size), settings.channel_base, settings.channel_max) for size in sizes]
        coarse = widths[-1]
        super().__init__(dataclasses.replace(settings, cmap_dim=settings.cmap_dim or coarse))
        num_classes = settings.num_classes
        self.from_rgb = EqualizedConv2d(image_shape[0], widths[0], 1)
        self.blocks = nn.Sequential(*(_DownBlock(widths[k], widths[k + 1]) for k in range(halvings)))
        self.conv = EqualizedConv2d(coarse + 1, coarse, 3)
        self.linear = EqualizedLinear(coarse * math.prod(sizes[-1]), coarse, act="lrelu")
        self.head = EqualizedLinear(coarse, self.cmap_dim if num_classes else 1)
        self.label_mapping = (
            MappingNetwork(0, self.cmap_dim, settings.mapping_layers, num_classes) if num_classes else None
        )

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits; positive means real.

        Args:
            images: (N, C, H, W), in the dtype of the weights (under autocast, any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.

        Returns:
            (N, 1), in the dtype of the weights. The layers after the blocks use it under autocast too.

        Raises:
            ValueError: `images` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network.
        """
        weight = self.head.weight
        check_input("images", images, self.image_shape, weight)
        check_labels(c, images.shape[0], self.num_classes)
        dtype = compute_dtype(weight)
        with torch.autocast(images.device.type, enabled=False):
            features = self.blocks(self.from_rgb(images.to(dtype))).to(weight.dtype)
            features = self.conv(self._with_deviation(features))
            logits: Tensor = self.head(self.linear(features.flatten(1)))
            if self.label_mapping is not None:
                logits = (logits * self.label_mapping(None, c)).sum(1, keepdim=True) / math.sqrt(
                    self.cmap_dim
                )
            return logits

    def group_of(self, n: int) -> int:
        """The size of the groups for the standard deviation in a batch of n."""
        return next(size for size in range(min(self.group_size, max(n, 1)), 0, -1) if n % size == 0)

    def _with_deviation(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        size = self.group_of(n)
        # In the op, the samples of a group are n / size apart.
        apart = x.unflatten(0, (n // size, size)).transpose(0, 1).flatten(0, 1)
        y = ops.minibatch_stddev(apart, size)
        return y.unflatten(0, (size, n // size)).transpose(0, 1).flatten(0, 1)


class _StyledConv(nn.Module):
    """An affine layer from w to styles, and a convolution modulated by them, with noise, bias and leaky
    ReLU."""

    noise: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, size: tuple[int, int], up: int = 1
    ) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        # Demodulation makes the scale of the weight irrelevant, so it needs no learning-rate factor.
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, up=up, clamp=CLAMP)
        self.register_buffer("noise", torch.randn(size))

    def forward(self, x: Tensor, w: Tensor, noise_mode: str) -> Tensor:
        noise = None
        if noise_mode == "random":
            noise = batch_randn(x.shape[0], 1, *self.noise.shape, device=x.device, dtype=x.dtype)
        elif noise_mode == "const":
            noise = self.noise[None, None]
        y: Tensor = self.conv(x, self.affine(w), noise)
        return y


class _ToRGB(nn.Module):
    """An affine layer from w to styles, and a 1x1 convolution modulated by them, without demodulation."""

    def __init__(self, in_channels: int, colours: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        self.conv = ModulatedConv2d(
            in_channels, colours, 1, demodulate=False, noise=False, act="linear", clamp=CLAMP
        )

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) * (1 / math.sqrt(x.shape[1]))
        y: Tensor = self.conv(x, styles)
        return y


class _DownBlock(nn.Module):
    """Two convolutions and a linear 1x1 shortcut, scaled so that their sum has the variance of either."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = math.sqrt(0.5)
        self.conv1 = EqualizedConv2d(in_channels, in_channels, 3)
        self.conv2 = EqualizedConv2d(in_channels, out_channels, 3, down=2, gain=half)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, down=2, bias=False, act="linear", gain=half)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x)) + self.skip(x)
        return y
