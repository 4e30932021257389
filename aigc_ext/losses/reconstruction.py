"""Losses between items and their reconstructions, and the divergence of a Gaussian code.

Shapes: items `[N, ...]`, floating point. Each loss is a 0-d tensor, float64 for float64 items and else
float32, the mean over the N items of

- `reduction="mean"`: the mean over an item's values, so that one weight suits all sizes;
- `reduction="sum"`: their sum, as likelihoods need it.

Gradients flow to both arguments where that makes sense; pass a target that needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("mean", "sum")


def l1(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """`|output - target|`: the likelihood of a Laplace distribution, up to constants.

    Raises:
        ValueError: shapes differ, or `reduction` is none of these (all losses here).
    """
    output, target = _checked(output, target)
    return _reduced((output - target).abs(), reduction)


def l2(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """`(output - target)^2`, without a factor of 1/2."""
    output, target = _checked(output, target)
    return _reduced((output - target).square(), reduction)


def charbonnier(output: Tensor, target: Tensor, eps: float = 1e-3, reduction: str = "mean") -> Tensor:
    """`sqrt((output - target)^2 + eps^2)`: L1 with a smooth bottom (Charbonnier et al. 1994; Lai et al. 2017,
    "Deep Laplacian Pyramid Networks", equation 4).

    Raises:
        ValueError: also if `eps` is not positive.
    """
    if not eps > 0:
        raise ValueError(f"eps is {eps}, but must be greater than 0")
    output, target = _checked(output, target)
    return _reduced(((output - target).square() + eps * eps).sqrt(), reduction)


def bernoulli_nll(logits: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
    """`-log p(target)` in nats, of independent pixels that are 1 with probability `sigmoid(logits)`.

    Args:
        target: in [0, 1]. Values between are the probabilities of 1: the result is then the expectation over
            pixels drawn from them (dynamic binarisation), without drawing any.
    """
    logits, target = _checked(logits, target)
    return _reduced(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), reduction)


def perceptual(
    output: Tensor,
    target: Tensor,
    features: Callable[[Tensor], Tensor | Sequence[Tensor]],
    reduction: str = "mean",
) -> Tensor:
    """The mean, over layers, of L1 between the features of both (Johnson, Alahi and Fei-Fei 2016, "Perceptual
    Losses for Real-Time Style Transfer"). `features` maps items to the features of one or several layers,
    `[N, ...]`; those of the target are computed without a graph."""
    ours = features(output)
    with torch.no_grad():
        theirs = features(target)
    pairs = [(ours, theirs)] if isinstance(ours, Tensor) else list(zip(ours, theirs, strict=True))
    return torch.stack([l1(a, b, reduction) for a, b in pairs]).mean()  # type: ignore[arg-type]


def gaussian_kl(mean: Tensor, log_variance: Tensor, reduction: str = "sum") -> Tensor:
    """The divergence of `N(mean, exp(log_variance))` from `N(0, 1)` in nats,
    `(mean^2 + var - log var - 1) / 2` (Kingma and Welling 2013, "Auto-Encoding Variational Bayes",
    appendix B)."""
    mean, log_variance = _checked(mean, log_variance)
    return _reduced((mean.square() + log_variance.exp() - log_variance - 1) / 2, reduction)


def _checked(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if output.shape != target.shape:
        raise ValueError(f"the shapes are {list(output.shape)} and {list(target.shape)}, but must be equal")
    dtype = torch.promote_types(torch.promote_types(output.dtype, target.dtype), torch.float32)
    return output.to(dtype), target.to(dtype)


def _reduced(values: Tensor, reduction: str) -> Tensor:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, but must be one of {', '.join(map(repr, REDUCTIONS))}")
    return values.mean() if reduction == "mean" else values.sum() / len(values)
