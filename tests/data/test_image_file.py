from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aigc_ext.data.image_file import MAX_PIXELS, decode, describe_error, probe
from tests.data.helpers import png_chunks

HEIGHT, WIDTH = 5, 7
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
RGBA = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """Decodes, and checks that `probe` promised that shape."""
    pixels = decode(io.BytesIO(data))
    height, width, channels = pixels.shape
    assert probe(io.BytesIO(data)) == (channels, height, width)
    assert pixels.dtype == np.uint8
    return pixels


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_formats_give_the_same_bytes(file_format: str, pixels: np.ndarray) -> None:
    assert np.array_equal(decoded(encoded(pixels, file_format)), pixels.reshape(HEIGHT, WIDTH, -1))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_a_fourth_channel(file_format: str) -> None:
    pixels = RGBA.copy()
    pixels[..., 3] |= 1  # WebP may change the colour where alpha is 0
    options = {"lossless": True} if file_format == "WEBP" else {}
    assert np.array_equal(decoded(encoded(pixels, file_format, **options)), pixels)


def test_jpeg_is_close() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 32, dtype=np.uint8)[:, None], (32, 32))
    assert np.abs(decoded(encoded(np.array(smooth), "JPEG"))[..., 0].astype(int) - smooth).max() < 10


def test_grey_with_alpha_becomes_rgba() -> None:
    grey_alpha = Image.fromarray(RGBA[..., :2].copy(), "LA")
    assert np.array_equal(decoded(encoded(grey_alpha)), RGBA[..., [0, 0, 0, 1]])


def test_bilevel_becomes_0_and_255() -> None:
    bits = GREY > 127
    assert np.array_equal(decoded(encoded(Image.fromarray(bits)))[..., 0], bits * 255)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_palette_becomes_rgb(file_format: str) -> None:
    image = Image.fromarray(RGB).quantize(16)
    expected = np.array(image.convert("RGB"))
    assert np.array_equal(decoded(encoded(image, file_format)), expected)


def test_a_transparent_palette_colour_becomes_alpha() -> None:
    image = Image.fromarray(GREY % 4, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    pixels = decoded(encoded(image, transparency=2))
    assert np.array_equal(pixels[..., 3], np.where(GREY % 4 == 2, 0, 255))
    assert np.array_equal(pixels[..., 0], GREY % 4 * 30 + 10)


def test_a_transparent_rgb_colour_becomes_alpha() -> None:
    pixels = decoded(encoded(RGB, transparency=tuple(RGB[1, 2].tolist())))
    assert pixels[1, 2, 3] == 0
    assert (pixels[..., 3] == 0).sum() == 1


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0))
    assert np.abs(decoded(encoded(image, "JPEG"))[0, 0].astype(int) - (0, 255, 255)).max() < 10


@pytest.mark.parametrize("file_format", ["PNG", "PPM"])
def test_of_16_bit_grey_the_upper_8_are_kept(file_format: str) -> None:
    wide = RNG.integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)
    wide[0, :2] = 0, 65535
    assert np.array_equal(decoded(encoded(Image.fromarray(wide), file_format))[..., 0], wide >> 8)


@pytest.mark.parametrize(
    ("colour_type", "channels"),
    [(2, [0, 1, 2]), (4, [0, 0, 0, 1]), (6, [0, 1, 2, 3])],
    ids=["rgb", "la", "rgba"],
)
def test_of_16_bit_colour_and_alpha_the_upper_8_are_kept_too(colour_type: int, channels: list[int]) -> None:
    wide = RNG.integers(0, 2**16, (HEIGHT, WIDTH, max(channels) + 1)).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in wide)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour_type, 0, 0, 0)
    pixels = decoded(png_chunks(header, (b"IDAT", zlib.compress(lines))))
    assert np.array_equal(pixels, (wide >> 8)[..., channels])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    # Each corner has a grey of its own, in 8x8 blocks that survive JPEG.
    corners = np.array([[0, 80], [160, 240]])
    upright = {
        1: corners,
        2: corners[:, ::-1],
        3: corners[::-1, ::-1],
        4: corners[::-1],
        5: corners.T,
        6: np.rot90(corners, -1),
        7: np.rot90(corners, 2).T,
        8: np.rot90(corners),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = np.kron(corners, np.ones((16, 24), int)).astype(np.uint8)
    pixels = decoded(encoded(np.stack([image] * 3, axis=-1), file_format, exif=exif))
    assert pixels.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    found = pixels[[4, -4]][:, [4, -4], 0]
    assert np.abs(found.astype(int) - upright).max() < 10


def test_a_jpeg_with_a_second_picture_is_its_first() -> None:
    first, second = Image.new("RGB", (16, 8), "white"), Image.new("RGB", (16, 8), "black")
    assert decoded(encoded(first, "MPO", save_all=True, append_images=[second])).min() > 250


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(file_format: str) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB), Image.fromarray(RGB // 2)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    for read in (probe, decode):
        with pytest.raises(ValueError, match="it has 3 frames, but must have one"):
            read(io.BytesIO(data))


@pytest.mark.parametrize(
    ("image", "file_format", "mode"),
    [
        (Image.fromarray(RNG.random((3, 3), np.float32)), "TIFF", "F"),
        (Image.fromarray(RNG.integers(0, 2**31, (3, 3), np.int32)), "TIFF", "I"),
        (Image.fromarray(np.zeros((3, 3), np.uint16)), "TIFF", "I;16"),
        (Image.new("LAB", (3, 3)), "TIFF", "LAB"),
    ],
    ids=["float", "32 bits", "16-bit TIFF", "LAB"],
)
def test_a_colour_mode_without_a_meaning_in_8_bits_is_refused(
    image: Image.Image, file_format: str, mode: str
) -> None:
    data = encoded(image, file_format)
    for read in (probe, decode):
        with pytest.raises(ValueError, match=f"its colour mode is {mode} "):
            read(io.BytesIO(data))


def header_bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return png_chunks(header, (b"IDAT", zlib.compress(bytes(1000))))


@pytest.mark.parametrize("host_limit", [None, 10**12])
def test_a_header_bomb_is_refused_whatever_the_host_allows_pillow(
    host_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", host_limit)
    for read in (probe, decode):
        with pytest.raises(ValueError, match=f"it is 30000x30000 pixels, but at most {MAX_PIXELS} pixels"):
            read(io.BytesIO(header_bomb(30_000)))
    assert host_limit == Image.MAX_IMAGE_PIXELS


def test_a_header_bomb_is_refused_under_pillows_own_limit() -> None:
    before = Image.MAX_IMAGE_PIXELS
    for read in (probe, decode):
        with pytest.raises(Image.DecompressionBombError) as caught:
            read(io.BytesIO(header_bomb(30_000)))
        assert "900000000 pixels" in describe_error(caught.value)
    assert before == Image.MAX_IMAGE_PIXELS


TRUNCATED_SOURCES = {
    "PNG": encoded(np.tile(RGB, (4, 4, 1)), "PNG"),
    "JPEG": encoded(np.tile(RGB, (4, 4, 1)), "JPEG"),
    "progressive JPEG": encoded(np.tile(RGB, (4, 4, 1)), "JPEG", progressive=True),
    "WEBP": encoded(np.tile(RGB, (4, 4, 1)), "WEBP", lossless=True),
    "BMP": encoded(np.tile(RGB, (4, 4, 1)), "BMP"),
    "GIF": encoded(np.tile(GREY, (4, 4)), "GIF"),
    "TIFF": encoded(np.tile(RGB, (4, 4, 1)), "TIFF"),
    "PPM": encoded(np.tile(RGB, (4, 4, 1)), "PPM"),
}


@pytest.mark.parametrize("kind", TRUNCATED_SOURCES)
def test_a_truncated_file_is_an_error_or_the_whole_image(kind: str) -> None:
    data = TRUNCATED_SOURCES[kind]
    whole = decode(io.BytesIO(data))
    reasons = []
    for length in range(len(data)):
        try:
            pixels = decode(io.BytesIO(data[:length]))
        except Exception as error:
            reasons.append(describe_error(error))
        else:
            assert np.array_equal(pixels, whole), f"{length} of {len(data)} bytes gave other pixels"
    assert all(reasons)
    assert len(reasons) > 0.9 * len(data)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_header_never_makes_probe_and_decode_disagree(data: st.DataObject) -> None:
    damaged = bytearray(TRUNCATED_SOURCES[data.draw(st.sampled_from(list(TRUNCATED_SOURCES)))])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 300) - 1))] = data.draw(st.integers(0, 255))
    try:
        height, width, channels = decode(io.BytesIO(damaged)).shape
    except Exception as error:
        describe_error(error)
    else:
        assert probe(io.BytesIO(damaged)) == (channels, height, width)


@pytest.mark.parametrize(
    "content", [b"hello, this is text\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"]
)
def test_other_content_is_not_recognised(content: bytes) -> None:
    with pytest.raises(OSError) as caught:
        probe(io.BytesIO(content))
    assert describe_error(caught.value).startswith("its content is not recognised as PNG, JPEG")
