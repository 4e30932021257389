"""Decoding of one image file with Pillow: which formats are handled, and which rejected."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from aigc_ext import _names

# Only these decoders: neither the name of a file nor its contents may choose another parser.
_FORMATS: tuple[str, ...] = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".webp", ".bmp", ".dib", ".gif"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
if features.check("avif"):  # since Pillow 11.3
    _FORMATS, SUFFIXES = (*_FORMATS, "AVIF"), SUFFIXES | {".avif"}
# What a file under any other name must begin with. No TIFF, which raw photos are too, with a small preview.
_BEGINNINGS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP"
    + (rb"|....ftypavi[fs]" if "AVIF" in _FORMATS else b""),
    re.DOTALL,
)
FORMATS = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
HEAD = 16
"""Bytes for `looks_like_image`."""

MAX_PIXELS = 1 << 26
"""Pixels of the largest image that is decoded (8192 x 8192). It is checked here, before any pixel is decoded,
since Pillow's own limit is process-wide, at first only warns, and may have been disabled."""

MAX_FILE_BYTES = 8 * MAX_PIXELS
"""Size of the largest file that is read: an uncompressed image of MAX_PIXELS with four 16-bit channels."""

WHITE = _names.WHITE
"""The value of white in 16-bit images, unless another is chosen."""

_OUTPUT_MODE = {
    "1": "L",
    "L": "L",
    "P": "RGB",
    "RGB": "RGB",
    "CMYK": "RGB",
    "LA": "RGBA",
    "PA": "RGBA",
    "RGBA": "RGBA",
}
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_ORIENTATION_TAG = 0x0112


def looks_like_image(head: bytes) -> bool:
    """Do the first bytes of a file with an unusual name belong to an image that `decode` reads?"""
    return _BEGINNINGS.match(head) is not None


def probe(file: BinaryIO) -> tuple[int, int, int]:
    """The shape (C, H, W) of `decode`'s result, from the headers alone.

    Raises the errors of `decode`, except for damage after the headers.
    """
    with Image.open(file, formats=_FORMATS) as image:
        return _checked_shape(image)


def stored_as(file: BinaryIO) -> str:
    """Format and colour mode before `decode`, in Pillow's terms, such as `JPEG CMYK` or `PNG I;16`."""
    with Image.open(file, formats=_FORMATS) as image:
        return f"{image.format} {image.mode}"


def decode(file: BinaryIO, white: int | None = None) -> np.ndarray:
    """The image as uint8, H x W x C, rotated according to its EXIF orientation.

    Grey and bilevel images have one channel, palette and CMYK images become RGB; an alpha channel or a
    transparent colour makes them RGBA. Of 16 bits the upper 8 are kept, as Pillow does for 16-bit RGB.

    Args:
        white: the value of 16-bit grey that is white, such as 4095 for values of 12 bits, instead of 65535.

    Raises:
        ValueError: the image is too large, has several frames, or a colour mode without an 8-bit meaning, or
            it has 16 bits per colour, of which Pillow reads 8, and `white` is given.
        Exception: anything that Pillow raises for damaged input; see `describe_error`.
    """
    with Image.open(file, formats=_FORMATS) as image:
        _checked_shape(image)
        output_mode = _output_mode(image)
        sixteen_bits = _is_sixteen_bit(image)
        if white not in (None, WHITE) and _is_sixteen_bit_colour(image):
            raise ValueError(f"it has 16 bits per colour, of which 8 are read: its white cannot be {white}")
        ImageOps.exif_transpose(image, in_place=True)
        if sixteen_bits:
            pixels = _eight_bits(np.asarray(image), WHITE if white is None else white)
        else:
            pixels = np.array(image if image.mode == output_mode else image.convert(output_mode))
    return pixels.reshape(*pixels.shape[:2], _CHANNELS[output_mode])


class Peak(NamedTuple):
    """The largest value of a 16-bit image, apart from alpha. If the image has colours, or grey and alpha, the
    lower 8 bits are not read, and taken to be set."""

    value: int
    colour: bool


def peak(file: BinaryIO) -> Peak | None:
    """The largest value of a 16-bit image; None for others, of which only the headers are read."""
    with Image.open(file, formats=_FORMATS) as image:
        _checked_shape(image)
        if _is_sixteen_bit(image):
            return Peak(int(np.asarray(image).max()), False)
        if _is_sixteen_bit_colour(image):
            return Peak(int(np.asarray(image.convert("RGB")).max()) << 8 | 255, True)
    return None


def describe_peaks(peaks: Sequence[Peak], white: int | None) -> str | None:
    """A remark on 16-bit images that are almost black or cut off, if these are."""
    if not peaks:
        return None
    most, full = max(peak.value for peak in peaks), WHITE if white is None else white
    if most > full:
        return f"its 16-bit images have values up to {most}: all above {full} becomes white"
    if most >= full / 4:
        return None
    bits = most.bit_length()
    way = f"--white {(1 << bits) - 1} reads them as values of {bits} bits"
    if any(peak.colour for peak in peaks):
        way = "of several colours the upper 8 bits are read, so scale the values beforehand"
    return f"its 16-bit images have values of at most {most} of {full} and are almost black: {way}"


def describe_error(error: Exception) -> str:
    """Why a file can't be read, for users: Pillow's and zipfile's own messages name internals or nothing."""
    if isinstance(error, UnidentifiedImageError):
        return f"its content is not recognised as {FORMATS}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if type(error) in (ValueError, OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _checked_shape(image: Image.Image) -> tuple[int, int, int]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it is {width}x{height} pixels, but at most {MAX_PIXELS} pixels are allowed")
    # A JPEG with a second picture (MPO: a depth map or preview, written by phones) is still one photo.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"it has {frames} frames, but must have one")
    # For TIFF, Pillow reports the size after rotation. To look for EXIF after the pixels, it would decode a
    # whole PNG; only `decode` finds such EXIF, and its caller notices the unexpected shape.
    exif_in_header = image.format != "TIFF" and ("exif" in image.info or "xmp" in image.info)
    if exif_in_header and image.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8):
        width, height = height, width
    return _CHANNELS[_output_mode(image)], height, width


def _output_mode(image: Image.Image) -> str:
    if _is_sixteen_bit(image) and "transparency" not in image.info:
        return "L"
    if image.mode not in _OUTPUT_MODE:
        raise ValueError(
            f"its colour mode is {image.mode} ({image.format}), but must be one of {', '.join(_OUTPUT_MODE)}"
            " or, in a PNG or PPM without a transparent colour, 16-bit grey"
        )
    return "RGBA" if image.has_transparency_data else _OUTPUT_MODE[image.mode]


def _is_sixteen_bit(image: Image.Image) -> bool:
    # Not TIFF: its values may have 12 bits, or white as 0, and Pillow doesn't tell. Mode I has 32 bits, of
    # which a PPM uses 16.
    return (image.format, image.mode) in (("PNG", "I;16"), ("PNG", "I"), ("PPM", "I"))


def _is_sixteen_bit_colour(image: Image.Image) -> bool:
    """Does the file have 16 bits per colour, or grey and alpha, in an image that Pillow reads with 8?"""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return image.format == "PNG" and not _is_sixteen_bit(image) and any("16B" in str(t[3]) for t in tiles)


def _eight_bits(values: np.ndarray, white: int) -> np.ndarray:
    if white == WHITE:
        return (values >> 8).astype(np.uint8)
    return (np.minimum(values, white).astype(np.float64) * (255 / white)).round().astype(np.uint8)
