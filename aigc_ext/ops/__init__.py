"""The fused ops as functions, each beside its reference in plain PyTorch (``*_ref``)."""

from aigc_ext import _native as _native  # loads the libraries that define torch.ops.aigc
from aigc_ext.ops._mode import decompose as decompose
from aigc_ext.ops._mode import no_weight_gradients as no_weight_gradients
from aigc_ext.ops.bias_act import bias_act as bias_act
from aigc_ext.ops.bias_act import bias_act_ref as bias_act_ref
from aigc_ext.ops.bias_act import noise_bias_act as noise_bias_act
from aigc_ext.ops.bias_act import noise_bias_act_ref as noise_bias_act_ref
from aigc_ext.ops.linear_act import linear_act as linear_act
from aigc_ext.ops.linear_act import linear_act_ref as linear_act_ref
