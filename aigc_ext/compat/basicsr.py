"""For BasicSR and projects based on it (GFPGAN, CodeFormer): ``basicsr.ops.fused_act`` and
``basicsr.ops.upfirdn2d``."""

from __future__ import annotations

from aigc_ext.compat._leaky_relu import FusedBiasLeakyReLU, fused_leaky_relu, upfirdn2d
from aigc_ext.compat._recognition import Api
from aigc_ext.compat._replacement import Replacement

_fused_act = {"FusedLeakyReLU": FusedBiasLeakyReLU, "fused_leaky_relu": fused_leaky_relu}
_apis = [
    Api("fused_act", "fused_leaky_relu", _fused_act),
    Api("upfirdn2d", "upfirdn2d", {"upfirdn2d": upfirdn2d}),
]
replacement = Replacement(
    {
        name: api.ours
        for api in _apis
        for name in (f"basicsr.ops.{api.tail}", f"basicsr.ops.{api.tail}.{api.tail}")
    },
    _apis,
)
install = replacement.install
uninstall = replacement.uninstall
