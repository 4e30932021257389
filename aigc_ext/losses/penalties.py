"""Gradient penalties for the discriminator.

``D`` is any callable that maps images ``[N, ...]`` to logits ``[N]``, ``[N, 1]`` or ``[N, ...]`` (patches,
whose logits are summed per sample). Pass a conditional discriminator as a closure,
``lambda x: D(x, labels)``. Each penalty is the mean over the batch, a 0-d tensor, float64 for float64 images,
otherwise float32. The caller multiplies it by its factor (gamma / 2, lambda). It is differentiable in the
parameters of ``D``, but not in the images, which are treated as constants.

The gradient of D with respect to the images is differentiated again, so every layer of ``D`` needs a double
backward (ours have one). ``finite_difference=True`` needs none: two calls of ``D`` estimate the slope along a
random direction e ~ N(0, I) as ``((D(x) - D(x + sigma * e)) / sigma)^2``, whose expectation is
``||grad D(x)||^2`` up to O(sigma^2) (Lin et al. 2025, "Diffusion Adversarial Post-Training for One-Step Video
Generation"). For this ``D`` must be deterministic (no dropout). The rounding error of the slope is about
``eps * |D(x)| / sigma``: with half-precision images or logits, use a sigma larger than 0.01.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from aigc_ext import ops


def r1_penalty(
    D: Callable[[Tensor], Tensor],
    x: Tensor,
    finite_difference: bool = False,
    sigma: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean of ``||grad D(x)||^2`` at real images (Mescheder et al. 2018); used with a factor of gamma / 2.

    Args:
        D: maps images ``[N, ...]`` to logits; see the module's docstring.
        x: real images ``[N, ...]``, floating point.
        finite_difference: estimate without a double backward; see the module's docstring.
        sigma: the step of the finite difference, in units of the images.
        generator: source of the random direction; None for torch's default generator of the device.

    Raises:
        ValueError: ``x`` is not floating point or has no batch dimension; there is not at least one logit per
            sample, or the logits do not depend on ``x``; ``sigma`` is not positive.
    """
    if finite_difference:
        return _slope(D, x, sigma, generator).square().mean()
    return _gradient_sqnorm(D, x).mean()


def r1_of_logits(logits: Tensor, x: Tensor) -> Tensor:
    """:func:`r1_penalty` for existing logits: with ``x.requires_grad_()``, the same ``logits = D(x)`` serve
    for the adversarial loss and the penalty, which saves a call of ``D``.

    A ``backward()`` gives ``x`` a gradient too, unless its ``inputs`` are the parameters of ``D``.

    Raises:
        ValueError: ``logits`` do not depend on ``x``; shapes or dtypes are wrong, as for :func:`r1_penalty`.
    """
    _check_images(x, "x")
    return _sqnorm_of_gradient(logits, x, torch.is_grad_enabled()).mean()


def r2_penalty(
    D: Callable[[Tensor], Tensor],
    fake: Tensor,
    finite_difference: bool = False,
    sigma: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`r1_penalty` at generated images; no gradient flows into the generator."""
    return r1_penalty(D, fake, finite_difference, sigma, generator)


def wgan_gp(
    D: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator | None = None,
    finite_difference: bool = False,
    sigma: float = 0.01,
) -> Tensor:
    """Mean of ``(||grad D(x)|| - 1)^2`` at random points between real and generated images (Gulrajani et al.
    2017); used with a factor of 10.

    Where the gradient of D is exactly 0, the penalty is 1 and its gradient 0 (the norm has no gradient
    there).

    Args:
        D, finite_difference, sigma: as for :func:`r1_penalty`. The estimate of the norm is unbiased too, so
            a batch's penalty may be negative.
        real, fake: ``[N, ...]``, of the same shape and dtype.
        generator: source of the uniform point on each line and of the random direction.

    Raises:
        ValueError: as for :func:`r1_penalty`; ``real`` and ``fake`` differ in shape, dtype or device.
    """
    _check_images(real, "real")
    _check_images(fake, "fake")
    if real.shape != fake.shape or real.dtype != fake.dtype or real.device != fake.device:
        raise ValueError(
            f"fake is {list(fake.shape)} {fake.dtype} on {fake.device}, but must be as real: "
            f"{list(real.shape)} {real.dtype} on {real.device}"
        )
    shape = (real.shape[0],) + (1,) * (real.dim() - 1)
    t = torch.rand(shape, dtype=real.dtype, device=real.device, generator=generator)
    x = torch.lerp(real.detach(), fake.detach(), t)
    return _unit_slope_penalty(D, x, finite_difference, sigma, generator)


def dragan(
    D: Callable[[Tensor], Tensor],
    real: Tensor,
    generator: torch.Generator | None = None,
    noise: float = 0.5,
    finite_difference: bool = False,
    sigma: float = 0.01,
) -> Tensor:
    """Mean of ``(||grad D(x)|| - 1)^2`` near real images, ``x = real + noise * std(real) * e`` with e ~ N(0,
    I) (Kodali et al. 2017); used with a factor of 10.

    Args:
        D, generator, finite_difference, sigma: as for :func:`wgan_gp`.
        real: ``[N, ...]``, floating point; the standard deviation is over the whole batch.
        noise: at least 0.

    Raises:
        ValueError: as for :func:`r1_penalty`; ``noise`` is negative or not finite.
    """
    _check_images(real, "real")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is {noise}, but must be finite and at least 0")
    real = real.detach()
    x = real + noise * real.std(correction=0) * _normal_like(real, generator)
    return _unit_slope_penalty(D, x, finite_difference, sigma, generator)


def path_length(synthesis: Callable[[Tensor], Tensor], w: Tensor, noise: Tensor | None = None) -> Tensor:
    """Path lengths, how much images change with their latents: ``||J^T y||`` of each sample, where J is the
    Jacobian of the images with respect to w, and y ~ N(0, I) / sqrt(H * W) (Karras et al. 2020, "Analyzing
    and Improving the Image Quality of StyleGAN", section 3.2). The regulariser is ``mean((lengths - a)^2)``
    with their running mean ``a``.

    Args:
        synthesis: maps latents to images ``[N, C, H, W]``: the generator without its mapping network.
        w: ``[N, w_dim]`` or ``[N, layers, w_dim]``; with layers, the squared lengths are averaged over them.
            It may have a graph, through which the lengths are differentiable too.
        noise: used instead of N(0, I); of the images' shape.

    Returns:
        ``[N]``, float64 for float64 latents, otherwise float32, differentiable in the parameters of
        ``synthesis``.

    Raises:
        ValueError: ``w`` has the wrong number of dimensions, or the images do not depend on it.
    """
    if not isinstance(w, Tensor):
        raise TypeError(f"w is a {type(w).__name__}, but must be a tensor")
    if w.dim() not in (2, 3) or not w.is_floating_point():
        raise ValueError(
            f"w is {w.dtype} of shape {list(w.shape)}, but must be floating point and [N, w_dim] or "
            "[N, layers, w_dim]"
        )
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if not w.requires_grad:
            w = w.detach().requires_grad_()
        images = synthesis(w)
        if noise is None:
            noise = torch.randn_like(images)
        gradient = None
        if images.requires_grad:
            with ops.no_weight_gradients():
                (gradient,) = torch.autograd.grad(
                    images,
                    w,
                    noise.to(images.dtype) / math.sqrt(math.prod(images.shape[2:])),
                    create_graph=differentiable,
                    allow_unused=True,
                )
        if gradient is None:
            raise ValueError("the images do not depend on w: their path length would be 0")
        # Add the smallest normal number, so that the root has a finite slope where the gradient is exactly 0.
        square = ops.sample_sqnorm(gradient) / (w.size(1) if w.dim() == 3 else 1)
        return (square + torch.finfo(square.dtype).tiny).sqrt()


def _unit_slope_penalty(
    D: Callable[[Tensor], Tensor],
    x: Tensor,
    finite_difference: bool,
    sigma: float,
    generator: torch.Generator | None,
) -> Tensor:
    if finite_difference:
        # (n - 1)^2 = n^2 - 2n + 1, and for the slope s = grad . e the expectations are n^2 = E[s^2] and
        # n = sqrt(pi/2) E|s|. With |s| instead of n the minimum would be at n = 0.8.
        slope = _slope(D, x, sigma, generator)
        return (slope.square() - math.sqrt(2 * math.pi) * slope.abs() + 1).mean()
    square = _gradient_sqnorm(D, x)
    # At 0 the derivative of sqrt is infinite; times square's derivative, which is 0, it would be NaN.
    positive = square > 0
    norm = torch.where(positive, torch.where(positive, square, 1).sqrt(), square)
    return (norm - 1).square().mean()


def _gradient_sqnorm(D: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``||d D(x) / d x||^2`` of each sample, [N]."""
    _check_images(x, "x")
    _check_callable(D)
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return _sqnorm_of_gradient(D(x), x, differentiable)


def _sqnorm_of_gradient(logits: Tensor, x: Tensor, differentiable: bool) -> Tensor:
    _check_logits(logits, x)
    gradient = None
    if logits.requires_grad and x.requires_grad:
        # Only this first backward leaves out the weights; the gradient's graph, through which the penalty is
        # differentiated, is complete.
        with ops.no_weight_gradients():
            (gradient,) = torch.autograd.grad(
                logits, x, torch.ones_like(logits), create_graph=differentiable, allow_unused=True
            )
    if gradient is None:
        raise ValueError("D(x) does not depend on x: its gradient penalty would be 0 whatever D is")
    return ops.sample_sqnorm(gradient)


def _slope(
    D: Callable[[Tensor], Tensor], x: Tensor, sigma: float, generator: torch.Generator | None
) -> Tensor:
    """A finite difference of D along a random direction for each sample, [N]."""
    _check_images(x, "x")
    _check_callable(D)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}, but must be finite and above 0")
    x = x.detach()
    logits, moved = D(x), D(x + sigma * _normal_like(x, generator))
    for t in (logits, moved):
        _check_logits(t, x)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    difference = (moved.to(wide) - logits.to(wide)) / sigma
    return difference.flatten(1).sum(1) if difference.dim() > 1 else difference


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def _check_images(x: Tensor, name: str) -> None:
    if not isinstance(x, Tensor):
        how = ": torch.from_numpy makes one" if type(x).__name__ == "ndarray" else ""
        raise TypeError(f"{name} is a {type(x).__name__}, but must be a tensor{how}")
    if not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}, but must be floating point")
    if x.dim() == 0:
        raise ValueError(f"{name} has no dimensions, but must be a batch of shape [N, ...]")


def _check_callable(D: object) -> None:
    if not callable(D):
        raise TypeError(
            f"D is a {type(D).__name__}, but must be a function of images, such as a discriminator"
        )


def _check_logits(logits: Tensor, x: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise ValueError(f"D(x) is a {type(logits).__name__}, but must be a tensor of logits")
    if logits.dim() == 0 or logits.shape[0] != x.shape[0]:
        raise ValueError(
            f"D(x) has shape {list(logits.shape)}, but must have {x.shape[0]} samples, "
            f"as x of shape {list(x.shape)}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"D(x) is {logits.dtype}, but must be floating point")
