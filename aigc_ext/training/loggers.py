"""Copies a run's statistics and previews to TensorBoard and Weights & Biases.

The run directory is complete without them. Nothing is imported, and nothing leaves the machine, unless
`config.log` names the logger. Both count images seen, as `nimg` in stats.jsonl. A resumed run continues in
the same place; a logger that is added later first receives all earlier rows.
"""

from __future__ import annotations

import importlib
import mimetypes
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aigc_ext import _files
from aigc_ext.config import ConfigError
from aigc_ext.training.config import RunConfig
from aigc_ext.training.run import Run, RunError

TENSORBOARD_DIRECTORY = "tensorboard"
WANDB_ID_FILE = "wandb_id.txt"
_NUMBER = re.compile(r"(_init|\d{6,}(-\d{3})?)$")  # at the end of a preview's name
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


def check_loggers(names: Sequence[str]) -> None:
    """Raises ConfigError if the package of one of the `names` is not installed."""
    for name in names:
        try:
            importlib.import_module(_MODULES[name])
        except ImportError as error:
            raise ConfigError(
                f"log has {name!r}, whose package is needed: pip install aigc_ext[{name}] ({error})"
            ) from error


@contextmanager
def open_loggers(
    names: Sequence[str], run: Run, config: RunConfig, nimg: int, first: Path
) -> Iterator[list[Logger]]:
    """Opens the named loggers for a run that continues from `nimg` images, and closes them afterwards;
    `first` is the preview of the untrained networks.

    Raises RunError if one cannot be opened.
    """
    with ExitStack() as stack:
        loggers: list[Logger] = []
        for name in dict.fromkeys(names):
            is_tensorboard = name == "tensorboard"
            logger = _TensorBoard(run.path, nimg) if is_tensorboard else _WandB(run.path, config)
            loggers.append(stack.enter_context(logger))
            if logger.is_new:
                for group, log in (("stats", run.stats), ("metrics", run.metrics)):
                    for row in log.rows():
                        logger.row(group, row)
                if nimg == 0:
                    logger.preview(first, 0)
        yield loggers


class Logger(AbstractContextManager["Logger"], ABC):
    """A destination of a run's statistics and previews other than its directory."""

    is_new: bool

    def row(self, group: str, row: Mapping[str, Any]) -> None:
        """Logs the numbers in a row of stats.jsonl or metrics.jsonl."""
        numbers = ((name, value) for name, value in row.items() if isinstance(value, (int, float)))
        self.scalars({f"{group}/{name}": value for name, value in numbers if name != "nimg"}, row["nimg"])

    def preview(self, path: Path, nimg: int) -> None:
        """Logs a written preview, if it is an image."""
        if (mimetypes.guess_type(path)[0] or "").startswith("image/"):
            self.image(_NUMBER.sub("", path.stem), path, nimg)

    @abstractmethod
    def scalars(self, values: Mapping[str, float], nimg: int) -> None: ...

    @abstractmethod
    def image(self, name: str, path: Path, nimg: int) -> None: ...


class _TensorBoard(Logger):
    """Event files in the run directory. The images have only pixels, without our metadata."""

    def __init__(self, run_dir: Path, nimg: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / TENSORBOARD_DIRECTORY
        self.is_new = not path.exists()
        # Hide what a dead process wrote after its last checkpoint, since those steps are taken again.
        self._writer = SummaryWriter(str(path), purge_step=None if self.is_new else nimg + 1)

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, nimg)

    def image(self, name: str, path: Path, nimg: int) -> None:
        with Image.open(path) as image:
            pixels = np.asarray(image)
        self._writer.add_image(name, pixels, nimg, dataformats="HWC" if pixels.ndim == 3 else "HW")
        self._writer.flush()


class _WandB(Logger):
    """A run of Weights & Biases, online or offline according to the user's settings (WANDB_MODE, ...). Its id
    is kept in the run directory. W&B itself adds what it is configured to: console output, host, packages."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        import wandb

        self._image = wandb.Image
        id_file = run_dir / WANDB_ID_FILE
        self.is_new = not id_file.exists()
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "aigc_ext"),
                name=run_dir.name,
                dir=str(run_dir),
                config=config.to_dict(),
                id=None if self.is_new else id_file.read_text(encoding="utf-8").strip(),
                resume=None if self.is_new else "allow",
                # A resumed run may have another length or learning rate.
                allow_val_change=True,
            )
        except wandb.Error as error:
            raise RunError(f"wandb cannot be started: {' '.join(str(error).split())}") from error
        if self.is_new:
            _files.replace_file(id_file, f"{self._run.id}\n".encode())
        # Not W&B's own step, which cannot go back to the last checkpoint's.
        self._run.define_metric("nimg", hidden=True)
        self._run.define_metric("*", step_metric="nimg")

    def __exit__(self, kind: object, *error: object) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        self._run.log({**values, "nimg": nimg})

    def image(self, name: str, path: Path, nimg: int) -> None:
        self._run.log({name: self._image(str(path)), "nimg": nimg})
