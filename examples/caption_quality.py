"""How often a classifier finds the category of a caption in the samples of that caption.

It learns from the real images that the run was trained on, all categories equally often. How good it is, and
how much of that the autoencoder leaves, is measured too.

aigc-ext train --preset prior --data tokens:runs/00000-vqgan-emoji:emoji --caption
python examples/caption_quality.py runs/00001-prior-emoji --guidance 1 2
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_ext.data.pixels import to_uint8
from aigc_ext.metrics import SampleClassifier
from aigc_ext.sampling import load_pretrained
from aigc_ext.tasks.likelihood import TrainConfig
from aigc_ext.tasks.likelihood.items import open_items

parser = argparse.ArgumentParser()
parser.add_argument("run", type=Path)
parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
parser.add_argument("--top-p", type=float, default=1.0)
parser.add_argument("--steps", type=int, default=3000, help="of the classifier's training")
parser.add_argument("--each", type=int, default=50, help="captions of each category, if it has so many")
options = parser.parse_args()
torch.set_num_threads(1)

config = TrainConfig.from_json(options.run / "config.json")
network: Any = load_pretrained(options.run)[0]
items = open_items(config)  # the same are held out as in the run
whole: Any = items.training.whole  # type: ignore[attr-defined]
labels, names = whole.labels, whole.class_names or [str(number) for number in range(whole.num_classes)]
if not config.caption or not names:
    parser.error(f"{options.run} must be a run on captions of images that have categories")


def of_each(index: Tensor) -> list[Tensor]:
    """These items by category."""
    return [index[labels[index] == category] for category in range(len(names))]


parts = of_each(items.training.index)  # type: ignore[attr-defined]
most = max(map(len, parts))
balanced = torch.cat([part.repeat(-(-most // len(part)))[:most] for part in parts])
classifier = SampleClassifier.train(whole.images.read(balanced)[0], labels[balanced], steps=options.steps)


def chosen(index: Tensor) -> Tensor:
    """Of these items, as many of each category as of any other, as far as there are."""
    parts = of_each(index)
    random = torch.Generator().manual_seed(0)
    return torch.cat([part[torch.randperm(len(part), generator=random)[: options.each]] for part in parts])


def report(what: str, images: Tensor, wanted: Tensor) -> None:
    right = (classifier.probabilities(images).argmax(1) == wanted).double()
    shares = [float(right[wanted == category].mean()) for category in range(len(names))]
    weighted = sum(share * int((labels == category).sum()) for category, share in enumerate(shares))
    each = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares, strict=True))
    print(
        f"{what}: mean over categories {sum(shares) / len(shares):.3f}, "
        f"weighted by their images {weighted / len(labels):.3f} ({each})",
        flush=True,
    )


for part, data in (("training", items.training), ("held-out", items.held_out)):
    index = chosen(data.index)  # type: ignore[union-attr]
    wanted, captions = labels[index], [items.prompts[i] for i in index.tolist()]
    report(f"{part} images", whole.images.read(index)[0], wanted)
    codes = whole.read(index)[0][:, network.settings.prefix :].unflatten(1, network.settings.code_shape)
    with torch.no_grad():
        decoded = to_uint8(network.codec.decode_codes(codes), network.codec.value_range)
    report(f"{part} images, reconstructed", decoded, wanted)
    for guidance in options.guidance:
        made = network.sample(
            range(len(index)),
            wanted.tolist() if network.num_classes else None,
            prompts=captions,
            guidance=guidance,
            top_p=options.top_p,
        )
        report(
            f"samples of {part} captions, guidance {guidance:g}",
            torch.from_numpy(made).permute(0, 3, 1, 2),
            wanted,
        )
