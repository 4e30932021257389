"""Networks that reconstruct what they are given, trained with or without a discriminator: autoencoders."""

from aigc_ext.tasks.adversarial.balance import Balance as Balance
from aigc_ext.tasks.adversarial.config import LossConfig as LossConfig
from aigc_ext.tasks.adversarial.config import TrainConfig as TrainConfig
from aigc_ext.tasks.adversarial.dump import replay as replay
from aigc_ext.tasks.adversarial.objective import Critic as Critic
from aigc_ext.tasks.adversarial.presets import PRESETS as PRESETS
from aigc_ext.tasks.adversarial.quality import reconstruction_quality as reconstruction_quality
from aigc_ext.tasks.adversarial.step import ReconstructionStep as ReconstructionStep
from aigc_ext.tasks.adversarial.task import ReconstructionTask as ReconstructionTask
from aigc_ext.tasks.adversarial.task import Trainer as Trainer
from aigc_ext.tasks.adversarial.terms import TERMS as TERMS
from aigc_ext.tasks.adversarial.terms import Compared as Compared
from aigc_ext.tasks.adversarial.terms import Judgement as Judgement
from aigc_ext.tasks.adversarial.terms import Made as Made
from aigc_ext.tasks.adversarial.terms import Term as Term
from aigc_ext.tasks.adversarial.terms import Weighted as Weighted
