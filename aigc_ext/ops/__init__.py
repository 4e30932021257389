"""The fused ops as functions, each beside its reference in plain PyTorch (``*_ref``)."""

from aigc_ext import _native as _native  # loads the libraries that define torch.ops.aigc
from aigc_ext.ops._mode import decompose as decompose
from aigc_ext.ops._mode import no_weight_gradients as no_weight_gradients
from aigc_ext.ops.adam_ema import adam_ema_ as adam_ema_
from aigc_ext.ops.adam_ema import adam_ema_ref as adam_ema_ref
from aigc_ext.ops.adam_ema import any_nonfinite as any_nonfinite
from aigc_ext.ops.adam_ema import any_nonfinite_ref as any_nonfinite_ref
from aigc_ext.ops.bias_act import bias_act as bias_act
from aigc_ext.ops.bias_act import bias_act_ref as bias_act_ref
from aigc_ext.ops.bias_act import noise_bias_act as noise_bias_act
from aigc_ext.ops.bias_act import noise_bias_act_ref as noise_bias_act_ref
from aigc_ext.ops.fused_mlp import fused_mlp as fused_mlp
from aigc_ext.ops.fused_mlp import fused_mlp_ref as fused_mlp_ref
from aigc_ext.ops.gan_loss import LossStats as LossStats
from aigc_ext.ops.gan_loss import discriminator_loss as discriminator_loss
from aigc_ext.ops.gan_loss import discriminator_loss_and_grad as discriminator_loss_and_grad
from aigc_ext.ops.gan_loss import discriminator_loss_and_stats as discriminator_loss_and_stats
from aigc_ext.ops.gan_loss import discriminator_loss_and_stats_ref as discriminator_loss_and_stats_ref
from aigc_ext.ops.gan_loss import discriminator_loss_ref as discriminator_loss_ref
from aigc_ext.ops.gan_loss import generator_loss as generator_loss
from aigc_ext.ops.gan_loss import generator_loss_and_grad as generator_loss_and_grad
from aigc_ext.ops.gan_loss import generator_loss_ref as generator_loss_ref
from aigc_ext.ops.gated_act import gated_act as gated_act
from aigc_ext.ops.gated_act import gated_act_ref as gated_act_ref
from aigc_ext.ops.linear_act import linear_act as linear_act
from aigc_ext.ops.linear_act import linear_act_ref as linear_act_ref
from aigc_ext.ops.pixel_norm import pixel_norm as pixel_norm
from aigc_ext.ops.pixel_norm import pixel_norm_ref as pixel_norm_ref
from aigc_ext.ops.sample_sqnorm import sample_sqnorm as sample_sqnorm
from aigc_ext.ops.sample_sqnorm import sample_sqnorm_ref as sample_sqnorm_ref
from aigc_ext.ops.upfirdn2d import downsample2d as downsample2d
from aigc_ext.ops.upfirdn2d import filter2d as filter2d
from aigc_ext.ops.upfirdn2d import setup_filter as setup_filter
from aigc_ext.ops.upfirdn2d import upfirdn2d as upfirdn2d
from aigc_ext.ops.upfirdn2d import upfirdn2d_ref as upfirdn2d_ref
from aigc_ext.ops.upfirdn2d import upsample2d as upsample2d
