"""The command line, `aigc-ext`: the only part of the package that prints."""

from aigc_ext.cli.main import main

__all__ = ["main"]
