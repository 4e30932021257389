"""The terms of a loss that are computed at the output of a network.

A term is a small object with a name, called with what it may look at, `Made`. The step takes the gradient of
each at the output, so that it costs no backward of the generator of its own. To add one: a class, an entry in
`TERMS` and a weight of the same name in `LossConfig`; or, for a callable of your own such as perceptual
features, the argument `terms` of `Trainer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.losses import (
    AdversarialLoss,
    feature_matching,
    multi_resolution_stft,
    multi_scale_mel,
    reconstruction,
)
from aigc_ext.tasks.adversarial.config import TrainConfig


class Judgement(NamedTuple):
    """What a discriminator says of items: one or several tensors of logits, `[N, ...]`, and the features of
    its layers, if it shows any (a method `judge(items, c=None)` that returns both)."""

    logits: Sequence[Tensor]
    features: Sequence[Tensor]


@dataclass(eq=False)
class Made:
    """What a term may look at: a part of a batch.

    Attributes:
        output: of the network, before its activation: the leaf at which gradients are taken.
        items: the output as items, in their value range.
        target: the items that they should be.
    """

    output: Tensor
    items: Tensor
    target: Tensor
    _judge: Callable[[], Judgement] | None = None
    _judge_target: Callable[[], Judgement] | None = None
    _judged: dict[str, Judgement] = field(default_factory=dict)

    @property
    def judgement(self) -> Judgement:
        """What the discriminator says of what it is shown: the items, or samples. Computed once for all
        terms."""
        assert self._judge is not None, "a term that needs the discriminator must say so: `judges = True`"
        if "items" not in self._judged:
            self._judged["items"] = self._judge()
        return self._judged["items"]

    @property
    def judgement_of_target(self) -> Judgement:
        """The same of the target, without a graph, under the same augmentation."""
        assert self._judge_target is not None, (
            "a term that needs the discriminator must say so: `judges = True`"
        )
        if "target" not in self._judged:
            self._judged["target"] = self._judge_target()
        return self._judged["target"]


class Term(ABC):
    """A part of the loss, by `name` in statistics and in `LossConfig`."""

    name: str
    judges: ClassVar[bool] = False
    """Does it need the discriminator? It then begins at `loss.start_kimg`."""

    @abstractmethod
    def __call__(self, made: Made) -> Tensor:
        """0-d: the mean over the items of this part."""


@dataclass(eq=False)
class Compared(Term):
    """A function of the items and the target, such as those of `losses.reconstruction`."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, made: Made) -> Tensor:
        return self.loss(made.items, made.target)


@dataclass(eq=False)
class Bernoulli(Term):
    """The output are logits. Grey targets are probabilities; see `losses.bernoulli_nll`."""

    name: str = "bernoulli"

    def __call__(self, made: Made) -> Tensor:
        return reconstruction.bernoulli_nll(made.output, made.target)


@dataclass(eq=False)
class Adversarial(Term):
    """The generator's adversarial loss; that of several discriminators is the sum of theirs."""

    judges = True
    loss: AdversarialLoss
    name: str = "adversarial"

    def __call__(self, made: Made) -> Tensor:
        logits = made.judgement.logits
        reals: Sequence[Tensor | None] = [None] * len(logits)
        if self.loss.relativistic:
            reals = made.judgement_of_target.logits
        losses = [self.loss.generator(fake, real) for fake, real in zip(logits, reals, strict=True)]
        return sum(losses[1:], start=losses[0])


@dataclass(eq=False)
class Features(Term):
    """The distance of the discriminator's features of the items to those of the target."""

    judges = True
    name: str = "features"

    def __call__(self, made: Made) -> Tensor:
        return feature_matching(made.judgement.features, made.judgement_of_target.features)


class Weighted(NamedTuple):
    term: Term
    weight: float


def _bernoulli(config: TrainConfig, network: nn.Module) -> Term:
    act = getattr(network, "output_act", None)
    if act != "sigmoid":
        raise ConfigError(
            f"loss.bernoulli is {config.loss.bernoulli}, but must be 0: its output are probabilities, and "
            f"generator.output_act is {act!r}, not 'sigmoid'"
        )
    return Bernoulli()


def _of_waves(name: str, loss: Callable[..., Tensor], *settings: str) -> Callable[[TrainConfig, Any], Term]:
    """A term of waves, whose loss also takes these settings of the network."""

    def make(config: TrainConfig, network: nn.Module) -> Term:
        if getattr(network, "media", None) != "audio":
            raise ConfigError(
                f"loss.{name} is {getattr(config.loss, name)}, but must be 0: the network makes no waves"
            )
        given = [getattr(network, setting) for setting in settings]
        return Compared(name, lambda output, target: loss(output, target, *given))

    return make


def adversarial_loss(config: TrainConfig) -> AdversarialLoss:
    return AdversarialLoss(config.loss.kind, label_smoothing=config.loss.label_smoothing)


TERMS: dict[str, Callable[[TrainConfig, Any], Term]] = {
    "l1": lambda config, network: Compared("l1", reconstruction.l1),
    "l2": lambda config, network: Compared("l2", reconstruction.l2),
    "charbonnier": lambda config, network: Compared("charbonnier", reconstruction.charbonnier),
    "bernoulli": _bernoulli,
    "mel": _of_waves("mel", multi_scale_mel, "sample_rate"),
    "stft": _of_waves("stft", multi_resolution_stft),
    "features": lambda config, network: Features(),
    "adversarial": lambda config, network: Adversarial(adversarial_loss(config)),
}
"""What makes a term of a config and the network, by the key of its weight in `config.loss`."""


def make_terms(config: TrainConfig, network: nn.Module, more: Sequence[Weighted] = ()) -> list[Weighted]:
    """The terms whose weights are not 0, and `more`.

    Raises:
        ConfigError: there is none that compares the output with the items; one needs the discriminator, but
            `loss.adversarial` is 0; or one does not fit the network.
        ValueError: two have the same name.
    """
    weights = {name: getattr(config.loss, name) for name in TERMS}
    chosen = [Weighted(TERMS[name](config, network), weight) for name, weight in weights.items() if weight]
    chosen += more
    names = [term.name for term, _ in chosen]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"there are {names.count(name)} terms called {name!r}, but names must differ")
    if all(term.judges for term, _ in chosen):
        known = ", ".join(f"loss.{name}" for name in TERMS if name not in ("adversarial", "features"))
        raise ConfigError(f"{known} are all 0, but one must be greater: nothing compares output and items")
    if not config.loss.adversarial:
        for term, weight in chosen:
            if term.judges:
                raise ConfigError(
                    f"loss.{term.name} is {weight}, but must be 0: it needs the discriminator, and there is "
                    "none with loss.adversarial 0"
                )
    return chosen
