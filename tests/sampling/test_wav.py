from __future__ import annotations

import numpy as np
import pytest
import torch

from aigc_ext.data import wav_file
from aigc_ext.sampling import aigc_label, read_wav_metadata, save_wav, spectrum_pictures
from aigc_ext.version import __version__

SOUND = np.random.default_rng(0).integers(-32768, 32768, 501).astype(np.int16)


def test_samples_and_provenance(tmp_path):
    record = {"model_sha256": "ab" * 32, "seed": 7, "class": None}
    save_wav(SOUND, tmp_path / "a.wav", 8000, provenance=record)
    read = wav_file.decode((tmp_path / "a.wav").read_bytes())
    assert read.rate == 8000
    assert np.array_equal(wav_file.to_int16(read.samples), SOUND)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert read_wav_metadata(tmp_path / "a.wav").provenance == {"version": __version__, **record}


def test_the_label(tmp_path):
    save_wav(SOUND, tmp_path / "a.wav", 8000, provenance={"seed": 1}, producer="生成服务 Ltd")
    found = read_wav_metadata(tmp_path / "a.wav")
    assert found.label is not None
    assert found.label == aigc_label(found.label["ProduceID"], "生成服务 Ltd")
    assert found.label["Label"] == "1"
    assert "trainedAlgorithmicMedia" in found.xmp
    data = (tmp_path / "a.wav").read_bytes()
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    save_wav(SOUND, tmp_path / "b.wav", 8000, provenance={"seed": 1}, label=False)
    assert read_wav_metadata(tmp_path / "b.wav")[1:] == (None, "")


def test_the_number_tells_contents_apart(tmp_path):
    numbers = []
    for sound, seed in ((SOUND, 1), (SOUND, 2), (SOUND[::-1], 1)) * 2:
        save_wav(sound, tmp_path / "a.wav", 8000, provenance={"seed": seed})
        label = read_wav_metadata(tmp_path / "a.wav").label
        assert label is not None
        numbers.append(label["ProduceID"])
    assert numbers[:3] == numbers[3:]
    assert len(set(numbers)) == 3


def test_a_picture_of_a_spectrum_has_the_highest_frequency_at_the_top():
    time = torch.arange(2048) / 8000
    waves = torch.stack((torch.sin(2 * torch.pi * 3000 * time), 1e-3 * torch.sin(2 * torch.pi * 500 * time)))
    pictures = spectrum_pictures(torch.cat((waves, torch.zeros(1, 2048))))
    assert pictures.shape == (3, 1, 128, 64)
    assert pictures.dtype == torch.uint8
    rows = pictures[:, 0, :, 20].argmax(1)
    assert rows[0].item() == pytest.approx(128 - 3000 / 4000 * 128, abs=1)
    assert rows[1].item() == pytest.approx(128 - 500 / 4000 * 128, abs=1)
    assert pictures[0, 0, :, 20].max() == 255
    assert pictures[1, 0, :, 20].max().item() == pytest.approx(255 * 20 / 60, abs=4)
    assert not pictures[2].any()


def test_files_of_others_and_damage(tmp_path):
    (tmp_path / "plain.wav").write_bytes(wav_file.encode(SOUND, 8000))
    assert read_wav_metadata(tmp_path / "plain.wav") == (None, None, "")
    comment = wav_file.chunk(b"ICMT", b"a comment\0")
    (tmp_path / "other.wav").write_bytes(wav_file.encode(SOUND, 8000, [(b"LIST", b"INFO" + comment)]))
    assert read_wav_metadata(tmp_path / "other.wav") == (None, None, "")
    broken = wav_file.chunk(b"ICMT", b'{"aigc_ext": ')
    (tmp_path / "broken.wav").write_bytes(wav_file.encode(SOUND, 8000, [(b"LIST", b"INFO" + broken)]))
    with pytest.raises(ValueError, match=r"broken\.wav: its metadata are damaged"):
        read_wav_metadata(tmp_path / "broken.wav")
    with pytest.raises(ValueError, match=r"samples are float64 of shape \(3,\), but must be int16"):
        save_wav(np.zeros(3), tmp_path / "a.wav", 8000)
    (tmp_path / "none.wav").write_bytes(b"none")
    with pytest.raises(ValueError, match="not recognised as WAV"):
        read_wav_metadata(tmp_path / "none.wav")


def test_metadata_of_no_text_are_refused_by_name(tmp_path):
    path = tmp_path / "a.wav"
    save_wav(SOUND, path, 8000, provenance={"seed": 1})
    path.write_bytes(path.read_bytes().replace(b'{"', b"\xff\xfe", 1))
    with pytest.raises(ValueError, match=r"a\.wav: its metadata are damaged"):
        read_wav_metadata(path)
