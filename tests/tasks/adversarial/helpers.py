from __future__ import annotations

from typing import Any

from aigc_ext.tasks.adversarial import PRESETS, TrainConfig

# Small widths of every preset, with as much of it as possible switched on.
SMALL: dict[str, dict[str, Any]] = {
    "vae": {
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
    "fsq": {
        "generator": {"channels": [6, 8], "bottleneck": "fsq", "levels": [5, 4]},
        "loss": {"adversarial": 0.0},
        "data": {"resolution": None, "transform": None},
    },
}
_PRESET = {"vae-gan": "vae", "fsq": "vqgan"}


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
    for key, value in small.items():
        result = result.override(key, value)
    result = TrainConfig.from_dict(SMALL[name], base=result)
    for key, value in overrides.items():
        result = result.override(key.replace("__", "."), value)
    return result
