"""Conversion to PNGs of one shape: what comes out is opened again, whole."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import zipfile

import numpy as np
import pytest
from PIL import Image

from aigc_ext.data import DatasetError, convert_dataset, inspect_dataset, open_dataset
from tests.data.helpers import (
    MIXED_GOOD,
    MIXED_REASONS,
    bomb,
    encoded,
    labelled,
    mixed_folder,
    pixels,
    write,
)


def opened(made):
    """Images N x H x W x C and labels of what was written; it must be without fault."""
    dataset = open_dataset(made.dest)
    assert (len(dataset), dataset.image_shape) == (made.images, made.image_shape)
    images, labels = dataset.read(range(len(dataset)))
    return images.permute(0, 2, 3, 1).numpy(), labels.tolist()


def report(made):
    return json.loads(made.report.read_text(encoding="utf-8"))


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_folder_as_people_have_them_becomes_a_clean_one(tmp_path, suffix):
    root = mixed_folder(tmp_path / "mixed")
    made = convert_dataset(root, tmp_path / f"new/clean{suffix}", workers=2)
    images, _ = opened(made)
    assert np.array_equal(images, [np.asarray(Image.open(root / n).convert("RGB")) for n in MIXED_GOOD])
    assert made.report == tmp_path / f"new/clean{suffix}.report.json"
    bad = {file["name"]: file["reason"] for file in report(made)["bad_files"]}
    assert bad == dict(made.bad_files)
    assert bad.keys() == MIXED_REASONS.keys()
    reasons = {**MIXED_REASONS, "dot.png": "it is 1x1, but must be 32x32 as most are"}
    assert all(reason in bad[name] for name, reason in reasons.items())
    assert sorted(os.listdir(tmp_path / "new")) == sorted((made.dest.name, made.report.name))


def test_names_labels_and_a_zip_without_compression(tmp_path):
    files = {f"{i}.png": encoded(pixels(i)) for i in range(4)}
    files |= {"2.png": b"", "dataset.json": labelled(*([f"{i}.png", 10 + i] for i in range(4)))}
    made = convert_dataset(write(tmp_path / "set", files), tmp_path / "set.zip")
    with zipfile.ZipFile(made.dest) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert json.loads(archive.read("dataset.json")) == {
            "labels": [
                ["00000/img00000000.png", 10],
                ["00000/img00000001.png", 11],
                ["00000/img00000002.png", 13],
            ]
        }
    assert opened(made)[1] == [10, 11, 13]
    assert made.classes == {10: 1, 11: 1, 13: 1}
    again = convert_dataset(tmp_path / "set", tmp_path / "again.zip", workers=3)
    assert again.dest.read_bytes() == made.dest.read_bytes()


def test_classes_from_folders(tmp_path):
    files = {
        "owl/deep/a.png": encoded(pixels(0)),
        "cat/b.png": encoded(pixels(1)),
        "猫/c.png": encoded(pixels(2)),
        "stray.png": encoded(pixels(3)),
        "dataset.json": b"not looked at",
    }
    root = write(tmp_path / "set", files)
    made = convert_dataset(root, tmp_path / "out", class_folders=True)
    images, labels = opened(made)
    assert np.array_equal(images, [pixels(1), pixels(0), pixels(2)])
    assert labels == [0, 1, 2]
    assert report(made)["class_names"] == ["cat", "owl", "猫"]
    assert made.bad_files == [("stray.png", "it is in no class folder")]
    assert inspect_dataset(root, class_folders=True).classes == {0: 1, 1: 1, 2: 1}
    with pytest.raises(DatasetError, match="class folders can only be those of a folder or zip"):
        convert_dataset("digits", tmp_path / "digits", class_folders=True)


GREY, RGB, RGBA = pixels(0, (8, 8)), pixels(1, (8, 8, 3)), pixels(2, (8, 8, 4))
SIXTEEN = encoded((pixels(3, (8, 8)).astype(np.uint16) << 8) + 7)


def on_white(image):
    white = Image.new("RGB", (image.shape[1], image.shape[0]), "white")
    picture = Image.fromarray(image)
    white.paste(picture, mask=picture.getchannel("A"))
    return np.asarray(white)


@pytest.mark.parametrize(
    ("files", "channels"),
    [
        ([encoded(GREY), SIXTEEN, encoded(Image.fromarray(GREY).convert("1"))], 1),
        ([encoded(RGBA), encoded(Image.fromarray(GREY).convert("LA"))], 4),
        ([encoded(RGB), encoded(GREY), encoded(RGBA)], 3),
        ([encoded(GREY), encoded(RGBA)], 3),
        ([encoded(GREY), encoded(GREY), encoded(Image.fromarray(RGB).quantize(16))], 3),
    ],
    ids=["grey", "alpha", "all kinds", "no colour but alpha", "one palette"],
)
def test_all_images_get_one_colour_mode(tmp_path, files, channels):
    root = write(tmp_path / "set", {f"{i}.png": content for i, content in enumerate(files)})
    made = convert_dataset(root, tmp_path / "out")
    images, _ = opened(made)
    assert made.image_shape == (channels, 8, 8)
    assert not made.bad_files
    for image, content in zip(images, files, strict=True):
        source = Image.open(io.BytesIO(content))
        if source.mode.startswith("I"):
            assert np.array_equal(image[:, :, 0], pixels(3, (8, 8)))
        elif channels == 3 and source.mode == "RGBA":
            # Two ways to composite may round differently.
            assert np.abs(image.astype(int) - on_white(np.asarray(source))).max() <= 1
        else:
            expected = np.asarray(source.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
            assert np.array_equal(image.squeeze(), expected)


def quarters(width, height, mode="RGB"):
    """Left to right: red, green, blue, white, in equal parts; all rows are the same."""
    row = np.repeat(
        np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8), width // 4, 0
    )
    return Image.fromarray(np.broadcast_to(row, (height, width, 3)).copy()).convert(mode)


def close(image, expected):
    assert np.abs(image.astype(int) - expected).max() <= 2  # the filter reaches a little over each edge


def converted(tmp_path, image, **options):
    root = write(tmp_path / "set", {"a.png": encoded(image)})
    (image,), _ = opened(convert_dataset(root, tmp_path / "out", **options))
    return image


def test_center_crop_cuts_both_ends(tmp_path):
    image = converted(tmp_path, quarters(64, 32), resolution=(8, 8), transform="center-crop")
    assert image.shape == (8, 8, 3)
    assert image[4, :3].argmax(1).tolist() == [1] * 3
    assert image[4, 5:].argmax(1).tolist() == [2] * 3
    assert (image[:, [0, 1, 6, 7]].max(2) > 200).all()


def test_center_crop_of_a_tall_image_cuts_top_and_bottom(tmp_path):
    tall = quarters(64, 32).transpose(Image.Transpose.TRANSPOSE)
    image = converted(tmp_path, tall, resolution=(16, 8), transform="center-crop")
    assert image.shape == (8, 16, 3)
    assert image[0, :, 1].min() > 200  # of 16 rows in the middle 8 are left: the green and the blue one
    assert image[7, :, 2].min() > 200
    assert image[:, :, 0].max() < 60


def test_center_crop_wide_makes_a_square_with_bars(tmp_path):
    image = converted(tmp_path, quarters(64, 64), resolution=(16, 8), transform="center-crop-wide")
    assert image.shape == (16, 16, 3)
    assert not image[:4].any()
    assert not image[12:].any()
    close(image[4:12, [1, 5, 9, 14]], np.asarray(quarters(16, 8))[:, [1, 5, 9, 14]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_letterbox_keeps_everything(tmp_path, mode):
    image = converted(tmp_path, quarters(64, 32, mode), resolution=(16, 16), transform="letterbox")
    assert image.shape == (16, 16, len(mode))
    assert not image[:4].any()
    assert not image[12:].any()
    expected = np.asarray(quarters(16, 8, mode)).reshape(8, 16, -1)
    close(image[4:12, [1, 5, 9, 14]], expected[:, [1, 5, 9, 14]])


def test_a_resolution_alone_scales_and_refuses_another_aspect_ratio_or_enlarging(tmp_path):
    sizes = {"a.png": (64, 48), "b.png": (33, 25), "c.png": (64, 64), "d.png": (16, 12), "e.png": (8, 6)}
    files = {name: encoded(Image.new("RGB", size, "red")) for name, size in sizes.items()}
    root = write(tmp_path / "set", files)
    made = convert_dataset(root, tmp_path / "out", resolution=(16, 12))
    assert made.images == 3
    assert dict(made.bad_files) == {
        "c.png": "it is 64x64, which is not of the shape of 16x12;"
        " a transform would say what to cut off or to add",
        "e.png": "it is 8x6, so to have 16x12 it must be enlarged",
    }
    enlarged = convert_dataset(root, tmp_path / "large", resolution=(16, 12), enlarge=True)
    assert [bad.name for bad in enlarged.bad_files] == ["c.png"]
    assert (opened(enlarged)[0] == [255, 0, 0]).all()
    cropped = convert_dataset(root, tmp_path / "crop", resolution=(10, 7), transform="center-crop")
    assert [bad.name for bad in cropped.bad_files] == ["e.png"]


def test_exif_rotation_and_rectangles(tmp_path):
    upright = pixels(0, (6, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    turned = Image.fromarray(np.rot90(upright).copy())
    root = write(tmp_path / "set", {"a.png": encoded(turned, exif=exif), "b.png": encoded(upright)})
    made = convert_dataset(root, tmp_path / "out")
    assert made.image_shape == (3, 6, 4)
    assert np.array_equal(opened(made)[0], [upright, upright])
    with Image.open(tmp_path / "out/00000/img00000000.png") as image:
        assert not image.getexif()


def test_max_images_takes_the_first_good_headers(tmp_path):
    files = {f"{i}.png": b"" if i == 1 else encoded(pixels(i)) for i in range(6)}
    made = convert_dataset(write(tmp_path / "set", files), tmp_path / "out", max_images=3)
    assert np.array_equal(opened(made)[0], [pixels(0), pixels(2), pixels(3)])
    assert [bad.name for bad in made.bad_files] == ["1.png"]


def test_arrays_are_sources_too(tmp_path):
    images = pixels(0, (3, 5, 4))
    np.savez(tmp_path / "set.npz", images=images, labels=[2, 0, 1])
    made = convert_dataset(tmp_path / "set.npz", tmp_path / "out.zip")
    written, labels = opened(made)
    assert np.array_equal(written[..., 0], images)
    assert labels == [2, 0, 1]


def test_progress_reaches_its_end(tmp_path):
    root = write(tmp_path / "set", {f"{i:02d}.png": encoded(pixels(i)) for i in range(40)})
    seen = []
    convert_dataset(root, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 40), (32, 40), (40, 40)]


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_nothing_is_overwritten(tmp_path, name):
    root = write(tmp_path / "set", {"a.png": encoded(pixels(0))})
    for make in (
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b"mine"),
        lambda path: path.symlink_to("nowhere"),
    ):
        make(tmp_path / name)
        with pytest.raises(DatasetError, match=f"{name}: it exists already"):
            convert_dataset(root, tmp_path / name)
        os.rename(tmp_path / name, tmp_path / f"{name}-{len(os.listdir(tmp_path))}")
    # Someone makes it in the meantime.
    with pytest.raises(DatasetError, match=f"{name}: it exists already"):
        convert_dataset(
            root, tmp_path / name, progress=lambda done, total: (tmp_path / name).write_bytes(b"theirs")
        )
    assert (tmp_path / name).read_bytes() == b"theirs"
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_disk_that_takes_no_more_leaves_nothing_behind(tmp_path, name):
    files = {f"{i}.png": encoded(pixels(i, (64, 64, 3))) for i in range(8)}  # 12 kB each
    files["z.png"] = encoded(pixels(9, (64, 64, 4)))  # 16 kB
    root = write(tmp_path / "set", files)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files stands for a full disk: the system refuses a write in mid-conversion.
    resource.setrlimit(resource.RLIMIT_FSIZE, (11_000 if name == "out" else 50_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            convert_dataset(root, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["set"]
    assert convert_dataset(root, tmp_path / name).images == 9


def test_with_nothing_good_only_the_report_is_written(tmp_path):
    root = write(tmp_path / "set", {"a.png": encoded(pixels(0))[:200], "b.png": bomb()})
    with pytest.raises(DatasetError, match=r"set: none of its images is good \(see .*out.report.json\)"):
        convert_dataset(root, tmp_path / "out")
    names = [file["name"] for file in json.loads((tmp_path / "out.report.json").read_bytes())["bad_files"]]
    assert names == ["b.png", "a.png"]
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_name_that_is_not_text_is_kept_in_the_report(tmp_path):
    root = write(tmp_path / "set", {"a.png": encoded(pixels(0))})
    name = os.fsdecode(b"\xe9.png")
    try:
        (root / name).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert report(convert_dataset(root, tmp_path / "out"))["bad_files"][0]["name"] == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"transform": "stretch", "resolution": (8, 8)},
            "transform is 'stretch', but must be one of center-crop",
        ),
        ({"transform": "letterbox"}, "transform is 'letterbox', but needs a resolution"),
        ({"resolution": (0, 8)}, "resolution is 0x8, but must be 1x1 at least"),
        ({"resolution": (10**5, 10**5)}, "resolution is 100000x100000, but .* at most 67108864 pixels"),
        (
            {"resolution": (8, 9), "transform": "center-crop-wide"},
            "resolution is 8x9, but for center-crop-wide must not be taller than wide",
        ),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert_dataset("digits", tmp_path / "out", **options)
    with pytest.raises(DatasetError, match="what is written must be a folder or a"):
        convert_dataset("digits", tmp_path / "out.npz")
    assert not os.listdir(tmp_path)
    root = write(tmp_path / "set", {"a.png": encoded(pixels(0))})
    with pytest.raises(DatasetError, match="it would be in its own source"):
        convert_dataset(root, root / "new/../out.zip")
    assert os.listdir(root) == ["a.png"]


def test_inspection(tmp_path):
    files = {
        "a.png": encoded(GREY),
        "b.png": SIXTEEN,
        "c.jpg": encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
        "d.png": encoded(RGB),
        "e.png": encoded(RGB)[:100],
        "f.png": bomb(),
        "dataset.json": labelled(
            *([f"{name}", i // 2] for i, name in enumerate(["a.png", "b.png", "c.jpg", "d.png"]))
        ),
    }
    seen = inspect_dataset(write(tmp_path / "set", files))
    assert seen.images == 4
    assert seen.shapes == {(1, 8, 8): 2, (3, 8, 8): 2}
    assert seen.stored_as == {"PNG L": 1, "PNG I;16": 1, "JPEG CMYK": 1, "PNG RGB": 1}
    assert seen.classes == {0: 2, 1: 2}
    assert {bad.name for bad in seen.bad_files} == {"e.png", "f.png"}
