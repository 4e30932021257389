"""One adversarial step: the discriminator learns from a batch, then the generator from the discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.ops import mlp_gan_step_
from aigc_ext.ops._route import Route, take
from aigc_ext.tasks.gan.native import Fit, NativeLearner, RefusedError, check_surroundings, fit
from aigc_ext.tasks.gan.objective import DISCRIMINATE, JUDGE, Mixing, Objective, StepInputs
from aigc_ext.training.distributed import Processes
from aigc_ext.training.parts import descend, kept, running_buffers, split, trained

STATISTICS = ("loss_d", "loss_g", "d_real", "d_fake", "acc_real", "acc_fake", "r1", "r2", "path_length")
"""The entries of the vector that a step returns. See `losses.LossStats`."""
_NATIVE = Route("mlp_gan_step_", "both networks are chains of linear layers, with nothing in between")
_ACCURACIES = slice(STATISTICS.index("acc_real"), STATISTICS.index("acc_fake") + 1)


@dataclass(eq=False)
class AdversarialStep:
    """Updates a discriminator and then a generator, once per call.

    1. `fake = G(z)`; D's loss on `real` and on the detached `fake`, plus the penalties if requested; D's
       optimizer takes a step.
    2. G's loss on D(fake) with the updated D, whose parameters are frozen, so that its weight gradients are
       not computed for nothing; G's optimizer takes a step, which also averages the weights if it is an
       `AdamEMA`.

    The same latents serve both halves, so G's forward runs once. Nothing waits for the device: losses and
    statistics are returned as one tensor. If a loss is not finite, neither is a gradient; `AdamEMA` then
    skips the step, so neither weights nor moments change. A buffer, such as a running mean, that would become
    non-finite keeps its value.

    A batch may be computed in several parts (see `training.parts`), one after another (`part_size`) and in
    several processes (`processes`). With several parts, G's graph is not kept, and its forward runs twice.
    The minibatch standard deviation and the loss `relativistic_avg` also mix samples, of one part only.

    A pair of `MLPGenerator` and `MLPDiscriminator` on the CPU, with `AdamEMA` for both, is trained by one
    native op instead (`ops.mlp_gan_step_`), which computes the same up to rounding. It is not used with
    labels, augmentation, blur, autocast, parts, processes, path lengths, hooks, frozen layers or other
    optimizers. Its gradients are in `grad` of the parameters too, but in the same memory in every step.

    Args:
        generator, discriminator, objective, g_optimizer, d_optimizer: of the pair. For mixing and path
            lengths, the generator needs `mapping(z, c) -> w (N, layers, w_dim)` and `synthesis(w) -> images`.
        part_size: images per part; None for all that a call gets.
        processes: the processes that share the batch.
        path_mean: 0-d tensor, the running mean of path lengths, which moves by the fraction `path_decay`.
        path_every: path lengths are computed of every n-th sample.
        mode: auto takes the native op where it fits, and `AIGC_LOG=debug` says why it does not elsewhere;
            native raises ConfigError there; eager never takes it.
    """

    generator: nn.Module
    discriminator: nn.Module
    objective: Objective
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer
    _: KW_ONLY
    part_size: int | None = None
    processes: Processes | None = None
    path_mean: Tensor | None = None
    path_decay: float = 0.01
    path_every: int = 2
    mode: Literal["auto", "eager", "native"] = "auto"

    def __post_init__(self) -> None:
        device = next(self.generator.parameters()).device
        self.path_mean = torch.zeros((), device=device) if self.path_mean is None else self.path_mean
        self.processes = self.processes or Processes()
        self._g_parameters, self._d_parameters = trained(self.generator), trained(self.discriminator)
        self._g_buffers = running_buffers(self.generator)
        self._d_buffers = running_buffers(self.discriminator)
        self._not_measured = torch.full((), torch.nan, device=device)
        self._native = (
            NativeLearner("generator", self.generator, self.g_optimizer),
            NativeLearner("discriminator", self.discriminator, self.d_optimizer),
        )
        self._native_done: tuple[StepInputs, Tensor] | None = None  # inputs, and images as rows
        self._parts_done: Sequence[StepInputs] = ()
        self._losses_done: Sequence[Sequence[Tensor]] = ()  # of D's half, then of G's

    @property
    def inputs(self) -> StepInputs | None:
        """The inputs of the last call, so that a failing step can be dumped; with several parts, those of the
        first part with a non-finite loss, or else of the last. None if that call failed."""
        if self._native_done is not None:
            share, fake = self._native_done
            return share._replace(fake=fake.view(share.real.shape))
        for part, losses in zip(self._parts_done, zip(*self._losses_done, strict=False), strict=False):
            if not all(loss.isfinite() for loss in losses):
                return part
        return self._parts_done[-1] if self._parts_done else None

    def __call__(
        self,
        real: Tensor,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        penalize: bool = False,
        train_generator: bool = True,
        stretch: bool = False,
        mixing: Mixing | None = None,
        seed: int | None = None,
        gamma: float | None = None,
        blur_sigma: float | None = None,
    ) -> Tensor:
        """Takes one step on `real` images (N, C, H, W), latents `z` (N, z_dim) and labels (N,), if any.

        Args:
            real, z, labels, mixing: this process's share of the batch; all shares have the same size.
            penalize: compute R1, and R2 if it is on.
            train_generator: False if only the discriminator learns.
            stretch: compute the path length regulariser.
            seed: for the networks' random numbers; needed if the batch has parts.
            gamma, blur_sigma: for this step, instead of the objective's own.

        Returns the float32 vector of `STATISTICS`, on the device; an entry that was not computed is NaN.
        """
        self._native_done = None
        self._parts_done, self._losses_done = [], []  # frees the last images before these need memory
        processes, path_mean = self.processes, self.path_mean
        assert processes is not None
        assert path_mean is not None
        share = StepInputs(*(real, z, z, labels, penalize, mixing, seed), gamma=gamma, blur_sigma=blur_sigma)
        if self.mode != "eager":
            try:
                fits = self._fit(share, stretch)
            except RefusedError as refusal:
                if self.mode == "native":
                    raise ConfigError(f"step is 'native', but {refusal}") from None
                take("AdversarialStep", Route("eager", str(refusal)))
            else:
                take("AdversarialStep", _NATIVE)
                return self._native_step(share, fits, train_generator)
        parts = self._parts(share, processes)
        whole = len(parts) == 1
        made: list[StepInputs] = []
        losses: tuple[list[Tensor], list[Tensor]] = ([], [])
        fake = z

        def discriminate(part: StepInputs) -> Tensor:
            nonlocal fake
            # With several parts, G's graph is not kept.
            with torch.set_grad_enabled(whole and train_generator):
                fake = self.objective.generate(self.generator, part)
            made.append(part._replace(fake=fake.detach()))
            loss, stats, r1, r2 = self.objective.discriminator_backward(made[-1])
            losses[0].append(loss)
            return torch.stack((loss, self._not_measured, *stats, r1, r2))

        def generate(part: StepInputs) -> Tensor:
            images = fake if whole else self.objective.generate(self.generator, part)
            loss, length = self.objective.generator_backward(images, part), self._not_measured
            if stretch:
                extra, length = self.objective.path_length_backward(
                    self.generator, part, path_mean, self.path_every
                )
                loss = loss + extra
            losses[1].append(loss)
            return torch.stack((loss, length))

        ours, others = self._d_buffers, self._g_buffers
        again = train_generator and not whole  # G runs a second time, with the buffers of the first
        with kept([*others, *ours], unless_finite=True):
            statistics = descend(
                *(self.d_optimizer, self._d_parameters, parts, discriminate, processes),
                averaged=ours if again else [*ours, *others],
                restored=others if again else [],
            )
            statistics[_ACCURACIES] += statistics[0] * 0  # with a NaN loss they are undefined
            self._parts_done, self._losses_done = made, losses[:1]
            if not train_generator:
                return torch.cat((statistics, self._not_measured[None]))
            for parameter in self._d_parameters:
                parameter.requires_grad_(False)
            try:
                loss_g, length = descend(
                    *(self.g_optimizer, self._g_parameters, made, generate, processes),
                    averaged=[*ours, *others],
                )
            finally:
                for parameter in self._d_parameters:
                    parameter.requires_grad_(True)
            self._losses_done = losses
            if stretch:
                moved = path_mean.lerp(length.to(path_mean.dtype), self.path_decay)
                path_mean.copy_(torch.where(length.isfinite(), moved, path_mean))
        return torch.cat((statistics[:1], loss_g[None], statistics[2:], length[None]))

    def refusal(self, inputs: StepInputs, stretch: bool = False) -> str | None:
        """Why the native op cannot take a step of these inputs, as things are; None if it can."""
        try:
            self._fit(inputs, stretch)
        except RefusedError as refusal:
            return str(refusal)
        return None

    def _fit(self, inputs: StepInputs, stretch: bool) -> tuple[Fit, Fit]:
        if inputs.labels is not None or inputs.mixing is not None or stretch:
            raise RefusedError("there are labels, mixed styles or path lengths")
        assert self.processes is not None
        if self.processes.count > 1 or self.part_size not in (None, len(inputs.z)):
            raise RefusedError("the batch has parts")
        check_surroundings(self.objective, self.discriminator, inputs.blur_sigma)
        return fit(*self._native, inputs.real, inputs.z)

    def _native_step(self, share: StepInputs, fits: tuple[Fit, Fit], train_generator: bool) -> Tensor:
        generator, discriminator = self._native
        objective, gamma = self.objective, share.gamma
        loss = objective.loss
        gamma = (objective.gamma if gamma is None else gamma) if share.penalize else 0.0
        if share.seed is not None:  # PyTorch's generator is left as by the eager step
            last = JUDGE if train_generator else DISCRIMINATE
            torch.default_generator.manual_seed(share.seed + last)
        statistics, fake = mlp_gan_step_(
            share.real,
            share.z,
            generator.learner(fits[0], train_generator),
            discriminator.learner(fits[1], learns=True),
            kind=loss.kind,
            label_smoothing=loss.label_smoothing,
            l2_weight=loss.l2_weight,
            gamma=gamma * objective.r1_interval,
            r2=objective.r2,
            train_generator=train_generator,
            spare=1,  # the path length
        )
        self._native_done = share, fake
        return statistics

    def _parts(self, share: StepInputs, processes: Processes) -> list[StepInputs]:
        parts = split(len(share.z), self.part_size, processes)
        if parts[0].total == len(share.z) and len(parts) == 1:
            return [share]
        if share.seed is None:
            raise ValueError("seed is None, but must be given: the batch is computed in parts")
        return [share.part(part) for part in parts]
