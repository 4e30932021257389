"""Datasets of recordings: WAV files in a folder or zip, cut into segments of one length."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext.data import wav_file
from aigc_ext.data.dataset import BadFile, Dataset, DatasetError, Part, Report, describe_numbers
from aigc_ext.data.fetched import licence_of, names_of, path_of
from aigc_ext.data.files import (
    LABELS_FILE,
    FileKind,
    OnBad,
    check_size,
    collect,
    describe_passed_over,
    raise_faults,
)
from aigc_ext.data.open import DEFAULT_MEMORY_LIMIT
from aigc_ext.data.tree import Tree, open_tree

NAMED_AUDIO = names_of("audio")
"""The sources that are names, not paths."""
TRANSCRIPTS_FILE = "transcripts.json"
_CLASSES_ARE_FOLDERS = ("spoken-digits",)
_WAV = FileKind(
    "recording",
    wav_file.SUFFIXES,
    wav_file.looks_like_wav,
    wav_file.HEAD,
    f"there is no recording in it ({wav_file.FORMATS})",
    (LABELS_FILE, TRANSCRIPTS_FILE),
)
_MOST_REPLACED = 100  # as of images
_log = logging.getLogger(__name__)


class Recording(NamedTuple):
    """
    Attributes:
        name: of its file, relative to the source.
        length: in samples at the dataset's rate.
        rate, channels: those of the file.
    """

    name: str
    length: int
    rate: int
    channels: int


class AudioPart(Part):
    """Some of the segments of a dataset."""

    groups: Tensor

    def __init__(self, whole: AudioDataset | AudioPart, index: Tensor, name: str) -> None:
        super().__init__(whole, index, name)
        self.sample_rate: int = whole.sample_rate
        self.recordings: tuple[Recording, ...] = whole.recordings
        self.transcripts: tuple[str, ...] = whole.transcripts
        self._audio = whole

    def take(self, index: Tensor, name: str) -> AudioPart:
        return AudioPart(self, index, name)

    def recording(self, number: int) -> Tensor:
        """A whole recording, int16 (length,)."""
        return self._audio.recording(number)


class AudioDataset(Dataset):
    """Segments of recordings, int16 (T,), one after the other; the last of a recording ends with it, and
    overlaps the one before. A recording that is shorter than a segment is one, with silence after it.

    Attributes:
        sample_rate: samples a second.
        recordings: what the segments are cut from, in the order of their names.
        groups: the number of the recording of each segment, int64 (N,).
        transcripts: what is said in each recording; empty if the source has none.

    Args:
        labels: the class of each recording; None without classes.
        memory_limit: bytes of samples that may be held in memory; more are read on demand.
    """

    kind = "audio"
    item = "segment"
    groups: Tensor

    def __init__(
        self,
        files: Tree,
        recordings: Sequence[Recording],
        segment: int,
        rate: int,
        *,
        labels: Sequence[int] | None = None,
        transcripts: Sequence[str] = (),
        bad_files: Sequence[BadFile] = (),
        on_bad: OnBad = "raise",
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        report: Report | None = None,
    ) -> None:
        starts = [_starts(recording.length, segment) for recording in recordings]
        groups = torch.tensor([i for i, each in enumerate(starts) for _ in each])
        of_segments = None if labels is None else torch.tensor(labels)[groups]
        super().__init__(files.name, len(groups), (segment,), of_segments)
        self.sample_rate, self.recordings = rate, tuple(recordings)
        self.transcripts, self.groups = tuple(transcripts), groups
        self.report = report
        self._files, self._on_bad = files, on_bad
        self._bad_files = tuple(bad_files)
        self._starts = torch.tensor([start for each in starts for start in each])
        self._damaged: dict[int, BadFile] = {}  # found while reading
        self._held: list[Tensor] | None = None
        if 2 * sum(recording.length for recording in recordings) <= memory_limit:
            self._hold()

    @property
    def source(self) -> str:
        return self._files.source

    @property
    def bad_files(self) -> tuple[BadFile, ...]:
        return (*self._bad_files, *(bad for _, bad in sorted(self._damaged.copy().items())))

    def recording(self, number: int) -> Tensor:
        """A whole recording, int16 (length,), mixed down and at the dataset's rate.

        Raises:
            DatasetError: its file has changed or can't be read.
        """
        if self._held is not None:
            return self._held[number].clone()
        return self._reading(number)

    def take(self, index: Tensor, name: str) -> AudioPart:
        return AudioPart(self, index, name)

    def _hold(self) -> None:
        """Reads all recordings. What was checked before they were chosen must still be so."""
        held: list[Tensor] = []
        bad: list[BadFile] = []
        for i, recording in enumerate(self.recordings):
            with collect(bad, recording.name):
                held.append(self._decode(i))
            if self.report is not None:
                self.report("reading", i + 1, len(self.recordings))
        if bad:
            raise_faults(self._files, bad)
        self._held = held

    def _decode(self, number: int) -> Tensor:
        recording = self.recordings[number]
        samples = decode(self._files.read(recording.name), self.sample_rate)
        if len(samples) != recording.length:
            raise ValueError(f"it has {len(samples)} samples, but had {recording.length}")
        return samples

    def _reading(self, number: int) -> Tensor:
        bad: list[BadFile] = []
        with collect(bad, self.recordings[number].name):
            return self._decode(number)
        raise_faults(self._files, bad)

    def _read_items(self, index: Tensor) -> tuple[Tensor, Tensor]:
        segments = torch.zeros((len(index), *self.item_shape), dtype=torch.int16)
        read: dict[int, Tensor] = {}  # on demand, a recording is decoded once for all of its segments here
        used = [self._fill(row, i, read) for row, i in zip(segments, index.tolist(), strict=True)]
        return segments, torch.tensor(used, dtype=torch.int64)

    def _fill(self, row: Tensor, first: int, read: dict[int, Tensor]) -> int:
        """Writes segment `first` to a row of zeros, or the next one that can be read if bad files are
        skipped; returns its index."""
        tried = 0
        for i in ((first + step) % len(self) for step in range(len(self))):
            number = int(self.groups[i])
            if number not in self._damaged:
                try:
                    whole = self._held[number] if self._held else read.get(number)
                    if whole is None:
                        whole = read[number] = self._reading(number)
                    start = int(self._starts[i])
                    part = whole[start : start + len(row)]
                    row[: len(part)] = part
                    return i
                except DatasetError as error:
                    if self._on_bad == "raise":
                        raise
                    # Only the first thread that finds it warns.
                    bad = error.bad_files[0]
                    if self._damaged.setdefault(number, bad) is bad:
                        _log.warning(
                            "%s: the next good recording takes the place of a bad one: %s", self.source, bad
                        )
                    tried += 1
            if tried >= _MOST_REPLACED:
                break
        raise DatasetError(f"{self.source}: {tried} recordings in a row can't be read:", self.bad_files)

    def _item_names(self) -> list[str]:
        names = (self.recordings[number].name for number in self.groups.tolist())
        return [f"{name} at {start}" for name, start in zip(names, self._starts.tolist(), strict=True)]

    def _content(self) -> Iterator[bytes]:
        """The SHA-256 of each file, the rate, and the segment's place."""
        digest, last = b"", -1
        for number, start in zip(self.groups.tolist(), self._starts.tolist(), strict=True):
            if number != last:
                digest, last = self._digest(self.recordings[number].name), number
            yield digest + f" {self.sample_rate} {start}".encode()
        self._files.index.save(self._files.images)

    def _digest(self, name: str) -> bytes:
        stamp = self._files.stamp(name)
        if known := self._files.index.digest(name, stamp):
            return known
        bad: list[BadFile] = []
        # A file that can't be read counts as empty, which no file of a dataset is.
        digest = hashlib.sha256().digest()
        with collect(bad, name):
            data = self._files.read(name)
            digest = hashlib.sha256(data).digest()
            self._files.index.note(name, stamp, digest=digest, size=len(data))
        if bad and self._on_bad == "raise":
            raise_faults(self._files, bad)
        if bad:
            _log.warning("%s: a file is identified as unreadable: %s", self.source, bad[0])
        return digest


def open_audio(
    source: str | os.PathLike[str],
    *,
    segment: int | None = None,
    rate: int | None = None,
    class_folders: bool = False,
    renumber_classes: bool = False,
    follow_links: bool = False,
    on_bad: OnBad = "raise",
    max_left_out: float = 1.0,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    report: Report | None = None,
) -> AudioDataset:
    """Opens and checks a dataset of recordings, so that bad files are found now.

    Args:
        source: one of
            - `speech` (553 prompts with transcripts) or `spoken-digits` (2,000 recordings, the digits as
              classes), both at 8 kHz, once `python -m aigc_ext.data.fetched speech` has been run;
            - a folder, searched recursively, or a `.zip`: WAV files of PCM (8, 16, 24 or 32 bits) or floating
              point, also under other names, in the order of their names, with an optional `dataset.json`, as
              for images (see `open_dataset`), and an optional `transcripts.json` in the root:
              `{"sub/a.wav": "what is said in it", ...}`. Several channels are mixed down to their mean.
        segment: the number of samples of an item; None: those of the longest recording, each of which is
            then one item.
        rate: samples a second to which recordings of another rate are resampled; None: they must have one.
        class_folders, renumber_classes, follow_links, max_left_out: as for `open_dataset`.
        on_bad: "raise" rejects a source with bad files; "skip" leaves them out, also those of a rate that is
            not the most frequent one, and lists them in `bad_files`. A recording that is read on demand and
            found to be damaged then is replaced by the next one.
        memory_limit: bytes of samples that may be held in memory; more are read on demand.
        report: called with "indexing", "reading" or "identifying", the number finished and the total.

    Raises:
        DatasetError: the source is missing, of an unknown kind, has no good recording or, with
            on_bad="raise", has bad files, listed in `bad_files`, or too many of them.
        ValueError: another argument is wrong.
    """
    for name, value in (("segment", segment), ("rate", rate)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1")
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad is {on_bad!r}, but must be 'raise' or 'skip'")
    if not 0 <= max_left_out <= 1:
        raise ValueError(f"max_left_out is {max_left_out}, but must be from 0 to 1")
    files = _find(source, follow_links)
    headers, bad = _probe(files, report)
    if rate is None and headers:
        rate, wrong = _common_rate(headers)
        bad += wrong
    folders = class_folders or source in _CLASSES_ARE_FOLDERS
    labels, bad_labels, class_names = files.class_folders() if folders else (*files.labels(), [])
    spoken, bad_texts = _read_transcripts(files)
    bad = [*files.bad, *bad, *bad_labels, *bad_texts]
    if bad and on_bad == "raise":
        raise_faults(files, bad)
    left_out = {file.name for file in bad}
    good = {name: header for name, header in headers.items() if name not in left_out}
    if not good or rate is None:
        raise DatasetError(f"{files.source}: none of its recordings is good:", bad)
    lost = [file for file in bad if file.name in files.images]
    if len(lost) > max_left_out * len(files.images):
        raise DatasetError(
            f"{files.source}: {len(lost)} of {len(files.images)} recordings would be left out, more than the "
            f"fraction {max_left_out:g} that data.max_left_out allows:",
            lost,
        )
    recordings = [
        Recording(name, -(-header.frames * rate // header.rate), header.rate, header.channels)
        for name, header in good.items()
    ]
    data = AudioDataset(
        files,
        recordings,
        segment or max(recording.length for recording in recordings),
        rate,
        labels=None if labels is None else [labels[name] for name in good],
        transcripts=[spoken.get(name, "") for name in good] if spoken else (),
        bad_files=bad,
        on_bad=on_bad,
        memory_limit=memory_limit,
        report=report,
    )
    data.why_unlabelled, data.class_names = files.why_unlabelled, tuple(class_names)
    remarks = list(_remarks(files, data, segment))
    if renumber_classes and data.num_classes:
        numbers = data.renumber_classes()
        data.class_names = tuple(class_names[old] for old in numbers) if class_names else ()
        remarks.append(describe_numbers(numbers))
    if source in NAMED_AUDIO:
        data.licence = licence_of(os.fspath(source))
    data.remarks = tuple(f"{files.source}: {remark}" for remark in remarks)
    if on_bad == "raise":  # nobody else would report them
        for remark in data.remarks:
            _log.warning("%s", remark)
    return data


def decode(data: bytes, rate: int) -> Tensor:
    """The samples of a WAV file, int16 (T,), mixed down and at this rate.

    Raises:
        ValueError: as `wav_file.decode`.
    """
    sound = wav_file.decode(data)
    return torch.from_numpy(wav_file.to_int16(wav_file.resample(sound.samples, sound.rate, rate)))


def _find(source: str | os.PathLike[str], follow_links: bool) -> Tree:
    if source in NAMED_AUDIO:
        return open_tree(path_of(os.fspath(source)), False, _WAV)
    path = Path(source)
    if not os.fspath(source) or not path.exists():
        raise DatasetError(
            f"dataset {os.fspath(source)!r}: there is no such file or folder, nor is it one of "
            f"{', '.join(NAMED_AUDIO)}"
        )
    if not path.is_dir() and path.suffix.lower() != ".zip":
        raise DatasetError(f"{path}: it is a file, but must be a folder or .zip of WAV files")
    return open_tree(path, follow_links, _WAV)


def _probe(files: Tree, report: Report | None) -> tuple[dict[str, wav_file.Header], list[BadFile]]:
    """The headers of the good files. Floating-point samples are looked at too: only they can be bad in a file
    that is whole."""
    headers: dict[str, wav_file.Header] = {}
    bad: list[BadFile] = []
    left_out = {file.name for file in files.bad}
    names = [name for name in files.images if name not in left_out]
    for i, name in enumerate(names):
        with collect(bad, name):
            check_size(files, name)
            with files.open(name) as file:
                header = wav_file.read_header(file)
            if header.kind == wav_file.FLOAT:
                wav_file.decode(files.read(name))
            headers[name] = header
        if report is not None and (i % 100 == 0 or i + 1 == len(names)):
            report("indexing", i + 1, len(names))
    return headers, bad


def _common_rate(headers: dict[str, wav_file.Header]) -> tuple[int, list[BadFile]]:
    """The most frequent rate (of equally frequent ones, the first), and the files of another."""
    rate, count = Counter(header.rate for header in headers.values()).most_common(1)[0]
    model = next(name for name, header in headers.items() if header.rate == rate)
    wanted = f"{rate} as {model} ({count} of {len(headers)} recordings): data.sample_rate {rate} resamples it"
    return rate, [
        BadFile(name, f"its sample rate is {header.rate}, but must be {wanted}")
        for name, header in headers.items()
        if header.rate != rate
    ]


def _read_transcripts(files: Tree) -> tuple[dict[str, str], list[BadFile]]:
    """What is said in each recording; empty if there is no such file. It may name recordings that are not
    there, as where only some were copied."""
    path = next(
        (name for name in (files.top + TRANSCRIPTS_FILE, TRANSCRIPTS_FILE) if name in files.names), ""
    )
    if not path:
        return {}, []
    bad: list[BadFile] = []
    with collect(bad, path):
        texts = _files.parse_json(files.read(path))
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError('it must be an object {"name.wav": "what is said", ...}')
        folder = path.removesuffix(TRANSCRIPTS_FILE)
        return {folder + name: text for name, text in texts.items()}, bad
    return {}, bad


def _remarks(files: Tree, data: AudioDataset, segment: int | None) -> Iterator[str]:
    if remark := describe_passed_over(files.passed_over):
        yield remark
    count = len(data.recordings)
    mixed = sum(recording.channels > 1 for recording in data.recordings)
    if mixed:
        yield f"{mixed} of {count} recordings have several channels and are mixed down to one"
    other = Counter(recording.rate for recording in data.recordings if recording.rate != data.sample_rate)
    if other:
        rates = ", ".join(str(rate) for rate in sorted(other))
        yield f"{other.total()} of {count} recordings are resampled from {rates} to {data.sample_rate} Hz"
    # Without a length, all but the longest are meant to be.
    short = 0 if segment is None else sum(recording.length < segment for recording in data.recordings)
    if short:
        yield f"{short} of {count} recordings are shorter than {segment} samples, with silence after them"
    silent = sum(not text for text in data.transcripts)
    if silent:
        yield f"{silent} of {count} recordings have no transcript"


def _starts(length: int, segment: int) -> list[int]:
    """Where the segments of a recording start."""
    whole = range(0, max(length - segment, 0) + 1, segment)
    rest = max(length, segment) - segment - whole[-1]
    return [*whole, *([whole[-1] + rest] if rest else [])]
