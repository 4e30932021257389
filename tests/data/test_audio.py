"""Folders and zips of WAV files as datasets of segments."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from aigc_ext.data import DatasetError, open_audio, wav_file
from aigc_ext.data.audio import AudioPart
from aigc_ext.data.dataset import split
from tests.data.helpers import MEMORY_LIMITS, write
from tests.data.test_wav_file import wav


def samples(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-30_000, 30_000, count).astype(np.int16)


def sound(seed: int, count: int, rate: int = 8000) -> bytes:
    return wav_file.encode(samples(seed, count), rate)


NAN = wav(np.array([0, np.nan], "<f4").tobytes(), kind=3, bits=32)


@MEMORY_LIMITS
def test_segments_follow_each_other_and_the_last_ends_with_the_recording(
    tmp_path: Path, memory_limit: int
) -> None:
    write(
        tmp_path, {"b.wav": sound(1, 250), "a/x": sound(0, 200), "short.wav": sound(2, 30), "notes.txt": b"-"}
    )
    data = open_audio(tmp_path, segment=100, memory_limit=memory_limit, on_bad="skip")
    assert (data.kind, data.item_shape, data.sample_rate, data.num_classes) == ("audio", (100,), 8000, 0)
    assert [recording.name for recording in data.recordings] == ["a/x", "b.wav", "short.wav"]
    assert data.groups.tolist() == [0, 0, 1, 1, 1, 2]
    items, labels = data.read([5, 0, 4, 3, 1])
    assert items.dtype == torch.int16
    assert labels.tolist() == [0] * 5
    first, second, short = samples(0, 200), samples(1, 250), samples(2, 30)
    expected = [np.pad(short, (0, 70)), first[:100], second[150:], second[100:200], first[100:]]
    assert np.array_equal(items.numpy(), np.stack(expected))
    assert np.array_equal(data.recording(1).numpy(), second)
    assert data.remarks == (
        f"{tmp_path}: 1 file is passed over: 1 .txt",
        f"{tmp_path}: 1 of 3 recordings are shorter than 100 samples, with silence after them",
    )
    assert data.identity().names == [
        "a/x at 0",
        "a/x at 100",
        "b.wav at 0",
        "b.wav at 100",
        "b.wav at 150",
        "short.wav at 0",
    ]


def test_without_a_length_each_recording_is_an_item(tmp_path: Path) -> None:
    data = open_audio(write(tmp_path, {"a.wav": sound(0, 50), "b.wav": sound(1, 80)}), on_bad="skip")
    assert len(data) == 2
    assert data.item_shape == (80,)
    assert data.remarks == ()


def test_a_part_keeps_recordings_together(tmp_path: Path) -> None:
    data = open_audio(write(tmp_path, {f"{i}.wav": sound(i, 300) for i in range(8)}), segment=100)
    training, held = split(data, 0.25, seed=3)
    assert isinstance(training, AudioPart)
    assert isinstance(held, AudioPart)
    assert len(held) == 6
    assert not set(training.groups.tolist()) & set(held.groups.tolist())
    assert len(training) + len(held) == 24
    assert (held.kind, held.sample_rate) == ("audio", 8000)
    number = int(held.groups[0])
    assert np.array_equal(held.recording(number).numpy(), samples(number, 300))
    assert torch.equal(held.read([0])[0][0], held.recording(number)[:100])
    again, _ = split(training, 0.5)
    assert isinstance(again, AudioPart)
    assert again.sample_rate == 8000
    assert len(again.groups) == len(again) == 9
    one = open_audio(write(tmp_path / "one", {"a.wav": sound(0, 300)}), segment=100)
    with pytest.raises(ValueError, match="one has segments of one whole, but must have two"):
        split(one, 0.5)


def test_classes_and_transcripts(tmp_path: Path) -> None:
    texts = {"no/b.wav": "No.", "other.wav": "Elsewhere."}
    files = {
        "yes/a.wav": sound(0, 90),
        "no/b.wav": sound(1, 150),
        "transcripts.json": json.dumps(texts).encode(),
    }
    data = open_audio(write(tmp_path, files), segment=100, class_folders=True, on_bad="skip")
    assert data.class_names == ("no", "yes")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.transcripts == ("No.", "")
    assert data.remarks[-1].endswith("1 of 2 recordings have no transcript")
    assert "--class-folders takes its 2 folders as classes: no, yes" in str(
        open_audio(tmp_path, on_bad="skip").why_unlabelled
    )
    write(tmp_path, {"dataset.json": json.dumps({"labels": [["yes/a.wav", 4], ["no/b.wav", 7]]}).encode()})
    data = open_audio(tmp_path, renumber_classes=True, on_bad="skip")
    assert data.labels.tolist() == [1, 0]
    assert data.remarks[-1].endswith("its classes are numbered anew: 0 is 4, 1 is 7")
    write(tmp_path, {"transcripts.json": b"[1]"})
    with pytest.raises(
        DatasetError, match=r'transcripts\.json: it must be an object {"name\.wav": "what is said"'
    ):
        open_audio(tmp_path)


def test_rates(tmp_path: Path) -> None:
    write(tmp_path, {"a.wav": sound(0, 500), "b.wav": sound(1, 1000, 16_000), "c.wav": sound(2, 300)})
    with pytest.raises(DatasetError) as raised:
        open_audio(tmp_path)
    assert [bad.reason for bad in raised.value.bad_files] == [
        "its sample rate is 16000, but must be 8000 as a.wav (2 of 3 recordings): data.sample_rate 8000 "
        "resamples it"
    ]
    assert [bad.name for bad in open_audio(tmp_path, on_bad="skip").bad_files] == ["b.wav"]
    data = open_audio(tmp_path, rate=8000, segment=100, on_bad="skip")
    assert [recording.length for recording in data.recordings] == [500, 500, 300]
    assert data.remarks == (f"{tmp_path}: 1 of 3 recordings are resampled from 16000 to 8000 Hz",)
    assert len(data.recording(1)) == 500


def test_several_channels(tmp_path: Path) -> None:
    stereo = np.stack((samples(0, 60), samples(1, 60)), axis=1)
    data = open_audio(write(tmp_path, {"a.wav": wav(stereo.tobytes(), channels=2)}), on_bad="skip")
    assert data.remarks == (f"{tmp_path}: 1 of 1 recordings have several channels and are mixed down to one",)
    mean = stereo.astype(np.float64).mean(axis=1)
    assert np.abs(data.recording(0).numpy() - mean).max() <= 0.5


@MEMORY_LIMITS
def test_bad_files_are_named_or_left_out(tmp_path: Path, memory_limit: int) -> None:
    files = {
        "a.wav": sound(0, 90),
        "cut.wav": sound(1, 90)[:-10],
        "empty.wav": b"",
        "nan.wav": NAN,
        "x.wav": b"RIFF",
    }
    write(tmp_path, files)
    with pytest.raises(DatasetError) as raised:
        open_audio(tmp_path, memory_limit=memory_limit)
    assert {bad.name: bad.reason for bad in raised.value.bad_files} == {
        "cut.wav": "it is cut off: 170 of 180 bytes of samples are there",
        "empty.wav": "it is empty (0 bytes)",
        "nan.wav": "it has samples that are not finite",
        "x.wav": "its content is not recognised as WAV of PCM or floating point",
    }
    data = open_audio(tmp_path, on_bad="skip", memory_limit=memory_limit)
    assert len(data) == 1
    assert len(data.bad_files) == 4
    with pytest.raises(
        DatasetError, match=r"4 of 5 recordings would be left out, more than the fraction 0\.5"
    ):
        open_audio(tmp_path, on_bad="skip", max_left_out=0.5)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(DatasetError, match="none of its recordings is good"):
        open_audio(tmp_path, on_bad="skip")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {f"{i}.wav": sound(i, 200) for i in range(3)})
    strict = open_audio(tmp_path, segment=100, memory_limit=0)
    lenient = open_audio(tmp_path, segment=100, memory_limit=0, on_bad="skip")
    write(tmp_path, {"1.wav": sound(1, 150)})
    with pytest.raises(DatasetError, match=r"1\.wav: it has 150 samples, but had 200"):
        strict.read([0, 3])
    items, _ = lenient.read([0, 2, 3])
    assert torch.equal(items, lenient.read([0, 4, 4])[0])
    assert caplog.text.count("the next good recording takes the place of a bad one: 1.wav") == 1
    assert [bad.name for bad in lenient.bad_files] == ["1.wav"]
    for i in (0, 2):
        write(tmp_path, {f"{i}.wav": b""})
    with pytest.raises(DatasetError, match="recordings in a row can't be read"):
        lenient.read([0])


def test_the_identity_is_that_of_the_content(tmp_path: Path) -> None:
    files = {"a.wav": sound(0, 200), "b.wav": sound(1, 300)}
    write(tmp_path / "folder", files)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    data = open_audio(tmp_path / "folder", segment=100)
    hashes = {
        data.content_hash(),
        open_audio(tmp_path / "other.zip", segment=100).content_hash(),
        open_audio(tmp_path / "folder", segment=100, memory_limit=0).content_hash(),
    }
    assert len(hashes) == 1
    assert len(set(data.identity().digests)) == len(data)
    assert open_audio(tmp_path / "folder", segment=50).content_hash() not in hashes
    assert (
        open_audio(tmp_path / "folder", segment=100, rate=16_000, on_bad="skip").content_hash() not in hashes
    )
    write(tmp_path / "folder", {"b.wav": sound(2, 300)})
    assert open_audio(tmp_path / "folder", segment=100).content_hash() not in hashes


def test_wrong_sources_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DatasetError, match="nor is it one of speech, spoken-digits"):
        open_audio(tmp_path / "none")
    with pytest.raises(DatasetError, match="'speech' is not on this machine"):
        open_audio("speech")
    (tmp_path / "a.wav").write_bytes(sound(0, 9))
    with pytest.raises(DatasetError, match=r"it is a file, but must be a folder or \.zip of WAV files"):
        open_audio(tmp_path / "a.wav")
    with pytest.raises(DatasetError, match="there is no recording in it"):
        open_audio(write(tmp_path / "b", {"a.txt": b"a"}))
    with pytest.raises(ValueError, match="segment is 0, but must be at least 1"):
        open_audio(tmp_path, segment=0)
    with pytest.raises(ValueError, match="on_bad is 'drop'"):
        open_audio(tmp_path, on_bad="drop")  # type: ignore[arg-type]


def test_digits_have_the_digits_as_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "aigc_ext" / "data").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "aigc_ext" / "data" / "spoken-digits.zip", "w") as archive:
        for digit in range(10):
            archive.writestr(f"{digit}/000.wav", sound(digit, 50))
    data = open_audio("spoken-digits")
    assert data.class_names == tuple("0123456789")
    assert data.labels.tolist() == list(range(10))
    assert "espeak-ng" in data.licence
    assert data.name == "spoken-digits"
