"""Images of any size made into images of one: cropping, bars, scaling, channels."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from PIL import Image

from aigc_ext import _names
from aigc_ext.data import image_file
from aigc_ext.data.dataset import BadFile, ImageDataset
from aigc_ext.data.files import ImageFiles

TRANSFORMS = _names.TRANSFORMS
# The ends of the reasons for which an image cannot be fitted.
NEEDS_TRANSFORM = "a transform would say what to cut off or to add"
NEEDS_ENLARGING = "it must be enlarged"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ArrayFiles(ImageFiles):
    """Presents a dataset without files as files."""

    def __init__(self, source: str, data: ImageDataset) -> None:
        super().__init__(source, data.name, source)
        self._data = data
        self.images = [f"image {i:08d}" for i in range(len(data))]

    def size(self, name: str) -> int:
        return 1

    def open(self, name: str) -> BinaryIO:
        pixels = self._data.read([int(name[6:])])[0][0].permute(1, 2, 0).numpy()
        return io.BytesIO(png(as_image(pixels)))

    def labels(self) -> tuple[dict[str, int] | None, list[BadFile]]:
        if not self._data.num_classes:
            self.why_unlabelled = self._data.why_unlabelled
            return None, []
        return dict(zip(self.images, self._data.labels.tolist(), strict=True)), []


def check_fit(resolution: tuple[int, int] | None, transform: str | None) -> None:
    """Raises ValueError for a size or transform that is not possible."""
    if transform is not None and transform not in TRANSFORMS:
        raise ValueError(f"transform is {transform!r}, but must be one of {', '.join(TRANSFORMS)}")
    if resolution is None:
        if transform is not None:
            raise ValueError(f"transform is {transform!r}, but needs a resolution")
        return
    width, height = resolution
    if width < 1 or height < 1 or width * height > image_file.MAX_PIXELS:
        raise ValueError(
            f"resolution is {width}x{height}, but must be 1x1 at least and have at most"
            f" {image_file.MAX_PIXELS} pixels"
        )
    if transform == "center-crop-wide" and width < height:
        raise ValueError(
            f"resolution is {width}x{height}, but for center-crop-wide must not be taller than wide"
        )


def fitted_size(resolution: tuple[int, int], transform: str | None) -> tuple[int, int]:
    """Width and height of the results of `fit`."""
    width, height = resolution
    return (width, width) if transform == "center-crop-wide" else (width, height)


def fit(image: Image.Image, size: tuple[int, int], transform: str | None, enlarge: bool) -> Image.Image:
    """The image resized to `size`, or for center-crop-wide on a square; see `convert_dataset`.

    Raises:
        ValueError: it has another aspect ratio or is too small, and what would be needed.
    """
    width, height = size
    across, down = width / image.width, height / image.height
    scale = min(across, down) if transform == "letterbox" else max(across, down)
    whole = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if transform is None and whole != size:
        raise ValueError(
            f"it is {image.width}x{image.height}, which is not of the shape of {width}x{height};"
            f" {NEEDS_TRANSFORM}"
        )
    if scale > 1 and not enlarge:
        raise ValueError(f"it is {image.width}x{image.height}, so to have {width}x{height} {NEEDS_ENLARGING}")
    if transform == "letterbox":
        return _on_black(image.resize(whole, Image.Resampling.LANCZOS), size)
    left, top = max(0.0, (image.width - width / scale) / 2), max(0.0, (image.height - height / scale) / 2)
    box = (left, top, image.width - left, image.height - top)
    fitted = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return _on_black(fitted, (width, width)) if transform == "center-crop-wide" else fitted


def _on_black(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new(image.mode, size)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    mode = _MODES[channels]
    if image.mode == "RGBA" and mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
