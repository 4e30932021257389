"""What an installed aigc_ext must do, without a compiler and without the checkout: a penalty through fused
layers, a training run, samples. `make wheel` and the CI run it in an environment that has torch and the wheel
alone:

    python smoke.py FOLDER
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import nn

import aigc_ext


def penalty() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    network = nn.Sequential(nn.Flatten(), layer, nn.LeakyReLU(0.2), nn.Linear(32, 1))
    images = torch.randn(8, 1, 8, 8)
    plain = aigc_ext.losses.r1_penalty(network, images)
    plain.backward()
    expected, layer.weight.grad = layer.weight.grad, None
    aigc_ext.nn.fuse_(network)
    fused = aigc_ext.losses.r1_penalty(network, images)
    fused.backward()
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(layer.weight.grad, expected)


def train_and_sample(folder: Path) -> int:
    images = np.random.default_rng(0).integers(0, 256, (256, 8, 8), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    program = [str(Path(sysconfig.get_path("scripts")) / "aigc-ext")]
    quick = ["--kimg", "1", "--tick", "1", "--snap", "1", "--metrics", "none"]
    train = ["train", "--preset", "mlp", "--data", "images.npy", "--outdir", "runs", *quick]
    sample = ["sample", "--network", "latest", "--seeds", "0-3", "--outdir", "samples"]
    for arguments in (train, sample):
        subprocess.run(program + arguments, cwd=folder, check=True)
    return len(list((folder / "samples").glob("*.png")))


def main(folder: Path) -> None:
    compilers = [name for name in ("c++", "g++", "gcc", "cc", "clang", "nvcc") if shutil.which(name)]
    if compilers:
        sys.exit(f"There are compilers on PATH, without which it must run: {', '.join(compilers)}")
    package = Path(aigc_ext.__file__).parent
    if Path(sysconfig.get_path("platlib")) not in package.parents:
        sys.exit(f"aigc_ext is imported from {package}, not from what was installed")
    penalty()
    images = train_and_sample(folder)
    if images < 4:
        sys.exit(f"aigc-ext sample made {images} images of 4")
    print(f"{package} works with torch {torch.__version__}: a penalty, a training run, {images} images")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
