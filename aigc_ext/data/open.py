"""From what a user types after `--data` to a dataset."""

from __future__ import annotations

import os
from pathlib import Path

from aigc_ext.data.arrays import open_arrays
from aigc_ext.data.dataset import DatasetError, ImageDataset
from aigc_ext.data.embedded import NAMES as EMBEDDED_NAMES
from aigc_ext.data.embedded import open_embedded
from aigc_ext.data.files import open_files

DEFAULT_MEMORY_LIMIT = 2 << 30


def open_dataset(source: str | os.PathLike[str], *, memory_limit: int = DEFAULT_MEMORY_LIMIT) -> ImageDataset:
    """Opens a dataset and checks it, so that a bad file is found now and not after a night of training.

    Args:
        source: one of
            - `digits` (1,797 images 1x8x8) or `mnist5k` (5,000 images 1x28x28), both with 10 classes, from
              the packages of `pip install aigc_ext[data]`; a folder of that name is `./digits`;
            - a folder, searched recursively, or a `.zip`: PNG, JPEG, WebP, BMP, GIF, TIFF and PPM images of
              one shape, in the order of their names, with an optional `dataset.json` at the top:
              `{"labels": [["sub/a.png", 3], ...]}` with a class for each image. Hidden files and files with
              other suffixes are passed over. See `image_file.decode` for colour modes;
            - a `.npy` or `.npz` of uint8 images N,H,W or N,H,W,C, in a `.npz` as the array `images` (else its
              first array) with an optional array `labels` (N,).
        memory_limit: bytes of pixels that may be held in memory; above it a folder, zip or `.npy` is read as
            needed, image by image.

    Raises:
        DatasetError: the source is missing, of no known kind, or has bad files, of which `bad_files` is the
        list.
    """
    if memory_limit < 0:
        raise ValueError(f"memory_limit is {memory_limit}, but must be at least 0")
    if isinstance(source, str) and source in EMBEDDED_NAMES:
        return open_embedded(source)
    text = os.fspath(source)
    path = Path(text)
    if not text or not path.exists():
        raise DatasetError(
            f"dataset {text!r}: there is no such file or folder, nor is it one of {', '.join(EMBEDDED_NAMES)}"
        )
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".zip":
        return open_files(path, memory_limit)
    if suffix in (".npy", ".npz"):
        return open_arrays(path, memory_limit)
    raise DatasetError(f"{path}: it is a file, but must be a folder, .zip, .npy or .npz")
