from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from aigc_ext.data import wav_file
from aigc_ext.tasks.adversarial import PRESETS, TrainConfig

# Small widths of every preset, with as much of it as possible switched on.
SMALL: dict[str, dict[str, Any]] = {
    "vae": {
        "ramp_kimg": 0.3,
        "generator": {"channels": [6, 8], "code_dim": 4},
        "discriminator": {"channels": 4},
    },
    "vae-gan": {
        "generator": {"channels": [6, 8], "code_dim": 4},
        "discriminator": {"channels": 4, "spectral": True},
        "loss": {
            "adversarial": 5.0,
            "judged": "both",
            "gamma": 0.1,
            "r1_interval": 3,
            "start_kimg": 0.2,
            "kind": "relativistic",
        },
        "data": {"cond": True},
        "augment": {"kind": "fixed"},
    },
    "vqgan": {
        "generator": {"channels": [6, 8], "code_dim": 4, "num_codes": 32, "revive_below": 0.5},
        "discriminator": {"channels": 4},
        "loss": {"adversarial": 0.3, "balance": True, "start_kimg": 0.2, "gamma": None},
        "augment": {"kind": "diffaug"},
        "data": {"resolution": None, "transform": None},
    },
    "vocoder": {
        "generator": {
            "channels": 8,
            "n_mels": 12,
            "n_fft": 128,
            "window": 64,
            "hop": 32,
            "upsample": [4],
            "dilations": [1],
        },
        "discriminator": {"channels": 2, "periods": [3], "windows": [64], "layers": 2},
        "loss": {"start_kimg": 0.2, "gamma": 0.1, "r1_interval": 3},
        "data": {"segment": 200},
        "g_optim": {"lr_end": None},
        "ramp_kimg": 0.0,
    },
    "fsq": {
        "generator": {"channels": [6, 8], "bottleneck": "fsq", "levels": [5, 4]},
        "loss": {"adversarial": 0.0},
        "data": {"resolution": None, "transform": None},
    },
}
_PRESET = {"vae-gan": "vae", "fsq": "vqgan"}


@functools.cache
def recordings() -> Path:
    """A folder of 12 recordings of two to six rising tones, each of another length, for this process."""
    folder = Path(tempfile.mkdtemp(prefix="aigc_ext-recordings-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        time = np.arange(900 + 50 * i) / 8000
        waves = [
            np.sin(2 * np.pi * k * rng.uniform(100, 300) * (1 + time) * time) / k for k in range(1, 3 + i % 5)
        ]
        noise = 0.01 * rng.standard_normal(len(time))
        samples = wav_file.to_int16(0.3 * np.sum(waves, axis=0) + noise)
        (folder / f"{i:02d}.wav").write_bytes(wav_file.encode(samples, 8000))
    return folder


def config(name: str = "vae", **overrides: Any) -> TrainConfig:
    """A run of 16 steps of 25 images of 8x8 with a snapshot every 4; keys use __ for the dot."""
    base = PRESETS[_PRESET.get(name, name)]
    small = {
        "batch": 25,
        "kimg": 0.4,
        "tick": 0.05,
        "snap": 2,
        "keep": 100,
        "grid": [4, 2],
        "device": "cpu",
        "threads": 1,
        "metrics": [],
        "data.source": "digits",
        "ema.kimg": 0.1,
        # A bias before a norm has next to no gradient, whose rounding Adam would make as large as the others.
        "g_optim.eps": 1e-3,
        "d_optim.eps": 1e-3,
    }
    result = base
    if name == "vocoder":
        small["data.source"] = str(recordings())
    for key, value in small.items():
        result = result.override(key, value)
    result = TrainConfig.from_dict(SMALL[name], base=result)
    for key, value in overrides.items():
        result = result.override(key.replace("__", "."), value)
    return result
