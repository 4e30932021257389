"""For MMCV 1 and 2: their names in ``mmcv.ops``.

``mmcv.ops`` imports all of its ops, and with them the compiled ``mmcv._ext``. Where that is missing
(mmcv-lite), an empty one stands in for it: the ops that are ours work, and any other raises an error when
it is called.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aigc_ext import ops
from aigc_ext.compat import _gradfix, _leaky_relu
from aigc_ext.compat._recognition import Api
from aigc_ext.compat._replacement import Replacement


def fused_bias_leakyrelu(
    input: Tensor, bias: Tensor, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    return _leaky_relu.fused_leaky_relu(input, bias, negative_slope, scale)


def bias_act(
    input: Tensor,
    bias: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    use_custom_op: bool = True,
) -> Tensor:
    function = ops.bias_act if use_custom_op else ops.bias_act_ref
    return function(input, bias, dim, act, alpha, gain, clamp)


def upfirdn2d(
    input: Tensor,
    filter: Tensor | None = None,
    up: Any = 1,
    down: Any = 1,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1,
    use_custom_op: bool = True,
    *,
    kernel: Tensor | None = None,
    pad: tuple[int, ...] | None = None,
) -> Tensor:
    """Takes MMCV 2's arguments, or MMCV 1's ``kernel`` and ``pad`` (before, after)."""
    if pad is not None:
        padding = [*pad, *pad] if len(pad) == 2 else list(pad)
    function = ops.upfirdn2d if use_custom_op else ops.upfirdn2d_ref
    return function(input, filter if kernel is None else kernel, up, down, padding, flip_filter, gain)


def filter2d(
    input: Tensor,
    filter: Tensor,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1,
    use_custom_op: bool = True,
) -> Tensor:
    return ops.filter2d(input, filter, padding, flip_filter, gain)


def upsample2d(
    input: Tensor,
    filter: Tensor,
    up: Any = 2,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1,
    use_custom_op: bool = True,
) -> Tensor:
    return ops.upsample2d(input, filter, up, padding, flip_filter, gain)


def downsample2d(
    input: Tensor,
    filter: Tensor,
    down: Any = 2,
    padding: Any = 0,
    flip_filter: bool = False,
    gain: float = 1,
    use_custom_op: bool = True,
) -> Tensor:
    return ops.downsample2d(input, filter, down, padding, flip_filter, gain)


def filtered_lrelu(
    input: Tensor,
    filter_up: Tensor | None = None,
    filter_down: Tensor | None = None,
    bias: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Any = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    use_custom_op: bool = True,
) -> Tensor:
    function = ops.filtered_lrelu if use_custom_op else ops.filtered_lrelu_ref
    return function(input, filter_up, filter_down, bias, up, down, padding, gain, slope, clamp, flip_filter)


def _not_built(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            f"mmcv's op {name} is not built: mmcv-lite has no compiled ops. aigc_ext replaces bias_act, "
            "filtered_lrelu, fused_bias_leakyrelu, upfirdn2d and conv2d_gradfix; the others need mmcv itself"
        )

    return missing


_apis = [
    Api(
        "fused_bias_leakyrelu",
        "fused_bias_leakyrelu",
        {
            "fused_bias_leakyrelu": fused_bias_leakyrelu,
            "FusedBiasLeakyReLU": _leaky_relu.FusedBiasLeakyReLU,
        },
    ),
    Api("bias_act", "bias_act", {"bias_act": bias_act}),
    Api(
        "upfirdn2d",
        "upfirdn2d",
        {
            "upfirdn2d": upfirdn2d,
            "filter2d": filter2d,
            "upsample2d": upsample2d,
            "downsample2d": downsample2d,
        },
    ),
    Api("filtered_lrelu", "filtered_lrelu", {"filtered_lrelu": filtered_lrelu}),
    _gradfix.API,
]
replacement = Replacement(
    {f"mmcv.ops.{api.tail}": api.ours for api in _apis}, _apis, {"mmcv._ext": {"__getattr__": _not_built}}
)
install = replacement.install
uninstall = replacement.uninstall
