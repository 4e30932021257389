"""Datasets, the stream of batches, and conversion to and from a model's value range."""

from aigc_ext.data.audio import NAMED_AUDIO, AudioDataset, open_audio
from aigc_ext.data.convert import TRANSFORMS, Conversion, Inspection, convert_dataset, inspect_dataset
from aigc_ext.data.dataset import (
    BadFile,
    Dataset,
    DatasetError,
    ImageDataset,
    TensorImages,
    describe_bad_files,
    split,
)
from aigc_ext.data.objects import as_dataset
from aigc_ext.data.open import EMBEDDED_NAMES, NAMED, open_dataset
from aigc_ext.data.pixels import normalize, to_uint8
from aigc_ext.data.stream import BatchStream

__all__ = [
    "EMBEDDED_NAMES",
    "NAMED",
    "NAMED_AUDIO",
    "TRANSFORMS",
    "AudioDataset",
    "BadFile",
    "BatchStream",
    "Conversion",
    "Dataset",
    "DatasetError",
    "ImageDataset",
    "Inspection",
    "TensorImages",
    "as_dataset",
    "convert_dataset",
    "describe_bad_files",
    "inspect_dataset",
    "normalize",
    "open_audio",
    "open_dataset",
    "split",
    "to_uint8",
]
