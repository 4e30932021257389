"""The standard deviation of a minibatch as extra channels of its images (Karras et al. 2018, "Progressive
Growing of GANs for Improved Quality, Stability, and Variation", section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_ext.ops._arguments import no_tensor, promoted_dtype, shape_of
from aigc_ext.ops._layout import is_channels_last
from aigc_ext.ops._op import Op

_EPS = 1e-8


def minibatch_stddev(x: Tensor, group_size: int | None = 4, num_channels: int = 1) -> Tensor:
    """``x`` with ``num_channels`` more channels, which show a discriminator how much the samples vary.

    The batch is split into groups, with sample n in group ``n % (N / group_size)``, and the channels into
    ``num_channels`` equal runs. For each run, the standard deviation over a group's samples, averaged over
    the run's channels and the pixels, becomes one extra channel of every sample in the group.

    It is plain PyTorch: at the 4x4 end of a discriminator its time does not matter.

    Args:
        x: ``[N, C, H, W]``, of any floating-point dtype; half types are computed in float32.
        group_size: samples per group, a divisor of N; the whole batch if that is smaller, or if None.
        num_channels: a divisor of C.

    Returns:
        ``[N, C + num_channels, H, W]``, in x's dtype and memory format. Differentiable to every order.

    Raises:
        TypeError: ``x`` is not a tensor.
        ValueError: ``group_size`` or ``num_channels`` is less than 1.
        RuntimeError: ``x`` has the wrong rank or dtype, or N or C is not divisible.
    """
    if not isinstance(x, Tensor):
        raise no_tensor("minibatch_stddev", x=x)
    promoted_dtype("minibatch_stddev", x=x)
    if x.dim() != 4:
        raise RuntimeError(f"minibatch_stddev: x has shape {shape_of(x)}, but must be [N, C, H, W]")
    n, c, h, w = x.shape
    for name, number in (("group_size", group_size), ("num_channels", num_channels)):
        if number is not None and number < 1:
            raise ValueError(f"minibatch_stddev: {name} is {number}, but must be at least 1")
    size = n if group_size is None else min(group_size, n)
    if size and n % size:
        raise RuntimeError(
            f"minibatch_stddev: x has {n} samples, but must have a multiple of group_size {size}"
        )
    if c % num_channels:
        raise RuntimeError(
            f"minibatch_stddev: x has {c} channels, but must have a multiple of num_channels {num_channels}"
        )
    if n == 0:
        return torch.cat([x, x.new_empty(0, num_channels, h, w)], 1)
    groups = x.reshape(size, n // size, num_channels, c // num_channels, h, w)
    groups = groups.to(torch.promote_types(x.dtype, torch.float32))
    deviation = (groups - groups.mean(0)).square().mean(0).add(_EPS).sqrt().mean((2, 3, 4))
    extra = deviation.to(x.dtype).repeat(size, 1)[:, :, None, None].expand(n, num_channels, h, w)
    if is_channels_last(x):
        return torch.cat([x, extra], 1).contiguous(memory_format=torch.channels_last)
    return torch.cat([x, extra], 1)


def minibatch_stddev_ref(x: Tensor, group_size: int | None = 4, num_channels: int = 1) -> Tensor:
    """:func:`minibatch_stddev` as in the paper, in x's own dtype."""
    n, _, h, w = x.shape
    size = n if group_size is None else min(group_size, n)
    if n == 0:
        return minibatch_stddev(x, group_size, num_channels)
    groups = x.reshape(size, n // size, num_channels, -1, h, w)
    deviation = (groups.var(0, correction=0) + _EPS).sqrt().mean((2, 3, 4))
    return torch.cat([x, deviation.repeat(size, 1)[:, :, None, None].expand(-1, -1, h, w)], 1)


OPS = [Op(minibatch_stddev, minibatch_stddev_ref, {"x": (4, 3, 4, 4)})]
