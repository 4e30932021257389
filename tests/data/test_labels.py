"""Where labels come from, and the reason if there are none."""

from __future__ import annotations

import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aigc_ext.cli import main
from aigc_ext.config import ConfigError
from aigc_ext.data import DatasetError, convert_dataset, inspect_dataset, open_dataset
from aigc_ext.tasks.gan import Trainer
from tests.data.helpers import encoded, labelled, pixels, write
from tests.data.test_shards import shard
from tests.tasks.gan.helpers import config


def pngs(*names: str) -> dict[str, bytes]:
    return {name: encoded(pixels(i, (8, 8))) for i, name in enumerate(names)}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            # As a program on Windows writes it; ZipInfo would correct the separator there, not here.
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, data)
    return path


def labels_of(source: Path | str, **options: bool) -> dict[str, int] | None:
    dataset = open_dataset(source, **options)  # type: ignore[arg-type]
    if not dataset.num_classes:
        return None
    return dict(zip(dataset.identity().names, dataset.labels.tolist(), strict=True))


def test_a_zip_of_a_folder_has_the_labels_of_the_folder(tmp_path):
    inside = write(tmp_path / "a" / "photos", pngs("x.png", "sub/y.png"))
    write(inside, {"dataset.json": labelled(["x.png", 0], ["sub/y.png", 1])})
    path = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "a"))
    for source in (path, tmp_path / "a"):
        assert labels_of(source) == {"photos/x.png": 0, "photos/sub/y.png": 1}
    assert inspect_dataset(path).classes == {0: 1, 1: 1}
    convert_dataset(path, tmp_path / "made")
    assert labels_of(tmp_path / "made") == {"00000/img00000000.png": 1, "00000/img00000001.png": 0}


def test_labels_at_the_top_and_in_the_one_folder(tmp_path):
    """Those of the folder are its own; where both are, they are the nearer ones."""
    files = pngs("photos/x.png")
    root = write(tmp_path / "set", {**files, "dataset.json": labelled(["photos/x.png", 3])})
    assert labels_of(root) == {"photos/x.png": 3}
    write(root, {"photos/dataset.json": labelled(["x.png", 4])})
    assert labels_of(root) == {"photos/x.png": 4}


@pytest.mark.parametrize("in_names", ["pics\\0.png", "pics/0.png"])
@pytest.mark.parametrize("in_labels", ["pics\\0.png", "pics/0.png", "./pics/0.png"])
def test_windows_separators_on_either_side(tmp_path, in_names, in_labels):
    files = {in_names: encoded(pixels(0)), "b.png": encoded(pixels(1))}
    files["dataset.json"] = labelled([in_labels, 2], ["b.png", 1])
    assert labels_of(zipped(tmp_path / "set.zip", files)) == {"b.png": 1, "pics/0.png": 2}


def test_windows_separators_hide_nothing(tmp_path):
    files = {**pngs("pics\\0.png", "__MACOSX\\pics\\._0.png", ".x\\1.png"), "pics\\": b""}
    dataset = open_dataset(zipped(tmp_path / "set.zip", files))
    assert dataset.identity().names == ["pics/0.png"]
    twice = zipped(tmp_path / "twice.zip", pngs("pics\\0.png", "pics/0.png"))
    with pytest.raises(DatasetError, match=r"pics/0\.png: it is in the zip 2 times"):
        open_dataset(twice)


def test_a_backslash_in_a_folder_is_a_letter(tmp_path):
    root = write(tmp_path / "set", {**pngs("a\\b.png"), "dataset.json": labelled(["a\\b.png", 1])})
    assert labels_of(root) == {"a\\b.png": 1}


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_form_of_unicode_are_the_same(tmp_path, forms):
    on_disk, in_labels = (unicodedata.normalize(form, "été/é.png") for form in forms)
    assert on_disk != in_labels
    root = write(tmp_path / "set", {**pngs(on_disk), "dataset.json": labelled([in_labels, 5])})
    assert labels_of(root) == {on_disk: 5}


def test_names_that_differ_only_in_form_mean_themselves(tmp_path):
    one, other = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    root = write(tmp_path / "set", {**pngs(one, other), "dataset.json": labelled([one, 1], [other, 2])})
    if len(list(root.glob("*.png"))) == 2:  # not on a file system that takes them for one
        assert labels_of(root) == {one: 1, other: 2}


NO_LABELS = {
    "comma": (
        {**pngs("a.png"), "dataset.json": b'{"labels": [\n["a.png", 1],\n]}'},
        "dataset.json: line 2 has a comma before a closing bracket, which is no JSON",
    ),
    "JSON": ({**pngs("a.png"), "dataset.json": b"labels"}, "dataset.json: it is no JSON: Expecting value"),
    "key": ({**pngs("a.png"), "dataset.json": b"{}"}, "dataset.json: it has no key 'labels'"),
    "null": ({**pngs("a.png"), "dataset.json": b'{"labels": null}'}, "the labels in dataset.json are null"),
    "list": ({**pngs("a.png"), "dataset.json": b'{"labels": 3}'}, "'labels' is 3, but must be a list of"),
    "deeper": (
        {**pngs("a/a.png", "b/b.png"), "a/dataset.json": labelled(["a.png", 1])},
        "labels in a/dataset.json are ignored: they must be at the top",
    ),
    "folders": (
        pngs("cat/a.png", "dog/b.png", "eel/c.png", "fox/d.png"),
        "there is no dataset.json in it; --class-folders takes its 4 folders as classes: cat, dog, eel, ...",
    ),
    "one folder": (pngs("cat/a.png"), "there is no dataset.json in it"),
}


@pytest.mark.parametrize("case", NO_LABELS)
@pytest.mark.parametrize("as_zip", [False, True])
def test_the_reason_for_no_labels_is_said(tmp_path, capsys, case, as_zip):
    files, reason = NO_LABELS[case]
    root = write(tmp_path / "set", files)
    source = shutil.make_archive(str(root), "zip", root) if as_zip else str(root)
    dataset = open_dataset(source, on_bad="skip")
    assert dataset.num_classes == 0
    assert reason in str(dataset.why_unlabelled)
    assert main(["train", "--data", source, "--cond"]) == 2
    shown = capsys.readouterr().err
    assert "data.cond is true, but set has no labels: " in shown
    assert reason in shown
    assert shown.count("\n") <= 2  # of which one is a warning where labels are ignored


@pytest.mark.parametrize(("name", "reason"), [("a.npy", "a .npy has none"), ("a.npz", "no array 'labels'")])
def test_of_arrays_too(tmp_path, name, reason):
    array = pixels(0, (3, 8, 8))
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", images=array)
    settings = config(data__source=str(tmp_path / name), data__cond=True)
    for resolution in (None, (4, 4)):
        with pytest.raises(ConfigError, match=f"a has no labels: .*{reason}"):
            Trainer.from_config(settings.override("data.resolution", resolution))


def test_of_shards_too(tmp_path):
    path = shard(tmp_path / "set.tar", pngs("a.png").items())
    assert (
        open_dataset(f"wds:{path}").describe_unlabelled()
        == "set has no labels: none of its samples has a .cls"
    )


def test_metrics_say_it_too(tmp_path, capsys):
    root = write(tmp_path / "set", pngs(*(f"{i}.png" for i in range(9))))
    small = ["--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--set", "grid=[2, 2]"]
    short = ["--batch", "4", "--kimg", "0.004", "--device", "cpu", "--outdir", str(tmp_path / "runs")]
    assert main(["train", "--data", str(root), *small, *short]) == 0
    capsys.readouterr()
    run = str(tmp_path / "runs" / "00000-mlp-set")
    assert main(["metrics", "--network", run, "--data", str(root), "--num", "9"]) == 2
    reason = "set has no labels to train a classifier on (there is no dataset.json in it)"
    assert reason in capsys.readouterr().err


CLASSES = {"animals/cat/a.png": 0, "animals/dog/b.png": 1, "animals/dog/deep/c.png": 1}


@pytest.mark.parametrize("prefix", ["", "animals/"])
def test_folders_are_classes(tmp_path, prefix):
    expected = {prefix + name.removeprefix("animals/"): number for name, number in CLASSES.items()}
    root = write(tmp_path / "set", pngs(*expected))
    assert labels_of(root, class_folders=True) == expected
    assert open_dataset(root, class_folders=True).class_names == ("cat", "dog")
    assert inspect_dataset(root, class_folders=True).class_names == ["cat", "dog"]
    assert labels_of(root) is None


def test_an_image_in_no_class_folder_is_bad(tmp_path):
    root = write(tmp_path / "set", pngs("cat/a.png", "b.png"))
    with pytest.raises(DatasetError, match=r"b\.png: it is in no class folder"):
        open_dataset(root, class_folders=True)
    assert len(open_dataset(root, class_folders=True, on_bad="skip")) == 1


def test_a_run_trains_on_class_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set", pngs(*(f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(5))))
    small = ["--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--set", "grid=[2, 2]"]
    short = ["--batch", "4", "--kimg", "0.004", "--device", "cpu"]
    assert main(["train", "--data", "set", "--cond", "--class-folders", *small, *short]) == 0
    assert "the classes are: 0 cat, 1 dog" in Path("runs/00000-mlp-set/log.txt").read_text()
    assert main(["train", "--resume", "latest", "--kimg", "0.008"]) == 0


def test_only_folders_and_zips_have_class_folders(tmp_path):
    with pytest.raises(DatasetError, match="class folders can only be those of a folder or zip"):
        open_dataset("digits", class_folders=True)
