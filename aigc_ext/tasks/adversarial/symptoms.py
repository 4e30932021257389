"""What goes wrong in such a run, in words, from its rows of statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aigc_ext.tasks.adversarial.config import TrainConfig

Rows = Sequence[Mapping[str, Any]]

_FEWEST_ROWS = 5
_DEAD = 0.1  # of the codebook that a batch uses, by its perplexity, below which most codes are dead
_RIGHT = 0.95  # share of the items that D judges right
_TRY = "What to try, in a new run or from an earlier checkpoint (--resume RUN/checkpoints/...)"


def symptoms(rows: Rows, config: TrainConfig, num_codes: int | None, item: str = "image") -> dict[str, str]:
    """What the newest rows say is wrong with a run, and what to try: sentences by the symptom's name. A
    symptom has to last: it is in the newest 5 rows, over a twentieth of the run at least."""
    window = list(rows)[-_FEWEST_ROWS:]
    if len(window) < _FEWEST_ROWS or window[-1]["nimg"] - window[0]["nimg"] < config.total_images / 20:
        return {}
    kimg = f"{(window[-1]['nimg'] - window[0]['nimg']) / 1000:.3g}"
    found = {}
    uses = [row.get("perplexity") for row in window]
    if num_codes and all(use is not None and use < _DEAD * num_codes for use in uses):
        found["dead codes"] = (
            f"the codes of a batch have a perplexity of {uses[-1]:.3g}, less than a tenth of the {num_codes} "
            f"codes, for {kimg} thousand {item}s: most of the codebook is dead. {_TRY}: "
            "--set generator.revive_below=1; fewer generator.num_codes; --set generator.bottleneck=fsq"
        )
    shares = [(row.get("acc_real"), row.get("acc_fake")) for row in window]
    if all(a is not None and b is not None and min(a, b) > _RIGHT for a, b in shares):
        augment = "--aug diffaug; " if item == "image" else ""
        found["winner"] = (
            f"the discriminator has been right about more than 95 % of all {item}s for {kimg} thousand "
            f"{item}s. {_TRY}: {augment}--gamma {5 * (config.loss.gamma or 0) or 1:.3g}; --dlr "
            f"{config.d_optim.lr / 2:.3g} (now {config.d_optim.lr:.3g})"
        )
    return found
