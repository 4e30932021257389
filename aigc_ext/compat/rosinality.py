"""For projects in the style of rosinality/stylegan2-pytorch, which import ``op``: ``fused_leaky_relu``,
``FusedLeakyReLU``, ``upfirdn2d(input, kernel, up, down, pad)`` and ``conv2d_gradfix``."""

from __future__ import annotations

from aigc_ext.compat import _gradfix
from aigc_ext.compat._leaky_relu import FusedLeakyReLU, fused_leaky_relu, upfirdn2d
from aigc_ext.compat._replacement import Replacement

_replacement = Replacement(
    {
        "op.fused_act": {"FusedLeakyReLU": FusedLeakyReLU, "fused_leaky_relu": fused_leaky_relu},
        "op.upfirdn2d": {"upfirdn2d": upfirdn2d},
        "op.conv2d_gradfix": _gradfix.MODULE,
    }
)
install = _replacement.install
uninstall = _replacement.uninstall
