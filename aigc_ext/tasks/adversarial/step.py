"""One step: the discriminator, if any, learns from a batch, then the generator, by one backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_ext.models.reconstruction import Reconstruction
from aigc_ext.nn.quantize import CodeStatistics, VectorQuantizer, code_use
from aigc_ext.tasks.adversarial.balance import Balance, item_norm
from aigc_ext.tasks.adversarial.objective import Critic
from aigc_ext.tasks.adversarial.terms import Made, Weighted
from aigc_ext.tasks.gan.objective import GENERATE, StepInputs
from aigc_ext.training.distributed import Processes
from aigc_ext.training.parts import descend, kept, running_buffers, split, trained

CRITIC_STATISTICS = ("loss_d", "d_real", "d_fake", "acc_real", "acc_fake", "r1", "r2")
CODE_STATISTICS = ("perplexity", "used_codes")


class _Forward(NamedTuple):
    """A part that went through the generator."""

    made: Reconstruction
    samples: Tensor | None  # further outputs, of codes from N(0, 1)
    places: Tensor | None  # the rows whose judged output they are; None: all
    inputs: StepInputs

    @property
    def outputs(self) -> Tensor:
        return self.made.output if self.samples is None else torch.cat([self.made.output, self.samples])

    def judged(self, outputs: Tensor) -> Tensor:
        """What the discriminator is shown, of all outputs."""
        count = len(self.made.output)
        if self.samples is None:
            return outputs
        if self.places is None:
            return outputs[count:]
        return outputs[:count].index_copy(0, self.places, outputs[count:])


@dataclass(eq=False)
class ReconstructionStep:
    """Updates a discriminator, if there is one, and then a generator that is given the items.

    1. `reconstruct(items)`; D's loss on the items and on the detached output, plus the penalties if
       requested; D's optimizer takes a step.
    2. The gradient of each term at the output, which is a leaf; with `balance`, each is scaled. Their sum is
       the gradient of the output, and one backward through the generator serves all, together with its own
       `penalties` (the divergence of Gaussian codes, the distance of features to their codes), which have
       their own weights. Without `balance`, this is the gradient of the plain sum.

    The same output serves both halves, so that the generator's forward runs once, unless the batch has
    several parts. Nothing waits for the device, except for a new term of a balance. A step whose loss is not
    finite changes nothing, codebook and balance included.

    Args:
        generator: has `reconstruct`, `activate` and, with a codebook, `learn_codes`, and for samples
            `imagine`: see `models.autoencoder.Autoencoder`.
        optimizer: of the generator.
        terms: of the output, with their weights.
        penalties: the weights of the generator's own, by their names.
        critic, d_optimizer: the discriminator's loss and optimizer; None without one.
        balance: with a running mean of the norm of each term, or None.
        judged: what D is shown: "reconstructions", "samples" of codes from N(0, 1), or "both" by turns.
        part_size: items per part; None for all that a call gets.
        processes: those that share the batch.

    Attributes:
        statistics: the names of the entries that a call returns.
    """

    generator: Any
    optimizer: torch.optim.Optimizer
    terms: Sequence[Weighted]
    penalties: Mapping[str, float]
    _: KW_ONLY
    critic: Critic | None = None
    d_optimizer: torch.optim.Optimizer | None = None
    balance: Balance | None = None
    judged: str = "reconstructions"
    part_size: int | None = None
    processes: Processes | None = None

    def __post_init__(self) -> None:
        self.processes = self.processes or Processes()
        device = next(self.generator.parameters()).device
        self._parameters = trained(self.generator)
        self._buffers = running_buffers(self.generator)
        self._d_parameters = [] if self.critic is None else trained(self.critic.discriminator)
        self._d_buffers = [] if self.critic is None else running_buffers(self.critic.discriminator)
        self._not_measured = torch.full((), torch.nan, device=device)
        self._names = [term.name for term, _ in self.terms]
        quantizer = getattr(self.generator, "quantizer", None)
        self._codebook = list(quantizer.buffers()) if isinstance(quantizer, VectorQuantizer) else []
        self.statistics = (
            *("loss", *self._names, *self.penalties),
            *(() if self.critic is None else CRITIC_STATISTICS),
            *(() if quantizer is None else CODE_STATISTICS),
            *(() if self.balance is None else (f"norm_{name}" for name in self._names)),
        )
        self._parts_done: list[StepInputs] = []
        self._losses_done: tuple[list[Tensor], list[Tensor]] = ([], [])

    @property
    def inputs(self) -> StepInputs | None:
        """The inputs of the last call, so that a failing step can be dumped; with several parts, those of the
        first part with a loss that is not finite, or else of the last. None if that call failed."""
        for part, *losses in zip(self._parts_done, *filter(None, self._losses_done), strict=False):
            if not all(loss.isfinite() for loss in losses):
                return part
        return self._parts_done[-1] if self._parts_done else None

    def __call__(
        self,
        items: Tensor,
        labels: Tensor | None = None,
        *,
        penalize: bool = False,
        adversarial: bool = True,
        seed: int | None = None,
        gamma: float | None = None,
    ) -> Tensor:
        """Takes one step on items (N, ...) in the generator's value range, and labels (N,), if any.

        Args:
            items, labels: this process's share of the batch; all shares have the same size.
            penalize: compute R1, and R2 if it is on.
            adversarial: do the terms that need the discriminator count for the generator?
            seed: for the networks' random numbers; needed if the batch has parts.
            gamma: for this step, instead of the critic's own.

        Returns the float32 vector of `statistics`, on the device; an entry that was not computed is NaN.
        """
        assert self.processes is not None
        share = StepInputs(*(items, items, items, labels, penalize, None, seed), gamma=gamma)
        parts = self._split(share, self.processes)
        self._parts_done, self._losses_done = [], ([], [])
        whole = len(parts) == 1
        forward: _Forward | None = None

        def discriminate(part: StepInputs) -> Tensor:
            nonlocal forward
            assert self.critic is not None
            with torch.set_grad_enabled(whole):  # with several parts, no graph is kept
                forward = self._forward(part)
            inputs = self._shown(forward)
            self._parts_done.append(inputs)
            loss, stats, r1, r2 = self.critic.discriminator_backward(inputs)
            self._losses_done[0].append(loss)
            return torch.stack((loss, *stats, r1, r2))

        active = [(i, each) for i, each in enumerate(self.terms) if adversarial or not each.term.judges]
        codes: list[CodeStatistics] = []

        def generate(part: StepInputs) -> Tensor:
            nonlocal forward
            made = forward if forward is not None and whole else self._forward(part)
            forward = None
            statistics, use = self._backward(made, active)
            if self.critic is None:
                self._parts_done.append(self._shown(made))
            self._losses_done[1].append(statistics[0])
            codes.extend(use)
            return statistics

        ours, others = self._d_buffers, self._buffers
        again = not whole  # the generator runs a second time, with the buffers of the first
        critical: Tensor | None = None
        with kept([*others, *ours], unless_finite=True):
            if self.critic is not None:
                assert self.d_optimizer is not None
                critical = descend(
                    *(self.d_optimizer, self._d_parameters, parts, discriminate, self.processes),
                    averaged=ours if again else [*ours, *others],
                    restored=others if again else [],
                )
                critical[3:5] += critical[0] * 0  # with a NaN loss they are undefined
            for parameter in self._d_parameters:
                parameter.requires_grad_(False)
            try:
                self._measure(parts, active)
                statistics = descend(
                    *(self.optimizer, self._parameters, parts, generate, self.processes),
                    averaged=[*ours, *others],
                )
            finally:
                for parameter in self._d_parameters:
                    parameter.requires_grad_(True)
            use = self._learn_codes(codes, statistics[0])
        count = 1 + len(self.terms) + len(self.penalties)
        norms = statistics[count:]
        if self.balance is not None:
            self.balance.observe(torch.where(statistics[0].isfinite(), norms, torch.nan))
        return torch.cat([statistics[:count], *([] if critical is None else [critical]), *use, norms])

    def generator_backward(self, inputs: StepInputs, *, adversarial: bool = True) -> Tensor:
        """Accumulates the gradient of the generator's loss on a part of a batch, without a step; returns the
        loss."""
        active = [(i, each) for i, each in enumerate(self.terms) if adversarial or not each.term.judges]
        return self._backward(self._forward(inputs), active)[0][0]

    def _split(self, share: StepInputs, processes: Processes) -> list[StepInputs]:
        parts = split(len(share.real), self.part_size, processes)
        if parts[0].total == len(share.real) and len(parts) == 1:
            return [share]
        if share.seed is None:
            raise ValueError("seed is None, but must be given: the batch is computed in parts")
        return [share.part(part) for part in parts]

    def _forward(self, part: StepInputs) -> _Forward:
        c, samples, places = part.labels, None, None
        with part.random(GENERATE):
            made = (
                self.generator.reconstruct(part.real)
                if c is None
                else self.generator.reconstruct(part.real, c)
            )
            if self.critic is not None and self.judged != "reconstructions":
                count = len(part.real)
                if self.judged == "both":  # every second row of the batch
                    places = torch.arange(1 - part.start % 2, count, 2, device=part.real.device)
                samples = self.generator.imagine(count, c, rows=places)
        return _Forward(made, samples, places, part)

    def _shown(self, forward: _Forward) -> StepInputs:
        """What D learns from."""
        with torch.no_grad():
            fake = self.generator.activate(forward.judged(forward.outputs.detach()))
        return forward.inputs._replace(real=forward.made.target, fake=fake)

    def _look(self, forward: _Forward) -> tuple[Tensor, Made]:
        """The leaf of all outputs, and what the terms may look at."""
        leaf = forward.outputs.detach().requires_grad_()
        output = leaf[: len(forward.made.output)]
        activate, critic, target = self.generator.activate, self.critic, forward.made.target
        made = Made(output, activate(output), target)
        if critic is not None:

            def judge():  # type: ignore[no-untyped-def]
                return critic.judge(activate(forward.judged(leaf)), forward.inputs)

            def judge_target():  # type: ignore[no-untyped-def]
                with torch.no_grad():
                    return critic.judge(target, forward.inputs)

            made._judge, made._judge_target = judge, judge_target
        return leaf, made

    def _gradients(
        self, leaf: Tensor, made: Made, active: Sequence[tuple[int, Weighted]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Losses of the active terms, and their gradients at the leaf."""
        losses = [each.term(made) for _, each in active]
        gradients = []
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
            gradients.append(torch.zeros_like(leaf) if gradient is None else gradient)
        return losses, gradients

    def _backward(
        self, forward: _Forward, active: Sequence[tuple[int, Weighted]]
    ) -> tuple[Tensor, list[CodeStatistics]]:
        """Accumulates the gradients of the generator's parameters. Returns its part of the statistics: loss,
        terms, penalties and norms; and the use of the codes, if any."""
        leaf, made = self._look(forward)
        losses = [self._not_measured] * len(self.terms)
        norms = [] if self.balance is None else [self._not_measured] * len(self.terms)
        if self.balance is None:
            measured = [each.term(made) for _, each in active]
            total = torch.stack(
                [each.weight * loss for (_, each), loss in zip(active, measured, strict=True)]
            )
            (gradient,) = torch.autograd.grad(total.sum(), leaf)
        else:
            measured, gradients = self._gradients(leaf, made, active)
            factors = self.balance.factors({each.term.name: each.weight for _, each in active})
            gradient = torch.zeros_like(leaf)
            for (i, each), own in zip(active, gradients, strict=True):
                gradient = gradient + factors[each.term.name] * own
                norms[i] = item_norm(own)
        for (i, _), loss in zip(active, measured, strict=True):
            losses[i] = loss.detach().float()
        loss = torch.stack([each.weight * losses[i] for i, each in active]).sum()
        outputs, gradients = [forward.outputs], [gradient]
        penalties = forward.made.penalties
        for name, weight in self.penalties.items():
            if weight:
                outputs.append(penalties[name])
                gradients.append(torch.full_like(penalties[name], weight))
        torch.autograd.backward(outputs, gradients)
        given = [penalties[name].detach().float() for name in self.penalties]
        for weight, penalty in zip(self.penalties.values(), given, strict=True):
            loss = loss + weight * penalty
        codes = forward.made.codes
        return torch.stack([loss, *losses, *given, *norms]), [] if codes is None else [codes]

    def _measure(self, parts: Sequence[StepInputs], active: Sequence[tuple[int, Weighted]]) -> None:
        """The norms of terms that begin, of which the balance has no mean yet."""
        balance, processes = self.balance, self.processes
        assert processes is not None
        if balance is None or not balance.unknown([each.term.name for _, each in active]):
            return
        unknown = set(balance.unknown([each.term.name for _, each in active]))
        new = [(i, each) for i, each in active if each.term.name in unknown]
        norms = torch.zeros(len(parts), len(self.terms), device=self._not_measured.device)
        with kept([*self._buffers, *self._d_buffers]):
            for row, part in zip(norms, parts, strict=True):
                with torch.no_grad():
                    forward = self._forward(part)
                for (i, _), gradient in zip(new, self._gradients(*self._look(forward), new)[1], strict=True):
                    row[i] = item_norm(gradient)
        mean = norms.mean(0)
        processes.average([mean])
        only = torch.full_like(mean, torch.nan)
        places = [i for i, _ in new]
        only[places] = mean[places]
        balance.observe(only)

    def _learn_codes(self, parts: Sequence[CodeStatistics], loss: Tensor) -> list[Tensor]:
        """Updates the codebook by the whole batch, and returns its `CODE_STATISTICS`."""
        if not parts:
            return []
        assert self.processes is not None
        summed = [torch.stack(each).sum(0) for each in zip(*parts, strict=True)]
        if self.processes.count > 1:
            self.processes.average(summed)
            for each in summed:
                each *= self.processes.count
        use = CodeStatistics(*summed)
        if self._codebook:
            before = [buffer.clone() for buffer in self._codebook]
            self.generator.learn_codes(use)
            for buffer, old in zip(self._codebook, before, strict=True):
                buffer.copy_(torch.where(loss.isfinite(), buffer, old))
        return [torch.stack([value.float() for value in code_use(use.counts)])]
