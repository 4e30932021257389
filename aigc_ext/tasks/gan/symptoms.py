"""What goes wrong in a GAN's run, in words, from its rows of statistics.

The limits lie between what runs that end well show and what others do (docs/training.md, "When a run goes
wrong").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_ext.ops.gan_loss import RELATIVISTIC
from aigc_ext.tasks.gan.config import TrainConfig

COMPARED = 64
"""Images of a step that `variety` looks at."""

Rows = Sequence[Mapping[str, Any]]

_ALIKE = 0.1  # variety below which samples are far more alike than the data
_SPREADS = 1.5  # change of the variety of a young generator, between the halves of a window
_LEARNS = 1.1  # the same of the variety or, downwards, of its loss, of one that learns
_RIGHT = 0.95  # share of the images that D judges right
_FEWEST_ROWS, _MOST_IMAGES = 5, 50_000
_MOVED = 2e-3  # relative change of a loss, below which it stands still
_TRY = "What to try, in a new run or from an earlier checkpoint (--resume RUN/checkpoints/...)"


def variety(real: Tensor, fake: Tensor) -> float | None:
    """How much generated images (N, C, H, W) differ from each other, in units of the real ones: the median
    distance of an image to the nearest of the others, divided by that of the real images. About 1 if they are
    as varied; near 0 if they are all the same, and also if they are a few images and their copies.

    None where nothing follows: with fewer than 4 images, with values that are not finite, or if the real
    images are the same too.
    """
    if min(len(real), len(fake)) < 4:
        return None
    ours, theirs = _nearest(fake), _nearest(real)
    return ours / theirs if theirs > 0 and ours < float("inf") else None


def _nearest(images: Tensor) -> float:
    rows = images.detach().flatten(1).float()
    # Not by matrix products, whose rounding hides small distances.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.fill_diagonal_(torch.inf).amin(dim=1).nan_to_num(torch.inf).median())


def symptoms(rows: Rows, config: TrainConfig) -> dict[str, str]:
    """What the newest rows of a run say is wrong with it, and what to try: sentences by the symptom's name.

    A symptom has to last: it is in every row of the newest 5 or more, over a twentieth of the run but at
    least 20 thousand images (`winner`: 50) and at most 50 thousand.
    """
    found = {}
    for name, symptom in _SYMPTOMS.items():
        window = _window(rows, min(max(config.total_images // 20, symptom.images), _MOST_IMAGES))
        if window and symptom.present(window):
            kimg = f"{(window[-1]['nimg'] - window[0]['nimg']) / 1000:.3g}"
            words = symptom.words.format(kimg=kimg)
            found[name] = f"{words}. {_TRY}: {'; '.join(symptom.remedies(config))}"
    return found


def _window(rows: Rows, images: int) -> Rows | None:
    """The fewest of the newest rows, but at least 5, with at least so many images from the first to the last
    of them; None if there are not enough."""
    for start in range(len(rows) - _FEWEST_ROWS, -1, -1):
        if rows[-1]["nimg"] - rows[start]["nimg"] >= images:
            return rows[start:]
    return None


def _column(rows: Rows, name: str) -> list[float] | None:
    """None if a value is missing."""
    values = [row.get(name) for row in rows]
    return None if None in values else [float(value) for value in values if value is not None]


def _are_alike(rows: Rows) -> bool:
    values = _column(rows, "variety")
    # A young generator makes one image too, and then more and more.
    return values is not None and max(values) < _ALIKE and _change(values) <= _SPREADS


def _wins(rows: Rows) -> bool:
    shares = [_column(rows, name) for name in ("acc_real", "acc_fake")]
    if any(share is None or min(share) <= _RIGHT for share in shares):
        return False
    # Batch norm lets the discriminator of DCGAN be right for 50 thousand images, while the generator learns.
    variety, loss = _column(rows, "variety"), _column(rows, "loss_g")
    return (variety is None or _change(variety) <= _LEARNS) and (loss is None or _change(loss) >= 1 / _LEARNS)


def _change(values: list[float]) -> float:
    """The mean of the later half, relative to the mean of the earlier."""
    half = len(values) // 2
    before, after = sum(values[:half]), sum(values[-half:])
    return after / before if before else (torch.inf if after else 1.0)


def _stand_still(rows: Rows) -> bool:
    for name in ("loss_d", "loss_g"):
        values = _column(rows, name)
        if values is None or max(values) - min(values) > _MOVED * max(map(abs, values)):
            return False
    return True


def _more_variety(config: TrainConfig) -> list[str]:
    """What helps against memorised images and against samples that are all alike."""
    loss = config.loss
    tries = []
    if config.augment.kind == "noaug":
        # ada follows what D thinks of real images by themselves
        tries.append(f"--aug {'fixed' if loss.kind in ('wgan', *RELATIVISTIC) else 'ada'} (now none)")
    decay, gamma = config.g_optim.weight_decay, f"--gamma {5 * (loss.gamma or 0):.3g}"
    if loss.gamma and decay:
        # With its weight decay and a larger gamma, the preset mlp made nothing at all of 300 digits.
        tries.append(f"--set g_optim.weight_decay=0 {gamma} (now {decay:.3g} and {loss.gamma:.3g})")
    elif loss.gamma:
        tries.append(f"{gamma} (now {loss.gamma:.3g})")
    else:
        tries.append("--gamma 1 (the R1 penalty, now off)")
    return tries


def _against_likeness(config: TrainConfig) -> list[str]:
    tries = _more_variety(config)
    if getattr(config.generator, "output_act", None) == "linear":
        tries.append(
            "--set generator.output_act=tanh (now linear), if the data have much pure black or white"
        )
    return [*tries, f"another --seed (now {config.seed})"]


def _against_a_winner(config: TrainConfig) -> list[str]:
    return [*_more_variety(config), f"--dlr {config.d_optim.lr / 2:.3g} (now {config.d_optim.lr:.3g})"]


def _against_a_standstill(config: TrainConfig) -> list[str]:
    tries = [f"--glr {10 * config.g_optim.lr:.3g} --dlr {10 * config.d_optim.lr:.3g}"]
    tries[0] += f" (now {config.g_optim.lr:.3g} and {config.d_optim.lr:.3g})"
    if config.loss.gamma:
        tries.append(f"--gamma {config.loss.gamma / 10:.3g} (now {config.loss.gamma:.3g})")
    return tries


class _Symptom(NamedTuple):
    present: Callable[[Rows], bool]  # in a window of rows
    images: int  # between the first and the last of them, at least
    words: str  # with `{kimg}`, the window's length
    remedies: Callable[[TrainConfig], list[str]]


_SYMPTOMS = {
    "alike": _Symptom(
        _are_alike,
        20_000,
        "the samples are far more alike than the data (mode collapse): for {kimg} thousand images they have "
        "differed from each other by less than a tenth of what real images do",
        _against_likeness,
    ),
    "winner": _Symptom(
        _wins,
        50_000,
        "the discriminator has been right about more than 95 % of all images for {kimg} thousand images, "
        "and the generator does not gain on it",
        _against_a_winner,
    ),
    "standstill": _Symptom(
        _stand_still,
        20_000,
        "the losses stand still: for {kimg} thousand images neither has moved by a five-hundredth of itself",
        _against_a_standstill,
    ),
}
