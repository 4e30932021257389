"""Image files, good and bad."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

MEMORY_LIMITS = pytest.mark.parametrize("memory_limit", [2 << 30, 0], ids=["in memory", "on demand"])


def pixels(seed: int, shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, file_format, **options)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def labelled(*pairs: Any) -> bytes:
    """The content of a dataset.json."""
    return json.dumps({"labels": pairs}).encode()


def bomb() -> bytes:
    """The headers of a PNG of 30,000 x 30,000 pixels."""

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return png_chunks(header, (b"IDAT", zlib.compress(b"")))


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16-bit values, H x W x C with 1 to 4 channels."""
    height, width, channels = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return png_chunks(
        struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0), (b"IDAT", zlib.compress(lines))
    )


def png_chunks(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def mixed_folder(root: Path) -> Path:
    """A folder such as people have: seven images 3x32x32, and `MIXED_REASONS`."""
    files = {
        **{f"{i}.png": encoded(pixels(i)) for i in range(5)},
        "bomb.png": bomb(),
        "cmyk.jpg": encoded(Image.fromarray(pixels(7)).convert("CMYK"), "JPEG"),
        "dot.png": encoded(pixels(0, (1, 1, 3))),
        "text.png": b"this is no image\n",
        "truncated.jpg": encoded(pixels(8), "JPEG")[:-400],
        CHINESE: encoded(pixels(9)),
    }
    write(root, files)
    (root / "again").symlink_to(root.resolve())
    (root / "loop.png").symlink_to((root / "loop.png").absolute())
    return root


CHINESE = "人脸 图片.png"
MIXED_GOOD = ["0.png", "1.png", "2.png", "3.png", "4.png", "cmyk.jpg", CHINESE]
MIXED_REASONS = {
    "again": "it is a symbolic link to a folder that is read already: the dataset folder itself",
    "bomb.png": "900000000 pixels",
    "dot.png": "its shape is 3x1x1, but must be 3x32x32 as 0.png (8 of 9 images)",
    "loop.png": "Too many levels of symbolic links",
    "text.png": "its content is not recognised as PNG, JPEG",
    "truncated.jpg": "truncated",
}
