"""Fused kernels for GANs in PyTorch."""

from aigc_ext import ops as ops  # first, since its error best explains a problem with the native library

# isort: split
from aigc_ext import losses as losses
from aigc_ext import nn as nn
from aigc_ext import optim as optim
from aigc_ext._info import Info as Info
from aigc_ext._info import cmake_prefix as cmake_prefix
from aigc_ext._info import info as info
from aigc_ext.ops import decompose as decompose
from aigc_ext.ops import no_weight_gradients as no_weight_gradients
from aigc_ext.version import __version__ as __version__
