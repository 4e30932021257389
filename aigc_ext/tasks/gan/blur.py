"""The Gaussian blur of everything that a discriminator sees early in training (Karras, Aittala, Laine,
Härkönen, Hellsten, Lehtinen, Aila 2021, "Alias-Free Generative Adversarial Networks", https://arxiv.org/abs/2106.12423,
appendix; there for configuration R).

Fine detail alone distinguishes early samples from real images, and a generator learns little from a D that
sees nothing else; without the detail, D must first learn everything else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aigc_ext.ops import filter2d


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W), each pixel the mean of those around it, weighted by a Gaussian; of the same shape,
    dtype and format.

    The kernel reaches to 3 sigma, rounded up, and the mean is over only those pixels that lie in the image.
    So borders don't darken, whatever the images' value range, and sigma may exceed the image size, in which
    case all pixels approach their mean. The map is linear, so penalties can be differentiated through it.
    With sigma = 0 the result is `images` themselves.

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
    # Rounded up, so that the neighbours' weight goes to 0 with sigma instead of jumping from 1 % to 0.
    reach = min(math.ceil(3 * sigma), max(images.shape[2:]) - 1)
    distance = torch.arange(-reach, reach + 1, dtype=torch.float64, device=images.device)
    weights = (-0.5 * (distance / sigma).square()).exp()
    weights = weights / weights.sum()
    there = filter2d(images.new_ones(1, 1, *images.shape[2:]), weights)
    return filter2d(images, weights) / there
