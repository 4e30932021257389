"""Files that anybody may have written, read by every parser: valid ones, changed at random by Hypothesis.

    python -m tests.reliability.fuzz [--seconds N] [--only TARGET] [--keep FOLDER]

Whatever a file holds, it is read, or refused by an error of a documented kind that names the file; in bounded
time and memory. Inputs for which that was not so, once, are in corpus/TARGET and are read again by the
tests.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import os
import re
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from aigc_ext import _files
from aigc_ext._cache import default_cache_dir
from aigc_ext.cli.errors import lack_of_memory
from aigc_ext.config import parse_setting
from aigc_ext.data import inspect_dataset, open_audio, open_dataset, wav_file
from aigc_ext.reporting import write_report
from aigc_ext.sampling import Latents, load_pretrained, read_wav_metadata, save_wav
from aigc_ext.sampling.convert import convert_checkpoint
from aigc_ext.tasks.gan import TrainConfig, Trainer, find_resume_point
from aigc_ext.training import read_checkpoint
from tests.tasks.gan.helpers import config

CORPUS = Path(__file__).with_name("corpus")
SECONDS_PER_CALL = 5.0  # of the processor; the slowest that is allowed decodes 64 million pixels
MEMORY_PER_CALL = 2 << 30


_Read = Callable[[Path, bytes], object]
_Finish = Callable[[Any], Any]


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        valid: what it reads.
        inputs: what it may meet.
        read: writes an input into a folder, that it may use, and has it read.
        words: one of these is in each error.
    """

    name: str
    valid: bytes
    inputs: st.SearchStrategy[bytes]
    read: _Read
    words: tuple[str, ...]


@dataclass
class Found:
    calls: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    problems: dict[str, bytes] = field(default_factory=dict)  # the shortest input for each


# ---- inputs ------------------------------------------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.sampled_from(
        [2**31, 2**63 - 1, 2**63, -(2**63), 10**400, 1e308, -1e308, float("nan"), float("inf"), 0.5]
    ),
    st.sampled_from(
        ["", "x", "\x00", "\ud800", "../x", "/", "é", "0", "a" * 5000, "mlp", "dcgan", "stylegan2"]
    ),
    st.text(max_size=8),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON document."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from _places(inner, (*path, key))


@st.composite
def _changed_json(draw: st.DrawFn, document: Any) -> Any:
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_places(document))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(_VALUES)
            continue
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        action = draw(st.sampled_from(("set", "set", "delete", "add")))
        if action == "set":
            inner[path[-1]] = draw(_VALUES)
        elif action == "delete":
            del inner[path[-1]]
        elif isinstance(inner, dict):
            inner[draw(st.text(max_size=5))] = draw(_VALUES)
        else:
            inner.insert(path[-1], draw(_VALUES))
    return document


@st.composite
def _changed_bytes(draw: st.DrawFn, data: bytes, most: int = 4) -> bytes:
    found = bytearray(data)
    # Headers are where the parsers are.
    place = st.one_of(st.integers(0, min(len(data), 64)), st.integers(0, len(data)))
    for _ in range(draw(st.integers(1, most))):
        at = min(draw(place), len(found))
        match draw(st.sampled_from(("flip", "set", "number", "cut", "insert", "delete", "repeat"))):
            case "flip" if at < len(found):
                found[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(found):
                found[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B)))
            case "number":
                size = draw(st.sampled_from((2, 4, 8)))
                value = draw(st.sampled_from((0, 1, -1, 1 << 15, (1 << 31) - 1, 1 << 31, 1 << 40)))
                number = (value % (1 << 8 * size)).to_bytes(size, "little")
                found[at : at + size] = number if draw(st.booleans()) else number[::-1]
            case "cut":
                del found[at:]
            case "insert":
                found[at:at] = draw(st.binary(max_size=16))
            case "delete":
                del found[at : at + draw(st.integers(1, 16))]
            case "repeat":
                found[at:at] = found[max(0, at - 8) : at] * draw(st.integers(1, 50))
    return bytes(found)


def _documents(document: Any, finish: _Finish = lambda value: value) -> st.SearchStrategy[bytes]:
    """JSON texts: mostly valid ones with other values, and damaged ones."""
    texts = _changed_json(document).map(lambda value: json.dumps(finish(value)).encode())
    nested = st.integers(1, 3000).map(lambda depth: b'{"a":' * depth + b"[" * depth)
    return st.one_of(texts, texts, texts, _changed_bytes(json.dumps(document).encode()), nested)


def _files_of(*contents: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(contents).flatmap(_changed_bytes)


# ---- the valid files ---------------------------------------------------------------------------------------


@functools.cache
def _examples() -> Path:
    """A run, and with it a checkpoint and a model."""
    folder = Path(tempfile.mkdtemp(dir=_tmp()))
    Trainer.from_config(config(kimg=0.1, tick=0.05, snap=1), outdir=folder).fit()
    (run,) = folder.iterdir()
    run.rename(folder / "00000-mlp-digits")
    return folder / "00000-mlp-digits"


def _tmp() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def _of_run(name: str) -> bytes:
    return (_examples() / name).read_bytes()


def _checkpoint() -> str:
    return sorted(path.name for path in (_examples() / "checkpoints").iterdir())[-1]


def _image(kind: str, mode: str = "RGB", size: tuple[int, int] = (5, 4), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _images() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *(_image("PNG", mode) for mode in ("RGB", "RGBA", "L", "P", "LA", "1")),
        _image("PNG", exif=exif),
        *(_image("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        _image("JPEG", exif=exif),
        _image("BMP"),
        _image("GIF", "P"),
        _image("PPM"),
        _image("WEBP"),
        *(_image("TIFF", compression=each) for each in ("raw", "tiff_lzw", "tiff_deflate")),
    ]


def _sounds() -> list[bytes]:
    """Of all widths, with one channel and two, and the chunks that `save_wav` writes."""

    def sound(kind: int, bits: int, channels: int) -> bytes:
        frame = channels * bits // 8
        layout = struct.pack("<HHIIHH", kind, channels, 8000, 8000 * frame, frame, bits)
        body = (
            bytes(range(64))
            if kind == 1
            else np.linspace(-1, 1, 64 * 8 // bits).astype(f"<f{bits // 8}").tobytes()
        )
        chunks = b"WAVE" + wav_file.chunk(b"fmt ", layout) + wav_file.chunk(b"data", body[: 12 * frame])
        return b"RIFF" + struct.pack("<I", len(chunks)) + chunks

    with workplace() as folder:
        save_wav(np.arange(20, dtype=np.int16), folder / "x.wav", 8000, provenance={"seed": 1})
        own = (folder / "x.wav").read_bytes()
    forms = ((1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64))
    return [own, *(sound(kind, bits, channels) for kind, bits in forms for channels in (1, 2))]


def _read_sound(folder: Path, data: bytes) -> None:
    path = _put(folder, "x.wav", data)
    dataset = open_audio(path.parent, rate=16_000, on_bad="raise")
    items, _ = dataset.read(range(len(dataset)))
    assert items.dtype == torch.int16
    dataset.content_hash()
    read_wav_metadata(path)


_SUFFIXES = ((b"\x89P", "png"), (b"\xff\xd8", "jpg"), (b"BM", "bmp"), (b"GIF", "gif"), (b"P6", "ppm"))


@st.composite
def _zips(draw: st.DrawFn) -> bytes:
    """Listings that a program could write, and damaged ones."""
    file = io.BytesIO()
    names = st.one_of(
        st.sampled_from(
            ["a.png", "b.png", "x/a.png", "x\\a.png", "../a.png", "/a.png", "dataset.json", "x/", ""]
        ),
        st.text(max_size=6).map(lambda text: f"{text}.png"),
    )
    image, labels = _image("PNG"), json.dumps({"labels": [["a.png", 0], ["b.png", 1]]}).encode()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on names that occur twice
        with zipfile.ZipFile(
            file, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
        ) as made:
            for name in draw(st.lists(names, max_size=5)):
                content = (
                    labels if name.endswith(".json") else draw(st.sampled_from((image, b"", image[:30])))
                )
                try:
                    made.writestr(zipfile.ZipInfo(name or "?"), content)
                except (UnicodeEncodeError, ValueError):
                    continue
    data = file.getvalue()
    return draw(st.one_of(st.just(data), _changed_bytes(data, 8)))


@st.composite
def _tars(draw: st.DrawFn) -> bytes:
    file = io.BytesIO()
    names = st.one_of(
        st.sampled_from(
            ["0.png", "0.cls", "1.png", "1.cls", "1.json", "a/0.png", "0.a.png", ".png", "", "/"]
        ),
        st.text(max_size=6).map(lambda text: f"{text}.png"),
    )
    image = _image("PNG")
    with tarfile.open(fileobj=file, mode="w", format=draw(st.sampled_from((0, 1, 2)))) as made:
        for name in draw(st.lists(names, max_size=5)):
            info = tarfile.TarInfo(name)
            content = draw(st.sampled_from((image, b"", b"3", b"x" * 40)))
            info.size = len(content)
            info.type = draw(
                st.sampled_from((tarfile.REGTYPE,) * 5 + (tarfile.SYMTYPE, tarfile.DIRTYPE, b"S"))
            )
            info.linkname = draw(st.sampled_from(("", "0.png", "/etc/passwd")))
            try:
                made.addfile(info, io.BytesIO(content))
            except (ValueError, UnicodeEncodeError):
                continue
    data = file.getvalue()
    return draw(st.one_of(st.just(data), _changed_bytes(data, 8)))


@st.composite
def _weights(draw: st.DrawFn) -> bytes:
    """Safetensors files with other headers."""
    data = _of_run("model/model.safetensors")
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if draw(st.booleans()):
        return draw(_changed_bytes(data))
    if draw(st.booleans()):
        text = json.dumps(draw(_changed_json(header))).encode()
    else:
        text = draw(_changed_bytes(json.dumps(header).encode()))
    return struct.pack("<Q", len(text)) + text + body


def _arrays() -> list[bytes]:
    found = []
    for array in (np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4, 3), np.uint8)):
        file = io.BytesIO()
        np.save(file, array)
        found.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(3))
    return [*found, file.getvalue()]


# ---- the parsers -------------------------------------------------------------------------------------------


def _put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _read_config(folder: Path, data: bytes) -> None:
    TrainConfig.from_json(_put(folder, "config.json", data))


def _read_setting(folder: Path, data: bytes) -> None:
    TrainConfig().override(*parse_setting(data.decode("utf-8", "replace")))


def _copy_of_run(folder: Path) -> Path:
    run = folder / _examples().name
    if not run.exists():
        shutil.copytree(_examples(), run)
    return run


def _changes(*names: str) -> Callable[[Callable[[Path], object]], Callable[[Path, bytes], None]]:
    """Of a function that reads a run: one that first replaces files of a copy, which stays for the next."""

    def decorate(read: Callable[[Path], object]) -> Callable[[Path, bytes], None]:
        def changed(folder: Path, data: bytes) -> None:
            run = _copy_of_run(folder)
            paths = [run / name.format(checkpoint=_checkpoint()) for name in names]
            before = [path.read_bytes() if path.exists() else None for path in paths]
            try:
                for path in paths:
                    path.write_bytes(data)
                read(run)
            finally:
                for path, content in zip(paths, before, strict=True):
                    path.unlink()
                    if content is not None:
                        path.write_bytes(content)

        return changed

    return decorate


@_changes("stats.jsonl", "metrics.jsonl")
def _read_stats(run: Path) -> None:
    write_report(run)


@_changes("config.json")
def _report_config(run: Path) -> None:
    write_report(run)


@_changes("checkpoints/{checkpoint}/state.json")
def _read_state(run: Path) -> None:
    both(
        lambda: read_checkpoint(run / "checkpoints" / _checkpoint()),
        lambda: load_pretrained(run / "checkpoints" / _checkpoint()),
        lambda: _resume(run),
        lambda: write_report(run),
    )


def _resume(run: Path) -> None:
    point = find_resume_point(str(run), run.parent)
    if point.config.data.source == "digits" and point.config.batch == 25:
        Trainer.from_config(point.config, outdir=run.parent).restore(point)


def both(*reads: Callable[[], object]) -> None:
    """Each of them reads; of several errors the first that is not allowed is raised, or the first."""
    errors: list[Exception] = []
    for read in reads:
        try:
            read()
        except Exception as error:
            errors.append(error)
    errors.sort(key=lambda error: isinstance(error, (ValueError, OSError)))
    if errors:
        raise errors[0]


def _digested(state: Any) -> Any:
    """With the digest of its content, so that the reader gets past it."""
    if isinstance(state, dict):
        state["sha256"] = _files.json_digest(state)
    return state


def _read_model(folder: Path, name: str, data: bytes) -> None:
    model = folder / "model"
    if not model.exists():
        shutil.copytree(_examples() / "model", model)
        (model / "sha256.json").unlink()
    before = (model / name).read_bytes() if (model / name).exists() else None
    try:
        (model / name).write_bytes(data)
        load_pretrained(model)
    finally:
        (model / name).unlink()
        if before is not None:
            (model / name).write_bytes(before)


def _convert(folder: Path, data: bytes) -> None:
    path = _put(folder, "other.safetensors", data)
    made = [folder / "made", folder / "dcgan"]
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)
    both(
        lambda: convert_checkpoint(path, made[0], config=json.loads(_of_run("model/config.json"))),
        lambda: convert_checkpoint(path, made[1], family="dcgan"),
    )


def _open(source: str) -> None:
    both(lambda: open_dataset(source, on_bad="skip"), lambda: inspect_dataset(source))


def _read_labels(folder: Path, data: bytes) -> None:
    if not (folder / "images").exists():
        for name in ("a.png", "b.png"):
            _put(folder, f"images/{name}", _image("PNG"))
    _put(folder, "images/dataset.json", data)
    _open(str(folder / "images"))
    open_dataset(folder / "images")  # where a bad label is an error


def _read_cached(folder: Path, data: bytes) -> None:
    """What was noted of images that are decoded once is no error, whatever has become of it."""
    if not (folder / "images").exists():
        for name in ("a.png", "b.png"):
            _put(folder, f"images/{name}", _image("PNG"))
        open_dataset(folder / "images", resolution=(5, 4))
    (facts,) = default_cache_dir().glob("data/images-*.json")
    facts.write_bytes(data)
    dataset = open_dataset(folder / "images", resolution=(5, 4), on_bad="skip")
    if len(dataset) not in (1, 2):
        raise AssertionError(f"{len(dataset)} images")


def _read_image(folder: Path, data: bytes) -> None:
    suffix = next((suffix for start, suffix in _SUFFIXES if data.startswith(start)), "tiff")
    shutil.rmtree(folder / "images", ignore_errors=True)
    _put(folder, f"images/x.{suffix}", data)
    _open(str(folder / "images"))


def _read_array(folder: Path, data: bytes) -> None:
    name = "x.npz" if data.startswith(b"PK") else "x.npy"
    open_dataset(_put(folder, name, data), on_bad="skip")


def _settings() -> st.SearchStrategy[bytes]:
    keys = st.one_of(st.sampled_from(sorted(TrainConfig().flat())), st.text(max_size=12))
    values = st.one_of(_VALUES.map(json.dumps), st.text(max_size=10))
    return st.one_of(
        st.builds(lambda key, value: f"{key}={value}".encode("utf-8", "replace"), keys, values),
        st.binary(max_size=30),
    )


def targets() -> list[Target]:
    def text(name: str) -> Any:
        return json.loads(_of_run(name))

    state = text(f"checkpoints/{_checkpoint()}/state.json")
    rows = [json.loads(line) for line in _of_run("stats.jsonl").splitlines()]
    lines = st.one_of(
        _changed_json(rows).map(
            lambda rows: (
                b"".join(json.dumps(row).encode() + b"\n" for row in rows)
                if isinstance(rows, list)
                else json.dumps(rows).encode() + b"\n"
            )
        ),
        _changed_bytes(_of_run("stats.jsonl")),
    )
    latents = safetensors.torch.save({"z": torch.zeros(2, 8), "classes": torch.zeros(2, dtype=torch.int64)})

    def read_latents(folder: Path, data: bytes) -> None:
        Latents.load(_put(folder, "latents.safetensors", data))

    def model_file(name: str) -> Callable[[Path, bytes], None]:
        return lambda folder, data: _read_model(folder, name, data)

    def read_data_file(folder: Path, data: bytes) -> None:
        from aigc_ext.training.checkpoint import Checkpoint
        from aigc_ext.training.identity import check_data

        run = _copy_of_run(folder)
        (run / "data.json").write_bytes(data)
        found = read_checkpoint(run / "checkpoints" / _checkpoint())
        found.state["data"]["sha256"] = text_digest(data)
        check_data(Checkpoint(found.path, found.state, {}), _digits(), cond=False, may_change=True)

    def text_digest(data: bytes) -> str:
        try:
            return str(json.loads(data)["sha256"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return "0" * 64

    def document(
        name: str, value: Any, read: _Read, words: tuple[str, ...], finish: _Finish = lambda v: v
    ) -> Target:
        return Target(name, json.dumps(finish(value)).encode(), _documents(value, finish), read, words)

    def binary(name: str, valid: list[bytes], read: _Read, words: tuple[str, ...]) -> Target:
        return Target(name, valid[0], _files_of(*valid), read, words)

    model = (_checkpoint(), "model", "network")
    weights = _of_run("model/model.safetensors")
    labels = {"labels": [["a.png", 0], ["b.png", 1]]}
    facts = {"images": 2, "bad": []}
    return [
        document("config", TrainConfig().to_dict(), _read_config, ("config.json",)),
        Target("overrides", b"g_optim.lr=0.001", _settings(), _read_setting, ("",)),
        Target("stats.jsonl", _of_run("stats.jsonl"), lines, _read_stats, ("stats.jsonl", "metrics.jsonl")),
        document("a run's config.json", text("config.json"), _report_config, ("config.json",)),
        document("state.json", state, _read_state, (_checkpoint(),)),
        document("state.json and manifest", state, _read_state, (_checkpoint(),), _digested),
        document("data.json", text("data.json"), read_data_file, ("data",)),
        document("model/config.json", text("model/config.json"), model_file("config.json"), model),
        document("model/sha256.json", text("model/sha256.json"), model_file("sha256.json"), model),
        document("trained_classes.json", [0, 2, 5], model_file("trained_classes.json"), model),
        Target("safetensors header", weights, _weights(), model_file("model.safetensors"), model),
        Target("safetensors to convert", weights, _weights(), _convert, ("other.safetensors",)),
        binary("latents", [latents], read_latents, ("latents.safetensors",)),
        document("dataset.json", labels, _read_labels, ("images",)),
        Target(
            "zip listing", _zip(), _zips(), lambda f, data: _open(str(_put(f, "x.zip", data))), ("x.zip",)
        ),
        Target(
            "tar listing", _tar(), _tars(), lambda f, data: _open(f"wds:{_put(f, 'x.tar', data)}"), ("x.tar",)
        ),
        binary("image header", _images(), _read_image, ("images",)),
        binary("npy and npz", _arrays(), _read_array, ("x.np",)),
        binary("wav", _sounds(), _read_sound, ("x.wav",)),
        document("cached images", facts, _read_cached, ("images",)),
    ]


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a.png", _image("PNG"))
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        info = tarfile.TarInfo("0.png")
        info.size = len(_image("PNG"))
        made.addfile(info, io.BytesIO(_image("PNG")))
    return file.getvalue()


@functools.cache
def _digits() -> Any:
    return open_dataset("digits")


# ---- the verdict -------------------------------------------------------------------------------------------


def problem_of(target: Target, folder: Path, data: bytes, found: Found | None = None) -> str | None:
    """What is wrong with how an input is read; None if it is read or refused as it should be."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    problem = None
    refused = 0
    try:
        target.read(folder, data)
    except (ValueError, OSError) as error:
        refused = 1
        message = str(error)
        if not any(word in message for word in target.words):
            problem = f"names nothing: {type(error).__name__} at {_place(error)}"
        elif isinstance(error, (UnicodeError, json.JSONDecodeError)) or len(message) > 20_000:
            problem = f"a raw or endless message: {type(error).__name__} at {_place(error)}"
    except Exception as error:
        problem = f"{type(error).__name__} at {_place(error)}"
        if lack_of_memory(error):
            problem = f"asks for too much memory: {problem}"
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if found is not None:
        found.calls += 1
        found.refused += refused
        found.slowest = max(found.slowest, seconds)
    if problem is None and seconds > SECONDS_PER_CALL:
        problem = f"takes longer than {SECONDS_PER_CALL:g} s"
    if problem is None and grown > MEMORY_PER_CALL:
        problem = f"takes more than {MEMORY_PER_CALL >> 20} MB"
    return problem


def _place(error: Exception) -> str:
    """The last frame in this package."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/aigc_ext/" in frame.filename]
    frame = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, {frame.name}"


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for the inputs, and a cache of its own."""
    with tempfile.TemporaryDirectory(dir=_tmp()) as folder:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        try:
            yield Path(folder)
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def fuzz(target: Target, *, seconds: float, examples: int = 10**9, first: int = 0) -> Found:
    """Reads inputs until the time is over, with another sequence for each value of `first`."""
    found = Found()
    start = time.monotonic()
    number = first
    while time.monotonic() - start < seconds and found.calls < examples:
        with workplace() as folder:
            _fuzz_once(target, folder, found, number, examples, start + seconds)
        number += 1
    found.seconds = time.monotonic() - start
    return found


def _fuzz_once(target: Target, folder: Path, found: Found, number: int, examples: int, end: float) -> None:
    @seed(number)
    @settings(
        max_examples=min(50, examples),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def check(data: bytes) -> None:
        if time.monotonic() >= end:
            return
        if problem := problem_of(target, folder, data, found):
            known = found.problems.get(problem)
            if known is None or len(data) < len(known):
                found.problems[problem] = data

    check()


def folder_of(target: Target) -> str:
    return re.sub(r"\W+", "-", target.name)


def save(folder: Path, target: Target, data: bytes) -> Path:
    path = folder / folder_of(target) / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def corpus(target: Target) -> list[Path]:
    return sorted((CORPUS / folder_of(target)).glob("*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--keep", type=Path, help="where to save the inputs that are read wrongly")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    import logging

    logging.disable(logging.WARNING)
    chosen = [target for target in targets() if options.only in (None, target.name)]
    report: dict[str, Any] = {}
    for target in chosen:
        found = fuzz(target, seconds=options.seconds / len(chosen), first=options.first)
        for problem, data in found.problems.items():
            kept = save(options.keep, target, data) if options.keep else repr(data[:300])
            print(f"{target.name}: {problem}: {kept}", file=sys.stderr, flush=True)
        report[target.name] = {**asdict(found), "problems": list(found.problems)}
    print(json.dumps(report))
    return any(found["problems"] for found in report.values())


if __name__ == "__main__":
    sys.exit(main())
