"""The parts shared by StyleGAN2 and StyleGAN3: the mapping network, the mean of w and truncation, and layers
with an equalised learning rate.

Papers: Karras, Laine, Aila 2019, https://arxiv.org/abs/1812.04948 (mapping, truncation); Karras et al. 2020,
https://arxiv.org/abs/1912.04958 (StyleGAN2); Karras, Aila, Laine, Lehtinen 2018,
https://arxiv.org/abs/1710.10196 (equalised learning rate: weights start from N(0, 1) and are scaled by
1 / sqrt(fan-in) in each forward, so that Adam's steps are equally large relative to all weights).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext import ops
from aigc_ext.models.checks import check_input, check_labels
from aigc_ext.models.settings import Network
from aigc_ext.nn.split_batch import whole_batch

CLAMP = 256.0
"""Largest magnitude of activations and of RGB, which keeps half types away from their limit (65504 for
float16). In float32 no activation comes near it; it applies there too, so that a network is the same function
in all dtypes."""

NOISE_MODES = ("random", "const", "none")

_MAPPING_RATE = 0.01  # learning rate relative to the other layers (2019, appendix C)
_W_AVG_HALF_LIFE = 5000  # images: a factor of 0.9956 for a batch of 32


class EqualizedLinear(nn.Module):
    """A linear layer and an activation, with an equalised learning rate.

    Args:
        in_features, out_features: sizes of the last dimension of the input and the output.
        act, gain: as in `nn.Linear` of this package.
        rate: factor of the learning rate of weight and bias.
        bias: initial value of the bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        act: str = "linear",
        gain: float | None = None,
        rate: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.act, self.gain, self.rate = act, gain, rate
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate)
        self.bias = nn.Parameter(torch.full((out_features,), bias / rate))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * (self.rate / math.sqrt(self.weight.shape[1]))
        bias = self.bias if self.rate == 1 else self.bias * self.rate
        return ops.linear_act(x, weight, bias, act=self.act, gain=self.gain)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, act={self.act!r}, rate={self.rate}"


class EqualizedConv2d(nn.Module):
    """A convolution that keeps the size or halves it, and an activation, with an equalised learning rate.

    Args:
        in_channels, out_channels, kernel_size: sizes of the weight; the kernel is square and odd.
        down: factor of the downsampling with the filter [1, 3, 3, 1] (2020, section 4).
        bias: whether there is one.
        act: the activation.
        gain: factor after it; the clamp is `CLAMP * gain` (a block adds two branches of gain sqrt(1/2)).
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        down: int = 1,
        bias: bool = True,
        act: str = "lrelu",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.down, self.act = down, act
        self.gain, self.clamp = gain * (math.sqrt(2) if act == "lrelu" else 1.0), CLAMP * gain
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        if down > 1:
            self.register_buffer("resample_filter", ops.setup_filter((1, 3, 3, 1)))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * (1 / math.sqrt(self.weight[0].numel()))).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        padding = self.weight.shape[2] // 2
        if self.down == 1:
            return ops.conv2d_act(
                x, weight, bias, padding=padding, act=self.act, gain=self.gain, clamp=self.clamp
            )
        y = ops.conv2d_resample(x, weight, self.resample_filter, down=self.down, padding=padding)
        return ops.bias_act(y, bias, act=self.act, gain=self.gain, clamp=self.clamp)

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel_size, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={kernel_size}, down={self.down}, act={self.act!r}"


class MappingNetwork(nn.Module):
    """Maps normalised latents and an embedding of the labels to w, by layers of equal width with leaky ReLU.

    Args:
        z_dim: length of z; 0 for only labels.
        w_dim: length of w, of the hidden layers and of the embedding.
        layers: number of layers.
        num_classes: number of labels, or 0.
    """

    def __init__(self, z_dim: int, w_dim: int, layers: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, w_dim) if num_classes else None
        widths = [z_dim + (w_dim if num_classes else 0)] + [w_dim] * layers
        self.layers = nn.Sequential(
            *(EqualizedLinear(*pair, act="lrelu", rate=_MAPPING_RATE) for pair in pairwise(widths))
        )

    def forward(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        parts = [] if z is None else [z]
        if self.embedding is not None:
            parts.append(self.embedding(c))
        w: Tensor = self.layers(torch.cat([ops.pixel_norm(part) for part in parts], dim=1))
        return w


class StyleGenerator(Network, ABC):
    """The mapping from z to w, and `forward`; a subclass defines the `synthesis` from w to images.

    Args:
        settings: the subclass's settings, with `z_dim`, `w_dim`, `mapping_layers` and `output_act`.
        num_ws: the number of layers with their own w.
    """

    value_range = (-1.0, 1.0)
    z_dim: int
    w_dim: int
    mapping_layers: int
    output_act: str
    w_avg: Tensor

    def __init__(self, settings: Any, num_ws: int) -> None:
        super().__init__(dataclasses.replace(settings, output_act=settings.output_act or "linear"))
        self.num_ws = num_ws
        self.mapping_network = MappingNetwork(self.z_dim, self.w_dim, self.mapping_layers, self.num_classes)
        self.register_buffer("w_avg", torch.zeros(self.w_dim))

    def mapping(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """The styles w of latents, before truncation the same for all layers.

        In training mode `w_avg`, the mean of w over all labels, follows the mean of the batch. The mapping
        ignores autocast: it is small, and its weights don't suit half types.

        Args:
            z: latents (N, z_dim), in the dtype of the weights (under autocast, any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.
            truncation: psi; w becomes `w_avg + psi * (w - w_avg)` (2019, section B). 1 is off.
            truncation_cutoff: the number of layers, from the coarsest, to truncate; None for all.

        Returns:
            (N, num_ws, w_dim), in the dtype of the weights.

        Raises:
            ValueError: `z` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network; `truncation` is not finite, `truncation_cutoff` not from 0
                to `num_ws`.
        """
        if not math.isfinite(truncation):
            raise ValueError(f"truncation is {truncation}, but must be a finite number")
        if truncation_cutoff is not None and not 0 <= truncation_cutoff <= self.num_ws:
            raise ValueError(
                f"truncation_cutoff is {truncation_cutoff}, but must be from 0 to {self.num_ws}, the layers"
            )
        weight = self.mapping_network.get_parameter("layers.0.weight")
        check_input("z", z, (self.z_dim,), weight)
        check_labels(c, z.shape[0], self.num_classes)
        with torch.autocast(z.device.type, enabled=False):
            w: Tensor = self.mapping_network(z.to(weight.dtype), c)
            if self.training and z.shape[0]:
                follow(self.w_avg, w.detach().mean(0), z.shape[0], _W_AVG_HALF_LIFE)
            ws = w[:, None].expand(-1, self.num_ws, -1)
            if truncation != 1:
                truncated = self.w_avg.lerp(w, truncation)[:, None].expand(-1, self.num_ws, -1)
                cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
                ws = torch.cat([truncated[:, :cutoff], ws[:, cutoff:]], dim=1)
            return ws

    @abstractmethod
    def synthesis(self, w: Tensor, noise_mode: str = "random") -> Tensor:
        """Images from styles (N, num_ws, w_dim)."""

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str | None = None,
    ) -> Tensor:
        """Images from latents, roughly in [-1, 1]: `synthesis(mapping(...))`.

        Args:
            z, c, truncation, truncation_cutoff: as for `mapping`.
            noise_mode: as for `synthesis`; None is "random" in training mode, else "const".

        Returns:
            (N, C, H, W), in the dtype of the weights.

        Raises:
            ValueError: as for `mapping` and `synthesis`.
        """
        if noise_mode is None:
            noise_mode = "random" if self.training else "const"
        return self.synthesis(self.mapping(z, c, truncation, truncation_cutoff), noise_mode)

    def _limited(self, image: Tensor) -> Tensor:
        return image.tanh() if self.output_act == "tanh" else image

    def _check_styles(self, w: Tensor, noise_mode: str) -> None:
        check_input("w", w, (self.num_ws, self.w_dim), self.mapping_network.get_parameter("layers.0.weight"))
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode is {noise_mode!r}, but must be one of {', '.join(NOISE_MODES)}")


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of images inside a network: autocast's, or without autocast that of the weights."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def in_format_of(weight: Tensor, x: Tensor) -> Tensor:
    """`x` in the memory format of `weight`: channels-last after `network.to(memory_format=...)`."""
    # A 1x1 weight is contiguous in both formats; its strides tell which one it was converted to.
    last = weight.stride(1) == 1 and weight.stride(3) == weight.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@torch.no_grad()
def follow(average: Tensor, value: Tensor, images: int, half_life: float) -> None:
    """Moves `average` towards `value`, the mean over `images` images: half the way in `half_life` images,
    however they are split into batches. A part of a batch moves it as far as the whole batch would, since the
    trainer then averages over the parts."""
    average.lerp_(value.to(average.dtype), 1 - 0.5 ** (whole_batch(images) / half_life))
