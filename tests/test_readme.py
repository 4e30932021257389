"""The README's Python, run as it is written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from aigc_ext.cli import main

README = Path(__file__).resolve().parents[1] / "README.md"

# What a reader already has.
BEFORE = """
import torch
from torch import nn
from aigc_ext.models import MLPGenerator
from aigc_ext.sampling import save_pretrained
from aigc_ext.training.checkpoint import serialize
from pathlib import Path

made = MLPGenerator((1, 8, 8), hidden=(8,))
save_pretrained(Path("runs/00000-mlp-mnist5k-demo/model"), made.config, serialize(made.state_dict()))
generator, ema = nn.Linear(4, 4), nn.Linear(4, 4)
discriminator = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
real = torch.randn(3, 4)
real_logits, fake_logits = discriminator(real), discriminator(generator(real))
"""


def test_the_python_runs(tmp_path):
    own, sample = re.findall(r"```python\n(.+?)```", README.read_text(), re.DOTALL)
    code = f"{BEFORE}{own}{sample}\nassert images.shape == (16, 8, 8, 1), images.shape"
    environment = os.environ | {"PYTHONPATH": str(README.parent)}  # this package, in another folder
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def test_the_commands_work_after_make_demo(tmp_path, monkeypatch, capsys):
    """With images of the size that takes no time."""
    monkeypatch.chdir(tmp_path)
    (demo,) = re.findall(
        r"^demo:.*\n\t\S+/aigc-ext (.+)$", (README.parent / "Makefile").read_text(), re.MULTILINE
    )
    tiny = ["--kimg", "0.1", "--batch", "50", "--device", "cpu"]
    tiny += ["--set", "generator.hidden=[8]", "--set", "discriminator.hidden=[8]"]
    assert main([*demo.replace("mnist5k", "digits").split(), *tiny]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["00000-mlp-digits-demo"]
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save("photo.jpg")
    commands = re.findall(
        r"^aigc-ext ((?:sample|interpolate|project|export|metrics|report) .+)$", README.read_text(), re.M
    )
    assert len(commands) == 6
    for command in commands:
        arguments = shlex.split(command.replace("mnist5k", "digits"), comments=True)
        faster = {"project": ["--steps", "2"], "interpolate": ["--frames", "3"], "metrics": ["--num", "30"]}
        assert main([*arguments, *faster.get(arguments[0], [])]) == 0, capsys.readouterr().err
    assert main(["train", "--resume", "latest", "--outdir", "runs", "--kimg", "0.15"]) == 0
