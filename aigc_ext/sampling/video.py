"""Animations with provenance: GIF by Pillow, MP4 (H.264) by ffmpeg (`pip install aigc_ext[video]`).

The marks are those of `png`. The record and the field of GB 45438-2025 are one JSON object in a GIF's
comment, and metadata of these names in an MP4. In both, IPTC's term is an XMP packet where the XMP
specification (ISO 16684, part 3 of Adobe's) puts it.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aigc_ext import _files
from aigc_ext.sampling.png import DEFAULT_PRODUCER, LABEL_KEY, PROVENANCE_KEY, XMP, aigc_label, check_images
from aigc_ext.version import __version__

SUFFIXES = (".gif", ".mp4")
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def check_video(path: str | Path, fps: float) -> None:
    """Raises `save_video`'s errors before any frame is made: ValueError for an unsupported suffix or frame
    rate, ModuleNotFoundError if the package for MP4 is missing."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"output is {str(path)!r}, but must end in one of {', '.join(SUFFIXES)}")
    # GIF durations are in hundredths of a second, and viewers slow down frames that last only one.
    fastest = 50 if suffix == ".gif" else 240
    if not 0 < fps <= fastest:
        raise ValueError(f"fps is {fps}, but must be above 0 and at most {fastest} for {suffix}")
    if suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "mp4 needs the package imageio-ffmpeg: pip install aigc_ext[video]; gif does without"
            ) from error


def save_video(
    frames: Iterable[np.ndarray],
    path: str | Path,
    *,
    fps: float = 30,
    provenance: Mapping[str, Any],
    label: bool = True,
    producer: str = DEFAULT_PRODUCER,
) -> None:
    """Writes uint8 frames (H, W, C) of one shape as a repeating GIF or an MP4, according to the suffix of
    `path`, atomically.

    Transparent pixels are shown on white; an MP4 with odd sides gets one more row or column.

    Args:
        provenance: JSON values that describe the animation's source; they and the first frame determine its
            number in the label.
        label, producer: as for `save_png`.
    """
    check_video(path, fps)
    path = Path(path)
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise ValueError("frames is empty, but must hold at least one")
    record = {"version": __version__, **provenance}
    metadata = {PROVENANCE_KEY: json.dumps(record)}
    if label:
        identity = hashlib.sha256(json.dumps(record, sort_keys=True).encode() + first.tobytes()).hexdigest()
        metadata[LABEL_KEY] = json.dumps(aigc_label(identity, producer), ensure_ascii=False)
    shown = _opaque(itertools.chain([first], remaining), first.shape)
    write = _gif if path.suffix.lower() == ".gif" else _mp4
    temporary = _files.temporary_path(path)
    try:
        write(shown, temporary, fps, metadata, label)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _opaque(frames: Iterable[np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The frames without alpha: (H, W, 1 or 3)."""
    for frame in frames:
        if frame.shape != shape:
            raise ValueError(f"a frame has shape {frame.shape}, but the first one has {shape}")
        frame = check_images(frame[None])[0]
        if shape[2] == 4:
            alpha = frame[:, :, 3:] / np.float32(255)
            frame = np.rint(frame[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        yield frame


def _gif(
    frames: Iterator[np.ndarray], path: Path, fps: float, metadata: Mapping[str, str], label: bool
) -> None:
    images = [Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame) for frame in frames]
    ends = [round(100 * i / fps) for i in range(len(images) + 1)]  # in 1/100 s; errors don't accumulate
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[10 * (end - start) for start, end in itertools.pairwise(ends)],
        loop=0,
        comment=json.dumps({key: json.loads(text) for key, text in metadata.items()}, ensure_ascii=False),
    )
    content = buffer.getvalue()
    if label:
        # An application extension after the last frame. A reader that takes the packet's bytes for block
        # lengths is led by its "magic trailer" to the end of the block, wherever it lands.
        trailer = bytes([1, *range(255, -1, -1), 0])
        packet = XMP.encode()
        content = content.removesuffix(b";") + b"\x21\xff\x0bXMP DataXMP" + packet + trailer + b";"
    path.write_bytes(content)


def _mp4(
    frames: Iterator[np.ndarray], path: Path, fps: float, metadata: Mapping[str, str], label: bool
) -> None:
    import imageio_ffmpeg

    first = _even(next(frames))
    size = f"{first.shape[1]}x{first.shape[0]}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    command += ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"]
    # The key of the standard's field is not one of MP4's own: the muxer writes it only with this flag.
    command += ["-movflags", "+use_metadata_tags+faststart"]
    for key, text in metadata.items():
        command += ["-metadata", f"{key}={text}"]
    command += ["-f", "mp4", str(path)]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log) as process:
            assert process.stdin is not None
            try:
                process.stdin.write(first.tobytes())
                for frame in frames:
                    process.stdin.write(_even(frame).tobytes())
                process.stdin.close()
            except BrokenPipeError:
                pass  # ffmpeg has ended, and its log says why
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            log.seek(0)
            reason = " ".join(log.read().decode(errors="replace").split())
            raise OSError(f"ffmpeg ended with {process.returncode}: {reason}")
    if label:
        packet = _XMP_UUID + XMP.encode()
        with path.open("ab") as file:
            file.write((8 + len(packet)).to_bytes(4, "big") + b"uuid" + packet)


def _even(frame: np.ndarray) -> np.ndarray:
    """The frame as (H, W, 3) with even sides, which H.264's halved colour planes need."""
    height, width, channels = frame.shape
    frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame.repeat(3 // channels, axis=2))
