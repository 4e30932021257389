"""The Gaussian blur of all that a discriminator sees early in training (Karras, Aittala, Laine, Härkönen,
Hellsten, Lehtinen, Aila 2021, "Alias-Free Generative Adversarial Networks", https://arxiv.org/abs/2106.12423,
appendix; there for configuration R).

Fine detail alone tells early samples from real images, and a generator learns little from a D that looks at
nothing else; without the detail, D has to look at the rest first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aigc_ext.ops import filter2d


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W), each pixel the mean of those around it, weighted by a Gaussian; of the same shape,
    dtype and format.

    The weights reach to 3 sigma, rounded up, and what lies outside the image has none: the mean is over the
    pixels that exist. So a border gets no darker, whatever the images' range of values is, and sigma may be
    larger than the image, whose pixels then all come near their mean. The map is linear; penalties go through
    it. With sigma = 0 the result is `images` themselves.

    Args:
        images: floating point.
        sigma: standard deviation in pixels.

    Raises:
        ValueError: `sigma` is negative or not finite.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma is {sigma}, but must be a finite number from 0 on")
    if sigma == 0:
        return images
    # Rounded up, so that the neighbours' weight goes to 0 with sigma, instead of from 1 % to nothing.
    reach = min(math.ceil(3 * sigma), max(images.shape[2:]) - 1)
    distance = torch.arange(-reach, reach + 1, dtype=torch.float64, device=images.device)
    weights = (-0.5 * (distance / sigma).square()).exp()
    weights = weights / weights.sum()
    there = filter2d(images.new_ones(1, 1, *images.shape[2:]), weights)
    return filter2d(images, weights) / there
