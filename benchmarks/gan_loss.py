"""What does the discriminator's loss cost, from two batches of logits to their gradients?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from benchmarks.harness import Case, Setting


def softplus(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(
        real, torch.ones_like(real)
    ) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def statistics(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (
            real.sigmoid().mean(),
            fake.sigmoid().mean(),
            (real > 0).float().mean(),
            (fake < 0).float().mean(),
        )


def cases(setting: Setting) -> Iterable[Case]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    compiled = {
        contender: setting.compiled(softplus, mode) for contender, mode in setting.compile_modes().items()
    }
    shapes = {"64 logits": (64, 1), "64x1x30x30 patches": (64, 1, 30, 30)}
    for name, shape in [*shapes.items()][: 1 if setting.quick else None]:
        real, fake = (torch.randn(shape).to(setting.device).requires_grad_() for _ in range(2))
        # Bandwidth is irrelevant for 64 logits.
        traffic = 4 * real.numel() * real.element_size() if real.dim() > 2 else None

        def by_autograd(
            function: Callable[[Tensor, Tensor], Tensor], real: Tensor = real, fake: Tensor = fake
        ) -> tuple[Tensor, ...]:
            loss = function(real, fake)
            return loss.detach(), *torch.autograd.grad(loss, (real, fake))

        def in_one_call(real: Tensor = real, fake: Tensor = fake) -> tuple[Tensor, ...]:
            loss, _, d_real, d_fake = ops.discriminator_loss_and_grad(real, fake)
            return loss, d_real, d_fake

        yield Case(
            "discriminator_loss",
            f"logistic with gradient, {name}",
            {
                "eager, softplus": partial(by_autograd, softplus),
                "eager, BCE with logits": partial(by_autograd, cross_entropy),
                **{contender: partial(by_autograd, function) for contender, function in compiled.items()},
                "aigc_ext": partial(by_autograd, ops.discriminator_loss),
                "aigc_ext, one call": in_one_call,
            },
            bytes=traffic,
            graphs=("eager, softplus", "aigc_ext", "aigc_ext, one call"),
        )

        def with_statistics(
            function: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
            real: Tensor = real,
            fake: Tensor = fake,
        ) -> tuple[Tensor, ...]:
            loss, stats = function(real, fake)
            return loss.detach(), *torch.autograd.grad(loss, (real, fake)), *stats

        def all_in_one_call(real: Tensor = real, fake: Tensor = fake) -> tuple[Tensor, ...]:
            loss, stats, d_real, d_fake = ops.discriminator_loss_and_grad(real, fake)
            return loss, d_real, d_fake, *stats

        yield Case(
            "discriminator_loss",
            f"logistic with gradient and statistics, {name}",
            {
                "eager, softplus": partial(with_statistics, lambda r, f: (softplus(r, f), statistics(r, f))),
                "aigc_ext": partial(with_statistics, ops.discriminator_loss_and_stats),
                "aigc_ext, one call": all_in_one_call,
            },
            bytes=traffic,
            graphs=("eager, softplus", "aigc_ext, one call"),
        )
