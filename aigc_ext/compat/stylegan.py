"""For checkouts in the style of StyleGAN2-ADA and StyleGAN3, which import ``torch_utils.ops``.

The signatures are the same; ``impl='ref'`` selects plain PyTorch. The modules' own files are not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from aigc_ext.compat import _gradfix
from aigc_ext.compat._recognition import Api
from aigc_ext.compat._replacement import Replacement
from aigc_ext.ops.activations import ACTIVATIONS


def _own(impl: str) -> bool:
    if impl not in ("ref", "cuda"):
        raise ValueError(f"impl is {impl!r}, but must be 'ref' or 'cuda'")
    return impl == "cuda"


@dataclass(frozen=True)
class _ActivationFunction:
    """The default slope and gain, which networks look up."""

    name: str
    def_alpha: float
    def_gain: float

    def func(self, x: Tensor, alpha: float = 0, **_: Any) -> Tensor:
        return ACTIVATIONS[self.name].function(x, alpha)


activation_funcs = {
    name: _ActivationFunction(name, activation.alpha, activation.gain)
    for name, activation in ACTIVATIONS.items()
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> Tensor:
    if clamp is not None and clamp < 0:  # in some configurations this means no clamp
        clamp = None
    return (ops.bias_act if _own(impl) else ops.bias_act_ref)(x, b, dim, act, alpha, gain, clamp)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Any = 1,
    down: Any = 1,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    return (ops.upfirdn2d if _own(impl) else ops.upfirdn2d_ref)(x, f, up, down, padding, flip_filter, gain)


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    _own(impl)
    return ops.filter2d(x, f, padding, flip_filter, gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Any = 2,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    _own(impl)
    return ops.upsample2d(x, f, up, padding, flip_filter, gain)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Any = 2,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    _own(impl)
    return ops.downsample2d(x, f, down, padding, flip_filter, gain)


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Any = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "cuda",
) -> Tensor:
    function = ops.filtered_lrelu if _own(impl) else ops.filtered_lrelu_ref
    return function(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c``."""
    return torch.addcmul(c, a, b)


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    """``torch.nn.functional.grid_sample``, bilinear and zero-padded; PyTorch now has its second
    derivative."""
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


_apis = [
    Api("bias_act", "bias_act", {"bias_act": bias_act, "activation_funcs": activation_funcs}),
    Api(
        "upfirdn2d",
        "upfirdn2d",
        {
            "upfirdn2d": upfirdn2d,
            "setup_filter": ops.setup_filter,
            "filter2d": filter2d,
            "upsample2d": upsample2d,
            "downsample2d": downsample2d,
        },
    ),
    Api("filtered_lrelu", "filtered_lrelu", {"filtered_lrelu": filtered_lrelu}),
    Api("fma", "fma", {"fma": fma}, distinct=False),
    _gradfix.API,
    Api("conv2d_resample", "conv2d_resample", {"conv2d_resample": ops.conv2d_resample}),
    Api(
        "grid_sample_gradfix",
        "grid_sample",
        {"grid_sample": grid_sample, "enabled": True},
        distinct=False,
    ),
]
replacement = Replacement({f"torch_utils.ops.{api.tail}": api.ours for api in _apis}, _apis)
install = replacement.install
uninstall = replacement.uninstall
