"""Datasets that leave out bad files, and replace those that turn out to be bad later."""

from __future__ import annotations

import logging
import resource
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_ext.data import BatchStream, DatasetError, TensorImages, describe_bad_files, open_dataset
from aigc_ext.training.batches import batches
from tests.data.helpers import (
    MEMORY_LIMITS,
    MIXED_GOOD,
    MIXED_REASONS,
    encoded,
    labelled,
    mixed_folder,
    pixels,
    write,
)


@pytest.fixture
def mixed(tmp_path):
    return mixed_folder(tmp_path / "mixed")


@MEMORY_LIMITS
def test_a_folder_as_people_have_them_opens_with_what_is_good(mixed, memory_limit, caplog):
    dataset = open_dataset(mixed, memory_limit=memory_limit, on_bad="skip")
    assert dataset.image_shape == (3, 32, 32)
    in_memory = isinstance(dataset, TensorImages)
    assert in_memory == (memory_limit > 0)
    assert len(dataset) == len(MIXED_GOOD) + (not in_memory)  # truncated.jpg has good headers

    images, _ = dataset.read(range(len(dataset)))
    bad = dict(dataset.bad_files)
    assert bad.keys() == MIXED_REASONS.keys()
    for name, reason in MIXED_REASONS.items():
        assert reason in bad[name]
    expected = [np.asarray(Image.open(mixed / name).convert("RGB")) for name in MIXED_GOOD]
    if not in_memory:
        expected.insert(6, expected[6])  # the next one, in the place of truncated.jpg
        assert caplog.text.count("truncated.jpg") == 1
    assert np.array_equal(images.permute(0, 2, 3, 1), expected)

    with pytest.raises(DatasetError) as caught:
        open_dataset(mixed, memory_limit=memory_limit)
    assert {file.name for file in caught.value.bad_files} == MIXED_REASONS.keys() - {"truncated.jpg"}


def test_a_zip_leaves_out_the_same_files(tmp_path, mixed):
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for path in sorted(mixed.glob("*.*g")):
            if path.name != "loop.png":
                archive.write(path, path.name)
    folder, zipped = (open_dataset(path, on_bad="skip") for path in (mixed, tmp_path / "mixed.zip"))
    assert zipped.content_hash() == folder.content_hash()
    assert {bad.name for bad in zipped.bad_files} == {bad.name for bad in folder.bad_files} - {
        "again",
        "loop.png",
    }


@MEMORY_LIMITS
def test_images_with_bad_labels_are_left_out_and_labels_stay_with_their_images(tmp_path, memory_limit):
    labels = [[f"{i}.png", i] for i in range(8)]
    labels[2][1] = -1
    labels[3][1] = "cat"
    labels[4] = ["nowhere.png", 1]  # so 4.png has none
    files = {
        **{f"{i}.png": encoded(pixels(i)) for i in range(8)},
        "5.png": encoded(pixels(5))[:200],
        "6.png": b"",
        "dataset.json": labelled(*labels, 5),
    }
    dataset = open_dataset(write(tmp_path / "set", files), memory_limit=memory_limit, on_bad="skip")
    images, classes = dataset.read(range(len(dataset)))
    assert classes.tolist() == ([0, 1, 7] if memory_limit else [0, 1, 7, 7])
    for image, label in zip(images, classes.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0), pixels(label))
    names = [bad.name for bad in dataset.bad_files]
    assert sorted(names) == ["2.png", "3.png", "4.png", "5.png", "6.png", "dataset.json", "nowhere.png"]


def test_without_a_readable_dataset_json_there_are_no_labels(tmp_path):
    files = {"a.png": encoded(pixels(0)), "dataset.json": b"{"}
    dataset = open_dataset(write(tmp_path / "set", files), on_bad="skip")
    assert (len(dataset), dataset.num_classes) == (1, 0)
    assert [bad.name for bad in dataset.bad_files] == ["dataset.json"]


@MEMORY_LIMITS
def test_a_folder_with_nothing_good_is_refused(tmp_path, memory_limit):
    files = {f"{i:03d}.png": encoded(pixels(i))[:200] for i in range(130)}
    root = write(tmp_path / "set", files)
    with pytest.raises(DatasetError) as caught:
        open_dataset(root, memory_limit=memory_limit, on_bad="skip").read([0])
    if memory_limit:
        assert f"{root}: none of its images is good:\n  000.png: " in str(caught.value)
        assert len(caught.value.bad_files) == 130
    else:
        assert f"{root}: 100 images in a row can't be read:\n  000.png: " in str(caught.value)


def test_batches_with_replaced_images_are_the_same_after_a_resume_and_for_any_number_of_threads(
    tmp_path, caplog
):
    """Whichever process meets a bad file first, and in whatever order."""
    damaged = {3, 4, 11}
    files = {
        f"{i:02d}.png": encoded(pixels(i, (8, 8, 3)))[: 100 if i in damaged else None] for i in range(12)
    }
    files["dataset.json"] = labelled(*([f"{i:02d}.png", i] for i in range(12)))
    root = write(tmp_path / "set", files)

    def open_again():
        return open_dataset(root, memory_limit=0, on_bad="skip")

    dataset = open_again()
    stream = BatchStream(dataset, 5, seed=1, mirror=True)
    everything = [next(stream) for _ in range(12)]
    assert {label for _, labels in everything for label in labels.tolist()} == set(range(12)) - damaged
    assert [bad.name for bad in dataset.bad_files] == ["03.png", "04.png", "11.png"]
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == len(damaged)

    # 3 and 4 are replaced by 5, and 11 by 0.
    assert dataset.read([3, 4, 11])[1].tolist() == [5, 5, 0]
    assert torch.equal(dataset.read([11])[0], dataset.read([0])[0])

    for start, workers in ((0, 3), (5, 0), (11, 2)):
        resumed = batches(open_again(), 5, 1, mirror=True, position=5 * start, workers=workers)
        for images, labels in everything[start:]:
            again, labels_again = next(resumed)
            assert torch.equal(again, images)
            assert torch.equal(labels_again, labels)
        resumed.close()


def test_a_file_that_disappears_is_replaced_and_the_hash_can_still_be_had(tmp_path):
    root = write(tmp_path / "set", {f"{i}.png": encoded(pixels(i)) for i in range(3)})
    dataset = open_dataset(root, memory_limit=0, on_bad="skip")
    (root / "1.png").unlink()
    assert np.array_equal(dataset.read([1])[0][0].permute(1, 2, 0), pixels(2))
    assert dataset.bad_files[0] == ("1.png", "No such file or directory")
    assert dataset.content_hash() != open_dataset(root, memory_limit=0).content_hash()


def test_a_process_that_runs_out_of_file_handles_does_not_blame_the_files(tmp_path):
    root = write(tmp_path / "set", {f"{i}.png": encoded(pixels(i)) for i in range(3)})
    dataset = open_dataset(root, memory_limit=0, on_bad="skip")
    dataset.read([0])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            dataset.read([0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert dataset.bad_files == ()
    dataset.read([0])


def test_bad_files_are_described_for_a_log(mixed):
    text = describe_bad_files("left out:", open_dataset(mixed, on_bad="skip").bad_files)
    assert text.startswith("left out:\n  loop.png: Too many levels")
    assert text.endswith("... and 1 more")


def test_only_two_ways_to_treat_bad_files_are_allowed(tmp_path):
    with pytest.raises(ValueError, match="on_bad is 'ignore', but must be 'raise' or 'skip'"):
        open_dataset(tmp_path, on_bad="ignore")  # type: ignore[arg-type]
