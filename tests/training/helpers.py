from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from aigc_ext.data import TensorImages

TIMING = ("seconds", "img_per_sec", "memory_gb")


def files_of(checkpoint: Path) -> dict[str, bytes]:
    """The tensors of a checkpoint, as bytes."""
    return {path.name: path.read_bytes() for path in sorted(checkpoint.glob("*.safetensors"))}


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of figures without what depends on the clock."""
    lines = (run_dir / "stats.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def tiny_images(count: int = 40, shape: tuple[int, int, int] = (1, 4, 4), classes: int = 0) -> TensorImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % classes if classes else None
    return TensorImages("tiny", images, labels)
