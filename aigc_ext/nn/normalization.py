"""Modules for batch normalisation with an activation, and the function that `fuse_` uses."""

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
