"""Modules for batch and group normalisation with an activation, and the function that `fuse_` uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aigc_ext import ops
from aigc_ext.nn.convolutions import _Activated


def batch_norm_act(
    module: _BatchNorm,
    x: Tensor,
    act: str,
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """The forward of a PyTorch batch norm module, including its running statistics, and an activation."""
    module._check_input_dim(x)
    momentum = 0.0 if module.momentum is None else module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # the average of all batches so far
            momentum = 1.0 / float(module.num_batches_tracked)
    has_statistics = module.running_mean is not None or module.running_var is not None
    training = module.training or not has_statistics
    running: tuple[Tensor | None, Tensor | None] = (module.running_mean, module.running_var)
    if module.training and not module.track_running_stats:
        running = (None, None)
    parameters = (module.weight, module.bias)
    return ops.batch_norm_act(
        x, *running, *parameters, training, momentum, module.eps, act, alpha, gain, clamp
    )


class _BatchNormAct(_BatchNorm, _Activated):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        act: str = "linear",
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self._set_activation(act, alpha, gain, clamp)

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm_act(self, input, self.act, self.alpha, self.gain, self.clamp)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._activation_repr()}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` and an activation, like `BatchNormAct2d`, for `[N, C]` and `[N, C, L]`."""


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` and an activation: `clamp(gain * act(batch_norm(x)), -clamp, clamp)`.

    Parameters, buffers and the `state_dict` keys are those of `torch.nn.BatchNorm2d`.

    Shapes: `[N, num_features, H, W]` to the same, channels-last if the input is.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as in
            `torch.nn.BatchNorm2d`.
        act, alpha, gain, clamp: as in `Linear`; note the default gain, sqrt(2) for `relu`, `lrelu` and
            `swish`.

    Raises:
        ValueError: an activation option is invalid.
    """


class GroupNormAct(nn.GroupNorm, _Activated):
    """`torch.nn.GroupNorm`, what modulates it, a residual and an activation in one op:
    `clamp(gain * act(group_norm(x) * scale + shift + residual), -clamp, clamp)`.

    `GroupNormAct(C, C, affine=False)` is `torch.nn.InstanceNorm2d(C)` for any number of dimensions, and AdaIN
    with a scale and shift; `GroupNormAct(1, C)` is layer normalisation over (C, H, W) with parameters for
    each channel. Parameters and the `state_dict` keys are those of `torch.nn.GroupNorm`.

    Shapes: `[N, num_channels, ...]` to the same, channels-last if the input is; `scale` and `shift`
    `[N, num_channels]` and `residual` like the input, each optional, as `aigc_ext.ops.group_norm_act` takes
    them.

    Args:
        num_groups, num_channels, eps, affine, device, dtype: as in `torch.nn.GroupNorm`.
        act, alpha, gain, clamp: as in `Linear`; note the default gain, sqrt(2) for `relu`, `lrelu` and
            `swish`.

    Raises:
        ValueError: an activation option is invalid; num_groups does not divide num_channels.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        act: str = "linear",
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device=device, dtype=dtype)
        self._set_activation(act, alpha, gain, clamp)

    def forward(
        self,
        input: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        parameters = (self.weight, self.bias, scale, shift, residual)
        return ops.group_norm_act(input, self.num_groups, *parameters, self.eps, **self._activation())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._activation_repr()}"
