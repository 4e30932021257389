"""Drop-in modules based on the fused ops, and `fuse_`, which makes an existing model use the ops."""

from aigc_ext.nn.attention import SelfAttention2d
from aigc_ext.nn.convolutions import (
    Conv2d,
    ConvTranspose2d,
    Downsample2d,
    Filter2d,
    FilteredLReLU,
    FilteredSnake,
    MinibatchStddev,
    ModulatedConv2d,
    Upsample2d,
)
from aigc_ext.nn.fuse import FusedRun, FusionReport, SkippedRun, fuse_, unfuse_
from aigc_ext.nn.layers import BiasAct, Linear
from aigc_ext.nn.normalization import BatchNormAct1d, BatchNormAct2d, GroupNormAct
from aigc_ext.nn.quantize import FiniteScalarQuantizer, Quantized, VectorQuantizer

__all__ = [
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BiasAct",
    "Conv2d",
    "ConvTranspose2d",
    "Downsample2d",
    "Filter2d",
    "FilteredLReLU",
    "FilteredSnake",
    "FiniteScalarQuantizer",
    "FusedRun",
    "FusionReport",
    "GroupNormAct",
    "Linear",
    "MinibatchStddev",
    "ModulatedConv2d",
    "Quantized",
    "SelfAttention2d",
    "SkippedRun",
    "Upsample2d",
    "VectorQuantizer",
    "fuse_",
    "unfuse_",
]
