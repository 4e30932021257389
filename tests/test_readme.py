"""The README's Python, run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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
save_pretrained(Path("runs/00000-mlp-mnist5k/model"), made.config, serialize(made.state_dict()))
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
