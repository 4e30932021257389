"""WAV files: RIFF with PCM of 8, 16, 24 or 32 bits or floating point of 32 or 64, and other sample rates.

Source: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (1991), and
WAVEFORMATEXTENSIBLE for what has more bits or channels.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

SUFFIXES = frozenset((".wav", ".wave"))
FORMATS = "WAV of PCM or floating point"
HEAD = 12
"""Bytes for `looks_like_wav`."""

_PCM, FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_NAMES = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 49: "GSM", 85: "MP3"}
_BITS = {_PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
# What writes to a pipe does not know the length yet: espeak-ng, ffmpeg and sox leave such a size.
_STREAMED = 0x7FFF_0000
_MAX_CHANNELS, _MAX_RATE = 64, 1_536_000
_FULL_SCALE = 32768
_LOUDEST = 1e9  # of samples in floating point, of full scale 1: sums of these do not overflow
_CROSSINGS = 24  # of zero, on each side of the resampling filter
_PASSED = 0.95  # of the lower rate's band
_BLOCK = 1 << 14  # output samples


class Header(NamedTuple):
    """
    Attributes:
        channels: their number.
        rate: samples a second.
        frames: samples of each channel.
        kind: 1 for PCM, 3 for floating point.
        bits: of a sample.
        start: where the samples begin in the file.
    """

    channels: int
    rate: int
    frames: int
    kind: int
    bits: int
    start: int


class Sound(NamedTuple):
    """
    Attributes:
        samples: float32 (T,), where full scale is from -1 to 1.
        rate: samples a second.
        channels: those of the file, of which `samples` is the mean.
    """

    samples: np.ndarray
    rate: int
    channels: int


def looks_like_wav(head: bytes) -> bool:
    return len(head) >= HEAD and head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def read_header(file: BinaryIO) -> Header:
    """The header of a WAV file, of which no sample is read.

    Raises:
        ValueError: it is no WAV, damaged, or of a kind that isn't read.
    """
    layout: tuple[int, int, int, int, int] | None = None
    for name, size, start, end in _chunks(file):
        if name == b"fmt ":
            layout = _layout(file.read(min(size, 40)))
        elif name == b"data":
            if layout is None:
                raise ValueError("its samples come before its format (chunk 'fmt ')")
            kind, channels, rate, block, bits = layout
            there = end - start
            if size > there and size < _STREAMED:
                raise ValueError(f"it is cut off: {there} of {size} bytes of samples are there")
            frames = min(size, there) // block
            if not frames:
                raise ValueError("there is no sample in it")
            return Header(channels, rate, frames, kind, bits, start)
    raise ValueError("there are no samples in it (chunk 'data')")


def decode(data: bytes) -> Sound:
    """The sound of a WAV file, its channels mixed down to one.

    Raises:
        ValueError: as `read_header`; or a sample is not finite.
    """
    header = read_header(io.BytesIO(data))
    count = header.frames * header.channels
    raw = np.frombuffer(data, np.uint8, count * header.bits // 8, header.start)
    samples: np.ndarray
    if header.kind == FLOAT:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused as not finite
            samples = raw.view(f"<f{header.bits // 8}").astype(np.float32)
        if not np.isfinite(samples).all():
            raise ValueError("it has samples that are not finite")
        samples = np.clip(samples, -_LOUDEST, _LOUDEST)
    elif header.bits == 8:  # the only width without a sign
        samples = (raw.astype(np.float32) - 128) / 128
    else:
        width = header.bits // 8
        whole = np.zeros((count, 4), np.uint8)
        whole[:, 4 - width :] = raw.reshape(count, width)
        samples = (whole.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    return Sound(samples.reshape(-1, header.channels).mean(axis=1), header.rate, header.channels)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Samples of full scale 1 as int16, rounded; louder ones are clipped."""
    scaled = np.rint(np.clip(samples, -1, 1) * _FULL_SCALE)
    return np.minimum(scaled, _FULL_SCALE - 1).astype(np.int16)


def encode(samples: np.ndarray, rate: int, chunks: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A WAV file of int16 samples (T,), with further chunks (name, content) after them.

    Raises:
        ValueError: a wrong shape, dtype or rate, or a file longer than RIFF can be.
    """
    if samples.dtype != np.int16 or samples.ndim != 1 or not samples.size:
        raise ValueError(
            f"samples are {samples.dtype} of shape {samples.shape}, but must be int16 of shape (T,), T > 0"
        )
    if not 1 <= rate <= _MAX_RATE:
        raise ValueError(f"rate is {rate}, but must be from 1 to {_MAX_RATE} samples a second")
    layout = struct.pack("<HHIIHH", _PCM, 1, rate, 2 * rate, 2, 16)
    body = b"WAVE" + b"".join(
        chunk(name, content)
        for name, content in ((b"fmt ", layout), (b"data", samples.astype("<i2").tobytes()), *chunks)
    )
    if len(body) >= _STREAMED:
        raise ValueError(f"there are {samples.size} samples, more than a WAV file can hold")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of RIFF: its name of 4 bytes, its size and its content, padded to an even size."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def find_chunks(file: BinaryIO, name: bytes) -> Iterator[bytes]:
    """The contents of all chunks of a name that are whole.

    Raises:
        ValueError: it is no WAV.
    """
    for found, size, start, end in _chunks(file):
        if found == name and size <= end - start:
            yield file.read(size)


def split_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the chunks in that of a list, as far as they are whole."""
    start = 0
    while start + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, start)
        body = content[start + 8 : start + 8 + size]
        if len(body) == size:
            yield name, body
        start += 8 + size + size % 2


def resample(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    """Float32 samples (T,) at another rate, ceil(T new / old) of them.

    Each is the band-limited signal at its time: sum over k of x[k] c sinc(c (t - k)) w((t - k) c / W), where
    c is 0.95 of the lower rate's share of the band, and w the Hann window over W = 24 zero crossings on each
    side.
    Source: Smith and Gossett, "A flexible sampling-rate conversion method" (ICASSP 1984).
    """
    if old == new:
        return samples
    cutoff = _PASSED * min(1.0, new / old)
    reach = math.ceil(_CROSSINGS / cutoff)
    padded = np.pad(samples.astype(np.float64), reach)
    common = math.gcd(old, new)
    up, down = new // common, old // common
    result = np.empty(-(-samples.size * up // down), np.float32)
    taps = np.arange(-reach + 1, reach + 1)
    for begin in range(0, result.size, _BLOCK):
        place = np.arange(begin, min(begin + _BLOCK, result.size), dtype=np.int64) * down
        whole = place // up  # and the fraction, in integers: exact, however long the sound is
        parts, which = np.unique(place % up, return_inverse=True)
        distance = (parts[:, None] / up - taps) * cutoff
        window = np.where(
            np.abs(distance) < _CROSSINGS, np.cos(distance * (np.pi / 2 / _CROSSINGS)) ** 2, 0.0
        )
        weights = cutoff * np.sinc(distance) * window
        near = padded[whole[:, None] + (taps + reach)]
        result[begin : begin + len(place)] = np.einsum("nk,nk->n", weights[which], near)
    return result


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, stated size and start of each chunk, and the end of the file, which stands at the start."""
    end = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEAD)
    if not looks_like_wav(head):
        raise ValueError(f"its content is not recognised as {FORMATS}")
    start = HEAD
    while start + 8 <= end:
        file.seek(start)
        name, size = struct.unpack("<4sI", file.read(8))
        yield name, size, start + 8, end
        start += 8 + size + size % 2


def _layout(content: bytes) -> tuple[int, int, int, int, int]:
    """Kind, channels, rate, bytes of a frame and bits of a sample."""
    if len(content) < 16:
        raise ValueError(f"its format (chunk 'fmt ') has {len(content)} bytes, but must have at least 16")
    kind, channels, rate, _, block, bits = struct.unpack("<HHIIHH", content[:16])
    if kind == _EXTENSIBLE and len(content) >= 26:
        (kind,) = struct.unpack("<H", content[24:26])
    if kind not in _BITS:
        name = f" ({_NAMES[kind]})" if kind in _NAMES else ""
        raise ValueError(f"its format is {kind}{name}, but must be PCM or floating point")
    if bits not in _BITS[kind]:
        kinds = " or ".join(map(str, _BITS[kind]))
        raise ValueError(f"its samples have {bits} bits, but must have {kinds}")
    if not 1 <= channels <= _MAX_CHANNELS:
        raise ValueError(f"it has {channels} channels, but must have 1 to {_MAX_CHANNELS}")
    if not 1 <= rate <= _MAX_RATE:
        raise ValueError(f"its sample rate is {rate}, but must be from 1 to {_MAX_RATE}")
    if block != channels * bits // 8:
        raise ValueError(
            f"its frames have {block} bytes, but {channels} x {bits} bits are {channels * bits // 8}"
        )
    return kind, channels, rate, block, bits
