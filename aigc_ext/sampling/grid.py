"""Image grids."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from aigc_ext.sampling.png import check_images, save_png


def image_grid(images: np.ndarray, *, columns: int | None = None, scale: int = 1) -> np.ndarray:
    """Arranges uint8 images (N, H, W, C) in rows, left to right, as one (rows * H, columns * W, C) image.

    Args:
        columns: images per row; by default the grid is roughly square. Empty cells are black.
        scale: each pixel becomes `scale` x `scale` pixels.
    """
    images = check_images(images)
    count, height, width, channels = images.shape
    if count == 0:
        raise ValueError("images is empty, but a grid needs at least one image")
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    if columns < 1:
        raise ValueError(f"columns is {columns}, but must be at least 1")
    if scale < 1:
        raise ValueError(f"scale is {scale}, but must be at least 1")
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    cells[:count] = images
    sheet = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def readable_scale(height: int, width: int) -> int:
    """An integer zoom factor that enlarges small images to 64 pixels or slightly more."""
    return max(1, math.ceil(64 / max(height, width)))


def save_grid(
    images: np.ndarray, path: str | Path, *, columns: int | None = None, scale: int = 1, **png_options: Any
) -> None:
    """Writes the `image_grid` of `images` with `save_png`, which takes the other options."""
    save_png(image_grid(images, columns=columns, scale=scale), path, **png_options)
