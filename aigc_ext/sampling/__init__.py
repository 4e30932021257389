"""Sampling: images from seeds, walks and projections, files with provenance, and export."""

from aigc_ext.sampling.convert import Converted, ConvertError, convert_checkpoint
from aigc_ext.sampling.export import Exported, ExportError, export_generator
from aigc_ext.sampling.grid import image_grid, readable_scale, save_grid
from aigc_ext.sampling.latents import Latents, LatentsError
from aigc_ext.sampling.png import aigc_label, save_png, to_pil
from aigc_ext.sampling.pretrained import PretrainedError, load_pretrained, save_pretrained
from aigc_ext.sampling.projection import Projection, fit_target, project
from aigc_ext.sampling.sampler import Sampler
from aigc_ext.sampling.video import save_video
from aigc_ext.sampling.wav import WavMetadata, read_wav_metadata, save_wav, spectrum_pictures

__all__ = [
    "ConvertError",
    "Converted",
    "Exported",
    "ExportError",
    "Latents",
    "LatentsError",
    "PretrainedError",
    "Projection",
    "Sampler",
    "WavMetadata",
    "aigc_label",
    "convert_checkpoint",
    "export_generator",
    "fit_target",
    "image_grid",
    "load_pretrained",
    "project",
    "read_wav_metadata",
    "readable_scale",
    "save_grid",
    "save_png",
    "save_pretrained",
    "save_video",
    "save_wav",
    "spectrum_pictures",
    "to_pil",
]
