"""Datasets from what a program already has."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from aigc_ext.data import DatasetError, as_dataset, open_dataset

IMAGES = torch.arange(5 * 3 * 4 * 6, dtype=torch.uint8).reshape(5, 3, 4, 6)
LABELS = torch.tensor([0, 2, 1, 0, 1])
LAST = IMAGES.permute(0, 2, 3, 1).numpy()


class Items(Dataset):
    def __init__(self, items) -> None:
        self.items = items

    def __getitem__(self, i):
        return self.items[i]

    def __len__(self) -> int:
        return len(self.items)


def read(data, **options):
    dataset = as_dataset(data, **options)
    images, labels = dataset.read(range(len(dataset)))
    return images, labels, dataset


@pytest.mark.parametrize(
    "data",
    [
        IMAGES,
        LAST,
        np.broadcast_to(LAST, LAST.shape),  # read-only
        IMAGES.float() / 255,
        (IMAGES.double() / 127.5 - 1).numpy().transpose(0, 2, 3, 1),
        (IMAGES / 127.5 - 1).to(torch.float32),
        Items(IMAGES),
        Items(LAST),
        Items([Image.fromarray(image) for image in LAST]),
        Items([(image,) for image in IMAGES]),
        TensorDataset(IMAGES.float() / 255),
    ],
)
@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
def test_every_form_has_the_same_images(data, memory_limit) -> None:
    images, labels, dataset = read(data, memory_limit=memory_limit)
    assert images.equal(IMAGES)
    assert dataset.num_classes == 0
    assert not labels.any()
    assert dataset.content_hash() == as_dataset(IMAGES).content_hash()


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS),
        (LAST, LABELS.tolist()),
        [LAST, LABELS.numpy()],
        TensorDataset(IMAGES, LABELS),
        Items([(image, np.int64(label)) for image, label in zip(LAST, LABELS, strict=True)]),
    ],
)
@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
def test_labels(data, memory_limit) -> None:
    images, labels, dataset = read(data, memory_limit=memory_limit)
    assert images.equal(IMAGES)
    assert labels.equal(LABELS)
    assert dataset.num_classes == 3


def test_grey_images_without_channels() -> None:
    grey = IMAGES[:, 0]
    for data in (grey, grey.numpy(), Items(grey), Items([Image.fromarray(image.numpy()) for image in grey])):
        assert read(data)[0].equal(grey[:, None])


@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
def test_one_range_for_all_images(memory_limit) -> None:
    """The first image has no value below 0; its range is that of the others all the same."""
    values = torch.stack([torch.full((1, 2, 2), 0.5), torch.full((1, 2, 2), -1.0)])
    images, _, _ = read(TensorDataset(values), memory_limit=memory_limit)
    assert images.flatten(1).unique(dim=1).flatten().tolist() == [191, 0]


def test_what_is_there_already(tmp_path) -> None:
    digits = open_dataset("digits")
    assert as_dataset(digits) is digits
    assert as_dataset("digits").content_hash() == digits.content_hash()
    np.save(tmp_path / "images.npy", LAST)
    assert as_dataset(tmp_path / "images.npy").image_shape == (3, 4, 6)


class Endless(IterableDataset):
    def __iter__(self):
        yield from IMAGES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DataLoader(TensorDataset(IMAGES)),
            "of type DataLoader, but must be what it loads from: pass data.dataset",
        ),
        (Endless(), "Endless, but must be one with len"),
        (3, "of type int, but must be an ImageDataset, a path or name"),
        ({"images": IMAGES}, "of type dict, but must be"),
    ],
)
def test_other_objects(data, message) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        as_dataset(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            IMAGES.float(),
            "range from 0 to 255, but must be uint8 from 0 to 255, or floating point from 0 to 1",
        ),
        (IMAGES.float() / torch.nan, "range from nan to nan"),
        (IMAGES.to(torch.int64), r"torch.int64, but must be uint8"),
        (IMAGES.numpy(), r"shape \(5, 3, 4, 6\), but must be N,H,W or N,H,W,C"),
        (IMAGES[:, :2], r"shape \(5, 2, 4, 6\), but must be N,H,W or N,C,H,W"),
        (IMAGES[:0], "no images"),
        ((IMAGES, LABELS[:4]), r"labels have shape \(4,\)"),
        (Items([]), "empty"),
        (
            Items([IMAGES[0], IMAGES[0, :, 1:]]),
            r"item 1: the image is \(3, 3, 6\), but the first one is \(3, 4, 6\)",
        ),
        (Items([(IMAGES[0], 1), (IMAGES[1], None)]), "item 1 has no label"),
        (Items([(IMAGES[0], 1.5)]), "item 0: the label is 1.5, but must be an integer"),
        (Items([(IMAGES[0], 1, 2)]), "item 0: it has 3 entries"),
        (Items(["a.png"]), "item 0: the image is a str"),
        (Items([Image.new("CMYK", (4, 4))]), "item 0: the image has mode CMYK"),
    ],
)
def test_wrong_content(data, message) -> None:
    with pytest.raises(DatasetError, match=message):
        as_dataset(data)


def test_an_item_that_changes_is_an_error() -> None:
    items = list(IMAGES)
    dataset = as_dataset(Items(items), memory_limit=0)
    items[3] = IMAGES[3, :, :2]
    with pytest.raises(DatasetError, match=r"Items: item 3: the image is \(3, 2, 6\)"):
        dataset.read([3])
