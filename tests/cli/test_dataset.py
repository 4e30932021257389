from __future__ import annotations

import json
import resource

import numpy as np
import pytest

from aigc_ext.cli import main
from aigc_ext.data import open_dataset
from tests.data.helpers import MIXED_REASONS, encoded, labelled, mixed_folder, pixels, write


def run(*arguments):
    return main(["dataset", *map(str, arguments)])


def test_without_dest_everything_in_the_source_is_said(tmp_path, capsys):
    root = mixed_folder(tmp_path / "mixed")
    assert run("--source", root) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[:5] == [
        f"source:     {root}",
        "images:     8",
        "shapes:     7 of 3x32x32, 1 of 3x1x1",
        "stored as:  7 of PNG RGB, 1 of JPEG CMYK",
        "classes:    none",
    ]
    bad = {
        name: reason for name, reason in MIXED_REASONS.items() if name != "dot.png"
    }  # only of another shape
    assert f"bad files:  {len(bad)}" in lines
    for name, reason in bad.items():
        (line,) = (line for line in lines if line.startswith(f"  {name}: "))
        assert reason in line
    assert "take 7 images of 3x32x32 and leave out 1 of other shapes" in lines[-1]


def test_with_dest_a_folder_or_zip_is_written_and_bad_files_are_reported(tmp_path, capsys):
    root = mixed_folder(tmp_path / "mixed")
    dest = tmp_path / "clean.zip"
    options = ("--resolution", "16x16", "--transform", "letterbox", "--workers", 2, "--max-images", 8)
    assert run("--source", root, "--dest", dest, *options) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    report = f"{dest}.report.json"
    assert lines[:2] == [f"dataset:    {dest}", "images:     6 of 3x16x16"]  # of 8, dot and truncated are bad
    assert f"left out:   6, listed in {report}" in lines
    assert "  ... and 1 more" in lines
    with open(report, encoding="utf-8") as file:
        assert {bad["name"] for bad in json.load(file)["bad_files"]} == MIXED_REASONS.keys()
    assert len(open_dataset(dest)) == 6


def test_one_number_is_a_square(tmp_path, capsys):
    assert run("--source", "digits", "--dest", tmp_path / "out", "--resolution", "4", "--max-images", 3) == 0
    assert "3 of 1x4x4" in capsys.readouterr().out


def test_many_shapes_are_a_histogram(tmp_path, capsys):
    sizes = [(64 + i, 100, 3) for i in range(30)] + [(30, 20), (300, 290, 3)]
    root = write(tmp_path / "set", {f"{i}.png": encoded(pixels(i, s)) for i, s in enumerate(sizes)})
    assert run("--source", root) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("shapes:     32 different ones, of 31 of 3 channels, 1 of 1 channel")
    assert lines[start + 1 : start + 13] == [
        "  shorter side, in pixels:",
        "      16 to 31   1  ##",
        "      32 to 63   0",
        "     64 to 127  30  ########################################",
        "    128 to 255   0",
        "    256 to 511   1  ##",
        "  width / height:",
        "    2 and more   0",
        "      1.1 to 2  27  ########################################",
        "    0.9 to 1.1   4  ######",
        "    0.5 to 0.9   1  ##",
        "     below 0.5   0",
    ]
    assert max(map(len, lines[:-1])) < 100
    assert "train --resolution 64 --transform center-crop makes all 64x64" in lines[-1]


def test_classes_are_shown(tmp_path, capsys):
    files = {
        "owl/a.png": encoded(pixels(0)),
        "owl/b.png": encoded(pixels(1)),
        "cat/c.png": encoded(pixels(2)),
    }
    files["dataset.json"] = labelled(["owl/a.png", 4], ["owl/b.png", 7], ["cat/c.png", 7])
    root = write(tmp_path / "set", files)
    for options, classes in ([], "2: 4 (1), 7 (2)"), (["--class-folders"], "2: cat (1), owl (2)"):
        assert run("--source", root, *options) == 0
        assert f"classes:    {classes}\n" in capsys.readouterr().out
    np.savez(tmp_path / "many.npz", images=pixels(0, (42, 4, 4)), labels=np.arange(42) // 2 * 3)
    assert run("--source", tmp_path / "many.npz") == 0
    shown = capsys.readouterr().out
    assert "stored as:  42 of array\n" in shown
    assert "classes:    21, of 2 to 2 images\n" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere"], "there is no such file or folder"),
        (["--source", "digits", "--dest", "."], ".: it exists already, and is not overwritten"),
        (["--source", "digits", "--resolution", "8x8"], "--resolution needs --dest"),
        (["--source", "digits", "--dest", "out", "--resolution", "8x"], "'8x' is no size such as 64 (64x64)"),
        (["--source", "digits", "--dest", "out", "--resolution", "0x8"], "'0x8' is no size"),
        (["--source", "digits", "--dest", "out", "--transform", "letterbox"], "needs a resolution"),
        (["--source", "digits", "--dest", "out", "--resolution", "16x16"], "none of its images is good"),
        (["--source", "hf:user/set"], "nothing is downloaded"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert shown.out == ""


def test_a_full_disk_is_one_line_and_code_1(tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # stands for a full disk
    try:
        assert run("--source", "digits", "--dest", tmp_path / "out.zip") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err == f"Error: {tmp_path}/out.zip: File too large; nothing of it is left\n"
    assert not list(tmp_path.iterdir())
