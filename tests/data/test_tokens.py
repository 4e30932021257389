"""Images as rows of tokens."""

from __future__ import annotations

import json

import pytest
import torch

from aigc_ext.data import DatasetError, TensorImages
from aigc_ext.data.open import absolute_source, is_there
from aigc_ext.data.tokens import TokenRows, TokenSource, captions_of, encode_images, token_source


def images(count: int = 70) -> TensorImages:
    pixels = torch.randint(
        0, 256, (count, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return TensorImages("tiny", pixels, torch.arange(count) % 3)


def test_the_name_of_a_source():
    assert token_source("tokens:runs/3:emoji") == TokenSource("runs/3", "emoji")
    assert token_source("tokens:runs/3:wds:a.tar") == TokenSource("runs/3", "wds:a.tar")
    assert token_source("emoji") is None
    assert token_source("tokens") is None
    for wrong in ("tokens:", "tokens:runs/3", "tokens::emoji"):
        with pytest.raises(DatasetError, match="must be of the form tokens:RUN:IMAGES"):
            token_source(wrong)


def test_paths_in_a_source_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "images").mkdir()
    assert absolute_source("tokens:run:emoji") == f"tokens:{tmp_path}/run:emoji"
    assert absolute_source("tokens:run:images") == f"tokens:{tmp_path}/run:{tmp_path}/images"
    assert is_there("tokens:run:emoji")
    assert is_there("tokens:run:images")
    assert not is_there("tokens:run:other")
    assert not is_there("tokens:other:emoji")


def test_all_images_are_encoded_in_order():
    data = images()
    sizes = []

    def codes(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return batch[:, 0].to(torch.int64)

    found = encode_images(data, codes, lambda batch: batch.float())
    assert sizes == [64, 6]
    assert torch.equal(found.long(), data.read(range(70))[0][:, 0].long())


def test_rows_have_captions_and_codes_and_the_labels_of_the_images():
    data, codes = images(4), torch.arange(16).view(4, 2, 2)
    captions = torch.full((4, 3), 99)
    rows = TokenRows(data, codes, "abc", captions)
    assert rows.item_shape == (7,)
    items, labels = rows.read([2, 0])
    assert items.tolist() == [[99] * 3 + [8, 9, 10, 11], [99] * 3 + [0, 1, 2, 3]]
    assert items.dtype == torch.int64
    assert labels.tolist() == [2, 0]
    assert rows.num_classes == 3
    assert rows.identity().names == data.identity().names


def test_they_are_known_by_the_images_the_codec_and_the_captions():
    codes = torch.zeros(4, 2, 2, dtype=torch.int64)
    hashes = {
        TokenRows(images(4), codes, "abc").content_hash(),
        TokenRows(images(4), codes, "abd").content_hash(),
        TokenRows(images(4), codes, "abc", torch.zeros(4, 1, dtype=torch.int64)).content_hash(),
        TokenRows(
            TensorImages("other", torch.zeros(4, 1, 2, 2, dtype=torch.uint8)), codes, "abc"
        ).content_hash(),
    }
    assert len(hashes) == 4
    assert TokenRows(images(4), codes + 1, "abc").content_hash() in hashes, "codes may differ by rounding"


def test_captions_are_beside_the_images(tmp_path):
    beside = tmp_path / "emoji.captions.json"
    beside.write_text(json.dumps({"a/1.png": "one", "a/2.png": "two"}))
    assert captions_of(tmp_path / "emoji.zip", ["a/2.png", "a/1.png"]) == ["two", "one"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "captions.json").write_text(json.dumps({"1.png": "uno"}))
    assert captions_of(tmp_path / "folder", ["1.png"]) == ["uno"]
    with pytest.raises(DatasetError, match=r"has no caption for 1 images, such as b\.png"):
        captions_of(tmp_path / "folder", ["1.png", "b.png"])
    with pytest.raises(DatasetError, match=r"has no captions: .*other.captions.json can't be read \(No such"):
        captions_of(tmp_path / "other.zip", ["1.png"])
    beside.write_text("[]")
    with pytest.raises(DatasetError, match=r"holds \[\], but must hold an object"):
        captions_of(tmp_path / "emoji.zip", ["a/1.png"])
    beside.write_text("{")
    with pytest.raises(DatasetError, match="is not JSON"):
        captions_of(tmp_path / "emoji.zip", ["a/1.png"])
