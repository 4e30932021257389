"""Training: configuration, the adversarial step, the loop around it, and checkpoints that resume exactly."""

from aigc_ext.config import ConfigError
from aigc_ext.training.augment import AdaAugment, DiffAugment, adjusted_p
from aigc_ext.training.checkpoint import Checkpoint, CheckpointError, newest_checkpoint, read_checkpoint
from aigc_ext.training.config import TrainConfig
from aigc_ext.training.loop import Trainer, TrainResult
from aigc_ext.training.nonfinite import NonFiniteError, Replay, replay
from aigc_ext.training.presets import PRESETS
from aigc_ext.training.run import ResumePoint, RunError, find_resume_point
from aigc_ext.training.step import STATISTICS, AdversarialStep, Objective

__all__ = [
    "PRESETS",
    "STATISTICS",
    "AdaAugment",
    "AdversarialStep",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DiffAugment",
    "NonFiniteError",
    "Objective",
    "Replay",
    "ResumePoint",
    "RunError",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "adjusted_p",
    "find_resume_point",
    "newest_checkpoint",
    "read_checkpoint",
    "replay",
]
