"""`wds:` shards. What they must give is what `webdataset` writes and reads, if it is installed."""

from __future__ import annotations

import io
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigc_ext.data import DatasetError, open_dataset
from tests.data.helpers import MEMORY_LIMITS, encoded, pixels, write


def shard(path, members, tar_format=tarfile.PAX_FORMAT):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(*seeds):
    for seed in seeds:
        yield f"s/{seed}.png", encoded(pixels(seed))
        yield f"s/{seed}.cls", b"%d\n" % (seed % 3)
        yield f"s/{seed}.json", b"{}"


@pytest.fixture
def shards(tmp_path):
    for i in range(3):
        shard(tmp_path / f"shards/train-{i:04d}.tar", samples(2 * i, 2 * i + 1))
    return tmp_path / "shards"


def check(dataset, seeds, labels):
    images, classes = dataset.read(range(len(dataset)))
    assert np.array_equal(images.permute(0, 2, 3, 1), [pixels(seed) for seed in seeds])
    assert classes.tolist() == labels


@MEMORY_LIMITS
@pytest.mark.parametrize(
    ("pattern", "seeds"),
    [
        ("shards/train-{0000..0002}.tar", range(6)),
        ("shards/train-{0002,0000}.tar", [4, 5, 0, 1]),
        ("shards/train-000[12].tar", [2, 3, 4, 5]),
        ("shards/*.tar", range(6)),
        ("shards", range(6)),
        ("shards/train-0001.tar", [2, 3]),
    ],
)
def test_shards_are_read_in_the_order_of_the_pattern(
    tmp_path, shards, monkeypatch, pattern, seeds, memory_limit
):
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset(f"wds:{pattern}", memory_limit=memory_limit)
    assert dataset.image_shape == (3, 32, 32)
    assert dataset.name == ("train-0001" if pattern.endswith("0001.tar") else "train")
    check(dataset, seeds, [seed % 3 for seed in seeds])


def test_any_index_is_read_by_threads_at_once(shards):
    dataset = open_dataset(f"wds:{shards}", memory_limit=0)
    order = np.random.default_rng(0).integers(0, 6, 60)
    expected = np.stack([pixels(i) for i in order])
    with ThreadPoolExecutor(4) as pool:
        for images, _ in pool.map(lambda _: dataset.read(order), range(8)):
            assert np.array_equal(images.permute(0, 2, 3, 1), expected)


def test_the_same_files_have_the_same_hash_in_shards_and_in_a_folder(tmp_path):
    files = {f"{i}.png": encoded(pixels(i)) for i in range(3)}
    path = shard(tmp_path / "set.tar", files.items())
    assert (
        open_dataset(f"wds:{path}").content_hash()
        == open_dataset(write(tmp_path / "set", files)).content_hash()
    )


def test_what_webdataset_writes_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "set.tar")) as sink:
        for seed in range(3):
            key = f"a.b/sample{seed}"
            sink.write({"__key__": key, "png": pixels(seed), "cls": 7 - seed, "seg.png": pixels(9)})
    check(open_dataset(f"wds:{tmp_path}/set.tar"), range(3), [7, 6, 5])


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_kind_and_other_members(tmp_path, tar_format):
    long = "/".join(["folder" * 5] * 4) if tar_format == tarfile.USTAR_FORMAT else "d" * 150
    members = [
        (f"{long}/x.png", encoded(pixels(0))),
        ("猫/一.png", encoded(pixels(1))),
        ("a.png", encoded(pixels(2))),
        ("a.seg.png", encoded(pixels(3))),
        ("only.seg.png", encoded(pixels(4))),
        ("text.txt", b"x"),
        ("._a.png", b"what macOS adds"),
    ]
    path = shard(tmp_path / "set.tar", members, tar_format)
    with tarfile.open(path, "a", format=tar_format) as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    check(open_dataset(f"wds:{path}"), [0, 1, 2, 4], [0] * 4)


def bad_files(source, **options):
    with pytest.raises(DatasetError) as caught:
        open_dataset(source, **options)
    assert str(source) in str(caught.value)
    return dict(caught.value.bad_files)


def test_bad_samples_are_named_and_can_be_left_out(tmp_path):
    members = [
        *samples(0, 1),
        ("two.png", encoded(pixels(2))),
        ("two.jpg", encoded(pixels(2), "JPEG")),
        ("two.cls", b"1"),
        ("unlabelled.png", encoded(pixels(3))),
        ("word.png", encoded(pixels(4))),
        ("word.cls", b"cat"),
        ("negative.png", encoded(pixels(4))),
        ("negative.cls", b"-1"),
        ("text.png", b"text"),
        ("text.cls", b"1"),
        ("empty.png", b""),
        ("empty.cls", b"1"),
        ("again.png", encoded(pixels(5))),
        ("again.cls", b"1"),
        ("again.png", encoded(pixels(6))),
    ]
    path = shard(tmp_path / "set.tar", members)
    reasons = {
        f"{path}/two.png": "its sample has 2 images: png, jpg",
        f"{path}/unlabelled.png": "it has no .cls, but others have",
        f"{path}/word.png": "its .cls is b'cat', but must be an integer from 0 to 999999",
        f"{path}/negative.png": "its .cls is b'-1'",
        f"{path}/text.png": "its content is not recognised",
        f"{path}/empty.png": "it is empty",
        f"{path}/again.png": "it is in the shard more than once",
    }
    bad = bad_files(f"wds:{path}")
    assert bad.keys() == reasons.keys()
    assert all(bad[name].startswith(reason) for name, reason in reasons.items())
    dataset = open_dataset(f"wds:{path}", on_bad="skip")
    check(dataset, [0, 1], [0, 1])
    assert dict(dataset.bad_files) == bad


def test_a_damaged_shard_is_named_and_read_up_to_the_damage(shards):
    first, second, third = sorted(shards.iterdir())
    whole = first.read_bytes()
    with tarfile.open(first) as tar:
        start = tar.getmember("s/1.png").offset
        data = tar.getmember("s/1.png").offset_data
    second.write_bytes(b"this is no tar" * 100)
    third.unlink()
    for content, reason in (
        (whole[: data + 5], "s/1.png is cut off"),
        (whole[: start + 100], f"there is no header at byte {start}"),
        (whole[:start] + b"x" * 512 + whole[start + 512 :], f"there is no header at byte {start}"),
    ):
        first.write_bytes(content)
        source = f"wds:{shards}/train-{{0000..0002}}.tar"
        bad = bad_files(source)
        assert bad.keys() == {str(first), str(second), str(third)}
        assert reason in bad[str(first)]
        assert "no uncompressed tar" in bad[str(second)]
        assert bad[str(third)] == "No such file or directory"
        check(open_dataset(source, on_bad="skip"), [0], [0])


def test_a_shard_that_disappears_is_replaced_by_the_next_one(shards):
    dataset = open_dataset(f"wds:{shards}", memory_limit=0, on_bad="skip")
    (shards / "train-0001.tar").unlink()
    images, classes = dataset.read([1, 2, 3, 4])
    assert classes.tolist() == [1, 1, 1, 1]
    assert np.array_equal(images.permute(0, 2, 3, 1), [pixels(seed) for seed in (1, 4, 4, 4)])
    assert [bad.reason for bad in dataset.bad_files] == ["No such file or directory"] * 2


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_shard_is_refused_or_right(tmp_path, data):
    whole = shard(tmp_path / "set.tar", samples(1, 2)).read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "set.tar").write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        dataset = open_dataset(f"wds:{tmp_path}/set.tar", on_bad="skip")
        images, message = list(dataset.read(range(len(dataset)))[0]), ""
    except DatasetError as error:
        images, message = [], str(error)
    assert len(images) or str(tmp_path) in message
    for image in images:  # PNGs have checksums
        assert any(np.array_equal(image.permute(1, 2, 0), pixels(seed)) for seed in (1, 2))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("https://example.org/train-{0..9}.tar", "nothing is downloaded"),
        ("pipe:cat x.tar", "nothing is downloaded"),
        ("nowhere-{0..3}.tar", "there is no such file or folder"),
        ("nowhere-*.tar", "there is no such file or folder"),
        ("", "there is no such file or folder"),
        ("a{b.tar", "Unbalanced"),
        ("empty", "no *.tar in it"),
        ("empty.tar", "there is no image in it"),
    ],
)
def test_a_wrong_pattern_is_named(tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shard(tmp_path / "empty.tar", [("a.txt", b"x")])
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"wds:{pattern}")
    assert f"wds:{pattern}: " in str(caught.value)
    assert message in str(caught.value)


def test_a_compressed_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    assert "no uncompressed tar" in bad_files(f"wds:{tmp_path}/set.tar")[f"{tmp_path}/set.tar"]


def test_only_braces_need_a_package(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    assert len(open_dataset(f"wds:{shards}/train-*.tar")) == 6
    with pytest.raises(DatasetError, match=r"run `pip install aigc_ext\[webdataset\]`, or write"):
        open_dataset(f"wds:{shards}/train-{{0000..0002}}.tar")


def test_a_tar_without_its_prefix_is_told_how_to_be_opened(shards):
    path = shards / "train-0000.tar"
    with pytest.raises(DatasetError, match=f"shards are opened as wds:{path}"):
        open_dataset(path)
