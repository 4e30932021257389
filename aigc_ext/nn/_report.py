"""What `fuse_` reports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FusedRun:
    """A layer that runs as one of our ops, alone or with the activation behind it.

    Attributes:
        path: name of the layer, as in `named_modules()`, e.g. `"main.0"`.
        kind: what runs as one op, e.g. `"Conv2d+LeakyReLU"`, or `"Conv2d"` if it is the layer alone.
        when: where it does, in words.
        gain: how many times as fast it was measured, forward and, in training mode, backward; None without
            examples.
    """

    path: str
    kind: str
    when: str = field(default="", compare=False)
    gain: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SkippedRun:
    """A layer that is not fused, or a whole module that was not searched.

    Attributes:
        path: name of the module, as in `named_modules()`.
        reason: why it is not fused.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class FusionReport:
    """The result of `fuse_`: each linear, convolution or norm layer is in one of the two lists.

    Attributes:
        fused: the layers that were taken.
        skipped: the layers that were left, and why.
        gain: how many times as fast the whole module was measured on the examples; None without examples, 1.0
            if nothing was taken.
    """

    fused: list[FusedRun]
    skipped: list[SkippedRun]
    gain: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        whole = "" if self.gain is None else f"; the module is {self.gain:.2f} times as fast"
        lines = [f"{len(self.fused)} fused, {len(self.skipped)} left as they are{whole}"]
        lines += [f"  fused    {run.path}: {run.kind}, {run.when}" for run in self.fused]
        lines += [f"  skipped  {run.path or '(the module itself)'}: {run.reason}" for run in self.skipped]
        return "\n".join(lines)
