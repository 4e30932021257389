"""`hf:` data sets, made here by `datasets` itself."""

from __future__ import annotations

import os
import socket
import sys

import numpy as np
import pytest

from aigc_ext.data import DatasetError, open_dataset
from tests.data.helpers import MEMORY_LIMITS, encoded, pixels, write

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def sealed(tmp_path, monkeypatch):
    """No network, and no cache outside the test."""

    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return asked


def image(seed):
    return {"bytes": encoded(pixels(seed)), "path": None}


def rows(seeds, column="image", label="label", names=("cat", "dog", "owl"), **more):
    features = {column: datasets.Image()}
    columns = {column: [image(seed) for seed in seeds], **more}
    features |= {name: datasets.Value("int64") for name in more}
    if label:
        columns[label] = [seed % 3 for seed in seeds]
        features[label] = datasets.ClassLabel(names=list(names))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def check(dataset, seeds, labels):
    images, classes = dataset.read(range(len(dataset)))
    assert np.array_equal(images.permute(0, 2, 3, 1), [pixels(seed) for seed in seeds])
    assert classes.tolist() == list(labels)


@MEMORY_LIMITS
def test_a_saved_data_set_is_read_in_the_order_of_its_rows(tmp_path, memory_limit):
    rows(range(12)).select([7, 3, 11, 0]).save_to_disk(tmp_path / "set")
    dataset = open_dataset(f"hf:{tmp_path}/set", memory_limit=memory_limit)
    assert (dataset.name, dataset.image_shape, dataset.num_classes) == ("set", (3, 32, 32), 3)
    check(dataset, [7, 3, 11, 0], [1, 0, 2, 0])


def test_splits(tmp_path):
    both = datasets.DatasetDict({"train": rows(range(3)), "test": rows(range(3, 5))})
    both.save_to_disk(tmp_path / "both")
    check(open_dataset(f"hf:{tmp_path}/both"), range(3), [0, 1, 2])
    check(open_dataset(f"hf:{tmp_path}/both#test"), [3, 4], [0, 1])
    check(open_dataset(f"hf:{tmp_path}/both/test"), [3, 4], [0, 1])
    with pytest.raises(DatasetError, match=r"its splits are train, test; choose one as hf:.*both#train"):
        open_dataset(f"hf:{tmp_path}/both#dev")
    datasets.DatasetDict({"dev": rows(range(3))}).save_to_disk(tmp_path / "one")
    check(open_dataset(f"hf:{tmp_path}/one"), range(3), [0, 1, 2])
    with pytest.raises(DatasetError, match="it has no splits; write hf:"):
        open_dataset(f"hf:{tmp_path}/one/dev#dev")


def test_a_folder_of_parquet_files_is_read_without_the_network(tmp_path):
    (tmp_path / "repo/data").mkdir(parents=True)
    rows(range(2)).to_parquet(tmp_path / "repo/data/train-00000-of-00002.parquet")
    rows(range(2, 4)).to_parquet(tmp_path / "repo/data/train-00001-of-00002.parquet")
    rows(range(5, 6)).to_parquet(tmp_path / "repo/data/test-00000-of-00001.parquet")
    check(open_dataset(f"hf:{tmp_path}/repo"), range(4), [0, 1, 2, 0])
    check(open_dataset(f"hf:{tmp_path}/repo#test"), [5], [2])
    assert not datasets.config.HF_HUB_OFFLINE
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("url", ["https://example.org/x.parquet", "hf://datasets/user/set/x.parquet"])
def test_a_folder_that_points_to_the_network_is_refused(tmp_path, sealed, url):
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {url}\n---\n"
    write(tmp_path / "repo", {"README.md": card.encode()})
    with pytest.raises(DatasetError, match="can't read it"):
        open_dataset(f"hf:{tmp_path}/repo")
    assert not sealed


def test_bad_rows_are_named_and_can_be_left_out(tmp_path):
    columns = {
        "image": [
            image(0),
            {"bytes": b"text", "path": None},
            None,
            {"bytes": encoded(pixels(1))[:300], "path": None},
            image(5),
            image(6),
            image(7),
        ],
        "label": [1, 1, 1, 1, -1, 2, None],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int32")})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    dataset = open_dataset(f"hf:{tmp_path}/set", on_bad="skip")
    check(dataset, [0, 6], [1, 2])
    bad = dict(dataset.bad_files)
    assert bad.keys() == {f"row {i:08d}" for i in (1, 2, 3, 4, 6)}
    assert bad["row 00000002"] == "the row has no image"
    assert "its label is -1, but must be" in bad["row 00000004"]
    assert "its label is None" in bad["row 00000006"]
    with pytest.raises(DatasetError, match="faults") as caught:
        open_dataset(f"hf:{tmp_path}/set")
    assert len(caught.value.bad_files) == 4


def test_columns_are_chosen_by_type_and_then_by_name(tmp_path, caplog):
    rows([1, 2], column="photo", label="animal", weight=[5, 6]).save_to_disk(tmp_path / "one")
    check(open_dataset(f"hf:{tmp_path}/one"), [1, 2], [1, 2])
    two = rows([1, 2], label=None).add_column("mask", [image(8), image(9)], feature=datasets.Image())
    two.save_to_disk(tmp_path / "two")
    check(open_dataset(f"hf:{tmp_path}/two"), [1, 2], [0, 0])
    two.rename_column("image", "photo").save_to_disk(tmp_path / "unclear")
    with pytest.raises(DatasetError, match=r"its columns are photo, mask, but .* several \(2 are\)"):
        open_dataset(f"hf:{tmp_path}/unclear")
    coarse = rows([1, 2], label="fine").add_column("coarse", [0, 0], feature=datasets.ClassLabel(names=["x"]))
    coarse.save_to_disk(tmp_path / "coarse")
    assert open_dataset(f"hf:{tmp_path}/coarse").num_classes == 0
    assert "none of its label columns is used, since none is called label: fine, coarse" in caplog.text


def test_labels_that_are_text_are_said_to_be_ignored(tmp_path, caplog):
    words = rows([1, 2], label=None).add_column("label", ["cat", "dog"])
    words.save_to_disk(tmp_path / "words")
    assert open_dataset(f"hf:{tmp_path}/words").num_classes == 0
    assert "its column label is not used, since it is string, but must be integers" in caplog.text


def test_rows_may_be_paths_of_files(tmp_path):
    write(tmp_path / "files", {f"{name}/{name}.png": encoded(pixels(i)) for i, name in enumerate("abc")})
    dataset = open_dataset(f"hf:{tmp_path}/files", memory_limit=0, on_bad="skip")
    check(dataset, range(3), range(3))
    (tmp_path / "files/b/b.png").unlink()
    assert dataset.read([1])[1].tolist() == [2]
    assert "its image is not in the data set, but at " in dataset.bad_files[0].reason


@pytest.mark.parametrize("text", ["", "cifar10", "user/cifar10#test", "#train"])
def test_only_a_local_folder_is_taken(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"only data sets on this machine are read, nothing is downloaded"):
        open_dataset(f"hf:{text}")


def test_a_folder_without_data_is_refused(tmp_path):
    os.mkdir(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"hf:.*empty: datasets [\d.]+ can't read it"):
        open_dataset(f"hf:{tmp_path}/empty")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"run `pip install aigc_ext\[datasets\]`"):
        open_dataset(f"hf:{tmp_path}")
