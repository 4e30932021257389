"""A whole training step of the reference MLP GAN, at batches from 16 to 1,024 on the CPU: D's update, then
G's with the average of its weights.

- eager: well-written PyTorch: D frozen in G's step, ``Adam(fused=True)``, ``torch._foreach_lerp_``.
- compile: one compiled function per step, gradients by ``torch.func.grad``, Adam and the average inside the
  graph. On a GPU also with ``mode="reduce-overhead"``.
- aigc_ext: the step that ``aigc-ext train`` runs: on the CPU one native op, on a GPU our ops under autograd.
- aigc_ext, eager step: on the CPU, these ops too.
- CUDA graph: the whole step of eager or aigc_ext, captured.

Each takes about ten steps per turn, so that, as in training, the caches are warm with its own data. The
weights change during the measurement; the results are compared on a first step from equal weights.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import MLPDiscriminator, MLPGenerator
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan import AdversarialStep, Objective
from benchmarks.card import graphed
from benchmarks.harness import Case, Setting, those_that_work

LR, BETAS, EPS, EMA, GAMMA = 1e-4, (0.5, 0.999), 1e-8, 0.999, 0.3
Step = Callable[[Tensor, Tensor], None]
Tensors = dict[str, Tensor]


def plain_networks() -> tuple[nn.Module, nn.Module]:
    generator = nn.Sequential(
        *(nn.Linear(100, 256), nn.LeakyReLU(0.2), nn.Linear(256, 128), nn.LeakyReLU(0.2)),
        *(nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 784), nn.Sigmoid()),
    )
    discriminator = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    return generator, discriminator


def eager(
    generator: nn.Module, discriminator: nn.Module, gamma: float, capturable: bool = False
) -> tuple[Step, list[Tensor]]:
    ema = [p.detach().clone() for p in generator.parameters()]
    weights = list(generator.parameters())
    g_adam, d_adam = (
        torch.optim.Adam(parameters, LR, BETAS, EPS, fused=True, capturable=capturable)
        for parameters in (weights, discriminator.parameters())
    )

    def step(real: Tensor, z: Tensor) -> None:
        fake = generator(z)
        if gamma:
            real = real.detach().requires_grad_()
        real_logits = discriminator(real)
        loss = F.softplus(-real_logits).mean() + F.softplus(discriminator(fake.detach())).mean()
        if gamma:
            (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            loss = loss + gamma / 2 * gradient.flatten(1).square().sum(1).mean()
        d_adam.zero_grad(set_to_none=True)
        loss.backward()
        d_adam.step()
        discriminator.requires_grad_(False)
        g_adam.zero_grad(set_to_none=True)
        F.softplus(-discriminator(fake)).mean().backward()
        discriminator.requires_grad_(True)
        g_adam.step()
        torch._foreach_lerp_(ema, [w.detach() for w in weights], 1 - EMA)

    return step, [*weights, *discriminator.parameters(), *ema]


def one_graph(
    generator: nn.Module, discriminator: nn.Module, gamma: float, setting: Setting, mode: str | None
) -> tuple[Step, list[Tensor]]:
    g = {k: v.detach().clone() for k, v in generator.named_parameters()}
    d = {k: v.detach().clone() for k, v in discriminator.named_parameters()}
    ema = {k: v.clone() for k, v in g.items()}
    g_moments, d_moments = (
        {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in weights.items()} for weights in (g, d)
    )
    count = torch.zeros((), device=setting.device)

    def adam(weights: Tensors, gradients: Tensors, moments: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, weight in weights.items():
            mean, square = moments[name]
            gradient = gradients[name]
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            denominator = square.sqrt() / (1 - BETAS[1] ** count).sqrt() + EPS
            weight.sub_(LR / (1 - BETAS[0] ** count) * mean / denominator)

    def compiled(real: Tensor, z: Tensor) -> None:
        def logits(weights: Tensors, x: Tensor) -> Tensor:
            made: Tensor = torch.func.functional_call(discriminator, weights, (x,))
            return made

        def d_loss(weights: Tensors, fake: Tensor) -> Tensor:
            loss = F.softplus(-logits(weights, real)).mean() + F.softplus(logits(weights, fake)).mean()
            if gamma:
                gradient = torch.func.grad(lambda x: logits(weights, x).sum())(real)
                loss = loss + gamma / 2 * gradient.flatten(1).square().sum(1).mean()
            return loss

        def g_loss(weights: Tensors) -> Tensor:
            return F.softplus(-logits(d, torch.func.functional_call(generator, weights, (z,)))).mean()

        count.add_(1)
        fake = torch.func.functional_call(generator, g, (z,))
        adam(d, torch.func.grad(d_loss)(d, fake), d_moments)
        adam(g, torch.func.grad(g_loss)(g), g_moments)
        for name, average in ema.items():
            average.lerp_(g[name], 1 - EMA)

    step = setting.compiled(compiled, mode, fullgraph=True)
    return step, [*g.values(), *d.values(), *ema.values()]


def ours(
    generator: nn.Module,
    discriminator: nn.Module,
    gamma: float,
    mode: Literal["auto", "eager", "native"] = "auto",
) -> tuple[Step, list[Tensor]]:
    device = next(generator.parameters()).device
    g, d = MLPGenerator().to(device), MLPDiscriminator().to(device)
    for network, plain in ((g, generator), (d, discriminator)):
        for own, other in zip(network.parameters(), plain.parameters(), strict=True):
            own.data.copy_(other.data)
    ema = [p.detach().clone() for p in g.parameters()]
    g_adam = AdamEMA(g.parameters(), LR, BETAS, EPS, ema_params=ema, ema_decay=EMA)
    d_adam = AdamEMA(d.parameters(), LR, BETAS, EPS)
    objective = Objective(d, AdversarialLoss("logistic"), gamma=gamma)
    train = AdversarialStep(g, d, objective, g_adam, d_adam, mode=mode)

    def step(real: Tensor, z: Tensor) -> None:
        train(real, z, penalize=bool(gamma))

    return step, [*g.parameters(), *d.parameters(), *ema]


def after_three_steps(
    build: Callable[[], tuple[Step, list[Tensor]]], real: Tensor, z: Tensor, contender: str
) -> tuple[Callable[[], object], list[Tensor]]:
    step, state = build()
    run = partial(step, real, z)
    if contender.endswith("CUDA graph"):
        return graphed(run, warm_up=3), state
    for _ in range(3):
        run()
    return run, state


def cases(setting: Setting) -> Iterable[Case]:
    builders: dict[str, Callable[..., tuple[Step, list[Tensor]]]] = {"eager": eager}
    for name, mode in setting.compile_modes().items():
        builders[name.replace("compile", "compile, one graph", 1)] = partial(
            one_graph, setting=setting, mode=mode
        )
    builders["aigc_ext"] = ours if setting.on_card else partial(ours, mode="native")
    if not setting.on_card:
        builders["aigc_ext, eager step"] = partial(ours, mode="eager")
    else:
        builders |= {"eager, CUDA graph": partial(eager, capturable=True), "aigc_ext, CUDA graph": ours}
    for batch, gamma in itertools.product((64,) if setting.on_card else (64, 16, 256, 1024), (0.0, GAMMA)):
        name = f"batch {batch}, R1 every step" if gamma else f"batch {batch}"
        torch.manual_seed(0)
        real, z = (t.to(setting.device) for t in (torch.rand(batch, 1, 28, 28), torch.randn(batch, 100)))
        networks = tuple(network.to(setting.device) for network in plain_networks())
        torch.compiler.reset()  # else the cases before count towards the limit of recompilations
        built = those_that_work(
            {
                contender: partial(
                    after_three_steps, partial(build, *copy.deepcopy(networks), gamma), real, z, contender
                )
                for contender, build in builders.items()
            }
        )
        for contender, (_, state) in built.items():
            for own, expected in zip(state, built["eager"][1], strict=True):
                # Together, since Adam's first steps are as long for a gradient of rounding errors as for any.
                distance, limit = float((own - expected).detach().norm()), 0.1 * LR * expected.numel() ** 0.5
                assert distance <= limit, f"{contender}: distance {distance:.2g}, at most {limit:.2g}"
        contenders = {contender: run for contender, (run, _) in built.items()}
        yield Case("MLP GAN step", name, contenders, outputs=None, turn=0.05)
        if setting.quick:
            return
