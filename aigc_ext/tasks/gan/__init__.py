"""Generative adversarial networks: configuration, presets, the adversarial step, and the trainer."""

from aigc_ext.tasks.gan.augment import AdaAugment as AdaAugment
from aigc_ext.tasks.gan.augment import DiffAugment as DiffAugment
from aigc_ext.tasks.gan.augment import adjusted_p as adjusted_p
from aigc_ext.tasks.gan.config import TrainConfig as TrainConfig
from aigc_ext.tasks.gan.dump import Replay as Replay
from aigc_ext.tasks.gan.dump import replay as replay
from aigc_ext.tasks.gan.objective import Mixing as Mixing
from aigc_ext.tasks.gan.objective import Objective as Objective
from aigc_ext.tasks.gan.objective import StepInputs as StepInputs
from aigc_ext.tasks.gan.presets import PRESETS as PRESETS
from aigc_ext.tasks.gan.step import STATISTICS as STATISTICS
from aigc_ext.tasks.gan.step import AdversarialStep as AdversarialStep
from aigc_ext.tasks.gan.trainer import GANTask as GANTask
from aigc_ext.tasks.gan.trainer import Trainer as Trainer
from aigc_ext.tasks.gan.trainer import find_resume_point as find_resume_point
from aigc_ext.tasks.initial import InitialWeights as InitialWeights
from aigc_ext.tasks.initial import initial_config as initial_config
from aigc_ext.tasks.initial import read_initial_weights as read_initial_weights
