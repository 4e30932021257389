"""Sampling: images from seeds, grids of them, and PNG files that carry their provenance."""

from aigc_ext.sampling.grid import image_grid, readable_scale, save_grid
from aigc_ext.sampling.png import aigc_label, save_png, to_pil
from aigc_ext.sampling.pretrained import PretrainedError, load_pretrained, save_pretrained
from aigc_ext.sampling.sampler import Sampler

__all__ = [
    "PretrainedError",
    "Sampler",
    "aigc_label",
    "image_grid",
    "load_pretrained",
    "readable_scale",
    "save_grid",
    "save_png",
    "save_pretrained",
    "to_pil",
]
