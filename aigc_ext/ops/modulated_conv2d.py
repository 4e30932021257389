"""Style-modulated convolution: the layer of StyleGAN2 (Karras et al. 2020, "Analyzing and Improving the Image
Quality of StyleGAN", section 2.2) and StyleGAN3 (Karras et al. 2021, "Alias-Free Generative Adversarial
Networks"), with noise, bias and activation as one epilogue.

Two forms compute it. One makes weights for every sample and convolves each sample with its own. The other
scales x before, and y after, a convolution with weights that all samples share. :func:`_route` chooses.
Decomposed it is always the second, which is the same program for any number of samples; the reference is a
convolution with one group per sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_ext.ops._apart import alone, is_apart, product_apart
from aigc_ext.ops._arguments import no_tensor, shape_of
from aigc_ext.ops._layout import wide_dtype
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op
from aigc_ext.ops._route import Route, take
from aigc_ext.ops.activations import resolve_activation
from aigc_ext.ops.bias_act import bias_act, bias_act_ref, noise_bias_act, noise_bias_act_ref
from aigc_ext.ops.conv2d_act import widened
from aigc_ext.ops.conv2d_resample import conv2d_resample, conv2d_resample_ref

_EPS = 1e-8  # of the papers' demodulation


def modulated_conv2d(
    x: Tensor,
    w: Tensor,
    s: Tensor,
    b: Tensor | None = None,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    f: Tensor | None = None,
    demodulate: bool = True,
    normalize: bool = False,
    input_gain: Tensor | float | None = None,
    flip_weight: bool = True,
    flip_filter: bool = False,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """``clamp(gain * act(conv(x[n], w'[n]) + strength * noise + b))``, where each sample has its own weights:
    ``w'[n] = w * s[n]``, divided by its norm per output channel if ``demodulate``.

    Args:
        x: ``[N, in_channels, H, W]``; float64, float32, float16 or bfloat16. Half types are scaled so that no
            intermediate overflows.
        w: ``[out_channels, in_channels, kH, kW]``, of any floating-point dtype.
        s: styles, ``[N, in_channels]``, of any floating-point dtype.
        b: ``[out_channels]`` or None.
        noise, strength: both or neither: ``[N or 1, 1, H', W']`` of the output's size, and a tensor of one
            element.
        up, down, padding, f, flip_weight, flip_filter: as for :func:`conv2d_resample`.
        demodulate: divide ``w'`` by ``sqrt(sum(w'^2) + 1e-8)``, the sum over input channels and taps.
        normalize: with ``demodulate``, first divide ``w`` by its root mean square per output channel and
            ``s`` by its root mean square per sample, as StyleGAN3 does. This matters only where the sum is
            not large compared to 1e-8.
        input_gain: one number, ``[in_channels]`` or ``[N, in_channels]``: multiplies ``w'`` after the
            demodulation (StyleGAN3's tracked magnitude of x).
        act, alpha, gain, clamp: as for :func:`bias_act`.

    Returns:
        ``[N, out_channels, H', W']`` of x's dtype. Differentiable to every order in all tensors.

    Raises:
        TypeError: an argument is not a tensor, or not a number, where one is required.
        ValueError: an option out of range, or noise without strength.
        RuntimeError: shapes do not match.
    """
    resolve_activation(act, alpha, gain, clamp)
    _check(x, w, s, b, noise, strength)
    plain = decomposed()
    dtype = x.dtype
    if not plain and widened(x):
        x = x.float()
    wide = wide_dtype(x)
    w, s = w.to(wide), s.to(wide)
    if normalize and demodulate:
        w, s = _normalized(w, s)
    factor = None  # of the output, [N, out_channels]
    if demodulate:
        squares, energy = s.square(), w.square().sum((2, 3))
        product = product_apart(squares, energy) if is_apart(x) else squares @ energy.t()
        factor = (product + _EPS).rsqrt()
    if input_gain is not None:
        s = s * input_gain
    resampled = up != 1 or down != 1
    pointwise = w.size(2) == w.size(3) == 1 and not resampled and padding == 0 and x.dtype == wide
    if not plain and take("modulated_conv2d", _route(x, w, pointwise)) == "own weights":
        own = w * s[:, None, :, None, None]
        if factor is not None:
            own = own * factor[:, :, None, None, None]
        own = own.to(x.dtype)
        if pointwise:
            own = own.flatten(2)
            if is_apart(x):
                y = torch.cat([_convolve_pixels(alone(x, i), alone(own, i)) for i in range(x.size(0))])
            else:
                y = _convolve_pixels(x, own)
        else:
            y = conv2d_resample(x, own[0], f, up, down, padding, 1, flip_weight, flip_filter)
    else:
        if x.dtype != wide:  # scale w and s to about 1, so that the products have about x's magnitude
            w_size = torch.linalg.vector_norm(w, dim=(1, 2, 3)) + _EPS
            s_size = s.abs().amax(1) + _EPS
            w, s = w / w_size[:, None, None, None], s / s_size[:, None]
            size = s_size[:, None] * w_size
            factor = size if factor is None else factor * size
        # Half types are multiplied in float32, because the gradients of s are sums of such products.
        scaled = (x * s[:, :, None, None]).to(x.dtype)
        y = conv2d_resample(scaled, w.to(x.dtype), f, up, down, padding, 1, flip_weight, flip_filter)
        if factor is not None:
            y = y * factor[:, :, None, None]
    if b is not None:
        b = b.to(y.dtype)
    if noise is not None and strength is not None:
        y = noise_bias_act(y, noise.to(y.dtype), strength.to(y.dtype), b, act, alpha, gain, clamp)
    elif b is not None or act != "linear" or clamp is not None or gain not in (None, 1):
        y = bias_act(y, b, 1, act, alpha, gain, clamp)
    return y.to(dtype)


def modulated_conv2d_ref(
    x: Tensor,
    w: Tensor,
    s: Tensor,
    b: Tensor | None = None,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    f: Tensor | None = None,
    demodulate: bool = True,
    normalize: bool = False,
    input_gain: Tensor | float | None = None,
    flip_weight: bool = True,
    flip_filter: bool = False,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """:func:`modulated_conv2d` in plain PyTorch: a grouped convolution with one group per sample."""
    wide = wide_dtype(x)
    w, s = w.to(wide), s.to(wide)
    if normalize and demodulate:
        w, s = _normalized(w, s)
    own = w * s[:, None, :, None, None]
    if demodulate:
        own = own * (own.square().sum((2, 3, 4), keepdim=True) + _EPS).rsqrt()
    if input_gain is not None:
        input_gain = torch.as_tensor(input_gain, dtype=wide, device=x.device)
        own = own * input_gain.expand(s.shape)[:, None, :, None, None]
    n, i, height, width = x.shape
    own = own.to(x.dtype).flatten(0, 1)
    y = conv2d_resample_ref(
        x.reshape(1, n * i, height, width), own, f, up, down, padding, n, flip_weight, flip_filter
    )
    y = y.reshape(n, -1, *y.shape[2:])
    b = None if b is None else b.to(y.dtype)
    if noise is not None and strength is not None:
        return noise_bias_act_ref(y, noise.to(y.dtype), strength.to(y.dtype), b, act, alpha, gain, clamp)
    return bias_act_ref(y, b, 1, act, alpha, gain, clamp)


def _route(x: Tensor, w: Tensor, pointwise: bool) -> Route:
    """Weights per sample, for one sample or a 1x1 kernel, if scaling the weights is less work than scaling
    the images.

    Measured on a CPU by ``benchmarks/modulated_forms.py`` (``benchmarks/results/modulated_forms.csv``): where
    it is less work, weights per sample are 1.02 to 3.6 times as fast in 21 of 22 cases; where it is more,
    they have 0.4 to 0.96 of the speed in 9 of 10. For several samples and 3x3 kernels, one group per sample
    has 0.4 to 0.8 of the speed in 14 of 16 cases and is not chosen. GPUs use the same rule, but were not
    measured.
    """
    out_channels, channels, height, width = w.shape
    if is_apart(x) and not pointwise:
        return Route("shared weights", "samples are kept apart")
    if not (pointwise or x.size(0) == 1):
        return Route("shared weights", "there are several samples")
    if out_channels * channels * height * width < (out_channels + channels) * x.size(2) * x.size(3):
        return Route("own weights", "there is less to scale in the weights than in the images")
    return Route("shared weights", "there is less to scale in the images than in the weights")


def _normalized(w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return (
        w * w.square().mean((1, 2, 3), keepdim=True).rsqrt(),
        s * s.square().mean(1, keepdim=True).rsqrt(),
    )


def _convolve_pixels(x: Tensor, w: Tensor) -> Tensor:
    """A 1x1 convolution with weights ``[N, out, in]``, in x's memory format."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        pixels = x.permute(0, 2, 3, 1)
        y = torch.matmul(pixels.flatten(1, 2), w.transpose(1, 2))
        return y.unflatten(1, pixels.shape[1:3]).permute(0, 3, 1, 2)
    return torch.matmul(w, x.flatten(2)).unflatten(2, x.shape[2:])


def _check(
    x: Tensor, w: Tensor, s: Tensor, b: Tensor | None, noise: Tensor | None, strength: Tensor | None
) -> None:
    op = "modulated_conv2d"
    tensors = {"x": x, "w": w, "s": s, "b": b, "noise": noise, "strength": strength}
    if not all(isinstance(t, Tensor) or (t is None and name not in "xws") for name, t in tensors.items()):
        raise no_tensor(op, optional=("b", "noise", "strength"), **tensors)
    if (noise is None) != (strength is None):
        given, missing = ("noise", "strength") if strength is None else ("strength", "noise")
        raise ValueError(f"{op}: {given} is given, but {missing} is None; both or none must be given")
    if x.dim() != 4 or w.dim() != 4 or w.size(1) != x.size(1):
        raise RuntimeError(
            f"{op}: x has shape {shape_of(x)} and w {shape_of(w)}, but they must be [N, in, H, W] and "
            "[out, in, kH, kW]"
        )
    if s.shape != x.shape[:2]:
        raise RuntimeError(f"{op}: s has shape {shape_of(s)}, but must be {list(x.shape[:2])}")
    if b is not None and (b.dim() != 1 or b.size(0) != w.size(0)):
        raise RuntimeError(f"{op}: b has shape {shape_of(b)}, but must be [{w.size(0)}]")


OPS = [
    Op(
        modulated_conv2d,
        modulated_conv2d_ref,
        {"x": (2, 3, 6, 6), "w": (4, 3, 3, 3), "s": (2, 3), "b": (4,), "padding": 1, "act": "lrelu"},
    )
]
