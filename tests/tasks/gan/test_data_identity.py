"""A run goes on with data of the same content, wherever they are, and not with others unless told to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aigc_ext import _files
from aigc_ext.cli import main
from aigc_ext.data import TensorImages
from aigc_ext.tasks.gan import Trainer, find_resume_point
from aigc_ext.training import CheckpointError
from aigc_ext.training.identity import compare_items
from tests.data.helpers import encoded, labelled, pixels, write
from tests.tasks.gan.helpers import config
from tests.training.helpers import files_of

COUNT = 30
TINY = [
    *("--batch", "10", "--kimg", "0.02", "--tick", "0.01", "--snap", "1", "--device", "cpu"),
    *("--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--set", "grid=[2, 2]"),
]


def images(count: int = COUNT) -> dict[str, bytes]:
    return {f"{i:02d}.png": encoded(pixels(i, (8, 8))) for i in range(count)}


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 2 steps on the relative path `photos`; 4 make the same bits as `whole`."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", images())
    assert main(["train", "--data", "photos", "--outdir", "whole", *TINY, "--kimg", "0.04"]) == 0
    assert main(["train", "--data", "photos", *TINY]) == 0
    return tmp_path / "runs" / "00000-mlp-photos"


def resume(*more: str, run: str = "latest") -> int:
    return main(["train", "--resume", run, "--kimg", "0.04", *more])


def check_exact(begun: Path) -> None:
    whole = begun.parents[1] / "whole" / begun.name
    assert files_of(begun / "checkpoints" / "000000-040") == files_of(whole / "checkpoints" / "000000-040")


def move(root: Path) -> list[str]:
    (root / "photos").rename(root / "photos2")
    return ["--data", "photos2"]


def absolute(root: Path) -> list[str]:
    return ["--data", str(root / "photos")]


def elsewhere(root: Path) -> list[str]:
    (root / "other").mkdir()
    os.chdir(root / "other")
    return ["--outdir", str(root / "runs")]


def link(root: Path) -> list[str]:
    (root / "photos").rename(root / "photos2")
    (root / "photos").symlink_to("photos2")
    return []


def zipped(root: Path) -> list[str]:
    shutil.make_archive(str(root / "same"), "zip", root / "photos")
    return ["--data", "same.zip"]


@pytest.mark.parametrize("change", [move, absolute, elsewhere, link, zipped])
def test_a_run_goes_on_with_the_same_data_in_another_place(begun, monkeypatch, change):
    monkeypatch.chdir(begun.parents[1])  # restored afterwards
    assert resume(*change(begun.parents[1])) == 0
    check_exact(begun)


def replace(photos: Path) -> str:
    path = photos / "04.png"
    info = path.stat()
    (photos / "new").write_bytes(encoded(pixels(99, (8, 8))))
    os.replace(photos / "new", path)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    return "1 image changed (04.png)"


def add(photos: Path) -> str:
    write(photos, {f"new{i}.png": encoded(pixels(50 + i, (8, 8))) for i in range(5)})
    return "5 images added (new0.png, new1.png, new2.png and 2 more)"


def remove(photos: Path) -> str:
    (photos / "00.png").unlink()
    return "1 image removed (00.png)"


def rename(photos: Path) -> str:
    (photos / "00.png").rename(photos / "z.png")
    return "1 image renamed (00.png -> z.png)"


def relabel(photos: Path) -> str:
    write(photos, {"dataset.json": labelled(*([name, 0] for name in images()))})
    return "30 images with another label (00.png, 01.png, 02.png and 27 more)"


@pytest.mark.parametrize("change", [replace, add, remove, rename, relabel])
def test_other_content_is_refused_by_saying_what_differs(begun, capsys, change):
    what = change(begun.parents[1] / "photos")
    capsys.readouterr()
    before = sorted(begun.rglob("*"))
    assert resume() == 2
    shown = capsys.readouterr().err
    assert f"the content of its data differs from photos: {what}; --data-changed goes on" in shown
    assert sorted(begun.rglob("*")) == before

    assert resume("--data-changed") == 0
    log = (begun / "log.txt").read_text()
    assert f"WARNING the data have changed: {what}. From here on the run is not exact" in log
    assert "metrics before and after compare with different images\n" in log
    # It is these data now.
    assert resume("--kimg", "0.05") == 0


def test_a_checkpoint_whose_data_changed_later_says_so_without_names(begun, capsys):
    kept = begun.parents[1] / "kept"
    shutil.copytree(begun / "checkpoints" / "000000-020", kept / "checkpoints" / "000000-020")
    remove(begun.parents[1] / "photos")
    assert resume(run=str(kept / "checkpoints" / "000000-020")) == 2
    assert "its SHA-256 was" in capsys.readouterr().err


def test_the_shape_of_the_images_cannot_change(begun, capsys):
    shutil.rmtree(begun.parents[1] / "photos")
    write(begun.parents[1] / "photos", {f"{i}.png": encoded(pixels(i, (8, 9))) for i in range(9)})
    assert resume("--data-changed") == 2
    shown = capsys.readouterr().err
    assert "its networks are for data with images of the shape 1x8x8, but photos has 1x8x9" in shown
    assert "--init-from" in shown


def test_data_changed_needs_a_run_that_goes_on(begun, capsys):
    assert main(["train", "--data", "photos", "--data-changed", *TINY]) == 2
    assert "--data-changed is for a run that goes on, and needs --resume" in capsys.readouterr().err


def older(checkpoint: Path) -> None:
    """Makes a checkpoint one of a version that did not hash the data."""
    path = checkpoint / "state.json"
    state = json.loads(path.read_text())
    state["data"] = {key: state["data"][key] for key in ("name", "images", "shape", "num_classes")}
    state["sha256"] = _files.json_digest(state)
    path.write_text(json.dumps(state))
    (checkpoint.parents[1] / "data.json").unlink(missing_ok=True)


def test_a_checkpoint_without_a_hash_goes_on(begun, capsys):
    older(begun / "checkpoints" / "000000-020")
    assert resume(*move(begun.parents[1])) == 0
    check_exact(begun)
    older(begun / "checkpoints" / "000000-040")
    remove(begun.parents[1] / "photos2")
    assert resume("--kimg", "0.05") == 2
    assert "images 30, now 29; --data-changed" in capsys.readouterr().err


def test_arrays_are_compared_too(tmp_path):
    def run(changed: bool, outdir: str) -> Trainer:
        array = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4)
        array[7] += changed
        np.save(tmp_path / "a.npy", array)
        return Trainer.from_config(config(kimg=0.05, data__source=str(tmp_path / "a.npy")), outdir=outdir)

    result = run(False, str(tmp_path)).fit()
    point = find_resume_point(str(result.run_dir), tmp_path)
    with pytest.raises(CheckpointError, match=r"1 image changed \(image 7\)"):
        run(True, str(tmp_path)).restore(point)
    run(True, str(tmp_path)).restore(point, data_changed=True)
    run(False, str(tmp_path)).restore(point)


def test_a_network_of_classes_needs_the_same_number(tmp_path):
    def make(classes: int) -> Trainer:
        settings = config(kimg=0.05, data__source=str(tmp_path / f"{classes}.npz"), data__cond=True)
        np.savez(tmp_path / f"{classes}.npz", images=pixels(0, (20, 4, 4)), labels=np.arange(20) % classes)
        return Trainer.from_config(settings, outdir=tmp_path)

    point = find_resume_point(str(make(2).fit().run_dir), tmp_path)
    with pytest.raises(CheckpointError, match=r"for data with classes 2, but 3 has 3; --init-from"):
        make(3).restore(point, data_changed=True)


def test_what_differs_between_lists_of_images():
    def listed(*entries: tuple[str, str], labels: list[int] | None = None) -> dict[str, object]:
        return {"names": [e[0] for e in entries], "digests": [e[1] for e in entries], "labels": labels}

    old = listed(("a", "1"), ("b", "2"), ("c", "3"))
    assert compare_items(old, listed(("c", "3"), ("a", "1"), ("b", "2"))) == ["the images have another order"]
    assert compare_items(old, listed(("b", "9"), ("d", "1"), ("e", "1"))) == [
        "1 image added (e)",
        "1 image removed (c)",
        "1 image changed (b)",
        "1 image renamed (a -> d)",
    ]
    accents = listed(("é", "1")), listed(("e\u0301", "1"))
    assert compare_items(*accents) == ["1 image renamed ('\\xe9' -> 'e\\u0301')"]
    one, other = listed(("a\n", "1"), labels=[0]), listed(("a\n", "1"), labels=[1])
    assert compare_items(one, other) == ["1 image with another label ('a\\n')"]


def test_the_data_of_the_caller_are_known_by_content(tmp_path):
    def make(last: int) -> TensorImages:
        found = np.zeros((3, 1, 4, 4), np.uint8)
        found[2] = last
        return TensorImages("mine", torch.from_numpy(found))

    assert make(1).identity().digests[:2] == make(2).identity().digests[:2]
    assert make(1).content_hash() != make(2).content_hash()
