"""16-bit images whose values don't fill 16 bits: they would be black without a word."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import numpy as np
import pytest

from aigc_ext.cli import main
from aigc_ext.data import convert_dataset, open_dataset
from aigc_ext.data.image_file import decode, describe_peaks, peak
from tests.data.helpers import MEMORY_LIMITS, encoded, pixels, png16, write

VALUES = np.arange(0, 4096, 64).reshape(8, 8)
SCALED = np.round(VALUES * (255 / 4095)).astype(np.uint8)
BLACK = "its 16-bit images have values of at most 4032 of 65535 and are almost black: "
HINT = BLACK + "--white 4095 reads them as values of 12 bits"


def twelve(seed: int = 0) -> bytes:
    return png16(np.roll(VALUES, seed)[..., None])


@pytest.fixture
def scans(tmp_path):
    return write(tmp_path / "scans", {f"{i:02d}.png": twelve(i) for i in range(40)})


def test_the_white_can_be_chosen():
    assert decode(io.BytesIO(twelve())).max() == 15
    assert np.array_equal(decode(io.BytesIO(twelve()), 4095)[..., 0], SCALED)
    assert decode(io.BytesIO(twelve()), 2048).max() == 255
    full = np.arange(0, 65536, 1024).reshape(8, 8, 1)
    assert np.array_equal(decode(io.BytesIO(png16(full)), 65535), decode(io.BytesIO(png16(full))))
    assert np.array_equal(decode(io.BytesIO(encoded(pixels(0))), 4095), pixels(0))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_of_colours_it_cannot(channels):
    data = png16(np.repeat(VALUES[..., None], channels, 2))
    with pytest.raises(ValueError, match="16 bits per colour, of which 8 are read: its white cannot be 4095"):
        decode(io.BytesIO(data), 4095)
    found = peak(io.BytesIO(data))
    assert found == (4095, True)
    assert "scale the values beforehand" in str(describe_peaks([found], None))


def test_peaks():
    assert peak(io.BytesIO(twelve())) == (4032, False)
    assert peak(io.BytesIO(encoded(pixels(0)))) is None
    assert describe_peaks([], None) is None
    assert describe_peaks([peak(io.BytesIO(twelve()))], None) == HINT  # type: ignore[list-item]
    assert describe_peaks([peak(io.BytesIO(twelve()))], 4095) is None  # type: ignore[list-item]
    text = describe_peaks([peak(io.BytesIO(twelve()))], 1000)  # type: ignore[list-item]
    assert text == "its 16-bit images have values up to 4032: all above 1000 becomes white"


@MEMORY_LIMITS
@pytest.mark.parametrize("resolution", [None, (4, 4)])
def test_opening_says_so_and_scales(scans, caplog, memory_limit, resolution, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options: dict[str, Any] = {"memory_limit": memory_limit, "resolution": resolution}
    dark = open_dataset(scans, **options)
    assert dark.remarks == (f"{scans}: {HINT}",)
    assert HINT in caplog.text
    caplog.clear()
    bright = open_dataset(scans, white=4095, **options)
    assert bright.remarks == ()
    assert caplog.text == ""
    assert (dark.read([0])[0].max() < 16, bright.read([0])[0].max() > 200) == (True, True)
    if resolution is None:
        assert np.array_equal(bright.read([0])[0][0, 0], SCALED)
    assert bright.content_hash() != dark.content_hash()


def test_training_says_so_at_its_start(scans, tmp_path, capsys):
    small = ["--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--set", "grid=[2, 2]"]
    short = ["--batch", "10", "--kimg", "0.01", "--device", "cpu", "--outdir", str(tmp_path / "runs")]
    arguments = ["train", "--data", str(scans), *small, *short]
    assert main([*arguments, "--dry-run"]) == 0
    assert f"Warning: {scans}: {HINT}" in capsys.readouterr().err
    assert main(arguments) == 0
    assert f"Warning: {scans}: {HINT}" in capsys.readouterr().err
    assert HINT in (tmp_path / "runs" / "00000-mlp-scans" / "log.txt").read_text()
    assert main([*arguments, "--white", "4095"]) == 0
    assert "black" not in capsys.readouterr().err
    run = tmp_path / "runs" / "00001-mlp-scans"
    assert json.loads((run / "config.json").read_text())["data"]["white"] == 4095
    assert main(["train", "--resume", str(run), "--kimg", "0.02"]) == 0


def test_inspecting_and_converting(scans, tmp_path, capsys):
    (scans / "00.png").write_bytes(png16(np.full((8, 8, 1), 4000)))
    assert main(["dataset", "--source", str(scans)]) == 0
    assert f"I{HINT[1:]}." in capsys.readouterr().out
    assert main(["dataset", "--source", str(scans), "--white", "4095"]) == 0
    assert "black" not in capsys.readouterr().out
    convert_dataset(scans, tmp_path / "made", white=4095)
    assert np.array_equal(
        open_dataset(tmp_path / "made").read([1])[0][0, 0], decode(io.BytesIO(twelve(1)), 4095)[..., 0]
    )


def test_full_values_are_no_matter(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "set", {"a.png": png16(np.full((4, 4, 1), 60000)), "b.png": twelve()})
        open_dataset(write(tmp_path / "set", {"b.png": png16(np.zeros((4, 4, 1)))}))
    assert caplog.text == ""


def test_a_target_is_decoded_alike(scans, tmp_path, capsys):
    small = ["--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]", "--set", "grid=[2, 2]"]
    short = ["--batch", "10", "--kimg", "0.01", "--device", "cpu", "--outdir", str(tmp_path / "runs")]
    assert main(["train", "--data", str(scans), "--white", "4095", *small, *short]) == 0
    capsys.readouterr()
    search = ["project", "--network", str(tmp_path / "runs" / "00000-mlp-scans"), "--steps", "2"]
    target = ["--target", str(scans / "00.png"), "--outdir", str(tmp_path / "out")]
    distances = []
    for more, dark in (([], True), (["--white", "4095"], False)):
        assert main([*search, *target, *more]) == 0
        assert ("almost black" in capsys.readouterr().err) == dark
        distances.append(json.loads((tmp_path / "out" / "projection.json").read_text())["distances"][0])
    assert distances[0] != distances[1]
