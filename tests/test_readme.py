"""README's quickstarts, run as they are written, and the commands of docs/training.md."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aigc_ext.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SECONDS = 600  # on a busy machine


def quickstart(title: str) -> tuple[str, str]:
    """The language and the lines of a section's first block of code."""
    _, _, section = README.partition(f"\n## {title}\n")
    assert section, title
    found = re.search(r"```(\w+)\n(.+?)```", section.partition("\n## ")[0], re.DOTALL)
    assert found
    assert len(found[2].strip().splitlines()) <= 5, f"{title}: it has more than five lines"
    return found[1], found[2]


def environment(home: Path) -> dict[str, str]:
    """That of someone who has just installed this package: no caches, no runs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIGC", "XDG"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT)}


def python(code: str, folder: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_speed_up_your_gan(tmp_path: Path) -> None:
    language, code = quickstart("Speed up your GAN")
    assert language == "python"
    out = python(f"{code}\nassert D(real).shape == (16, 1, 1, 1)", tmp_path)
    assert "left as they are" in out
    assert "tensor(" in out


def train(command: str, folder: Path, new: bool) -> None:
    """Runs it in a shell until it has begun to learn, and then types Ctrl-C."""
    count = len(list(folder.glob("runs/*/checkpoints/0*")))
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen, end = "", time.monotonic() + SECONDS
        while "/1536 kimg" not in seen:
            assert time.monotonic() < end, seen
            line = process.stdout.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGINT, seen + rest
    assert ("metrics: " in seen) == new
    assert len(list(folder.glob("runs/*/checkpoints/0*"))) > count
    assert "to go on:    aigc-ext train --resume runs/00000-mlp-photos" in rest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the second quickstart was typed, line by line, with 40 photos of mixed sizes."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        size = (int(random.integers(70, 200)), int(random.integers(70, 200)))
        small.resize(size, Image.Resampling.BICUBIC).save(
            folder / "photos" / f"{i}.{'jpg' if i % 2 else 'png'}"
        )
    language, lines = quickstart("Train on your photos")
    assert language == "sh"
    begin, resume, *others = lines.strip().splitlines()
    train(begin.partition("  #")[0], folder, new=True)
    train(resume.partition("  #")[0], folder, new=False)
    for line in others:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
    return folder


def test_train_on_your_photos(trained: Path) -> None:
    assert len(list((trained / "out").glob("seed*.png"))) == 16
    assert (trained / "model.pt2").is_file()
    (run,) = (trained / "runs").iterdir()
    assert "40 images 3x64x64" in (run / "report.html").read_text()


def test_embed(trained: Path) -> None:
    language, code = quickstart("Embed")
    assert language == "python"
    check = """
assert images.shape == (16, 64, 64, 3), images.shape
assert program(torch.randn(2, sampler.z_dim)).shape == (2, 3, 64, 64)
print(sampler.z_dim)
"""
    z_dim = int(python(code + check, trained))
    _, import_torch, load = code.strip().rsplit("\n", 2)
    assert import_torch == "import torch"
    alone = f"""
import sys
sys.modules["aigc_ext"] = None  # as if it were not installed
{import_torch}
{load}
assert program(torch.randn(2, {z_dim})).shape == (2, 3, 64, 64)
"""
    python(alone, trained)


def test_one_claim_with_one_picture_and_one_figure() -> None:
    opening, *_ = README.partition("\n## ")
    assert opening.count("<img ") == 1
    assert opening.count("**") == 2


def test_the_commands_work_after_make_demo(tmp_path, monkeypatch, capsys):
    """With images of the size that takes no time."""
    monkeypatch.chdir(tmp_path)
    (demo,) = re.findall(r"^demo:.*\n\t\S+/aigc-ext (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    tiny = ["--kimg", "0.1", "--batch", "50", "--device", "cpu"]
    tiny += ["--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]"]
    assert main([*demo.replace("mnist5k", "digits").split(), *tiny]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["00000-mlp-digits-demo"]
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save("photo.jpg")
    page = (ROOT / "docs" / "training.md").read_text()
    commands = re.findall(
        r"^aigc-ext ((?:sample|interpolate|project|export|metrics|robust|report) .+)$", page, re.M
    )
    assert len(commands) == 8
    for command in commands:
        arguments = shlex.split(command.replace("mnist5k", "digits"), comments=True)
        faster = {"project": ["--steps", "2"], "interpolate": ["--frames", "3"]}
        faster |= {"metrics": ["--num", "30"], "robust": ["--num", "30", "--epsilons", "0.1"]}
        assert main([*arguments, *faster.get(arguments[0], [])]) == 0, capsys.readouterr().err
    assert main(["train", "--resume", "latest", "--outdir", "runs", "--kimg", "0.15"]) == 0
