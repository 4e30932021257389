"""Fused kernels for GANs in PyTorch."""

import importlib
import os
import sys
from typing import TYPE_CHECKING

from aigc_ext.version import __version__ as __version__

if TYPE_CHECKING:
    from aigc_ext import bench as bench
    from aigc_ext import compat as compat
    from aigc_ext import config as config
    from aigc_ext import data as data
    from aigc_ext import losses as losses
    from aigc_ext import metrics as metrics
    from aigc_ext import models as models
    from aigc_ext import nn as nn
    from aigc_ext import ops as ops
    from aigc_ext import optim as optim
    from aigc_ext import reporting as reporting
    from aigc_ext import sampling as sampling
    from aigc_ext import tasks as tasks
    from aigc_ext import training as training
    from aigc_ext._info import Info as Info
    from aigc_ext._info import cmake_prefix as cmake_prefix
    from aigc_ext._info import info as info
    from aigc_ext.ops import decompose as decompose
    from aigc_ext.ops import no_weight_gradients as no_weight_gradients
else:
    # Imported when first used.
    _LATER = (
        *("bench", "compat", "config", "data", "metrics", "models", "reporting", "sampling", "tasks"),
        "training",
    )
    # Imported at once, which loads torch and registers the ops; ops first, whose error explains a problem
    # with the native library best.
    _AT_ONCE = ("ops", "losses", "nn", "optim")
    # By the module that has it.
    _NAMES = {
        "Info": "_info",
        "cmake_prefix": "_info",
        "info": "_info",
        "decompose": "ops",
        "no_weight_gradients": "ops",
    }

    def _is_command_line() -> bool:
        """Is this process the command `aigc-ext`? Its help must not wait for torch."""
        name, *_ = [*sys.argv, ""]
        return os.path.basename(name) == "aigc-ext" or (name == "-m" and "aigc_ext.cli" in sys.orig_argv)

    def __getattr__(name: str) -> object:
        if name in _LATER or name in _AT_ONCE:
            return importlib.import_module(f"{__name__}.{name}")
        if name in _NAMES:
            return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER, *_AT_ONCE, *_NAMES})

    if not _is_command_line():
        globals().update({name: __getattr__(name) for name in (*_AT_ONCE, *_NAMES)})
