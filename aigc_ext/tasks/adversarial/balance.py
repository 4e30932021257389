"""Balances the terms of a loss by the norms of their gradients at the output.

As in EnCodec (Défossez, Copet, Synnaeve and Adi 2022, "High Fidelity Neural Audio Compression",
https://arxiv.org/abs/2210.13438, equation 4), the gradient g_i of term i with weight w_i is replaced by

    R * w_i / (sum of w) * g_i / (running mean of |g_i|),

so that a weight is the fraction of the norm R that the term has, whatever the scale of its loss. |g_i| is the
norm of the gradient of an item's own loss, averaged over the items. The mean is that of the steps before,
which is the same for all parts of a batch and all processes; when a term begins, its first batch is measured
in advance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Balance:
    """The running means of the norms.

    Args:
        names: of the terms.
        norm: R.
        decay: of the running means, which are corrected for their start.

    Attributes:
        totals, counts: `(terms,)`, what the means are the quotients of.
    """

    def __init__(
        self, names: Sequence[str], norm: float, decay: float, device: torch.device | str = "cpu"
    ) -> None:
        self.names, self.norm, self.decay = tuple(names), norm, decay
        self.totals, self.counts = torch.zeros(2, len(self.names), device=device).unbind()
        self._known: set[str] = set()

    def unknown(self, active: Sequence[str]) -> list[str]:
        """The terms among these that have no mean yet. Waits for the device until all have one."""
        if missing := [name for name in active if name not in self._known]:
            counts = dict(zip(self.names, self.counts.tolist(), strict=True))
            self._known |= {name for name in missing if counts[name] > 0}
        return [name for name in missing if name not in self._known]

    def factors(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """What multiplies the gradients of the active terms, whose weights these are."""
        total, means = sum(weights.values()), self.totals / self.counts
        # A gradient that has always been 0 stays 0.
        means = torch.where(means == 0, 1.0, means)
        places = {name: self.names.index(name) for name in weights}
        return {name: self.norm * weight / total / means[places[name]] for name, weight in weights.items()}

    def observe(self, norms: Tensor) -> None:
        """Adds the norms of a whole batch, `(terms,)`; those that are not finite, such as NaN for a term that
        is not active, are left out."""
        seen = norms.isfinite()
        self.totals.copy_(torch.where(seen, self.decay * self.totals + norms, self.totals))
        self.counts.copy_(torch.where(seen, self.decay * self.counts + 1, self.counts))


def item_norm(gradient: Tensor) -> Tensor:
    """The mean over the items of the norms of the gradients of their own losses, of the gradient of their
    mean loss. In parts of equal size, the mean over the parts is that of the whole."""
    return torch.linalg.vector_norm(gradient.flatten(1).float(), dim=1).sum()
