"""For BasicSR and projects based on it (GFPGAN, CodeFormer): ``basicsr.ops.fused_act`` and
``basicsr.ops.upfirdn2d``."""

from __future__ import annotations

from aigc_ext.compat._leaky_relu import FusedBiasLeakyReLU, fused_leaky_relu, upfirdn2d
from aigc_ext.compat._replacement import Replacement

_fused_act = {"FusedLeakyReLU": FusedBiasLeakyReLU, "fused_leaky_relu": fused_leaky_relu}
_replacement = Replacement(
    {
        "basicsr.ops.fused_act": _fused_act,
        "basicsr.ops.fused_act.fused_act": _fused_act,
        "basicsr.ops.upfirdn2d": {"upfirdn2d": upfirdn2d},
        "basicsr.ops.upfirdn2d.upfirdn2d": {"upfirdn2d": upfirdn2d},
    }
)
install = _replacement.install
uninstall = _replacement.uninstall
