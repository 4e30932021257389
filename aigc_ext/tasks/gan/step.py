"""One adversarial step: the discriminator learns from a batch, then the generator from the discriminator."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.ops import mlp_gan_step_
from aigc_ext.ops._route import Route, take
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan.native import (
    Fit,
    NativeLearner,
    RefusedError,
    check_objective,
    check_surroundings,
    fit,
    usual_adam,
)
from aigc_ext.tasks.gan.objective import DISCRIMINATE, JUDGE, Mixing, Objective, StepInputs
from aigc_ext.tasks.gan.program import (
    Place,
    Program,
    State,
    check_compiler,
    numbers_of,
    tensors_of,
    with_numbers,
    with_tensors,
)
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

    The other modes, with `AdamEMA` for both, record each kind of step once and then run the recorded
    operations without autograd: `traced` as they are, with the bits of the eager step, `compiled` through
    Inductor, equal up to rounding. Settings, modules and tensors may be exchanged between steps, but other
    Python code in the networks runs only while a step is recorded, and parameters keep no gradient. A step
    on blurred images is eager. (A captured CUDA graph of the same program would be one more mode.)

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
            native raises ConfigError there; eager never takes it; traced and compiled: see above. They raise
            ConfigError for a step that cannot be recorded: of a batch in parts or processes, with hooks,
            other optimizers, or numbers read from tensors, and compiled also if there is no compiler.
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
    mode: Literal["auto", "eager", "native", "traced", "compiled"] = "auto"

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
        self._state: State | None = None
        self._numbers: tuple[list[float], Tensor] = ([], self._not_measured)  # those of the last step
        self._programs: dict[Hashable, Program] = {}
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

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """At most `count` real images of the last call and as many generated ones, as G made them: not yet
        augmented. Those of a single part, if they are enough."""
        if self._native_done is not None:
            share, fake = self._native_done
            return share.real[:count], fake.view(share.real.shape)[:count]
        real = [part.real for part in self._parts_done]
        fakes = [part.fake for part in self._parts_done]
        return _first(real, count), _first(fakes, count)

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
        share = StepInputs(*(real, z, z, labels, penalize, mixing, seed), gamma=gamma, blur_sigma=blur_sigma)
        try:
            return self._by_mode(share, train_generator, stretch)
        except RefusedError as refusal:
            if self.mode != "auto":
                raise ConfigError(f"step is {self.mode!r}, but {refusal}") from refusal
            take("AdversarialStep", Route("eager", str(refusal)))
        return self._eager_step(share, train_generator, stretch)

    def _by_mode(self, share: StepInputs, train_generator: bool, stretch: bool) -> Tensor:
        """Raises RefusedError if the mode does not fit."""
        if self.mode in ("traced", "compiled"):
            if not self._blurs(share):
                return self._recorded_step(share, train_generator, stretch)
            take("AdversarialStep", Route("eager", "the images are still blurred"))
        elif self.mode != "eager":
            fits = self._fit(share, stretch)
            take("AdversarialStep", _NATIVE)
            return self._native_step(share, fits, train_generator)
        return self._eager_step(share, train_generator, stretch)

    def _eager_step(self, share: StepInputs, train_generator: bool, stretch: bool) -> Tensor:
        processes, path_mean = self.processes, self.path_mean
        assert processes is not None
        assert path_mean is not None
        parts = self._parts(share, processes)
        whole = len(parts) == 1
        made: list[StepInputs] = []
        losses: tuple[list[Tensor], list[Tensor]] = ([], [])
        fake = share.z

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

    def refusal(self, inputs: StepInputs, stretch: bool = False, mode: str = "native") -> str | None:
        """Why a mode cannot take a step of these inputs, as things are; None if it can, as far as is known
        without trying."""
        try:
            if mode == "native":
                self._fit(inputs, stretch)
            else:
                self._check_recordable(inputs)
                if mode == "compiled":
                    check_compiler(inputs.z.device)
        except RefusedError as refusal:
            return str(refusal)
        return None

    def _fit(self, inputs: StepInputs, stretch: bool) -> tuple[Fit, Fit]:
        if inputs.labels is not None or inputs.mixing is not None or stretch:
            raise RefusedError("there are labels, mixed styles or path lengths")
        self._check_whole(inputs)
        check_surroundings(self.objective, self.discriminator)
        check_objective(self.objective, inputs.blur_sigma)
        return fit(*self._native, inputs.real, inputs.z)

    def _check_whole(self, inputs: StepInputs) -> None:
        assert self.processes is not None
        if self.processes.count > 1 or self.part_size not in (None, len(inputs.z)):
            raise RefusedError("the batch has parts")

    def _check_recordable(self, inputs: StepInputs) -> None:
        self._check_whole(inputs)
        check_surroundings(self.objective, self.discriminator)
        self._adams()
        if any(tensor.requires_grad for tensor in tensors_of(inputs)):
            raise RefusedError("the batch wants a gradient")

    def _adams(self) -> tuple[AdamEMA, AdamEMA]:
        return usual_adam("generator", self.g_optimizer), usual_adam("discriminator", self.d_optimizer)

    def _blurs(self, inputs: StepInputs) -> bool:
        return (self.objective.blur_sigma if inputs.blur_sigma is None else inputs.blur_sigma) > 0

    def state(self, train_generator: bool = True) -> State:
        """All that a step changes, from its first value on; programs of another state are forgotten."""
        adams = self._adams()
        for adam in adams if train_generator else adams[1:]:
            parameters = [p for group in adam.param_groups for p in group["params"]]
            if len(adam.state) < len(parameters):
                for p in parameters:
                    adam.state_of(p)
        if self._state is None or not self._state.is_current():
            networks = [self.generator, self.discriminator]
            if isinstance(self.objective.augment, nn.Module):
                networks.append(self.objective.augment)
            self._programs.clear()
            self._state = State(networks, adams, [Place(vars(self), "path_mean", self.path_mean)])
        return self._state

    @property
    def operations(self) -> int:
        """Those of all programs so far."""
        return sum(program.operations for program in self._programs.values())

    def _program(self, share: StepInputs, train_generator: bool, stretch: bool) -> tuple[Program, Tensor]:
        """The program of this kind of step, recorded if there is none yet, and its numbers. Raises
        RefusedError if it cannot be recorded."""
        self._check_recordable(share)
        state, adams, objective = self.state(train_generator), self._adams(), self.objective
        state.check()
        gamma = float(objective.gamma if share.gamma is None else share.gamma)
        penalize = share.penalize and gamma != 0
        numbers = [*numbers_of(adams), gamma]
        if numbers != self._numbers[0]:
            made = torch.tensor(numbers, dtype=torch.float64)
            self._numbers = numbers, made.to(share.z.device, non_blocking=True)
        kind = (
            *(penalize, train_generator, stretch, share.seed is None),
            *(objective.loss, objective.r1_interval, objective.r2, objective.path_weight, objective.autocast),
            *(objective.augment, self.path_decay, self.path_every, share.labels is None),
            *((t.shape, t.stride(), t.dtype, t.device) for t in tensors_of(share)),
        )
        if kind not in self._programs:

            def step(numbers: Tensor, *tensors: Tensor) -> list[Tensor]:
                *rates, gamma = numbers.unbind()
                inputs = with_tensors(share, tensors)._replace(gamma=gamma, penalize=penalize)
                with with_numbers(adams, rates):
                    statistics = self._eager_step(inputs, train_generator, stretch)
                losses = [loss for half in self._losses_done for loss in half]
                return [statistics, self._parts_done[-1].fake, *losses]

            self._programs[kind] = Program(step, share, self._numbers[1], state)
            for p in (*self._g_parameters, *self._d_parameters):
                p.grad = None
        return self._programs[kind], self._numbers[1]

    def _recorded_step(self, share: StepInputs, train_generator: bool, stretch: bool) -> Tensor:
        program, numbers = self._program(share, train_generator, stretch)
        take("AdversarialStep", Route(self.mode, f"a program of {program.operations} operations"))
        statistics, fake, *losses = program(share, numbers, self.mode == "compiled")
        self._parts_done = [share._replace(fake=fake)]
        self._losses_done = [[loss] for loss in losses]
        return statistics

    def _native_step(self, share: StepInputs, fits: tuple[Fit, Fit], train_generator: bool) -> Tensor:
        generator, discriminator = self._native
        objective = self.objective
        loss = objective.loss
        gamma = float(objective.gamma if share.gamma is None else share.gamma) if share.penalize else 0.0
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


def _first(parts: Sequence[Tensor], count: int) -> Tensor:
    """The first rows of the parts, put together if one has not enough."""
    return parts[0][:count] if len(parts[0]) >= count else torch.cat(list(parts))[:count]
