"""The README's Python, run as it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"

# What a reader has already.
BEFORE = """
import torch
from torch import nn

generator, ema = nn.Linear(4, 4), nn.Linear(4, 4)
discriminator = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
real = torch.randn(3, 4)
real_logits, fake_logits = discriminator(real), discriminator(generator(real))
"""


def test_the_python_runs():
    (code,) = re.findall(r"```python\n(.+?)```", README.read_text(), re.DOTALL)
    command = [sys.executable, "-c", BEFORE + code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
