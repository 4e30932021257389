"""Images are found by their content, and what is no image is counted."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from aigc_ext.cli import main
from aigc_ext.data import DatasetError, convert_dataset, image_file, open_dataset
from tests.data.helpers import encoded, labelled, pixels, write
from tests.data.test_shards import shard

SAID = (
    "4 files are passed over: 2 .heic, 1 .txt, 1 without a suffix; convert images among them to PNG or JPEG"
)


def album() -> dict[str, bytes]:
    """What people have: JPEG by other names, no names at all, and formats that are not read."""
    jpeg = encoded(pixels(1), "JPEG", quality=100)
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    return {
        "a.png": encoded(pixels(0)),
        "b.jfif": jpeg,
        "c.JPE": jpeg,
        "d": jpeg,
        "e.jpg_large": jpeg,
        "f.dat": encoded(pixels(2)),
        "g.heic": heic,
        "h.HEIC": heic,
        "i.txt": b"a caption",
        "README": b"no image",
        ".hidden": jpeg,
    }


@pytest.fixture(params=["folder", "zip"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = write(tmp_path / "album", album())
    return root if request.param == "folder" else Path(shutil.make_archive(str(root), "zip", root))


def test_what_pillow_reads_is_read_whatever_its_name(source, caplog):
    dataset = open_dataset(source)
    assert dataset.identity().names == ["a.png", "b.jfif", "c.JPE", "d", "e.jpg_large", "f.dat"]
    assert np.array_equal(dataset.read([5])[0][0].permute(1, 2, 0), pixels(2))
    assert dataset.remarks == (f"{source}: {SAID}",)
    assert SAID in caplog.text


def test_labels_are_no_file_that_is_passed_over(tmp_path):
    files = {"a.png": encoded(pixels(0)), "dataset.json": labelled(["a.png", 0])}
    assert open_dataset(write(tmp_path / "set", files)).remarks == ()


def test_the_commands_say_it(source, tmp_path, capsys):
    assert main(["dataset", "--source", str(source)]) == 0
    shown = capsys.readouterr().out
    assert f"{SAID}." in shown
    assert "images:     6\n" in shown
    dest = str(tmp_path / "made")
    assert main(["dataset", "--source", str(source), "--dest", dest]) == 0
    assert f"beside it:  {SAID}\n" in capsys.readouterr().out
    report = json.loads((tmp_path / "made.report.json").read_text())
    assert report["passed_over"] == {".heic": 2, ".txt": 1, "": 1}
    small = ["--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--batch", "4"]
    assert main(["train", "--data", str(source), *small, "--dry-run"]) == 0
    assert f"Warning: {source}: {SAID}" in capsys.readouterr().err


def test_other_parsers_stay_closed(tmp_path):
    """A raw photo is a TIFF with a preview; a text may begin like a PPM or a BMP."""
    tiff = encoded(pixels(0), "TIFF")
    files = {
        "a.png": encoded(pixels(0)),
        "b.dng": tiff,
        "c": b"P6 is a format",
        "d": b"BMW",
        "e.eps": b"%!PS",
    }
    dataset = open_dataset(write(tmp_path / "set", files))
    assert len(dataset) == 1
    assert "4 files are passed over: " in dataset.remarks[0]
    # Under a known suffix, damage is damage.
    write(tmp_path / "set", {"f.jfif": b"no image"})
    with pytest.raises(DatasetError, match=r"f\.jfif: its content is not recognised"):
        open_dataset(tmp_path / "set")


def test_beginnings():
    for file_format in ("PNG", "JPEG", "GIF", "WEBP"):
        assert image_file.looks_like_image(encoded(pixels(0), file_format)[: image_file.HEAD])
    assert not image_file.looks_like_image(b"")
    assert not image_file.looks_like_image(b"RIFF\0\0\0\0WAVE")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path):
    data = encoded(pixels(0), "AVIF", quality=100, subsampling="4:4:4")
    assert image_file.looks_like_image(data[: image_file.HEAD])
    assert image_file.probe(io.BytesIO(data)) == (3, 32, 32)
    files = {"a.avif": data, "b.bin": data}
    dataset = open_dataset(write(tmp_path / "set", files))
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(dataset.read([0])[0][0].permute(1, 2, 0), np.asarray(image))
    assert (len(dataset), dataset.remarks) == (2, ())


def test_a_pipe_among_them_is_not_waited_for_and_an_unreadable_file_is_passed_over(tmp_path):
    root = write(tmp_path / "set", {"a.png": encoded(pixels(0)), "locked": encoded(pixels(1))})
    (root / "gone.dat").symlink_to(root / "nowhere")
    dataset = open_dataset(root, on_bad="skip")
    assert len(dataset) == 2
    assert [bad.name for bad in dataset.bad_files] == ["gone.dat"]


def test_samples_without_an_image_are_counted(tmp_path):
    members = [("1.png", encoded(pixels(0))), ("1.txt", b"x"), ("2.heic", b"x"), ("2.txt", b"x")]
    members.append(("3.jfif", encoded(pixels(1), "JPEG")))
    dataset = open_dataset(f"wds:{shard(tmp_path / 'set.tar', members)}")
    assert len(dataset) == 2
    assert "2 files are passed over: 1 .heic, 1 .txt; convert" in dataset.remarks[0]


def test_a_converted_set_tells_its_caller(source, tmp_path):
    assert convert_dataset(source, tmp_path / "out").passed_over == {".heic": 2, ".txt": 1, "": 1}
