"""Training: the loop around a task, its run directory, and checkpoints that resume exactly.

What is trained is a task (`training.task.Task`); the GAN is `aigc_ext.tasks.gan`. Its public names are here
too, imported when they are asked for.
"""

# ruff: noqa: F403, F405
from typing import TYPE_CHECKING

from aigc_ext.config import ConfigError
from aigc_ext.data.batch import Batch
from aigc_ext.training import _moved
from aigc_ext.training.checkpoint import Checkpoint, CheckpointError, newest_checkpoint, read_checkpoint
from aigc_ext.training.config import DataConfig, RunConfig
from aigc_ext.training.loop import Loop, TrainResult
from aigc_ext.training.nonfinite import NonFiniteError
from aigc_ext.training.run import ResumePoint, RunError
from aigc_ext.training.task import Learner, Progress, Task

if TYPE_CHECKING:
    from aigc_ext.training._moved import *

__all__ = [
    "PRESETS",
    "STATISTICS",
    "AdaAugment",
    "AdversarialStep",
    "Batch",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DataConfig",
    "DiffAugment",
    "Learner",
    "Loop",
    "NonFiniteError",
    "Objective",
    "Progress",
    "Replay",
    "ResumePoint",
    "RunConfig",
    "RunError",
    "Task",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "adjusted_p",
    "find_resume_point",
    "newest_checkpoint",
    "read_checkpoint",
    "replay",
]

_moved.install()
