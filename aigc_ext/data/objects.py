"""Datasets from what a program already has: tensors, arrays, a PyTorch dataset, a path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from aigc_ext.data.dataset import DatasetError, ImageDataset, TensorImages
from aigc_ext.data.open import DEFAULT_MEMORY_LIMIT, open_dataset
from aigc_ext.data.pixels import to_uint8

_FORMS = (
    "an ImageDataset, a path or name for open_dataset, a tensor N,C,H,W, an array N,H,W,C, a pair of one of"
    " these and labels, or a torch Dataset of images or (image, label)"
)


def as_dataset(
    data: Any, *, name: str | None = None, memory_limit: int = DEFAULT_MEMORY_LIMIT
) -> ImageDataset:
    """The images of `data` as a dataset; an ImageDataset is returned as it is.

    Args:
        data: one of
            - a path or name, for `open_dataset` with `on_bad="skip"`;
            - a tensor (N, C, H, W) or (N, H, W), or an array (N, H, W, C) or (N, H, W), with 1, 3 or 4
              channels: uint8, or floating point from 0 to 1, or from -1 to 1 if any value is below 0, which
              is rounded to uint8;
            - a tuple (images, labels) of these, with integers (N,);
            - a map-style `torch.utils.data.Dataset` (anything with `len` and items) of images or tuples
              (image, label), where an image is a PIL image, or a tensor or array as above without N. It is
              read once, in order. What fits into `memory_limit` is held in memory; the rest is read again
              when needed, possibly by several threads. So a random transform is drawn once for each image,
              or makes the run impossible to repeat.
        name: for people and run directories; by default the kind of `data`.
        memory_limit: bytes, for a torch Dataset.

    Raises:
        TypeError: it is none of these.
        DatasetError: it is, but a shape, dtype, value or label is wrong.
    """
    if isinstance(data, ImageDataset):
        return data
    if isinstance(data, (str, os.PathLike)):
        return open_dataset(data, on_bad="skip")
    if isinstance(data, (DataLoader, IterableDataset)):
        wanted = "what it loads from: pass data.dataset"
        if isinstance(data, IterableDataset):
            wanted = "one with len() and items, so that any image can be read at any time"
        raise TypeError(f"data is of type {type(data).__name__}, but must be {wanted}")
    try:
        if isinstance(data, (Tensor, np.ndarray)):
            return TensorImages(name or "images", _batch(data))
        if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], (Tensor, np.ndarray)):
            return TensorImages(name or "images", _batch(data[0]), torch.as_tensor(data[1]))
        if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (dict, bytes)):
            return _read_once(data, name or type(data).__name__, memory_limit)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"data of type {type(data).__name__}: {error}") from error
    raise TypeError(f"data is of type {type(data).__name__}, but must be {_FORMS}")


class ObjectImages(ImageDataset):
    """A map-style dataset whose images don't fit into memory.

    Args:
        signed: do floating-point values range from -1 to 1, and not from 0 to 1?
    """

    def __init__(
        self, items: Any, name: str, shape: tuple[int, int, int], labels: Tensor | None, signed: bool
    ) -> None:
        super().__init__(name, len(items), shape, labels)
        self._items = items
        self._signed = signed

    def _image(self, i: int) -> Tensor:
        try:
            pixels = _to_bytes(_channels_first(_split(self._items[i])[0]), self._signed)
            return _of_shape(pixels, self.image_shape)
        except ValueError as error:
            raise DatasetError(f"{self.name}: item {i}: {error}") from error

    def _read_items(self, index: Tensor) -> tuple[Tensor, Tensor]:
        images = [self._image(i) for i in index.tolist()]
        return torch.stack(images) if images else torch.empty(
            (0, *self.image_shape), dtype=torch.uint8
        ), index

    def _content(self) -> Iterator[bytes]:
        for i in range(len(self)):
            yield self._image(i).numpy().tobytes()


def _read_once(items: Any, name: str, memory_limit: int) -> ImageDataset:
    """Reads every item, for the labels, the range of the values and, if they fit, the images."""
    count, signed = len(items), False
    held: list[Tensor] = []
    labels: list[int | None] = []
    if not count:
        raise ValueError("it is empty")
    for i in range(count):
        try:
            image, label = _split(items[i])
            values = _channels_first(image)
            if not signed and values.is_floating_point() and bool((values < 0).any()):
                signed = True
                # What was read before had no value below 0, and was taken for values from 0 to 1.
                held = [_to_bytes(_channels_first(_split(items[k])[0]), signed) for k in range(len(held))]
            pixels = _to_bytes(values, signed)
            if i == 0:
                shape = pixels.shape
                keep = count * pixels.numel() <= memory_limit
            _of_shape(pixels, shape)
            labels.append(None if label is None else _class(label))
        except ValueError as error:
            raise ValueError(f"item {i}: {error}") from error
        if keep:
            held.append(pixels)
    classes = [label for label in labels if label is not None]
    if classes and len(classes) < count:
        raise ValueError(f"item {labels.index(None)} has no label, but others have one")
    of_items = torch.tensor(classes) if classes else None
    if keep:
        return TensorImages(name, torch.stack(held), of_items)
    channels, height, width = shape
    return ObjectImages(items, name, (channels, height, width), of_items, signed)


def _split(item: Any) -> tuple[Any, Any]:
    """The image and the label, or None, of an item."""
    if not isinstance(item, (tuple, list)):
        return item, None
    if len(item) not in (1, 2):
        raise ValueError(f"it has {len(item)} entries, but must be an image or (image, label)")
    return item[0], item[1] if len(item) == 2 else None


def _class(label: Any) -> int:
    value = label.tolist() if isinstance(label, (Tensor, np.ndarray, np.generic)) else label
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the label is {label!r}, but must be an integer")
    return value


def _channels_first(image: Any) -> Tensor:
    """The values of an image as (C, H, W)."""
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB", "RGBA"):
            raise ValueError(f"the image has mode {image.mode}, but must have L, RGB or RGBA: convert('RGB')")
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        values = torch.from_numpy(image.copy())  # a PIL image's memory cannot be written to
        values = values.permute(2, 0, 1) if values.dim() == 3 else values
    elif isinstance(image, Tensor):
        values = image.detach().cpu()
    else:
        raise ValueError(
            f"the image is a {type(image).__name__}, but must be a PIL image, a tensor or an array"
        )
    values = values[None] if values.dim() == 2 else values
    if values.dim() != 3 or values.shape[0] not in (1, 3, 4):
        order = "H,W,C" if isinstance(image, np.ndarray) else "C,H,W"
        raise ValueError(
            f"the image has shape {tuple(image.shape)}, but must be H,W or {order} with 1, 3 or 4 channels"
        )
    return values


def _of_shape(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    if pixels.shape != tuple(shape):
        raise ValueError(f"the image is {tuple(pixels.shape)}, but the first one is {tuple(shape)}")
    return pixels


def _batch(images: Tensor | np.ndarray) -> Tensor:
    """uint8 (N, C, H, W)."""
    if isinstance(images, np.ndarray):
        values, order = torch.from_numpy(np.require(images, requirements=("C", "W"))), "N,H,W,C"
        values = values.permute(0, 3, 1, 2) if values.dim() == 4 else values
    else:
        values, order = images.detach().cpu(), "N,C,H,W"
    values = values[:, None] if values.dim() == 3 else values
    if values.dim() != 4 or values.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"the images have shape {tuple(images.shape)}, but must be N,H,W or {order} with 1, 3 or 4"
            " channels"
        )
    return _to_bytes(values, signed=values.is_floating_point() and bool((values < 0).any()))


def _to_bytes(values: Tensor, signed: bool) -> Tensor:
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise ValueError(f"the values are {values.dtype}, but must be uint8 or floating point")
    lowest = -1.0 if signed else 0.0
    if not bool(((values >= lowest) & (values <= 1)).all()):  # false for NaN too
        raise ValueError(
            f"the values range from {values.min():.4g} to {values.max():.4g}, but must be uint8 from 0 to"
            " 255, or floating point from 0 to 1, or from -1 to 1"
        )
    return to_uint8(values, (lowest, 1.0))
