"""The command line, `aigc-ext`: the only part of the package that prints.

Its modules import torch, and what needs it, only within a command, so that `--help` is quick.
"""

from aigc_ext.cli.main import main

__all__ = ["main"]
