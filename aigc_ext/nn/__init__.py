"""Drop-in modules over the fused ops, and `fuse_`, which makes an existing model use them."""

from aigc_ext.nn.fuse import FusedRun, FusionReport, SkippedRun, fuse_, unfuse_
from aigc_ext.nn.layers import BiasAct, Linear

__all__ = ["BiasAct", "FusedRun", "FusionReport", "Linear", "SkippedRun", "fuse_", "unfuse_"]
