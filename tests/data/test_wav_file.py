"""WAV files that others write, and other sample rates."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest

from aigc_ext.data import wav_file

RAMP = np.linspace(-1, 1, 201)[:-1]


def wav(
    body: bytes, kind: int = 1, channels: int = 1, bits: int = 16, size: int | None = None, rate: int = 8000
) -> bytes:
    frame = channels * bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits)
    chunks = wav_file.chunk(b"fmt ", layout) + wav_file.chunk(b"LIST", b"odd") + b"data"
    chunks += struct.pack("<I", len(body) if size is None else size) + body
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def pcm(values: np.ndarray, bits: int) -> bytes:
    if bits == 8:
        return (np.rint(values * 127) + 128).astype(np.uint8).tobytes()
    whole = np.rint(values * (2 ** (bits - 1) - 1)).astype("<i4")
    return whole.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_pcm_of_every_width(bits: int) -> None:
    sound = wav_file.decode(wav(pcm(RAMP, bits), bits=bits))
    assert sound.rate == 8000
    assert sound.samples.dtype == np.float32
    np.testing.assert_allclose(sound.samples, RAMP, atol=2.0 ** (2 - min(bits, 24)))


@pytest.mark.parametrize("bits", [32, 64])
def test_floating_point(bits: int) -> None:
    body = RAMP.astype(f"<f{bits // 8}").tobytes()
    np.testing.assert_allclose(wav_file.decode(wav(body, kind=3, bits=bits)).samples, RAMP, atol=1e-7)


def test_what_a_wave_module_writes_and_reads() -> None:
    samples = np.arange(-32768, 32767, 7, dtype=np.int16)
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(11025)
        file.writeframes(samples.tobytes())
    sound = wav_file.decode(written.getvalue())
    assert np.array_equal(wav_file.to_int16(sound.samples), samples)
    assert sound.rate == 11025
    with wave.open(io.BytesIO(wav_file.encode(samples, 11025)), "rb") as file:
        assert file.getparams()[:4] == (1, 2, 11025, len(samples))
        assert file.readframes(len(samples)) == samples.tobytes()


def test_channels_are_mixed_down() -> None:
    both = np.stack((RAMP, 0 * RAMP), axis=1)
    sound = wav_file.decode(wav(pcm(both, 16), channels=2))
    assert sound.channels == 2
    np.testing.assert_allclose(sound.samples, RAMP / 2, atol=1e-4)


def test_extensible_and_a_stream_without_a_length() -> None:
    body = pcm(RAMP, 24)
    layout = (
        struct.pack("<HHIIHH", 0xFFFE, 1, 8000, 24000, 3, 24) + struct.pack("<HHIH", 22, 24, 4, 1) + bytes(14)
    )
    file = (
        b"RIFF\xff\xff\xff\xffWAVE" + wav_file.chunk(b"fmt ", layout) + b"data" + b"\x00\xf0\xff\x7f" + body
    )
    assert wav_file.read_header(io.BytesIO(file)).frames == 200
    np.testing.assert_allclose(wav_file.decode(file).samples, RAMP, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not recognised as WAV of PCM or floating point"),
        (b"RIFX" + wav(bytes(8))[4:], "not recognised"),
        (wav(bytes(8))[:36], "no samples in it"),
        (wav(b""), "there is no sample in it"),
        (wav(bytes(8), size=10), "it is cut off: 8 of 10 bytes of samples are there"),
        (wav(bytes(8), kind=7), r"its format is 7 \(mu-law\), but must be PCM or floating point"),
        (wav(bytes(8), bits=12), "its samples have 12 bits, but must have 8 or 16 or 24 or 32"),
        (wav(bytes(8), channels=0), "it has 0 channels"),
        (wav(bytes(8), rate=0), "its sample rate is 0"),
        (wav(np.array([np.nan], "<f4").tobytes(), kind=3, bits=32), "samples that are not finite"),
        (b"RIFF\0\0\0\0WAVE" + wav_file.chunk(b"data", bytes(8)), "before its format"),
        (b"RIFF\0\0\0\0WAVE" + wav_file.chunk(b"fmt ", bytes(8)), "has 8 bytes, but must have at least 16"),
    ],
)
def test_damage_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wav_file.decode(data)


def test_what_cannot_be_written() -> None:
    with pytest.raises(ValueError, match=r"samples are float64 of shape \(3,\), but must be int16"):
        wav_file.encode(np.zeros(3), 8000)
    with pytest.raises(ValueError, match="rate is 0, but must be from 1"):
        wav_file.encode(np.zeros(3, np.int16), 0)
    assert wav_file.to_int16(np.array([2.0, -2.0, 0.5])).tolist() == [32767, -32768, 16384]


@pytest.mark.parametrize(("old", "new"), [(22050, 8000), (8000, 22050), (8000, 16000), (44100, 44099)])
def test_a_tone_is_the_same_tone_at_another_rate(old: int, new: int) -> None:
    def tone(rate: int, hertz: float = 700) -> np.ndarray:
        return np.sin(2 * np.pi * hertz * np.arange(rate // 2) / rate + 0.3)

    made = wav_file.resample(tone(old).astype(np.float32), old, new)
    assert len(made) == -(-(old // 2) * new // old)
    inside = slice(new // 20, new // 2 - new // 20)
    np.testing.assert_allclose(made[inside], tone(new)[inside], atol=1e-3)
    # What the lower rate cannot hold is removed, not folded back.
    if new < old / 2:
        high = wav_file.resample(tone(old, 5000).astype(np.float32), old, new)
        assert np.abs(high[inside]).max() < 1e-3


def test_the_same_rate_changes_nothing() -> None:
    samples = RAMP.astype(np.float32)
    assert wav_file.resample(samples, 8000, 8000) is samples


@pytest.mark.filterwarnings("error")
def test_samples_of_any_size_overflow_nothing():
    """A file of floating-point samples may be louder than any sound."""
    largest = float(np.finfo(np.float32).max)
    samples = np.array([[largest, largest], [largest, -largest], [-largest, -largest], [0.5, 0.25]], "<f4")
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + 32, b"WAVE", b"fmt ", 16, 3, 2, 8000, 64000, 8, 32)
    sound = wav_file.decode(head + struct.pack("<4sI", b"data", 32) + samples.tobytes())
    assert wav_file.to_int16(sound.samples).tolist() == [32767, 0, -32768, 12288]
    assert np.isfinite(wav_file.resample(sound.samples, 8000, 4000)).all()
