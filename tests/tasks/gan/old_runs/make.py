"""Begins the two runs that tests/tasks/gan/test_old_runs.py resumes, and writes down how they go on.

    PYTHONPATH=CHECKOUT_OF_A_VERSION python tests/tasks/gan/old_runs/make.py

The runs are of the version before the engine and the GAN were separated; no later version can make them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aigc_ext.training import TrainConfig, Trainer, find_resume_point, read_checkpoint

HERE = Path(__file__).parent
SHARED = {
    "device": "cpu",
    "threads": 1,
    "grid": [2, 2],
    "seed": 3,
    "batch": 10,
    "tick": 0.02,
    "snap": 1,
    "keep": 9,
    "kimg": 0.08,
}
RUNS = {
    "mlp": {
        "data": {"source": "digits"},
        "generator": {"z_dim": 2, "hidden": [3, 4]},
        "discriminator": {"hidden": [4, 3]},
        "loss": {"gamma": 0.1, "r1_interval": 2},
    },
    "conditional": {
        "data": {"source": "digits", "cond": True, "mirror": True},
        "generator": {
            "family": "stylegan2",
            "z_dim": 2,
            "w_dim": 2,
            "mapping_layers": 1,
            "channel_max": 2,
        },
        "discriminator": {"family": "stylegan2", "channel_max": 2},
        "loss": {"gamma": None, "r1_interval": 2, "path_weight": 2.0, "path_interval": 2, "mixing": 0.5},
        "g_optim": {"lr": 0.002, "lr_end": 0.001},
        "ramp_kimg": 0.06,
        "augment": {"kind": "ada", "kimg": 0.2, "interval": 2, "blur_sigma": 1.0, "blur_kimg": 0.05},
        "batch_gpu": 5,
        "ema": {"kimg": None},
    },
}
CLOCK = ("seconds", "img_per_sec", "memory_gb", "sha256", "files", "torch", "aigc_ext")
DATA = ("name", "images", "shape", "num_classes")  # what such a version wrote down of its data


def record(run_dir: Path) -> dict[str, Any]:
    """All that a run has left on disk, except for times; files as digests."""
    digests, states, tensors = {}, {}, {}
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if path.suffix == ".png":
            digests[name] = hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest()
        elif path.suffix == ".safetensors" or path.name == "config.json":
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "state.json":
            content = json.loads(path.read_text())
            content["data"] = {key: content["data"][key] for key in DATA}
            states[name] = [[key, value] for key, value in content.items() if key not in (*CLOCK, "config")]
            for stem in ("generator", "discriminator", "ema"):
                for key, tensor in sorted(read_checkpoint(path.parent).tensors[stem].items()):
                    tensors[f"{stem}.{key}"] = summary(tensor)  # of the newest checkpoint
    rows = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    log = (run_dir / "log.txt").read_text().replace(str(run_dir), "RUN").splitlines()
    return {
        "digests": digests,
        "states": states,
        "tensors": tensors,
        "rows": [[[key, value] for key, value in row.items() if key not in CLOCK] for row in rows],
        "log": [line.split(maxsplit=2)[2] for line in log],
    }


def summary(tensor: torch.Tensor) -> list[float]:
    """Two sums that any change of a tensor moves."""
    flat = tensor.double().flatten()
    sums = flat.sum(), (flat * torch.arange(len(flat)).cos()).sum()
    return [float(f"{value.item():.8g}") for value in sums]


def resume(run_dir: Path) -> None:
    point = find_resume_point(str(run_dir), run_dir.parent)
    trainer = Trainer.from_config(point.config.override("kimg", SHARED["kimg"]))
    trainer.restore(point)
    trainer.fit()


def main() -> None:
    expected: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, settings in RUNS.items():
            config = TrainConfig.from_dict({**SHARED, **settings, "kimg": 0.04})
            begun = Trainer.from_config(config, outdir=work).fit().run_dir
            for path in (begun / "checkpoints" / "000000-020", begun / "model"):
                shutil.rmtree(path)
            for path in begun.glob("*.png"):
                path.unlink()
            (begun / "log.txt").unlink()
            with tarfile.open(HERE / f"{name}.tar.xz", "w:xz") as archive:
                archive.add(begun, name)
            resume(begun)
            expected[name] = record(begun)
    (HERE / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
