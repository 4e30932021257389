"""Layers that run as one op: a linear layer or a bias, followed by an activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from aigc_ext import ops
from aigc_ext.ops.activations import resolve_activation


class Linear(nn.Linear):
    """`torch.nn.Linear` and an activation in one op: `clamp(gain * act(x @ weight.T + bias), -clamp, clamp)`.

    Parameters, their initialisation and the `state_dict` keys are those of `torch.nn.Linear`.

    Shapes: `(..., in_features)` to `(..., out_features)`, in float64, float32, float16 or bfloat16.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether there is a bias.
        act: name of the activation, a key of `aigc_ext.ops.activations.ACTIVATIONS`.
        alpha: slope of `lrelu` for negative values; None is the activation's default (0.2).
        gain: factor after the activation; None is the activation's default, sqrt(2) for `relu`, `lrelu` and
            `swish`, otherwise 1.
        clamp: largest magnitude of the output, at least 0; None for no limit.
        device, dtype: as in `torch.nn.Linear`.

    Raises:
        ValueError: `act`, `alpha`, `gain` or `clamp` is not one of the allowed values.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        act: str = "linear",
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        resolve_activation(act, alpha, gain, clamp)  # raises here rather than in the first forward
        self.act, self.alpha, self.gain, self.clamp = act, alpha, gain, clamp

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear_act(
            input, self.weight, self.bias, act=self.act, alpha=self.alpha, gain=self.gain, clamp=self.clamp
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_activation_repr(self)}"


def run_linears(layers: Sequence[Linear], x: Tensor) -> Tensor:
    """The layers one after the other, as one op (`ops.fused_mlp`) if none of them has a hook, its own
    `forward`, a clamp, or no bias.
    """
    if _has_any_global_hook() or not all(map(_fits_into_mlp, layers)):
        for layer in layers:
            x = layer(x)
        return x
    return ops.fused_mlp(
        x,
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        [layer.act for layer in layers],
        [layer.alpha for layer in layers],
        [layer.gain for layer in layers],
    )


def _fits_into_mlp(layer: Linear) -> bool:
    return (
        type(layer).forward is Linear.forward
        and "forward" not in layer.__dict__  # some libraries replace it on an instance
        and layer.bias is not None
        and layer.clamp is None
        and not (
            layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
        )
    )


class BiasAct(nn.Module):
    """A learned bias and an activation in one op: `clamp(gain * act(x + bias), -clamp, clamp)`.

    For use after a convolution without bias, or wherever an activation follows a bias.

    Shapes: any, of size `num_channels` along `dim`; the output has the input's shape and dtype.

    Args:
        num_channels: size of the input along `dim`.
        act: name of the activation, a key of `aigc_ext.ops.activations.ACTIVATIONS`.
        dim: the dimension that the bias belongs to.
        alpha, gain, clamp: as in `Linear`.
        device, dtype: of the bias, which starts at zero.

    Raises:
        ValueError: `num_channels` is negative, or `act`, `alpha`, `gain` or `clamp` is not one of the allowed
            values.
    """

    def __init__(
        self,
        num_channels: int,
        act: str = "linear",
        dim: int = 1,
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_channels < 0:
            raise ValueError(f"num_channels is {num_channels}, but must be at least 0")
        resolve_activation(act, alpha, gain, clamp)  # raises here rather than in the first forward
        self.num_channels, self.dim = num_channels, dim
        self.act, self.alpha, self.gain, self.clamp = act, alpha, gain, clamp
        self.bias = nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        return ops.bias_act(
            input,
            self.bias,
            dim=self.dim,
            act=self.act,
            alpha=self.alpha,
            gain=self.gain,
            clamp=self.clamp,
        )

    def extra_repr(self) -> str:
        return f"{self.num_channels}, dim={self.dim}, {_activation_repr(self)}"


def _activation_repr(layer: Linear | BiasAct) -> str:
    options = {"alpha": layer.alpha, "gain": layer.gain, "clamp": layer.clamp}
    return ", ".join([f"act={layer.act!r}", *(f"{k}={v}" for k, v in options.items() if v is not None)])
