"""Files of any size as a dataset of one shape: the pixels of `aigc-ext dataset`, decoded once."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aigc_ext._cache import default_cache_dir
from aigc_ext.data import DatasetError, TensorImages, convert_dataset, open_dataset, prepare
from aigc_ext.data.files import FileImages
from tests.data.helpers import MEMORY_LIMITS, encoded, labelled, pixels, write

CROPPED: dict[str, Any] = {"on_bad": "skip", "resolution": (16, 16), "transform": "center-crop"}
SHAPES = [(40, 60, 3), (60, 40, 3), (50, 50), (30, 90, 4), (20, 20, 3)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    files = {f"{i}.png": encoded(pixels(i, shape)) for i, shape in enumerate(SHAPES)}
    files |= {"torn.png": encoded(pixels(9))[:-200], "text.png": b"no image"}
    files["dataset.json"] = labelled(*([f"{i}.png", i] for i in range(5)), ["torn.png", 7], ["text.png", 8])
    return write(tmp_path / "photos", files)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded."""
    names: list[str] = []
    original = FileImages.decode_file

    def decode_file(self, name):
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(FileImages, "decode_file", decode_file)
    return names


def everything(dataset):
    return dataset.read(range(len(dataset)))


@MEMORY_LIMITS
@pytest.mark.parametrize(
    ("transform", "enlarge", "good"),
    [
        ("center-crop", True, [0, 1, 2, 3, 4]),
        ("center-crop-wide", False, [0, 1, 2, 3]),
        ("letterbox", False, [0, 1, 2, 3]),
        (None, True, [2, 4]),
    ],
)
def test_it_is_what_a_converted_set_is(photos, tmp_path, memory_limit, transform, enlarge, good):
    options: dict[str, Any] = {"resolution": (24, 24), "transform": transform, "enlarge": enlarge}
    dataset = open_dataset(photos, on_bad="skip", memory_limit=memory_limit, **options)
    convert_dataset(photos, tmp_path / "made", **options)
    expected = open_dataset(tmp_path / "made")
    assert dataset.image_shape == expected.image_shape == (3, 24, 24)
    images, labels = everything(dataset)
    assert torch.equal(images, everything(expected)[0])
    assert labels.tolist() == everything(expected)[1].tolist() == good
    names = {bad.name for bad in dataset.bad_files}
    assert names == {"torn.png", "text.png"} | {f"{i}.png" for i in range(5) if i not in good}
    assert dataset.name == "photos"
    images.zero_()
    assert everything(dataset)[0].any()


def test_channels_are_those_of_the_images(tmp_path):
    for channels, last in ((1, ()), (4, (4,))):
        root = write(tmp_path / str(channels), {"a.png": encoded(pixels(0, (9, 8, *last)))})
        dataset = open_dataset(root, resolution=(4, 4), transform="center-crop")
        assert dataset.image_shape == (channels, 4, 4)


def test_files_are_decoded_once_whatever_their_place(photos, tmp_path, decoded):
    options = {**CROPPED, "resolution": (16, 8)}
    first = open_dataset(photos, **options)
    assert len(decoded) == 6
    photos.rename(tmp_path / "moved")
    again = open_dataset(tmp_path / "moved", **options)
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "moved")
    zipped = open_dataset(tmp_path / "photos.zip", **options)
    assert len(decoded) == 6
    for other in (again, zipped):
        assert torch.equal(everything(first)[0], everything(other)[0])
        assert other.identity() == first.identity()
        assert sorted(other.bad_files) == sorted(first.bad_files)


def test_very_many_files_are_decoded_once_too(tmp_path, monkeypatch, decoded):
    root = many(tmp_path / "set", *[(8, 8)] * 12)
    (root / "005.png").write_bytes(encoded(pixels(5, (8, 8)))[:-30])
    few = open_dataset(root, on_bad="skip")
    assert not (default_cache_dir() / "data").exists()
    decoded.clear()
    monkeypatch.setattr(prepare, "_CACHED_FROM", 11)
    for _ in range(2):
        dataset = open_dataset(root, on_bad="skip")
        assert torch.equal(everything(dataset)[0], everything(few)[0])
        assert dataset.identity() == few.identity()
        assert [bad.name for bad in dataset.bad_files] == ["005.png"]
    assert len(decoded) == 12
    with pytest.raises(DatasetError, match=r"005\.png"):
        open_dataset(root)
    open_dataset(root, on_bad="skip", resolution=(8, 8))  # has an entry of its own
    assert len(decoded) == 24
    assert not isinstance(open_dataset(root, on_bad="skip", memory_limit=0), TensorImages)


def test_a_replaced_file_and_other_options_are_decoded_anew(photos, decoded):
    hashes = [open_dataset(photos, **CROPPED).content_hash()]
    (photos / "0.png").write_bytes(encoded(pixels(77, (40, 60, 3))))
    changed = open_dataset(photos, **CROPPED)
    hashes.append(changed.content_hash())
    assert len(decoded) == 12
    for more in ({"transform": "letterbox"}, {"enlarge": True}, {"resolution": (16, 8)}):
        hashes.append(open_dataset(photos, **{**CROPPED, **more}).content_hash())
    assert len(decoded) == 30
    assert len(set(hashes)) == len(hashes)


def test_too_large_for_memory_is_mapped(photos):
    mapped = open_dataset(photos, memory_limit=0, **CROPPED)
    held = open_dataset(photos, **CROPPED)
    assert isinstance(mapped, TensorImages)
    assert torch.equal(everything(mapped)[0], everything(held)[0])
    images, _ = everything(mapped)
    images.zero_()
    assert everything(mapped)[0].any()


@pytest.mark.parametrize("kept", ["images-*.bin", "images-*.json"])
def test_half_an_entry_is_none(photos, decoded, kept):
    expected = everything(open_dataset(photos, **CROPPED))[0]
    (path,) = (default_cache_dir() / "data").glob(kept)
    path.unlink()
    assert torch.equal(everything(open_dataset(photos, **CROPPED))[0], expected)
    assert len(decoded) == 12


def test_a_short_entry_is_made_anew(photos, decoded):
    expected = everything(open_dataset(photos, **CROPPED))[0]
    (path,) = (default_cache_dir() / "data").glob("images-*.bin")
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(everything(open_dataset(photos, **CROPPED))[0], expected)
    assert len(decoded) == 12


@MEMORY_LIMITS
def test_without_a_cache_it_works_too(photos, tmp_path, monkeypatch, caplog, memory_limit):
    expected = everything(open_dataset(photos, **CROPPED))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    dataset = open_dataset(photos, memory_limit=memory_limit, **CROPPED)
    images, labels = everything(dataset)
    assert "cannot be used (Not a directory)" in caplog.text
    assert torch.equal(images[: len(expected[0])], expected[0])
    assert labels[:5].tolist() == expected[1].tolist()


def test_an_interrupted_preparation_leaves_nothing(photos, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(photos, on_bad="skip", resolution=(16, 16), transform="center-crop")
    assert list((default_cache_dir() / "data").iterdir()) == []


def test_bad_files_are_an_error_where_they_must_be(photos):
    (photos / "text.png").unlink()
    (photos / "dataset.json").unlink()
    for _ in range(2):
        with pytest.raises(DatasetError) as caught:
            open_dataset(photos, resolution=(16, 16), transform="center-crop")
        assert [bad.name for bad in caught.value.bad_files] == ["torn.png"]


def test_nothing_good_is_an_error(tmp_path):
    root = write(tmp_path / "set", {"a.png": encoded(pixels(0))[:-200]})
    for _ in range(2):
        with pytest.raises(DatasetError, match="none of its images is good"):
            open_dataset(root, on_bad="skip", resolution=(4, 4))


def test_arrays_are_fitted_too(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(0, (5, 8, 8, 3)), labels=np.arange(5))
    dataset = open_dataset(tmp_path / "a.npz", resolution=(4, 4))
    assert (dataset.image_shape, dataset.labels.tolist()) == ((3, 4, 4), [0, 1, 2, 3, 4])
    assert open_dataset("digits", resolution=(4, 4)).image_shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "center-crop"}, "transform is 'center-crop', but needs a resolution"),
        ({"enlarge": True}, "enlarge is true, but needs a resolution"),
        ({"resolution": (0, 4)}, "resolution is 0x4"),
        ({"resolution": (4, 4), "transform": "x"}, "transform is 'x', but must be one of"),
        ({"max_left_out": 1.5}, "max_left_out is 1.5, but must be from 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(photos, options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(photos, on_bad="skip", **options)


def many(root: Path, *shapes: tuple[int, ...]) -> Path:
    return write(root, {f"{i:03d}.png": encoded(pixels(i, shape)) for i, shape in enumerate(shapes)})


@pytest.mark.parametrize(
    ("shapes", "options", "ways"),
    [
        (
            [(8 + i, 8, 3) for i in range(20)],
            {},
            ["19 of 20 images would be left out", "19 have another shape than most: --resolution 64"],
        ),
        (
            [(8, 8, 3)] * 8 + [(8, 9, 3)],
            {},
            ["1 of 9 images would be left out", "0.1 that data.max_left_out"],
        ),
        ([(8, 8)] * 8 + [(8, 16)], {"resolution": (4, 4)}, ["1 have another aspect ratio: --transform"]),
        ([(8, 8)] * 8 + [(3, 3)], {"resolution": (4, 4)}, ["1 are too small: --enlarge"]),
    ],
)
def test_too_much_left_out_is_an_error_that_names_the_way_out(tmp_path, shapes, options, ways):
    root = many(tmp_path / "set", *shapes)
    with pytest.raises(DatasetError) as caught:
        open_dataset(root, on_bad="skip", max_left_out=0.1, **options)
    for way in ways:
        assert way in str(caught.value)
    assert caught.value.bad_files
    assert len(open_dataset(root, on_bad="skip", **options)) >= 1


def test_a_tenth_may_be_left_out(tmp_path):
    root = many(tmp_path / "set", *[(8, 8)] * 9, (8, 9))
    (root / "notes.txt").write_text("no image")
    assert len(open_dataset(root, on_bad="skip", max_left_out=0.1)) == 9


def test_facts_of_an_entry_are_json(photos):
    open_dataset(photos, on_bad="skip", resolution=(16, 16), transform="center-crop")
    (path,) = (default_cache_dir() / "data").glob("images-*.json")
    facts = json.loads(path.read_text())
    assert facts["images"] == 5
    assert [place for place, _ in facts["bad"]] == [5]


@pytest.mark.parametrize("text", ["", "[]", '{"images": "5", "bad": []}', '{"images": 6, "bad": [[9, "x"]]}'])
def test_a_damaged_entry_is_made_anew(photos, caplog, text):
    """As a crash may leave it: it is written without waiting for the disk."""
    whole = open_dataset(photos, resolution=(8, 8), transform="center-crop", on_bad="skip")
    (path,) = (default_cache_dir() / "data").glob("images-*.json")
    path.write_text(text)
    again = open_dataset(photos, resolution=(8, 8), transform="center-crop", on_bad="skip")
    assert f"cache file {path} is damaged" in caplog.text
    assert again.content_hash() == whole.content_hash()
    assert len(again) == len(whole)


def test_what_could_not_be_read_once_is_not_left_out_for_ever(photos, monkeypatch):
    """A network drive may be away for a moment, which says nothing about the file."""
    decode = FileImages.decode_file
    failed: list[str] = []

    def fail_once(self, name):
        if not failed:
            failed.append(name)
            raise OSError(errno.EIO, "Input/output error")
        return decode(self, name)

    monkeypatch.setattr(FileImages, "decode_file", fail_once)
    short = open_dataset(photos, **CROPPED)
    assert {bad.name for bad in short.bad_files} == {*failed, "torn.png", "text.png"}
    assert len(everything(short)[0]) == 4
    for _ in range(2):
        again = open_dataset(photos, **CROPPED)
        assert {bad.name for bad in again.bad_files} == {"torn.png", "text.png"}
        assert len(everything(again)[0]) == 5
