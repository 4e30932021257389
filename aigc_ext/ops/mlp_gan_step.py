"""A training step of a GAN whose networks are chains of linear layers, as one op without autograd.

At such sizes, autograd and the calls between the products cost more than the products. Here the discriminator
runs once on real and generated images together, the gradients are explicit products, and where R1 or R2 is
taken, the weight gradients of loss and penalty are one product. Adam and the average of the weights follow in
place. For the CPU, float32 and float64; elsewhere it is plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_same_kind, dtype_name, shape_of
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import NATIVES, Op, native
from aigc_ext.ops._route import Route, take
from aigc_ext.ops.activations import activation_names, check_activation, resolve_activation
from aigc_ext.ops.adam_ema import adam_ema_ref, check_learning, check_rates
from aigc_ext.ops.fused_mlp import fused_mlp_ref
from aigc_ext.ops.gan_loss import (
    RELATIVISTIC,
    check_options,
    discriminator_loss_and_stats_ref,
    generator_loss_ref,
)


class MLPLearner(NamedTuple):
    """A chain of linear layers with activations, the state of its optimizer, and how it learns. The lists of
    tensors are parallel to ``params``; all but ``steps`` and ``skipped`` are contiguous and of one dtype."""

    params: Sequence[Tensor]
    """Weight ``[out_features, in_features]`` and bias ``[out_features]`` of each layer in turn."""
    grads: Sequence[Tensor]
    """Where the gradients go. What is in them does not matter."""
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    emas: Sequence[Tensor]
    """Empty for no average."""
    steps: Sequence[Tensor]
    """As for :func:`aigc_ext.ops.adam_ema_`."""
    acts: tuple[str, ...]
    """An activation for each layer, as for :func:`aigc_ext.ops.fused_mlp`."""
    alphas: tuple[float | None, ...]
    gains: tuple[float | None, ...]
    rates: Sequence[float]
    """lr, beta1, beta2, eps, weight_decay and ema_decay, as for :func:`aigc_ext.ops.adam_ema_`."""
    skipped: Tensor | None = None
    """One int64 number, which counts the steps that changed nothing."""
    skip_nonfinite: bool = True
    """A step whose loss or gradient is not finite changes nothing but ``skipped``."""


def mlp_gan_step_(
    real: Tensor,
    z: Tensor,
    generator: MLPLearner,
    discriminator: MLPLearner,
    kind: str = "logistic",
    label_smoothing: float = 0.0,
    l2_weight: float = 0.0,
    gamma: float = 0.0,
    r2: bool = False,
    train_generator: bool = True,
    spare: int = 0,
) -> tuple[Tensor, Tensor]:
    """One adversarial step in place: the discriminator learns from a batch, then the generator from the
    updated discriminator. Both networks' ``grads`` hold the gradients then. Autograd does not record it.

    Args:
        real: images ``[N, ...]``, N at least 1; float32 or float64.
        z: latents ``[N, in_features]`` of the generator, of the same dtype.
        generator, discriminator: the generator's last layer makes as many numbers as an image has.
        kind, label_smoothing, l2_weight: of the loss, as for :func:`aigc_ext.ops.discriminator_loss` and
            :func:`aigc_ext.ops.generator_loss`.
        gamma: the discriminator's loss gets ``gamma / 2 * mean |dD/dx|^2`` at the real images (R1).
        r2: and at the generated ones.
        train_generator: False leaves the generator as it is; only its ``params`` and layers are needed then.
        spare: so many entries behind the statistics, NaN, for what a caller computes besides; at most 64.

    Returns:
        The vector of loss_d, loss_g, d_real, d_fake, acc_real, acc_fake (see
        :class:`aigc_ext.ops.LossStats`), r1 and r2, in which what was not computed is NaN; and the generated
        images ``[N, features]``.

    Raises:
        ValueError: an unknown kind or activation; a number out of range.
        RuntimeError: tensors do not fit together; a dtype or device that is not supported. Nothing has been
            written then.
    """
    check_options(kind, label_smoothing, l2_weight, "mean")
    if decomposed() or take("mlp_gan_step_", _route(z)) == "plain PyTorch":
        return mlp_gan_step_ref(
            *(real, z, generator, discriminator, kind, label_smoothing, l2_weight, gamma, r2),
            *(train_generator, spare),
        )
    resolve = _resolve if torch.compiler.is_compiling() else _resolve_once  # Dynamo warns of the cache
    g_layers = resolve(generator.acts, generator.alphas, generator.gains)
    d_layers = resolve(discriminator.acts, discriminator.alphas, discriminator.gains)
    statistics, fake = _mlp_gan_step_(
        *(real, z, *generator[:6], generator.skipped, *discriminator[:6], discriminator.skipped),
        *(*g_layers, generator.rates, generator.skip_nonfinite),
        *(*d_layers, discriminator.rates, discriminator.skip_nonfinite),
        *(kind, label_smoothing, l2_weight, gamma, r2, train_generator, spare),
    )
    # As in adam_ema_: the dispatcher does not keep these counts for custom ops.
    d, g = discriminator, generator
    written = [*d.params, *d.exp_avgs, *d.exp_avg_sqs, *d.emas]
    if train_generator:
        written += [*g.params, *g.exp_avgs, *g.exp_avg_sqs, *g.emas]
    torch.autograd.graph.increment_version(written)
    return statistics, fake


def has_mlp_gan_step(device: torch.device) -> bool:
    """Whether there is a kernel for tensors of this device."""
    return device.type == "cpu" and _HAS_KERNEL


def _route(z: Tensor) -> Route:
    if has_mlp_gan_step(z.device):
        return _NATIVE
    return Route("plain PyTorch", f"there is no kernel for {z.device}")


_NATIVE = Route("mlp_gan_step_", "its tensors are on the CPU")


def _resolve(
    acts: tuple[str, ...], alphas: tuple[float | None, ...], gains: tuple[float | None, ...]
) -> tuple[str, list[float], list[float]]:
    if not len(acts) == len(alphas) == len(gains):
        raise ValueError(f"mlp_gan_step_: {len(acts)} acts, but {len(alphas)} alphas and {len(gains)} gains")
    layers = [resolve_activation(*layer, None) for layer in zip(acts, alphas, gains, strict=True)]
    return ",".join(acts), [alpha for _, alpha, _ in layers], [gain for _, _, gain in layers]


_resolve_once = lru_cache(maxsize=256)(_resolve)


def mlp_gan_step_ref(
    real: Tensor,
    z: Tensor,
    generator: MLPLearner,
    discriminator: MLPLearner,
    kind: str = "logistic",
    label_smoothing: float = 0.0,
    l2_weight: float = 0.0,
    gamma: float = 0.0,
    r2: bool = False,
    train_generator: bool = True,
    spare: int = 0,
) -> tuple[Tensor, Tensor]:
    """:func:`mlp_gan_step_` in plain PyTorch."""
    nan = real.new_full((), torch.nan)
    with torch.enable_grad():
        g_leaves, fake = _run(generator, z)
        d_leaves = [p.detach().requires_grad_() for p in discriminator.params]
        x, y = (t.detach().requires_grad_() for t in (real.flatten(1), fake))
        real_logits, fake_logits = (_run(discriminator, images, d_leaves)[1] for images in (x, y))
        loss, stats = discriminator_loss_and_stats_ref(
            real_logits, fake_logits, kind, label_smoothing, l2_weight
        )
        r1_mean = r2_mean = nan
        if gamma:
            r1_mean = _mean_square_slope(real_logits, x)
            penalty = r1_mean
            if r2:
                r2_mean = _mean_square_slope(fake_logits, y)
                penalty = r1_mean + r2_mean
            loss = loss + gamma / 2 * penalty
        _learn(discriminator, torch.autograd.grad(loss, d_leaves), loss)

        loss_g = nan
        if train_generator:
            d_leaves = [p.detach() for p in discriminator.params]
            fake_logits = _run(discriminator, fake, d_leaves)[1]
            if kind in RELATIVISTIC:
                real_logits = _run(discriminator, real.flatten(1), d_leaves)[1]
            loss_g = generator_loss_ref(fake_logits, real_logits, kind, l2_weight, fake)
            _learn(generator, torch.autograd.grad(loss_g, g_leaves), loss_g)
    d_real, d_fake, acc_real, acc_fake = stats
    wrong = loss.detach() * 0  # a NaN is neither right nor wrong
    figures = [loss, loss_g, d_real, d_fake, acc_real + wrong, acc_fake + wrong, r1_mean, r2_mean]
    figures += [nan] * spare
    return torch.stack([figure.detach().to(nan.dtype) for figure in figures]), fake.detach()


def _run(learner: MLPLearner, x: Tensor, leaves: list[Tensor] | None = None) -> tuple[list[Tensor], Tensor]:
    if leaves is None:
        leaves = [p.detach().requires_grad_() for p in learner.params]
    y = fused_mlp_ref(x, leaves[::2], leaves[1::2], learner.acts, learner.alphas, learner.gains)
    return leaves, y


def _mean_square_slope(logits: Tensor, x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return slope.square().sum(1).mean()


@torch.no_grad()
def _learn(learner: MLPLearner, gradients: Sequence[Tensor], loss: Tensor) -> None:
    torch._foreach_copy_(list(learner.grads), list(gradients))
    # An infinite loss can have finite gradients: softplus of an overflown logit has slope 1.
    min(learner.grads, key=Tensor.numel).add_(loss * 0)
    lr, beta1, beta2, eps, weight_decay, ema_decay = learner.rates
    adam_ema_ref(
        *learner[:6],
        *(lr, beta1, beta2, eps, weight_decay, ema_decay),
        skipped=learner.skipped,
        skip_nonfinite=learner.skip_nonfinite,
    )


# ---- native ops --------------------------------------------------------------------------------------------


def _fake(real: Tensor, z: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    op = "mlp_gan_step_"
    g_lists, g_skipped, d_lists, d_skipped, numbers = rest[:6], rest[6], rest[7:13], rest[13], rest[14:]
    g_layers, d_layers = (numbers[0:3], numbers[3]), (numbers[5:8], numbers[8])
    kind, label_smoothing, l2_weight, _, _, train_generator, spare = numbers[10:]
    if z.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(f"{op}: z is {dtype_name(z.dtype)}, but must be float32 or float64")
    check_same_kind(op, z=z, real=real)
    if z.dim() != 2 or z.size(0) < 1:
        raise RuntimeError(f"{op}: z has shape {shape_of(z)}, but must be [N, in_features], N at least 1")
    batch = z.size(0)
    if real.dim() < 2 or real.size(0) != batch:
        raise RuntimeError(
            f"{op}: real has shape {shape_of(real)}, but must be [{batch}, ...], as z of shape {shape_of(z)}"
        )
    if not 0 <= spare <= 64:
        raise RuntimeError(f"{op}: spare is {spare}, but must be from 0 to 64")
    pixels = math.prod(real.shape[1:])
    made = _check_learner(
        f"{op}, generator", z, z.size(1), g_lists, g_skipped, *g_layers, learns=train_generator
    )
    if made != pixels:
        raise RuntimeError(f"{op}: the generator makes {made} numbers, but a real image has {pixels}")
    _check_learner(f"{op}, discriminator", z, pixels, d_lists, d_skipped, *d_layers, learns=True)
    check_options(kind, label_smoothing, l2_weight, "mean", native=op)
    return z.new_empty(8 + spare), z.new_empty(2 * batch, pixels)[batch:]  # behind the real images


def _check_learner(
    op: str,
    z: Tensor,
    in_features: int,
    lists: Sequence[Sequence[Tensor]],
    skipped: Tensor | None,
    layers: tuple[str, Sequence[float], Sequence[float]],
    rates: Sequence[float],
    learns: bool,
) -> int:
    """What ``make_chain`` of csrc/mlp_gan_step/mlp_gan_step.cpp checks; returns the result's features."""
    params, grads = lists[:2]
    acts, (alphas, gains) = activation_names(layers[0]), layers[1:]
    count = len(alphas)
    if not (count >= 1 and len(gains) == count and len(params) == 2 * count):
        raise RuntimeError(
            f"{op}: params has {len(params)} tensors, alphas {count} and gains {len(gains)} numbers, but "
            "there must be a weight, a bias, an alpha and a gain for each layer"
        )
    if len(rates) != 6:
        raise RuntimeError(
            f"{op}: rates has {len(rates)} numbers, but must have lr, beta1, beta2, eps, weight_decay and "
            "ema_decay"
        )
    lr, beta1, beta2, eps, weight_decay, ema_decay = rates
    check_rates(op, lr, beta1, beta2, weight_decay, ema_decay)
    for i, param in enumerate(params):
        check_same_kind(op, **{"z": z, f"params[{i}]": param})
        if not param.is_contiguous():
            raise RuntimeError(
                f"{op}: params[{i}] has shape {shape_of(param)} and strides {list(param.stride())}, but must "
                "be contiguous"
            )
    if learns:
        check_learning(op, lists, eps, skipped)
    for i, (w, b) in enumerate(zip(params[::2], params[1::2], strict=True)):
        if w.dim() != 2 or w.size(1) != in_features:
            raise RuntimeError(
                f"{op}: params[{2 * i}] has shape {shape_of(w)}, but must be [out_features, {in_features}]"
            )
        if b.dim() != 1 or b.size(0) != w.size(0):
            raise RuntimeError(
                f"{op}: params[{2 * i + 1}] has shape {shape_of(b)}, but must be [{w.size(0)}]"
            )
        for k in (2 * i, 2 * i + 1) if learns else ():
            if not grads[k].is_contiguous():
                raise RuntimeError(
                    f"{op}: grads[{k}] has strides {list(grads[k].stride())}, but must be contiguous"
                )
        if i >= len(acts):
            raise RuntimeError(f"{op}: acts has {i} names, but there are {count} layers")
        check_activation(op, acts[i], alphas[i], gains[i], None)
        in_features = w.size(0)
    if len(acts) > count:
        raise RuntimeError(f"{op}: acts has more names than there are layers, which are {count}")
    return in_features


_mlp_gan_step_ = native("mlp_gan_step_", fake=_fake, cuda=False)
_HAS_KERNEL = NATIVES["mlp_gan_step_"].overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU)


def _example() -> dict[str, Any]:
    def learner(acts: tuple[str, ...], *widths: int) -> MLPLearner:
        shapes = [s for i, o in pairwise(widths) for s in ((o, i), (o,))]
        params, grads, emas = ([torch.randn(shape) / 4 for shape in shapes] for _ in range(3))
        exp_avgs, exp_avg_sqs = ([torch.rand(shape) for shape in shapes] for _ in range(2))
        steps, none = [torch.zeros(()) for _ in shapes], (None,) * len(acts)
        rates = (1e-3, 0.5, 0.99, 1e-8, 0.0, 0.99)
        return MLPLearner(params, grads, exp_avgs, exp_avg_sqs, emas, steps, acts, none, none, rates)

    return {
        "real": torch.rand(4, 1, 3, 3),
        "z": torch.randn(4, 5),
        "generator": learner(("lrelu", "tanh", "sigmoid"), 5, 8, 8, 9),
        "discriminator": learner(("lrelu", "tanh", "linear"), 9, 8, 8, 1),
        "gamma": 0.5,
        "r2": True,
    }


OPS = [Op(mlp_gan_step_, mlp_gan_step_ref, _example)]
ALSO = (MLPLearner,)
