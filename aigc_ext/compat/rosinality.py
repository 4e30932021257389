"""For projects in the style of rosinality/stylegan2-pytorch, which import ``op``: ``fused_leaky_relu``,
``FusedLeakyReLU``, ``upfirdn2d(input, kernel, up, down, pad)`` and ``conv2d_gradfix``."""

from __future__ import annotations

from aigc_ext.compat import _gradfix
from aigc_ext.compat._leaky_relu import FusedLeakyReLU, fused_leaky_relu, upfirdn2d
from aigc_ext.compat._recognition import Api
from aigc_ext.compat._replacement import Replacement

_apis = [
    Api(
        "fused_act",
        "fused_leaky_relu",
        {"FusedLeakyReLU": FusedLeakyReLU, "fused_leaky_relu": fused_leaky_relu},
    ),
    Api("upfirdn2d", "upfirdn2d", {"upfirdn2d": upfirdn2d}),
    _gradfix.API,
]
replacement = Replacement({f"op.{api.tail}": api.ours for api in _apis}, _apis)
install = replacement.install
uninstall = replacement.uninstall
