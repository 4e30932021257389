from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from aigc_ext.sampling import aigc_label, image_grid, readable_scale, save_grid, save_png
from aigc_ext.version import __version__


def picture(channels=3, count=None):
    shape = (5, 7, channels) if count is None else (count, 5, 7, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def chunks(path):
    """The chunks of a PNG by the letter of the specification, each with its CRC checked."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == int.from_bytes(data[at + 8 + length : at + 12 + length], "big")
        found.append((kind.decode(), body))
        at += 12 + length
    return found


def texts(path):
    return {body.split(b"\0")[0].decode(): kind for kind, body in chunks(path) if kind in ("tEXt", "iTXt")}


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pixels(tmp_path, channels, mode):
    image = picture(channels)
    save_png(image, tmp_path / "a.png")
    read = Image.open(tmp_path / "a.png")
    assert read.mode == mode
    assert np.array_equal(np.asarray(read).reshape(image.shape), image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_provenance(tmp_path):
    record = {"model_sha256": "ab" * 32, "seed": 7, "class": None, "truncation": 0.7}
    save_png(picture(), tmp_path / "a.png", provenance=record)
    assert json.loads(PngImageFile(tmp_path / "a.png").text["aigc_ext"]) == {"version": __version__, **record}


def test_the_label_of_gb_45438(tmp_path):
    save_png(picture(), tmp_path / "a.png", provenance={"seed": 1}, producer="生成服务 Ltd")
    assert texts(tmp_path / "a.png").keys() == {"aigc_ext", "AIGC", "XML:com.adobe.xmp"}
    label = json.loads(PngImageFile(tmp_path / "a.png").text["AIGC"])
    assert list(label) == [
        "Label",
        "ContentProducer",
        "ProduceID",
        "ReservedCode1",
        "ContentPropagator",
        "PropagateID",
        "ReservedCode2",
    ]
    assert label["Label"] == "1"
    assert label["ContentProducer"] == "生成服务 Ltd"
    assert len(label["ProduceID"]) == 64
    assert label == aigc_label(label["ProduceID"], "生成服务 Ltd")


def test_the_number_tells_contents_apart(tmp_path):
    numbers = []
    for image, record in (
        (picture(), {"seed": 1}),
        (picture(), {"seed": 2}),
        (255 - picture(), {"seed": 1}),
    ) * 2:
        save_png(image, tmp_path / "a.png", provenance=record)
        numbers.append(json.loads(PngImageFile(tmp_path / "a.png").text["AIGC"])["ProduceID"])
    assert numbers[:3] == numbers[3:]
    assert len(set(numbers)) == 3


def test_the_label_of_iptc(tmp_path):
    save_png(picture(), tmp_path / "a.png")
    packet = PngImageFile(tmp_path / "a.png").text["XML:com.adobe.xmp"]
    assert packet.startswith('<?xpacket begin="\ufeff"')
    assert packet.endswith('<?xpacket end="r"?>')
    root = ElementTree.fromstring(packet)
    assert root.tag == "{adobe:ns:meta/}xmpmeta"
    (description,) = root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert (
        description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
        == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )
    # XMP is an uncompressed iTXt chunk by the specification: flags 0 0 after the keyword.
    (body,) = [body for kind, body in chunks(tmp_path / "a.png") if body.startswith(b"XML:com.adobe.xmp")]
    assert body.startswith(b"XML:com.adobe.xmp\0\0\0\0\0<?xpacket")


def test_no_label(tmp_path):
    save_png(picture(), tmp_path / "a.png", provenance={"seed": 1}, label=False)
    assert texts(tmp_path / "a.png").keys() == {"aigc_ext"}


def test_the_same_image_is_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        save_png(picture(), tmp_path / name, provenance={"seed": 1})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "image",
    [
        picture().astype(np.float32),
        picture()[:, :, 0],
        picture(2),
        picture(5),
        picture()[:0],
        picture()[:, :0],
    ],
)
def test_what_is_no_image(tmp_path, image):
    with pytest.raises(
        ValueError, match=r"images are (uint8|float32) of shape \(1, .*must be uint8 of shape"
    ):
        save_png(image, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_png(picture(), tmp_path / "none" / "a.png")


@pytest.mark.parametrize(("columns", "rows"), [(None, 3), (1, 8), (2, 4), (3, 3), (8, 1), (11, 1)])
def test_grid(columns, rows):
    images = picture(count=8)
    sheet = image_grid(images, columns=columns)
    columns = columns or 3
    assert sheet.shape == (rows * 5, columns * 7, 3)
    for cell in range(rows * columns):
        y, x = divmod(cell, columns)
        expected = images[cell] if cell < 8 else np.zeros((5, 7, 3))
        assert np.array_equal(sheet[5 * y : 5 * y + 5, 7 * x : 7 * x + 7], expected)


def test_scale():
    images = picture(count=4)
    sheet = image_grid(images, scale=3)
    assert sheet.shape == (30, 42, 3)
    for dy in range(3):
        for dx in range(3):
            assert np.array_equal(sheet[dy::3, dx::3], image_grid(images))
    assert [readable_scale(*size) for size in ((8, 8), (28, 28), (64, 64), (512, 256), (16, 32))] == [
        8,
        3,
        1,
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": 0}, "columns is 0, but must be at least 1"),
        ({"scale": 0}, "scale is 0, but must be at least 1"),
    ],
)
def test_wrong_grids(options, message):
    with pytest.raises(ValueError, match=message):
        image_grid(picture(count=4), **options)


def test_a_grid_of_nothing():
    with pytest.raises(ValueError, match="images is empty"):
        image_grid(picture(count=4)[:0])


def test_save_grid(tmp_path):
    images = picture(count=4)
    save_grid(images, tmp_path / "g.png", columns=2, scale=2, provenance={"seeds": [1, 2, 3, 4]}, label=False)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "g.png")), image_grid(images, columns=2, scale=2))
    assert texts(tmp_path / "g.png").keys() == {"aigc_ext"}
