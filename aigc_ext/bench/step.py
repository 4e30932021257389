"""A whole training step of each preset's networks: D's update, then G's with the average of its weights.

The losses, penalties and optimizers are the preset's, from equal images and latents. Augmentation, blur and
mixed styles are off, and the networks are narrow, so that a step takes less than a second on one core. In a
run, StyleGAN's penalties (R1 and path lengths; R1 for StyleGAN3) are not in every step: their cases show both
kinds of step.

- eager: the networks of `aigc_ext.bench.plain`; D frozen in G's step, ``Adam(fused=True)``,
  ``torch._foreach_lerp_``. StyleGAN's modulated convolutions scale the images before and after.
- eager, grouped: modulated convolutions with a group for each sample.
- eager, channels_last: with networks and images in that memory format.
- compile: eager with G, D's loss and G's loss compiled. `torch.compile` has no double backward, so there are
  no penalties, and StyleGAN would take minutes.
- plain networks, traced: eager's networks in our step, which takes any.
- aigc_ext: the step that ``aigc-ext train`` runs, traced; for `mlp` native. On the CPU convolutional networks
  have ``channels_last``, as the next two have.
- aigc_ext, eager step: by autograd; compiled: the traced one through Inductor.
- channels_last bf16, compiled bf16: in that format, and in bfloat16 by autocast, as with
  ``precision: bfloat16``.

The weights change during the measurement. The first step of those in float32 is compared, from equal weights
and random numbers: weights and averages, and gradients where the step keeps them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext.bench.plain import AliasFreeLayer, ModulatedConv2d, plain
from aigc_ext.bench.timing import Case, Setting, those_that_work
from aigc_ext.data.dataset import TensorImages
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan import AdversarialStep, recipe
from aigc_ext.tasks.gan.config import AdamConfig, TrainConfig
from aigc_ext.tasks.gan.presets import PRESETS

Mode = Literal["eager", "native", "traced", "compiled"]
_DRAWS = 3
EMA = 0.99  # its step is large enough to be seen in float32


class Built(NamedTuple):
    """A step on images and latents, and the networks and averages that it changes."""

    step: Callable[[Tensor, Tensor], object]
    generator: nn.Module
    discriminator: nn.Module
    ema: Sequence[Tensor]


@dataclass(frozen=True)
class Size:
    """A preset with networks of fewer channels."""

    preset: str
    side: int
    batch: int
    generator: dict[str, Any]
    discriminator: dict[str, Any]
    penalties: Sequence[bool] = (False, True)
    colours: int = 3

    def config(self) -> TrainConfig:
        shape = (self.colours, self.side, self.side)
        preset = PRESETS[self.preset]
        config = replace(
            preset,
            batch=self.batch,
            generator=replace(preset.generator, image_shape=shape, **self.generator),
            discriminator=replace(preset.discriminator, image_shape=shape, **self.discriminator),
        )
        config = config.override("augment.kind", "noaug").override("augment.blur_sigma", 0.0)
        images = torch.randint(256, (1, *shape), dtype=torch.uint8)
        return recipe.complete(config, TensorImages("noise", images))


def sizes(quick: bool) -> Iterable[Size]:
    style = {"channel_base": 1024, "channel_max": 32}
    latents = {"z_dim": 128, "w_dim": 128}
    wide = {"channel_base": 1024, "channel_max": 64}
    if quick:
        tiny = {"channel_base": 64, "channel_max": 4}
        yield Size("mlp", 8, 4, {"z_dim": 8, "hidden": (8, 8)}, {"hidden": (8, 8)}, [True], colours=1)
        short = {"z_dim": 8, "w_dim": 8, "mapping_layers": 1}
        yield Size("dcgan", 8, 4, {"channels": 4}, {"channels": 4}, [False])
        yield Size("sngan", 8, 4, {"channels": 4}, {"channels": 4}, [False])
        yield Size("stylegan2", 8, 4, {**short, **tiny}, tiny, [True])
        yield Size("stylegan3-t", 8, 4, {**short, **tiny, "num_layers": 3}, tiny, [True])
        yield Size("r3gan", 8, 4, {**tiny, "blocks": 1}, {**tiny, "blocks": 1}, [True])
        return
    yield Size("mlp", 28, 64, {}, {}, colours=1)
    for side in (28, 32):
        yield Size("dcgan", side, 32, {"channels": 32}, {"channels": 32}, [False])
    yield Size("sngan", 32, 16, {"channels": 32}, {"channels": 32}, [False])
    yield Size("stylegan2", 64, 8, {**latents, **style}, style)
    yield Size("stylegan3-t", 64, 4, {**latents, **style, "num_layers": 8}, style)
    yield Size("r3gan", 32, 16, wide, wide)
    yield Size("r3gan", 64, 8, wide, wide)


def networks(config: TrainConfig) -> tuple[nn.Module, nn.Module]:
    """Ours, in training mode. Parameters that start at zero get other values, because some, such as the last
    layers of R3GAN's blocks, would leave others without a gradient."""
    generator, discriminator = build_generator(config.generator), build_discriminator(config.discriminator)
    with torch.no_grad():
        for parameter in (*generator.parameters(), *discriminator.parameters()):
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return generator, discriminator


def eager(
    generator: nn.Module,
    discriminator: nn.Module,
    config: TrainConfig,
    penalize: bool,
    autocast: bool = False,
    channels_last: bool = False,
    grouped: bool = False,
    compiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda function: function,
) -> Built:
    generator, discriminator = plain(generator), plain(discriminator)
    for module in generator.modules():
        if isinstance(module, (ModulatedConv2d, AliasFreeLayer)):
            module.grouped = grouped
    if channels_last:
        _to_channels_last(generator, discriminator)
    weights, d_weights = list(generator.parameters()), list(discriminator.parameters())
    ema = [weight.detach().clone() for weight in weights]
    g_adam, d_adam = (
        torch.optim.AdamW(
            *(parameters, settings.lr, (settings.beta1, settings.beta2), settings.eps, settings.weight_decay),
            fused=True,
        )
        for parameters, settings in ((weights, config.g_optim), (d_weights, config.d_optim))
    )
    loss, path_mean = config.loss, torch.zeros((), device=weights[0].device)
    assert loss.gamma is not None
    factor = loss.gamma / 2 * loss.r1_interval
    arithmetic = partial(torch.autocast, weights[0].device.type, torch.bfloat16, enabled=autocast)

    def wide(x: Tensor) -> Tensor:
        return x.float() if autocast else x

    @compiled
    def generate(z: Tensor) -> Tensor:
        with arithmetic():
            images: Tensor = generator(z)
        return wide(images)

    def logits(images: Tensor) -> Tensor:
        with arithmetic():
            made: Tensor = discriminator(images)
        return wide(made)

    def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()

    @compiled
    def d_loss(real: Tensor, fake: Tensor) -> Tensor:
        if penalize:
            real, fake = real.detach().requires_grad_(), fake.detach().requires_grad_(loss.r2)
        r, f = logits(real), logits(fake)
        if loss.kind == "hinge":
            total = F.relu(1 - r).mean() + F.relu(1 + f).mean()
        elif loss.kind == "relativistic":
            total = F.softplus(f - r).mean()
        else:
            total = F.softplus(-r).mean() + F.softplus(f).mean()
        if penalize:
            total = total + factor * squared_gradient(r, real)
            if loss.r2:
                total = total + factor * squared_gradient(f, fake)
        return total

    @compiled
    def g_loss(real: Tensor, fake: Tensor) -> Tensor:
        f = logits(fake)
        if loss.kind == "hinge":
            return -f.mean()
        if loss.kind == "relativistic":
            with torch.no_grad():
                r = logits(real)
            return F.softplus(r - f).mean()
        return F.softplus(-f).mean()

    def path_loss(z: Tensor, like: Tensor) -> Tensor:
        z = z[:: loss.path_every]
        noise = torch.randn(len(z), *like.shape[1:], device=z.device) / like[0, 0].numel() ** 0.5
        with arithmetic():
            w = generator.mapping(z)  # type: ignore[operator]
            images = generator.synthesis(w)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad((wide(images) * noise).sum(), w, create_graph=True)
        lengths = wide(gradient).square().sum(2).mean(1).sqrt()
        total = loss.path_weight * loss.path_interval * (lengths - path_mean).square().mean()
        path_mean.lerp_(lengths.detach().mean().to(path_mean.dtype), loss.path_decay)
        return total

    def step(real: Tensor, z: Tensor) -> None:
        fake = generate(z)
        d_adam.zero_grad(set_to_none=True)
        # Only the weights' gradients: the penalties' images have one too, which is not needed.
        d_loss(real, fake.detach()).backward(inputs=d_weights if penalize else None)
        d_adam.step()
        discriminator.requires_grad_(False)
        g_adam.zero_grad(set_to_none=True)
        g_loss(real, fake).backward()
        if penalize and loss.path_weight:
            path_loss(z, fake).backward()
        discriminator.requires_grad_(True)
        g_adam.step()
        torch._foreach_lerp_(ema, [weight.detach() for weight in weights], 1 - EMA)

    return Built(step, generator, discriminator, ema)


def ours(
    generator: nn.Module,
    discriminator: nn.Module,
    config: TrainConfig,
    penalize: bool,
    autocast: bool = False,
    mode: Mode = "eager",
    prepare: Callable[[nn.Module], nn.Module] = copy.deepcopy,
) -> Built:
    generator, discriminator = prepare(generator), prepare(discriminator)
    if autocast:
        config = replace(config, precision="bfloat16")
    if config.channels_last or autocast:
        _to_channels_last(generator, discriminator)
    ema = [weight.detach().clone() for weight in generator.parameters()]

    def adam(network: nn.Module, settings: AdamConfig, ema: list[Tensor] | None = None) -> AdamEMA:
        rates = recipe.rates(settings, 0.0)
        return AdamEMA(network.parameters(), **rates, eps=settings.eps, ema_params=ema, ema_decay=EMA)

    train = AdversarialStep(
        *(generator, discriminator, recipe.make_objective(discriminator, config)),
        *(adam(generator, config.g_optim, ema), adam(discriminator, config.d_optim)),
        path_decay=config.loss.path_decay,
        path_every=config.loss.path_every,
        mode=mode,
    )
    stretch = penalize and config.loss.path_weight > 0
    return Built(partial(train, penalize=penalize, stretch=stretch), generator, discriminator, ema)


def _to_channels_last(*networks: nn.Module) -> None:
    for network in networks:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def first_step(built: Built, real: Tensor, z: Tensor) -> dict[str, list[Tensor]]:
    """Takes a step, and two more to warm up; returns what the first one has left."""
    torch.manual_seed(1)
    built.step(real, z)
    g: list[Tensor] = list(built.generator.parameters())
    d: list[Tensor] = list(built.discriminator.parameters())
    left = {"G": g, "D": d, "the average of G": list(built.ema)}
    if d[0].grad is not None:
        left |= {"G's gradients": [*map(_gradient, g)], "D's gradients": [*map(_gradient, d)]}
    left = {name: [t.detach().clone() for t in tensors] for name, tensors in left.items()}
    for _ in range(2):
        built.step(real, z)
    return left


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def check_same(
    got: dict[str, list[Tensor]], expected: dict[str, list[Tensor]], lr: float, contender: str
) -> None:
    """Compares the gradients, weights and averages after a first step.

    Gradients mostly agree to 1e-6, but one ReLU within rounding of its kink changes them by some thousandths;
    tests/test_benchmark_step.py compares them closely, in float64. A gradient of rounding errors only, such
    as that of a bias before batch norm, must be small compared to the whole network's. With a beta1 of 0
    Adam's first step is as long for it as for any other, in a direction of chance: so the weights' distances
    are judged together. Compiled code rounds more coarsely, which takes more ReLUs to the other side; so may
    PyTorch's own other memory format: of DCGAN's first gradient a fiftieth, on an AMD EPYC.
    """
    factor = 10 if "compile" in contender or contender.startswith(("eager", "plain")) else 1
    for name, tensors in ((name, expected[name]) for name in got):
        pairs = list(zip(got[name], tensors, strict=True))
        distances = [float((own - theirs).norm()) for own, theirs in pairs]
        if name.endswith("gradients"):
            whole = float(torch.stack([theirs.norm() for _, theirs in pairs]).norm())
            limits = [factor * (1e-2 * float(theirs.norm()) + 1e-5 * whole) for _, theirs in pairs]
        else:
            moved = lr * (1 - EMA) if name.startswith("the average") else lr
            weights = sum(theirs.numel() for _, theirs in pairs)
            distances = [sum(distance**2 for distance in distances) ** 0.5]
            limits = [factor * (0.1 * moved + 1e-7) * weights**0.5]
        for k, (distance, limit) in enumerate(zip(distances, limits, strict=True)):
            if not distance <= limit:
                raise AssertionError(
                    f"{contender}: {name}, {k}: the distance from eager is {distance:.2g}, "
                    f"but must be at most {limit:.2g}"
                )


def _inputs(batch: int, config: TrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    real = torch.randn(batch, *config.generator.image_shape, device=device).clamp_(-1, 1)
    return real, torch.randn(batch, config.generator.z_dim, device=device)  # type: ignore[attr-defined]


def case_of(size: Size, penalize: bool, setting: Setting, names: Collection[str] | None = None) -> Case:
    """The case of a preset's step, with the contenders of these names; None for all."""
    torch.manual_seed(0)
    config = size.config()
    generator, discriminator = (network.to(setting.device) for network in networks(config))
    given = generator, discriminator, config, penalize
    inputs = [_inputs(size.batch, config, setting.device) for _ in range(_DRAWS)]
    plainly, own = partial(eager, *given), partial(ours, *given)
    builders = {"eager": plainly}
    if size.preset.startswith("stylegan"):
        builders["eager, grouped"] = partial(plainly, grouped=True)
    elif not penalize:
        builders["compile"] = partial(plainly, compiled=partial(setting.compiled, dynamic=False))
    builders["eager, channels_last"] = partial(plainly, channels_last=True)
    builders["eager, channels_last bf16"] = partial(plainly, channels_last=True, autocast=True)
    fused: Mode = "native" if size.preset == "mlp" and not setting.on_card else "traced"
    builders |= {
        "plain networks, traced": partial(own, mode="traced", prepare=plain),
        "aigc_ext": partial(own, mode=fused),
        "aigc_ext, eager step": own,
        "aigc_ext, compiled": partial(own, mode="compiled"),
        "aigc_ext, channels_last bf16": partial(own, mode="traced", autocast=True),
        "aigc_ext, compiled bf16": partial(own, mode="compiled", autocast=True),
    }
    if setting.quick:  # no code generation
        builders = {
            name: build for name, build in builders.items() if not name.startswith("aigc_ext, compiled")
        }
    if not setting.compiled_steps:
        builders = {name: build for name, build in builders.items() if "compile" not in name}
    builders = {name: build for name, build in builders.items() if names is None or name in names}

    def begun(contender: str, draw: int = 0) -> tuple[Callable[[], object], dict[str, list[Tensor]]]:
        built, (images, z) = builders[contender](), inputs[draw]
        if "channels_last" in contender or (
            config.channels_last and not contender.startswith(("eager", "compile"))
        ):
            images = images.contiguous(memory_format=torch.channels_last)
        left = first_step(built, images, z)
        return partial(built.step, images, z), left

    def check(contender: str) -> None:
        """A first step can meet a kink on whose other side rounding takes it; other inputs meet others, if
        any. So one that differs is no fault if all others agree."""
        try:
            check_same(running[contender][1], running["eager"][1], config.g_optim.lr, contender)
        except AssertionError:
            for draw in range(1, _DRAWS):
                got, theirs = (begun(name, draw)[1] for name in (contender, "eager"))
                check_same(got, theirs, config.g_optim.lr, contender)

    torch.compiler.reset()  # else another case of the same networks would be compiled for any size
    running = those_that_work({contender: partial(begun, contender) for contender in builders})
    for contender in running:
        if not contender.endswith("bf16"):
            check(contender)
    loss = config.loss
    if penalize:
        names = "R1 and R2" if loss.r2 else "R1 and path lengths" if loss.path_weight else "R1"
    name = f"{size.preset} {size.side}x{size.side}, batch {size.batch}" + (f", {names}" if penalize else "")
    contenders = {contender: run for contender, (run, _) in running.items()}
    return Case("training step", name, contenders, outputs=None)


def cases(setting: Setting) -> Iterable[Case]:
    for size in sizes(setting.quick):
        for penalize in size.penalties:
            yield replace(case_of(size, penalize, setting), memory=True)
