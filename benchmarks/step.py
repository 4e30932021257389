"""A whole training step of each preset's networks; see `aigc_ext.bench.step`."""

from aigc_ext.bench.step import cases as cases
