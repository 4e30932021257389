"""Adversarial objectives, the gradient penalties that go with them, and losses between an item and its
reconstruction."""

from aigc_ext.losses.adversarial import AdversarialLoss as AdversarialLoss
from aigc_ext.losses.penalties import dragan as dragan
from aigc_ext.losses.penalties import path_length as path_length
from aigc_ext.losses.penalties import r1_of_logits as r1_of_logits
from aigc_ext.losses.penalties import r1_penalty as r1_penalty
from aigc_ext.losses.penalties import r2_penalty as r2_penalty
from aigc_ext.losses.penalties import wgan_gp as wgan_gp
from aigc_ext.losses.reconstruction import bernoulli_nll as bernoulli_nll
from aigc_ext.losses.reconstruction import charbonnier as charbonnier
from aigc_ext.losses.reconstruction import gaussian_kl as gaussian_kl
from aigc_ext.losses.reconstruction import l1 as l1
from aigc_ext.losses.reconstruction import l2 as l2
from aigc_ext.losses.reconstruction import perceptual as perceptual
from aigc_ext.losses.spectral import MelSpectrogram as MelSpectrogram
from aigc_ext.losses.spectral import feature_matching as feature_matching
from aigc_ext.losses.spectral import multi_resolution_stft as multi_resolution_stft
from aigc_ext.losses.spectral import multi_scale_mel as multi_scale_mel
from aigc_ext.ops.gan_loss import LossStats as LossStats
