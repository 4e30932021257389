"""Training: the loop around a task, its run directory, and checkpoints that resume exactly.

It trains a task (`training.task.Task`); the GAN task is `aigc_ext.tasks.gan`. Its public names are available
here too, and imported on access.
"""

import typing

from aigc_ext.config import ConfigError as ConfigError
from aigc_ext.data.batch import Batch as Batch
from aigc_ext.training import _moved
from aigc_ext.training.checkpoint import Checkpoint as Checkpoint
from aigc_ext.training.checkpoint import CheckpointError as CheckpointError
from aigc_ext.training.checkpoint import newest_checkpoint as newest_checkpoint
from aigc_ext.training.checkpoint import read_checkpoint as read_checkpoint
from aigc_ext.training.config import RunConfig as RunConfig
from aigc_ext.training.loop import Loop as Loop
from aigc_ext.training.loop import TrainResult as TrainResult
from aigc_ext.training.nonfinite import NonFiniteError as NonFiniteError
from aigc_ext.training.run import ResumePoint as ResumePoint
from aigc_ext.training.run import RunError as RunError
from aigc_ext.training.task import Learner as Learner
from aigc_ext.training.task import Progress as Progress
from aigc_ext.training.task import Task as Task

if typing.TYPE_CHECKING:
    from aigc_ext.training._moved import *  # noqa: F403

_moved.install()
