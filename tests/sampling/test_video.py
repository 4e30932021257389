from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageSequence

from aigc_ext.sampling import save_video
from aigc_ext.version import __version__

PACKET = b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def frames(channels=3, count=7, height=9, width=7):
    """Flat colours, which neither a palette nor a codec alters much."""
    values = np.linspace(20, 230, count * channels).reshape(count, 1, 1, channels)
    return np.broadcast_to(values, (count, height, width, channels)).astype(np.uint8)


def save(path, images=None, **options):
    save_video(frames() if images is None else images, path, provenance={"seeds": [1, 2]}, **options)


def read_gif(path):
    with Image.open(path) as image:
        comment = image.info["comment"]
        shown = [(np.asarray(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(image)]
    return [pixels for pixels, _ in shown], [duration for _, duration in shown], json.loads(comment)


def test_gif(tmp_path):
    save(tmp_path / "a.gif", fps=30, producer="生成服务")
    images, durations, comment = read_gif(tmp_path / "a.gif")
    assert np.abs(np.stack(images).astype(int) - frames()).max() <= 1
    assert durations == [30, 40, 30, 30, 40, 30, 30]  # 7 / 30 s, as near as hundredths come
    assert comment["aigc_ext"] == {"version": __version__, "seeds": [1, 2]}
    assert (comment["AIGC"]["Label"], comment["AIGC"]["ContentProducer"]) == ("1", "生成服务")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0
    # By the XMP specification: an application extension, and a reader that skips blocks finds its end.
    data = (tmp_path / "a.gif").read_bytes()
    at = data.index(b"\x21\xff\x0bXMP DataXMP") + 14
    assert data[at:].startswith(b"<?xpacket begin=")
    assert PACKET in data[at:]
    while data[at]:
        at += 1 + data[at]
    assert data[at:] == b"\0;"
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
    save(tmp_path / "b.gif", fps=30, label=False)
    assert read_gif(tmp_path / "b.gif")[2] == {"aigc_ext": {"version": __version__, "seeds": [1, 2]}}
    assert PACKET not in (tmp_path / "b.gif").read_bytes()


def test_grey_and_transparent(tmp_path):
    save(tmp_path / "grey.gif", frames(1))
    assert np.array_equal(np.stack(read_gif(tmp_path / "grey.gif")[0]), frames(1).repeat(3, axis=3))
    images = frames(4).copy()
    images[..., 3] = [[[0]], [[255]]] + [[[128]]] * 5
    save(tmp_path / "rgba.gif", images)
    shown = np.stack(read_gif(tmp_path / "rgba.gif")[0])
    assert (shown[0] == 255).all()
    assert np.abs(shown[1].astype(int) - images[1, ..., :3]).max() <= 1
    assert np.abs(shown[2] - (images[2, ..., :3] * (128 / 255) + 127)).max() <= 2


@pytest.mark.parametrize("channels", [1, 3])
def test_mp4(tmp_path, channels):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    images = frames(channels, height=33, width=47)
    save(path, images, fps=25, producer="生成; 服务=1")
    command = [ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    read = subprocess.run(command, capture_output=True, check=True)
    for fact in (b"h264", b"yuv420p", b" 48x34", b" 25 fps"):
        assert fact in read.stderr
    shown = np.frombuffer(read.stdout, np.uint8).reshape(-1, 34, 48, 3)
    assert shown.shape[0] == 7
    assert np.abs(shown[:, :33, :47].astype(int) - images).max() <= 6  # H.264 loses a little
    command = [ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-f", "ffmetadata", "-"]
    text = subprocess.run(command, capture_output=True, check=True).stdout.decode().replace("\\", "")
    metadata = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert json.loads(metadata["aigc_ext"]) == {"version": __version__, "seeds": [1, 2]}
    assert json.loads(metadata["AIGC"])["ContentProducer"] == "生成; 服务=1"
    # Whole boxes to the last byte; the last one is XMP's.
    data, at, boxes = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append((data[at + 4 : at + 8], data[at + 8 : at + size]))
        at += size
    assert at == len(data)
    assert {b"ftyp", b"moov", b"mdat"} < {kind for kind, _ in boxes}
    kind, body = boxes[-1]
    assert kind == b"uuid"
    assert body[:16].hex() == "be7acfcb97a942e89c71999491e3afac"
    assert PACKET in body
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_the_number_tells_animations_apart(tmp_path):
    numbers = []
    for images, seeds in ((frames(), [1]), (frames(), [2]), (frames()[::-1], [1]), (frames(), [1])):
        save_video(images, tmp_path / "a.gif", provenance={"seeds": seeds})
        numbers.append(read_gif(tmp_path / "a.gif")[2]["AIGC"]["ProduceID"])
    assert numbers[0] == numbers[3]
    assert len(set(numbers)) == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.avi", {}, r"must end in one of \.gif, \.mp4"),
        ("a.gif", {"fps": 60}, r"fps is 60, but must be above 0 and at most 50 for \.gif"),
        ("a.gif", {"fps": float("nan")}, "fps is nan"),
        ("a.gif", {"images": []}, "frames is empty"),
        ("a.gif", {"images": [frames()[0], frames(1)[0]]}, r"a frame has shape \(9, 7, 1\), but the first"),
        ("a.gif", {"images": [frames()[0].astype(float)]}, "images are float64"),
    ],
)
def test_what_is_refused(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install aigc_ext\[video\]"):
        save(tmp_path / "a.mp4")
    save(tmp_path / "a.gif")


def test_what_goes_wrong_leaves_no_file(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")

    def broken():
        yield from frames()[:2]
        raise RuntimeError("no third frame")

    for name in ("a.gif", "a.mp4"):
        with pytest.raises(RuntimeError, match="no third frame"):
            save(tmp_path / name, broken())
    monkeypatch.setattr(ffmpeg, "get_ffmpeg_exe", lambda: sys.executable)  # which takes none of the options
    with pytest.raises(OSError, match="ffmpeg ended with"):
        save(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []
