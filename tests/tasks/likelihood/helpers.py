"""Tiny runs of every preset, and the data that they learn."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aigc_ext.config import Count
from aigc_ext.data import wav_file
from aigc_ext.models.settings import ClassCount, ImageShape, Network, ReconstructorConfig, takes
from aigc_ext.sampling import save_pretrained
from aigc_ext.tasks import find_resume_point
from aigc_ext.tasks.likelihood import PRESETS, TrainConfig, Trainer
from aigc_ext.training.checkpoint import serialize

SMALL = {
    "batch": 12,
    "kimg": 0.12,
    "tick": 0.024,
    "snap": 2,
    "keep": 100,
    "grid": [3, 2],
    "device": "cpu",
    "threads": 1,
    "nonfinite_limit": 3,
    "network.hidden": 24,
    "ramp_kimg": 0.1,
    "warmup_kimg": 0.03,
    "optim.lr": 1e-2,
    "ema.kimg": 0.02,
}
_TRANSFORMER = {"network.width": 16, "network.heads": 2, "network.layers": 2, "network.dropout": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "prior": {**_TRANSFORMER, "data.cond": True},
    "captions": {**_TRANSFORMER, "caption": True, "text.vocabulary": 270, "text.source": 4},
    "textgen": {**_TRANSFORMER, "text.vocabulary": 280, "text.source": 12, "text.target": 6},
    "wavenet": {
        "data.class_folders": True,
        "network.channels": 12,
        "network.gates": 10,
        "network.skips": 14,
        "network.dilations": [1, 3, 2],
    },
}
"""By the name of a case: what differs from its preset. A prior on captions is another case."""


@dataclass(frozen=True)
class BlocksConfig(ReconstructorConfig):
    family: Literal["blocks"] = field(default="blocks", kw_only=True)
    image_shape: ImageShape = (1, 4, 4)
    num_codes: Count = 5
    num_classes: ClassCount = 0


class Blocks(Network):
    """The least autoencoder with codes: of each 2x2 block of pixels the nearest of a few levels of grey."""

    value_range = (-1.0, 1.0)
    num_codes: int

    @takes(BlocksConfig)
    def __init__(self, settings: BlocksConfig) -> None:
        super().__init__(settings)
        self.levels = torch.nn.Parameter(torch.linspace(-1, 1, settings.num_codes))

    def codes(self, images: Tensor) -> Tensor:
        grey = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2)[:, 0]
        return (grey[..., None] - self.levels).abs().argmin(-1)

    def decode_codes(self, indices: Tensor) -> Tensor:
        grey = self.levels[indices].repeat_interleave(2, 1).repeat_interleave(2, 2)
        return grey[:, None].expand(-1, self.settings.image_shape[0], -1, -1)  # type: ignore[attr-defined]


def write_data(folder: Path) -> dict[str, str]:
    """Writes data and a tokenizer; returns the sources of each case."""
    rng = np.random.default_rng(0)
    images = folder / "images"
    captions = {}
    for number in range(40):
        kind = ("dark", "light")[number % 2]
        pixels = rng.integers(0, 100, (2, 2), dtype=np.uint8) + 155 * (number % 2)
        path = images / kind / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8).repeat(2, 0).repeat(2, 1)).save(path)
        captions[f"{kind}/{number:02d}.png"] = f"{kind} tile"
    (images / "dataset.json").write_text(
        json.dumps({"labels": [[name, int(name.startswith("light"))] for name in captions]})
    )
    (images / "captions.json").write_text(json.dumps(captions))
    codec = Blocks()
    save_pretrained(folder / "codec", codec.config, serialize(codec.state_dict()))
    words = ["tool", "library", "game", "editor", "server", "font"]
    lines = []
    for number in range(40):
        one, other = words[number % 6], words[number * 5 % 7 % 6]
        lines.append({"source": f"A {one} for the {other}, which is {number}.", "target": f"{one} {other}"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in range(40):
        path = folder / "waves" / ("high" if number % 2 else "low") / f"{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = np.sin(np.arange(40 + number) * (1.2 if number % 2 else 0.3)) * 8000
        path.write_bytes(wav_file.encode(wave.astype(np.int16), 800))
    tokens = f"tokens:{folder / 'codec'}:{images}"
    waves, pairs = str(folder / "waves"), str(folder / "pairs.jsonl")
    return {"prior": tokens, "captions": tokens, "textgen": pairs, "wavenet": waves}


def config(case: str, source: str, **overrides: Any) -> TrainConfig:
    """Of a tiny run; keys use __ for the dot."""
    result = PRESETS["prior" if case == "captions" else case]
    settings = SMALL | SETTINGS[case] | {"data.source": source, "precision": "bfloat16"}
    for key, value in (settings | {k.replace("__", "."): v for k, v in overrides.items()}).items():
        result = result.override(key, value)
    return result


def resumed(run_dir: Path, **overrides: Any) -> Trainer:
    point = find_resume_point(str(run_dir), run_dir.parent)
    changed = point.config
    for key, value in overrides.items():
        changed = changed.override(key.replace("__", "."), value)
    trainer = Trainer.from_config(changed, outdir=run_dir.parent)
    trainer.restore(point)
    return trainer


if __name__ == "__main__":  # torchrun -m tests.tasks.likelihood.helpers OUTDIR CONFIG
    outdir, path = map(Path, sys.argv[1:])
    Trainer.from_config(TrainConfig.from_json(path), outdir=outdir).fit()
