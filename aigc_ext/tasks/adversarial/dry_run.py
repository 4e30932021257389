"""The cost of a run, measured by another process: `python -m aigc_ext.tasks.adversarial.dry_run`."""

from __future__ import annotations

import json
import sys

from aigc_ext.tasks.adversarial.config import TrainConfig
from aigc_ext.tasks.adversarial.task import Trainer
from aigc_ext.training.cost import Cost, answer, measure
from aigc_ext.training.progress import available_memory_gb
from aigc_ext.training.runtime import resolve_device


def estimate_cost(config: TrainConfig) -> Cost:
    """An estimate of a run's cost, within about a minute and the memory that is free; see `training.cost`. The
    steps are those after `loss.start_kimg`.

    Raises:
        RuntimeError: a step failed, for another reason than memory.
    """
    device = resolve_device(config.device)
    available = available_memory_gb(device) if device.type == "cpu" else None
    silent = config.override("log", []).override("loss.start_kimg", 0.0)
    return measure([sys.executable, "-m", __name__], silent.to_json(), available)


if __name__ == "__main__":
    answer(lambda text: Trainer.from_config(TrainConfig.from_dict(json.loads(text))))
