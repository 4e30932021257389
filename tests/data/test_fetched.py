"""Data sets that a package client gets, here a stand-in for npm that hands out a package of four emoji."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from aigc_ext.data import DatasetError, fetched, open_dataset
from aigc_ext.models import MLPDiscriminatorConfig, MLPGeneratorConfig
from aigc_ext.tasks.gan import PRESETS, Trainer

CLEAR_RED, HALF_BLUE = (255, 0, 0, 0), (0, 0, 255, 128)
EMOJI = [
    {"name": "DOG FACE", "short_name": "dog", "category": "Animals & Nature", "image": "1f436.png"},
    {
        "name": None,
        "short_name": "raised_hand",
        "category": "People & Body",
        "image": "270b.png",
        "skin_variations": {"1F3FB": {"image": "270b-1f3fb.png"}},
    },
    {"name": "RED HAIR", "short_name": "red_hair", "category": "Component", "image": "1f9b0.png"},
    {"name": "NOT BY GOOGLE", "short_name": "none", "category": "Objects", "image": "none.png"},
]


def png(colour: tuple[int, int, int, int]) -> bytes:
    written = io.BytesIO()
    Image.new("RGBA", (64, 64), colour).save(written, "PNG")
    return written.getvalue()


def files() -> dict[str, bytes]:
    images = {
        "1f436.png": CLEAR_RED,
        "270b.png": HALF_BLUE,
        "270b-1f3fb.png": HALF_BLUE,
        "1f9b0.png": HALF_BLUE,
    }
    return {
        "package/emoji.json": json.dumps(EMOJI).encode(),
        "package/LICENSE": b"As you like.",
        **{f"package/img/google/64/{name}": png(colour) for name, colour in images.items()},
    }


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in; what it hands out is made by `pack`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = f'#!/bin/sh\n[ -f {folder}/package.tgz ] || {{ echo "404 no such package" >&2; exit 1; }}\n'
    (folder / "npm").write_text(script + f'[ "$1" = pack ] && cp {folder}/package.tgz "$4"/\n')
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = fetched._FETCHED["emoji"]._replace(images=3, classes=2)
    monkeypatch.setitem(fetched._FETCHED, "emoji", expected)
    return folder


def pack(folder: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(folder / "package.tgz", "w:gz") as archive:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_emoji_are_images_on_white_with_categories_and_names(npm: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"'emoji' is not on this machine .*: `python.* -m aigc_ext\.data\.fetched"
    ):
        open_dataset("emoji")
    pack(npm, files())
    path = fetched.fetch("emoji")
    data = open_dataset("emoji")
    assert data.name == "emoji"
    assert data.image_shape == (3, 64, 64)
    assert data.class_names == ("Animals & Nature", "People & Body")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.bad_files == ()
    images, _ = data.read([0, 1, 2])
    assert images[0].unique().tolist() == [255]
    assert [channel.unique().tolist() for channel in images[1]] == [[127], [127], [255]]
    captions = json.loads(path.with_suffix(".captions.json").read_text())
    assert captions == {
        "Animals & Nature/1f436.png": "dog face",
        "People & Body/270b-1f3fb.png": "raised hand",
        "People & Body/270b.png": "raised hand",
    }
    assert "Apache License 2.0" in data.licence
    written = path.with_suffix(".licence.txt").read_text()
    assert data.licence in written
    assert written.endswith("As you like.")
    before = path.read_bytes()
    assert fetched.fetch("emoji").read_bytes() == before


def test_the_licence_goes_with_the_run_and_the_model(npm: Path, tmp_path: Path) -> None:
    pack(npm, files())
    assert fetched.main(["emoji"]) == 0
    config = replace(
        PRESETS["mlp"],
        generator=MLPGeneratorConfig(hidden=(8,)),
        discriminator=MLPDiscriminatorConfig(hidden=(8,)),
        batch=2,
        kimg=0.004,
        metrics=(),
    )
    config = config.override("data.source", "emoji").override("data.resolution", [8, 8])
    result = Trainer.from_config(config, outdir=tmp_path).fit()
    licence = open_dataset("emoji").licence
    assert json.loads((result.run_dir / "config.json").read_text())["data"]["licence"] == licence
    assert (
        result.run_dir / "model" / "data_licence.txt"
    ).read_text() == f"trained on data under: {licence}\n"
    own = config.override("data.licence", "mine")
    assert Trainer.from_config(own, outdir=tmp_path).config.data.licence == "mine"


def without(name: str) -> dict[str, bytes]:
    return {key: data for key, data in files().items() if not key.endswith(name)}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "`npm pack emoji-datasource-google@16.0.0` failed: 404 no such package"),
        (without("270b.png"), "has 2 images of 2 categories, but must have 3 of 2"),
        (without("emoji.json"), "can't be read: .*emoji.json"),
        ({**files(), "package/emoji.json": b"[{}]"}, "can't be read: 'name'"),
        (
            {**files(), "package/img/google/64/1f436.png": b"GIF89a"},
            "can't be read: cannot identify image file",
        ),
    ],
)
def test_what_is_not_as_expected_leaves_nothing(
    npm: Path, contents: dict[str, bytes] | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if contents is not None:
        pack(npm, contents)
    with pytest.raises(DatasetError, match=message):
        fetched.fetch("emoji")
    assert fetched.main(["emoji"]) == 1
    assert capsys.readouterr().err.startswith("Error: data set 'emoji': ")
    assert not list((npm.parent / "cache").rglob("emoji*"))


def test_without_npm(npm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DatasetError, match="of npm, which is not installed"):
        fetched.fetch("emoji")
    assert fetched.main(["other"]) == 2
    assert "usage: python -m aigc_ext.data.fetched emoji" in capsys.readouterr().err
