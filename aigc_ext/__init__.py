"""Fused kernels for GANs in PyTorch."""

from aigc_ext import ops as ops
from aigc_ext.ops import decompose as decompose
from aigc_ext.ops import no_weight_gradients as no_weight_gradients
from aigc_ext.version import __version__ as __version__
