"""Maximum likelihood: one network that learns to predict each part of an item, and can then sample."""

from aigc_ext.tasks.likelihood.config import TrainConfig as TrainConfig
from aigc_ext.tasks.likelihood.dump import replay as replay
from aigc_ext.tasks.likelihood.items import Items as Items
from aigc_ext.tasks.likelihood.items import open_items as open_items
from aigc_ext.tasks.likelihood.presets import PRESETS as PRESETS
from aigc_ext.tasks.likelihood.step import LikelihoodStep as LikelihoodStep
from aigc_ext.tasks.likelihood.trainer import LikelihoodTask as LikelihoodTask
from aigc_ext.tasks.likelihood.trainer import Trainer as Trainer
