"""The cost of a run, measured by another process: `python -m aigc_ext.tasks.likelihood.dry_run`."""

from __future__ import annotations

import json
import sys

from aigc_ext.tasks.likelihood.config import TrainConfig
from aigc_ext.tasks.likelihood.trainer import Trainer
from aigc_ext.training.cost import Cost, answer, measure
from aigc_ext.training.progress import available_memory_gb
from aigc_ext.training.runtime import resolve_device


def estimate_cost(config: TrainConfig) -> Cost:
    """An estimate of a run's cost, within about a minute and the memory that is free; see `training.cost`.

    Raises:
        RuntimeError: a step failed, for another reason than memory.
    """
    device = resolve_device(config.device)
    available = available_memory_gb(device) if device.type == "cpu" else None
    silent = config.override("log", [])
    return measure([sys.executable, "-m", __name__], silent.to_json(), available)


if __name__ == "__main__":
    answer(lambda text: Trainer.from_config(TrainConfig.from_dict(json.loads(text))))
