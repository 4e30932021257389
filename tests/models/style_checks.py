"""What holds for the generators of StyleGAN2 and StyleGAN3 alike."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import aigc_ext
from aigc_ext.losses import r1_penalty
from aigc_ext.models.style import StyleGenerator

M = TypeVar("M", bound=nn.Module)


def rms(x: Tensor) -> float:
    return x.detach().double().square().mean().sqrt().item()


def disturb(network: M) -> M:
    """Gives biases, noise strengths and other parameters that start at a constant values that show."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() < 2 or parameter.var() == 0:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def check_config(network: nn.Module, build: Callable[..., nn.Module]) -> None:
    again = build(json.loads(json.dumps(network.config)))
    assert type(again) is type(network)
    assert again.config == network.config
    again.load_state_dict(network.state_dict())


def check_decomposed(loss: Callable[[], Tensor], network: nn.Module) -> None:
    """The loss and all gradients are those of plain PyTorch."""
    results = []
    for plain in (False, True):
        network.zero_grad()
        if plain:
            with aigc_ext.decompose():
                value = loss()
                value.backward()
        else:
            value = loss()
            value.backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        results.append((value.detach(), gradients))
    (value, gradients), (plain_value, plain_gradients) = results
    torch.testing.assert_close(value, plain_value, rtol=1e-9, atol=1e-12)
    for name, gradient in gradients.items():
        plain_gradient = plain_gradients[name]
        if gradient is None or plain_gradient is None:
            assert gradient is plain_gradient, name
            continue
        error = (gradient - plain_gradient).abs().max().item()
        assert error <= 1e-9 * (plain_gradient.abs().max().item() + 1e-3), (name, error)
    assert sum(g.abs().sum() for g in gradients.values() if g is not None) > 0


def path_length(generator: StyleGenerator, z: Tensor) -> Tensor:
    """The regularisation of StyleGAN2 and an ordinary loss, so that all parameters get a gradient."""
    w = generator.mapping(z)
    images = generator.synthesis(w, "const")
    noise = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).sin().reshape(images[0].shape)
    (slope,) = torch.autograd.grad(
        (images * noise).sum() / math.sqrt(images[0, 0].numel()), w, create_graph=True
    )
    return (slope.square().sum(2).mean(1).sqrt() - 0.7).square().mean() + images.square().mean()


def check_mapping(generator: StyleGenerator) -> None:
    """The mean of w, truncation, and w itself, which is about of unit scale."""
    z = torch.randn(256, generator.z_dim)
    assert generator.w_avg.abs().max() == 0
    generator.eval()
    w = generator.mapping(z)
    assert w.shape == (256, generator.num_ws, generator.w_dim)
    assert torch.equal(w, w[:, :1].expand_as(w))
    assert 0.5 < rms(w) < 2
    torch.testing.assert_close(generator.mapping(3 * z), w)  # only the direction of z counts
    assert generator.w_avg.abs().max() == 0
    generator.train()
    for _ in range(3):
        generator.mapping(z)
    factor = 1 - 0.5 ** (3 * 256 / 5000)
    torch.testing.assert_close(generator.w_avg, factor * w[:, 0].mean(0), rtol=1e-4, atol=1e-6)
    halves = copy.deepcopy(generator)
    generator.mapping(z)
    halves.mapping(z[:128]), halves.mapping(z[128:])
    assert (halves.w_avg - generator.w_avg).abs().max() < 0.01 * generator.w_avg.abs().max()

    generator.eval()
    average = generator.w_avg
    torch.testing.assert_close(generator.mapping(z, truncation=0.7), average + 0.7 * (w - average))
    partly = generator.mapping(z, truncation=0.7, truncation_cutoff=2)
    assert torch.equal(partly[:, :2], generator.mapping(z, truncation=0.7)[:, :2])
    assert torch.equal(partly[:, 2:], w[:, 2:])
    images = generator(z[:3], truncation=0.0)
    torch.testing.assert_close(images, images[:1].expand_as(images))
    assert rms(generator(z[:3]) - images) > 1e-2


def check_evaluation(generator: StyleGenerator) -> None:
    """In eval mode a latent means one image, whatever it is computed with."""
    generator.eval()
    z = torch.randn(5, generator.z_dim, dtype=torch.float64)
    with torch.no_grad():
        images = generator(z)
        assert torch.equal(images, generator(z))
        for part in (slice(0, 1), slice(1, 3)):
            torch.testing.assert_close(generator(z[part]), images[part], rtol=1e-10, atol=1e-12)


def channels_last(network: nn.Module) -> nn.Module:
    """A copy in that memory format."""
    copied: Any = copy.deepcopy(network)  # nn.Module.to is annotated without memory_format
    moved: nn.Module = copied.to(memory_format=torch.channels_last)
    return moved


def check_dtypes(generator: StyleGenerator, discriminator: nn.Module) -> None:
    """bfloat16, by autocast and by conversion, and channels-last against float32."""
    generator.eval()
    z = torch.randn(4, generator.z_dim)
    with torch.no_grad():
        images = generator(z)
        logits = discriminator(images)
        last = channels_last(generator)
        torch.testing.assert_close(last(z), images, rtol=1e-3, atol=1e-4)
        formats = []
        hook = nn.modules.module.register_module_forward_hook(
            lambda module, args, y: (
                formats.append(y) if type(module).__name__ in ("_StyledConv", "_Layer") else None
            )
        )
        last(z)
        hook.remove()
        assert all(y.is_contiguous(memory_format=torch.channels_last) for y in formats)
        assert formats
        last = channels_last(discriminator)
        torch.testing.assert_close(
            last(images.contiguous(memory_format=torch.channels_last)), logits, rtol=1e-3, atol=1e-4
        )
        half = copy.deepcopy(generator).bfloat16()(z.bfloat16())
        assert half.dtype == torch.bfloat16
        assert rms(half - images) < 0.1 * rms(images)
        half = copy.deepcopy(discriminator).bfloat16()(images.bfloat16())
        assert half.dtype == torch.bfloat16
        assert rms(half - logits) < 0.1 * rms(logits)
    kinds = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, y: kinds.append(y.dtype))
    gradients = []
    for half in (False, True):
        # With the penalties and backward inside, too.
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            images = generator(z)
            logits_half = discriminator(images)
            loss = logits_half.mean() + 0.1 * path_length(generator, z)
            gradients.append(torch.autograd.grad(loss, list(generator.parameters()), allow_unused=True))
            r1_penalty(discriminator, images.detach()).backward()
    hook.remove()
    assert torch.bfloat16 in kinds
    assert images.dtype == logits_half.dtype == torch.float32
    assert rms(logits_half - logits) < 0.1 * rms(logits)
    full_flat, half_flat = (torch.cat([g.flatten() for g in each if g is not None]) for each in gradients)
    assert torch.cosine_similarity(full_flat, half_flat, dim=0) > 0.95
    assert all(p.grad.isfinite().all() for p in discriminator.parameters() if p.grad is not None)
