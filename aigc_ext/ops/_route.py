"""Which of several kernels or forms an op runs, and why.

``AIGC_LOG=debug`` prints these choices and which native op ran on which device, as does Python's logger
``aigc_ext`` at that level.
"""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

import torch

LOG = logging.getLogger("aigc_ext.ops")
_LEVELS = ("debug", "info", "warning", "error")


class Route(NamedTuple):
    """A choice and its reason: ``kernel`` names a native op, or a form composed of other ops."""

    kernel: str
    because: str


def is_debugging() -> bool:
    return not torch.compiler.is_compiling() and LOG.isEnabledFor(logging.DEBUG)


def take(op: str, route: Route) -> str:
    """Logs the route that ``op`` takes and returns its kernel."""
    if is_debugging():
        LOG.debug("%s takes %s: %s", op, *route)
    return route.kernel


def _log_to_stderr() -> None:
    """Applies the environment variable AIGC_LOG."""
    level = os.environ.get("AIGC_LOG", "")
    if level and level.lower() not in _LEVELS:
        raise ImportError(
            f"aigc_ext: AIGC_LOG is {level!r}, but must be one of {', '.join(_LEVELS)}, or unset"
        )
    if level:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logging.getLogger("aigc_ext").addHandler(handler)
        logging.getLogger("aigc_ext").setLevel(level.upper())


_log_to_stderr()
