"""Trains a GAN on a folder of images of one size, and writes a grid of samples.

    python examples/train_on_folder.py FOLDER --kimg 1000

The same as `aigc-ext train --preset dcgan --data FOLDER --kimg 1000` and `aigc-ext sample`.
"""

from __future__ import annotations

import argparse

from aigc_ext.sampling import Sampler, save_grid
from aigc_ext.tasks.gan import PRESETS, Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--kimg", type=float, default=1000.0, help="thousands of images to train on")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--outdir", default="runs")
    options = parser.parse_args()

    config = (
        PRESETS["dcgan"]
        .override("data.source", options.folder)
        .override("data.mirror", True)
        .override("batch", options.batch)
        .override("kimg", options.kimg)
    )
    result = Trainer.from_config(config, outdir=options.outdir).fit(progress=True)
    print(f"checkpoint {result.checkpoint}; `aigc-ext train --resume {result.run_dir} --kimg ...` goes on")

    sampler = Sampler.from_pretrained(result.run_dir)
    seeds = list(range(16))
    path = result.run_dir / "samples.png"
    save_grid(sampler.sample(seeds), path, provenance={"model_sha256": sampler.model_sha256, "seeds": seeds})
    print(f"samples {path}")


if __name__ == "__main__":
    main()
