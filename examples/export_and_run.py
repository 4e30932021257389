"""Exports a generator as a program, and runs it in a Python that has PyTorch but not this package.

    python examples/export_and_run.py --network runs/00000-mlp-mnist5k-demo --output g.pt2

Without --network it uses a small untrained one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import torch

from aigc_ext.models import DCGANGenerator
from aigc_ext.sampling import export_generator, load_pretrained

# The code for the other machine. The program includes the weights; its first dimension, the batch, is
# dynamic.
ELSEWHERE = """
import json, sys
sys.modules["aigc_ext"] = None  # an import of it would fail, as if it were not installed
import torch

files = {"aigc_ext.json": ""}
program = torch.export.load(sys.argv[1], extra_files=files).module()
about = json.loads(files["aigc_ext.json"])
torch.manual_seed(0)
inputs = [torch.randn(5, about["z_dim"])]
if about["num_classes"]:
    inputs.append(torch.arange(5) % about["num_classes"])
images = program(*inputs)
print(*images.shape, float(images.mean()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", help="a run, a checkpoint or a model directory")
    parser.add_argument("--output", default="g.pt2")
    options = parser.parse_args()

    torch.manual_seed(1)
    generator: Any  # of whatever family
    if options.network:
        generator, _ = load_pretrained(options.network)
    else:
        generator = DCGANGenerator((3, 16, 16), z_dim=8, channels=8).eval()

    # decompose=False would keep our kernels, and the other side would have to `import aigc_ext` first.
    exported = export_generator(generator, options.output, decompose=True)
    print(f"wrote {exported.path}, which differs from the generator by {exported.difference:.1g}")

    command = [sys.executable, "-c", ELSEWHERE, options.output]
    *shape, mean = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    torch.manual_seed(0)
    inputs = [torch.randn(5, generator.z_dim)]
    if generator.num_classes:
        inputs.append(torch.arange(5) % generator.num_classes)
    with torch.no_grad():
        expected = float(generator(*inputs).mean())
    print(f"there: images {'x'.join(shape)} of mean {float(mean):.6f}; here: {expected:.6f}")


if __name__ == "__main__":
    main()
