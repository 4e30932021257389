"""Random augmentation of the images that a discriminator sees, so that it cannot memorise a small data set.

`AdaAugment` is adaptive discriminator augmentation (Karras, Aittala, Hellsten, Laine, Lehtinen, Aila 2020,
"Training Generative Adversarial Networks with Limited Data", https://arxiv.org/abs/2006.06676), `DiffAugment`
the augmentation of Zhao, Liu, Lin, Zhu, Han 2020, "Differentiable Augmentation for Data-Efficient GAN
Training" (https://arxiv.org/abs/2006.10738).

Both map images (N, C, H, W) to images of the same shape, dtype and memory format, draw new random numbers for
every sample in every call, and are affine in the images, so that R1 can be differentiated through them.
PyTorch's `grid_sample` has no second derivative; a warp here is four weighted `gather`s, whose derivatives
are again sums and `gather`s. On the CPU equal draws give bit-identical results.

1 channel is grey, 3 are red, green and blue, and a fourth is alpha, which changes of colour leave alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext.nn.split_batch import batch_randn


class _Augment(nn.Module):
    """The base class: changes each image independently.

    Raises:
        ValueError: `value_range` is not two finite numbers, the lower one first.
    """

    def __init__(self, value_range: tuple[float, float]) -> None:
        super().__init__()
        low, high = self.value_range = (value_range[0], value_range[1])
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"value_range is {value_range}, but must be two finite numbers, the lower one first"
            )

    def forward(self, images: Tensor) -> Tensor:
        """The images, each changed independently.

        Raises:
            ValueError: `images` is not floating point, or not (N, C, H, W) with 1, 3 or 4 channels.
        """
        if images.dim() != 4 or images.size(1) not in (1, 3, 4):
            raise ValueError(
                f"images have shape {tuple(images.shape)}, but must be (N, C, H, W) with 1, 3 or 4 channels"
            )
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, but must be floating point")
        last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        memory_format = torch.channels_last if last else torch.contiguous_format
        return self._changed(images).to(images.dtype, memory_format=memory_format)

    def _changed(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class AdaAugment(_Augment):
    """Applies each of many changes to a sample with probability `p`, and has the controller that adapts `p`.

    - blit: mirroring, turns by 90 degrees (of square images), and shifts by whole pixels, up to 1/8 of a
      side;
    - geometric: scaling, rotation, squeezing one axis and stretching the other, and shifts by any distance;
    - color: brightness and contrast, and for colour images also luma inversion, hue and saturation.

    The first two are one affine map of the image, extended by reflection, with one bilinear interpolation,
    which copies pixels if only blits happen. (The paper also filters, against aliasing.) With p = 0 the
    result is the images, bit for bit.

    The controller: `observe` takes D's logits of the augmented real images, or `observe_mean` the mean of
    their signs, which several processes average first. Every few steps, `adjust` moves `p` so that r_t, the
    mean sign of all these logits, approaches its target. The buffers `p`, `sum` and `count` are its complete
    state.

    Args:
        p: initial probability.
        blit, geometric, color: which groups to use.
        value_range: of the images.

    Raises:
        ValueError: `p` is not from 0 to 1, or `value_range` not two finite numbers, the lower one first.
    """

    p: Tensor
    sum: Tensor
    count: Tensor

    def __init__(
        self,
        p: float = 0.0,
        blit: bool = True,
        geometric: bool = True,
        color: bool = True,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(value_range)
        self.blit, self.geometric, self.color = blit, geometric, color
        self.register_buffer("p", torch.zeros(()))
        self.set_p(p)
        self.register_buffer("sum", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def _changed(self, images: Tensor) -> Tensor:
        y = images
        if self.blit or self.geometric:
            y = _warp(y, *self._to_source(images))
        return self._recolored(y) if self.color else y

    @torch.no_grad()
    def observe(self, real_logits: Tensor) -> None:
        """Counts the signs of D's logits of augmented real images, of any shape. Doesn't wait for the
        device."""
        self.observe_mean(real_logits.sign().float().mean(), real_logits.numel())

    @torch.no_grad()
    def observe_mean(self, sign: Tensor, logits: int) -> None:
        """Counts `logits` logits by the mean of their signs, 0-d, or none if that is NaN. Doesn't wait for
        the device."""
        known = sign.isfinite()
        self.sum += torch.where(known, sign, 0) * logits
        self.count += known * logits

    @torch.no_grad()
    def adjust(self, images: int, target: float = 0.6, kimg: float = 500.0) -> None:
        """Moves `p` according to the observations since the last call, if there were any.

        Args:
            images: real images shown since the last call: batch size times steps.
            target, kimg: as for `adjusted_p`.
        """
        self.p.copy_(adjusted_p(self.p, self.rt, images, target, kimg))
        self.sum.zero_()
        self.count.zero_()

    @torch.no_grad()
    def set_p(self, p: float) -> None:
        """Sets a probability that follows a schedule; raises ValueError if it is not from 0 to 1."""
        if not 0 <= p <= 1:
            raise ValueError(f"p is {p}, but must be from 0 to 1")
        self.p.fill_(p)

    @property
    def rt(self) -> Tensor:
        """Mean sign of the logits observed since the last `adjust`; NaN if there were none."""
        return self.sum / self.count

    def extra_repr(self) -> str:
        return f"blit={self.blit}, geometric={self.geometric}, color={self.color}"

    def _to_source(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The source position of each pixel of the result, relative to the centres: `matrix @ (x, y) +
        shift`, of shapes (N, 2, 2) and (N, 2)."""
        n, _, height, width = images.shape
        options: dict[str, Any] = {"dtype": _wide(images), "device": images.device}
        sides = torch.stack([torch.full((), side, **options) for side in (width, height)])
        matrix, shift = torch.eye(2, **options).expand(n, 2, 2), torch.zeros(n, 2, **options)
        if self.blit:
            happens, u = _uniform(images, 3) < self.p, _uniform(images, 4)
            mirror = torch.where(happens[:, 0] & (u[:, 0] < 0.5), -1.0, 1.0).to(sides.dtype)
            turn = torch.where(happens[:, 1], _below(4, u[:, 1]), 0)
            if height != width:
                turn = torch.zeros_like(turn)
            # Cosine and sine of quarter turns, exact, so that pixels land on pixels.
            cos, sin = ((turn == k).to(sides.dtype) - (turn == k + 2).to(sides.dtype) for k in (0, 1))
            matrix = _matrix(mirror * cos, -mirror * sin, sin, cos)
            shift = torch.where(happens[:, 2:], ((u[:, 2:] - 0.5) / 4 * sides).round(), 0)
        if self.geometric:
            happens, u, v = _uniform(images, 3) < self.p, _uniform(images, 4), _normal(images, 4)
            size, squeeze = torch.where(happens[:, :2], 0.2 * v[:, :2], 0).exp2().unbind(1)
            # One rotation before and one after the squeezing, so that its direction is arbitrary; the
            # probability of at least one is p.
            rotates = u[:, :2] < 1 - (1 - self.p).sqrt()
            first, second = torch.where(rotates, math.pi * (2 * u[:, 2:] - 1), 0).unbind(1)
            zero = torch.zeros_like(size)
            inner = _product(_matrix(size * squeeze, zero, zero, size / squeeze), _rotation(second))
            moved = torch.where(happens[:, 2:], v[:, 2:] / 8 * sides, 0)
            matrix = _product(matrix, _product(_rotation(first), inner))
            shift = shift + _apply(matrix, moved)
        return matrix, shift

    def _recolored(self, x: Tensor) -> Tensor:
        """The paper's product of matrices, expanded: the grey axis is scaled, the chroma plane scaled and
        rotated."""
        happens, u, v = _uniform(x, 5) < self.p, _uniform(x, 2), _normal(x, 3)
        brightness = torch.where(happens[:, 0], 0.2 * v[:, 0], 0)
        contrast = torch.where(happens[:, 1], 0.5 * v[:, 1], 0).exp2()
        low, high = self.value_range
        middle, half = (low + high) / 2, (high - low) / 2
        x = x.to(v.dtype)
        if x.size(1) == 1:
            offset = middle - contrast * middle + contrast * half * brightness
            return x * _per_sample(contrast) + _per_sample(offset)
        grey = torch.where(happens[:, 2] & (u[:, 0] < 0.5), -contrast, contrast)
        angle = torch.where(happens[:, 3], math.pi * (2 * u[:, 1] - 1), 0)
        saturation = contrast * torch.where(happens[:, 4], v[:, 2], 0).exp2()
        along, across = saturation * angle.cos(), saturation * angle.sin() / math.sqrt(3)
        offset = middle - grey * middle + grey * half * brightness
        x, alpha = x[:, :3], x[:, 3:]
        y = x * _per_sample(along) + x.mean(1, keepdim=True) * _per_sample(grey - along)
        y = y + (x.roll(1, 1) - x.roll(-1, 1)) * _per_sample(across) + _per_sample(offset)
        return torch.cat([y, alpha], 1)


def adjusted_p(p: Tensor, rt: Tensor, images: int, target: float = 0.6, kimg: float = 500.0) -> Tensor:
    """`p`, moved in the direction that brings r_t to its target, and clamped to [0, 1].

    Args:
        p, rt: 0-d; `rt` is the mean sign of D's logits of real images: near 0 if D cannot recognise them,
            near 1 if it recognises all; NaN leaves `p` unchanged.
        images: real images since `p` was last moved.
        kimg: thousands of images in which `p` can go from 0 to 1.

    Raises:
        ValueError: `kimg` is not positive.
    """
    if not kimg > 0:
        raise ValueError(f"kimg is {kimg}, but must be greater than 0")
    # The sign of NaN, when nothing was observed, is 0.
    return (p + (rt - target).sign() * (images / (kimg * 1000))).clamp(0, 1)


class DiffAugment(_Augment):
    """Applies all of these changes to every sample:

    - color: brightness by up to a quarter of the value range either way; then, for colour images, saturation
      by a factor from 0 to 2; then contrast by 0.5 to 1.5, about the sample's mean;
    - translation: by up to 1/8 of each side, in whole pixels;
    - cutout: a rectangle of half the height and half the width, with its centre anywhere in the image.

    Pixels that are cut out or come from outside have the middle of the value range, in alpha too.

    Args:
        color, translation, cutout: which changes to use.
        value_range: of the images.

    Raises:
        ValueError: `value_range` is not two finite numbers, the lower one first.
    """

    def __init__(
        self,
        color: bool = True,
        translation: bool = True,
        cutout: bool = True,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(value_range)
        self.color, self.translation, self.cutout = color, translation, cutout

    def _changed(self, images: Tensor) -> Tensor:
        low, high = self.value_range
        middle = (low + high) / 2
        height, width = images.shape[2:]
        rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
        y = images
        if self.color:
            u = _uniform(images, 3)
            y, alpha = y[:, :3], y[:, 3:]
            y = y + _per_sample((u[:, 0] - 0.5) * ((high - low) / 2))
            if y.size(1) == 3:
                y = torch.lerp(y.mean(1, keepdim=True), y, _per_sample(2 * u[:, 1]))
            y = torch.lerp(y.mean((1, 2, 3), keepdim=True), y, _per_sample(0.5 + u[:, 2]))
            y = torch.cat([y, alpha], 1)
        if self.translation:
            u = _uniform(images, 2)
            up, left = _share(height, 8), _share(width, 8)
            from_y = rows + (_below(2 * up + 1, u[:, :1]) - up)
            from_x = columns + (_below(2 * left + 1, u[:, 1:]) - left)
            inside = _both(_is_below(height, from_y), _is_below(width, from_x))
            index = from_y.clamp(0, height - 1)[:, :, None] * width + from_x.clamp(0, width - 1)[:, None]
            y = torch.where(inside, _picked(y, index), middle)
        if self.cutout:
            u = _uniform(images, 2)
            cut_y, cut_x = _share(height, 2), _share(width, 2)
            in_y = rows - (_below(height, u[:, :1]) - cut_y // 2)
            in_x = columns - (_below(width, u[:, 1:]) - cut_x // 2)
            y = torch.where(_both(_is_below(cut_y, in_y), _is_below(cut_x, in_x)), middle, y)
        return y

    def extra_repr(self) -> str:
        return f"color={self.color}, translation={self.translation}, cutout={self.cutout}"


# ---- random numbers: all of them come from these two functions -----------------------------------------


def _normal(images: Tensor, k: int) -> Tensor:
    """k numbers from N(0, 1) for each sample: (N, k), drawn in float32 for any dtype of the images."""
    return batch_randn(images.size(0), k, device=images.device).to(_wide(images))


def _uniform(images: Tensor, k: int) -> Tensor:
    """k uniform numbers from 0 to 1 for each sample: (N, k). They are normal numbers mapped by the
    distribution function of N(0, 1), so that there is only one kind of draw; rounding can give a 1."""
    return torch.special.ndtr(_normal(images, k))


def _below(n: int, u: Tensor) -> Tensor:
    """A uniform integer from 0 to n - 1, from a uniform number."""
    return (u * n).long().clamp(max=n - 1)


# ---- the affine map ------------------------------------------------------------------------------------


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack((a, b, c, d), 1).unflatten(1, (2, 2))


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrix(cos, -sin, sin, cos)


def _product(a: Tensor, b: Tensor) -> Tensor:
    # Not matmul, which may use TF32: a pixel's position needs full float32.
    return (a[:, :, :, None] * b[:, None]).sum(2)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector[:, None]).sum(2)


def _warp(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """The bilinear interpolation of x (N, C, H, W) at `matrix @ (x, y) + shift` for each pixel (x, y),
    relative to the centre; outside, x is extended by reflection about its outermost pixels."""
    height, width = x.shape[2:]
    rows, columns = (torch.arange(n, dtype=matrix.dtype, device=x.device) - (n - 1) / 2 for n in x.shape[2:])
    taps = []
    for axis, size in ((0, width), (1, height)):
        place = matrix[:, axis, 0, None] * columns + (shift[:, axis, None] + (size - 1) / 2)
        place = place[:, None, :] + (matrix[:, axis, 1, None] * rows)[:, :, None]
        period = max(2 * (size - 1), 1)
        place = place - (place / period).floor() * period
        place = torch.minimum(place, period - place).clamp(0, size - 1)
        first = place.floor()
        second = first.long()
        taps.append((second, (second + 1).clamp(max=size - 1), place - first))
    (left, right, to_right), (top, bottom, to_bottom) = taps
    y = _picked(x, top * width + left) * ((1 - to_bottom) * (1 - to_right))[:, None]
    y = y + _picked(x, top * width + right) * ((1 - to_bottom) * to_right)[:, None]
    y = y + _picked(x, bottom * width + left) * (to_bottom * (1 - to_right))[:, None]
    return y + _picked(x, bottom * width + right) * (to_bottom * to_right)[:, None]


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """The pixels (N, C, H, W) of x at the row-major `index` (N, H, W)."""
    every_channel = index.flatten(1)[:, None].expand(-1, x.size(1), -1)
    return x.flatten(2).gather(2, every_channel).view_as(x)


# ---- the rest ------------------------------------------------------------------------------------------


def _wide(images: Tensor) -> torch.dtype:
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _is_below(n: int, i: Tensor) -> Tensor:
    return (i >= 0) & (i < n)


def _both(rows: Tensor, columns: Tensor) -> Tensor:
    """The mask (N, 1, H, W) of the pixels whose row (N, H) and column (N, W) are marked."""
    return (rows[:, :, None] & columns[:, None])[:, None]


def _share(size: int, part: int) -> int:
    """size / part, rounded half up."""
    return (2 * size + part) // (2 * part)
