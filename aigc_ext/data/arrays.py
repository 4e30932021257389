"""`.npy` and `.npz` files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aigc_ext._cache import Cache
from aigc_ext.data.dataset import DatasetError, Identity, TensorImages
from aigc_ext.data.index import file_stamp

_log = logging.getLogger(__name__)


def open_arrays(path: Path, memory_limit: int) -> TensorImages:
    """Opens uint8 images N,H,W or N,H,W,C; a `.npz` may also have integer labels (N,).

    A `.npz` has them in the arrays `images` and `labels`; without `images`, its first array is used. A `.npy`
    of more than `memory_limit` bytes is memory-mapped; a `.npz` can't be, so it is rejected.

    Raises:
        DatasetError: names the file, the array and what is wrong with it.
    """
    try:
        if path.suffix.lower() == ".npz":
            dataset = TensorImages(path.stem, *_read_npz(path, memory_limit))
            dataset.why_unlabelled = "the .npz has no array 'labels'"
        else:
            dataset = _read_npy(path, memory_limit)
            dataset.why_unlabelled = "a .npy has none; a .npz can have the array 'labels'"
        return dataset
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error


class _MappedImages(TensorImages):
    """Images in a file, which is read once to identify them, and again only after it has changed."""

    def __init__(self, path: Path, images: Tensor) -> None:
        super().__init__(path.stem, images)
        self._path, self._stamp = path, file_stamp(path.stat())

    def _identify(self) -> Identity:
        if self._stamp is None:
            return super()._identify()

        def compute() -> dict[str, Tensor]:
            found = super(_MappedImages, self)._identify()
            hexadecimal = {"sha256": found.sha256, "digests": "".join(found.digests)}
            return {
                name: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
                for name, text in hexadecimal.items()
            }

        key: dict[str, str | int] = {"path": os.path.realpath(self._path), "stamp": str(self._stamp)}
        kept = Cache().get("identity", key, compute)
        digests = [row.tobytes().hex() for row in kept["digests"].numpy().reshape(len(self), -1)]
        return Identity(kept["sha256"].numpy().tobytes().hex(), self._item_names(), digests)


def _read_npy(path: Path, memory_limit: int) -> TensorImages:
    with _plain_errors("the file"):
        # "c" (copy on write) never changes the file; PyTorch has no read-only tensors.
        array = np.lib.format.open_memmap(path, mode="c")
    images = _as_nchw(array, "the array")
    if array.nbytes > memory_limit:
        _log.info("%s: %d bytes exceed memory_limit=%d: mapped from disk", path, array.nbytes, memory_limit)
        return _MappedImages(path, images)
    return TensorImages(path.stem, images.clone(memory_format=torch.contiguous_format))


def _read_npz(path: Path, memory_limit: int) -> tuple[Tensor, Tensor | None]:
    with ExitStack() as stack:
        with _plain_errors("the file"):
            # Opened here, since NumPy doesn't close a file that it can't read.
            npz = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
        if not isinstance(npz, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array (.npy) called .npz")
        stack.enter_context(npz)
        if not npz.files:
            raise ValueError("it has no arrays, but must have one called 'images'")
        name = "images" if "images" in npz.files else npz.files[0]
        ignored = [other for other in npz.files if other not in (name, "labels")]
        if ignored:
            _log.warning("%s: images are read from the array %r; ignored: %s", path, name, ", ".join(ignored))
        images = _as_nchw(_read_member(npz, name, memory_limit), f"array {name!r}").contiguous()
        if "labels" not in npz.files or name == "labels":
            return images, None
        labels = _read_member(npz, "labels", memory_limit)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"array 'labels' is {labels.dtype}, but must be integers")
    if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"array 'labels' has {labels.max()}, which is no class")
    return images, torch.from_numpy(labels.astype(np.int64))


def _read_member(npz: np.lib.npyio.NpzFile, name: str, memory_limit: int) -> np.ndarray:
    assert npz.zip is not None  # it is None only after `npz` is closed
    try:
        size = npz.zip.getinfo(f"{name}.npy").file_size
    except KeyError:
        raise ValueError(f"{name!r} is not an array") from None
    if size > memory_limit:
        raise ValueError(
            f"array {name!r} has {size} bytes, more than memory_limit={memory_limit}: raise the limit or save"
            " the images as .npy, which is read from disk as needed"
        )
    with _plain_errors(f"array {name!r}"):
        array = npz[name]
    if not isinstance(array, np.ndarray):  # NumPy returns the bytes of a file that does not begin as an array
        raise ValueError(f"{name!r} is not an array")
    return array


def _as_nchw(array: np.ndarray, what: str) -> Tensor:
    if array.dtype != np.uint8:
        raise ValueError(f"{what} is {array.dtype}, but must be uint8")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4):
        hint = ", so transpose it" if array.ndim == 4 and array.shape[1] in (1, 3, 4) else ""
        raise ValueError(
            f"{what} has shape {array.shape}, but must be N,H,W or N,H,W,C with 1, 3 or 4 channels{hint}"
        )
    return torch.from_numpy(np.asarray(array)).permute(0, 3, 1, 2)


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Converts the various exceptions of NumPy, zipfile and zlib for damaged data to ValueError."""
    try:
        yield
    except Exception as error:
        reason = f"can't be read ({type(error).__name__}: {error})"
        # NumPy's own messages for both advise enabling allow_pickle.
        if isinstance(error, ValueError) and ("pickle" in str(error) or "Python objects" in str(error)):
            reason = "is not an array of plain numbers; Python objects (pickles) are never loaded"
        raise ValueError(f"{what} {reason}") from error
