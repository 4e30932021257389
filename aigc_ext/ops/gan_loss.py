"""Adversarial losses: one pass over the logits gives the loss, its gradient and what a training loop logs.

With s = softplus, real logits r = D(x) and fake logits f = D(G(z)):

================  ========================================  ===============  =======================
kind              discriminator                             generator        source
================  ========================================  ===============  =======================
logistic          mean s(-r) + mean s(f)                    mean s(-f)       Goodfellow et al. 2014
minimax           the same                                  -mean s(f)       Goodfellow et al. 2014
hinge             mean max(0, 1-r) + mean max(0, 1+f)       -mean f          Lim and Ye 2017
lsgan             mean (r-1)^2 / 2 + mean f^2 / 2           mean (f-1)^2 / 2 Mao et al. 2017
wgan              mean f - mean r                           -mean f          Arjovsky et al. 2017
relativistic      mean s(-(r-f))                            mean s(-(f-r))   Jolicoeur-Martineau 2018
relativistic_avg  mean s(-(r-mean f)) + mean s(f-mean r)    r and f swapped  Jolicoeur-Martineau 2018
================  ========================================  ===============  =======================

Arithmetic is in float32, or in float64 for float64 logits. Half logits thus give a float32 loss, and under
autocast nothing needs a cast. The logistic kinds are stable for logits of any magnitude.

Orders of differentiation: the gradient comes out of the same kernel as the loss. A backward with
``create_graph=True`` (unrolled GANs), and the gradient of ``weight``, are plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._arguments import check_fake, no_tensor, promoted_dtype, shape_of
from aigc_ext.ops._autograd import empty_dense_like, is_channels_last, reference_gradients
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops.sample_sqnorm import sample_sqnorm, sample_sqnorm_ref

KINDS = ("logistic", "minimax", "hinge", "lsgan", "wgan", "relativistic", "relativistic_avg")
REDUCTIONS = ("mean", "sum", "none")
_WITH_LABELS = ("logistic", "minimax")
RELATIVISTIC = ("relativistic", "relativistic_avg")

_discriminator = torch.ops.aigc.discriminator_loss.default
_discriminator_and_grad = torch.ops.aigc.discriminator_loss_and_grad.default
_generator = torch.ops.aigc.generator_loss.default
_generator_and_grad = torch.ops.aigc.generator_loss_and_grad.default


class LossStats(NamedTuple):
    """What to log of a discriminator's step: 0-d float32 tensors without a gradient, left on the device.

    ``d_real`` and ``d_fake`` are the means of D(x) and D(G(z)): of the probability sigmoid(logit) for
    logistic and minimax, of the raw score for the other kinds. ``acc_real`` and ``acc_fake`` are the shares
    of logits on the right side: of 0 for logistic, minimax and hinge; of 1/2 for lsgan; of the other batch's
    mean for wgan and relativistic_avg, whose scores have no origin; of the paired logit for relativistic. A
    NaN is never right.
    """

    d_real: Tensor
    d_fake: Tensor
    acc_real: Tensor
    acc_fake: Tensor


def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    kind: str = "logistic",
    label_smoothing: float = 0.0,
    l2_weight: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The discriminator's loss, of one of seven kinds: see :mod:`aigc_ext.ops.gan_loss`.

    Args:
        real_logits, fake_logits: D(x) and D(G(z)), of any shape, ``[N, ...]`` with ``weight``; float64,
            float32, float16 or bfloat16, promoted to the wider of both. The shapes must be equal for kind
            relativistic and for reduction none; otherwise they are independent, and each batch has its own
            mean.
        kind: logistic, minimax, hinge, lsgan, wgan, relativistic or relativistic_avg.
        label_smoothing: e in [0, 1) makes 1 - e the target of real samples (Salimans et al. 2016); for
            logistic and minimax only.
        l2_weight: at least 0; adds ``l2_weight / 2`` times its square to the loss of each real and fake
            logit.
        weight: ``[N]`` of any real dtype, a factor of all of a sample's losses, real and fake. Means still
            divide by the count of logits, not by the sum of weights; the means inside relativistic_avg are
            not weighted.
        reduction: mean; sum; or none, which is the sum of the real and the fake logit's loss at each place.
            The mean of an empty batch is NaN, as in PyTorch.

    Returns:
        The loss: float64 for float64 logits, else float32; 0-d, or of the logits' shape for reduction none.
        Differentiable to every order in the logits and ``weight``.

    Raises:
        ValueError: unknown ``kind`` or ``reduction``; ``label_smoothing`` or ``l2_weight`` out of range.
        TypeError: a tensor is no tensor, or a number no Python number.
        RuntimeError: shapes that don't fit; dtype or device not supported.
    """
    options = (kind, label_smoothing, l2_weight, reduction)
    return _discriminator_loss(real_logits, fake_logits, weight, options)[0]


def discriminator_loss_and_stats(
    real_logits: Tensor,
    fake_logits: Tensor,
    kind: str = "logistic",
    label_smoothing: float = 0.0,
    l2_weight: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, LossStats]:
    """:func:`discriminator_loss`, and the statistics that its pass over the logits computes anyway."""
    options = (kind, label_smoothing, l2_weight, reduction)
    loss, stats = _discriminator_loss(real_logits, fake_logits, weight, options)
    return loss, LossStats(*stats.unbind())


def discriminator_loss_and_grad(
    real_logits: Tensor,
    fake_logits: Tensor,
    kind: str = "logistic",
    label_smoothing: float = 0.0,
    l2_weight: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, LossStats, Tensor, Tensor]:
    """:func:`discriminator_loss`, its statistics, and its gradients ``d_real`` and ``d_fake``, not recorded.

    The fastest way through a training step, since autograd records nothing here. Go on with
    ``torch.autograd.backward([real_logits, fake_logits], [d_real, d_fake])``. The results have no gradient
    themselves.

    The gradients (for reduction none, those of the sum) are float32 for half logits too: in float16, the
    gradient of a mean over many patches would underflow. Autograd casts them.
    """
    options = (kind, label_smoothing, l2_weight, reduction)
    check_options(*options)
    real_logits, fake_logits, weight = _promote(real_logits, fake_logits, weight)
    if decomposed():
        return _discriminator_loss_and_grad_ref(real_logits, fake_logits, weight, *options)
    loss, stats, d_real, d_fake = _discriminator_and_grad(real_logits, fake_logits, weight, *options)
    return loss, LossStats(*stats.unbind()), d_real, d_fake


def generator_loss(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    kind: str = "logistic",
    l2_weight: float = 0.0,
    images: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The generator's loss, of one of seven kinds: see :mod:`aigc_ext.ops.gan_loss`.

    Args:
        fake_logits: D(G(z)), as for :func:`discriminator_loss`.
        real_logits: D(x), for the relativistic kinds; the others do without.
        kind: as for :func:`discriminator_loss`.
        l2_weight: at least 0; adds ``l2_weight / 2 * ||G(z)||^2`` to the loss of each of a sample's logits.
        images: G(z), ``[N, ...]``, needed where ``l2_weight`` is not 0.
        weight: ``[N]``, a factor of all of a sample's losses.
        reduction: mean, sum or none.

    Returns and raises as :func:`discriminator_loss`; differentiable in ``images`` too. There is no label
    smoothing, which is one-sided: it concerns D's real samples.
    """
    check_options(kind, 0.0, l2_weight, reduction)
    _check_generator_tensors(fake_logits, real_logits, images, weight)
    loss: Tensor
    if decomposed():
        return generator_loss_ref(fake_logits, real_logits, kind, l2_weight, images, weight, reduction)
    if kind in RELATIVISTIC:
        real_logits = _opponents(fake_logits, real_logits, kind, weight, reduction)
        loss = discriminator_loss(fake_logits, real_logits, kind, weight=weight, reduction=reduction)
    else:
        weight = _wide(weight, fake_logits)
        if torch.compiler.is_compiling():
            loss = _generator(fake_logits, weight, kind, reduction)
        else:
            loss = _record_generator(fake_logits, weight, (kind, reduction))
    if l2_weight != 0:
        loss = loss + images_term(fake_logits, images, l2_weight, weight, reduction)
    return loss


def generator_loss_and_grad(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    kind: str = "logistic",
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """:func:`generator_loss` and its gradient ``d_fake``, as :func:`discriminator_loss_and_grad`."""
    check_options(kind, 0.0, 0.0, reduction)
    _check_generator_tensors(fake_logits, real_logits, None, weight)
    if decomposed():
        return _generator_loss_and_grad_ref(fake_logits, real_logits, weight, kind, reduction)
    if kind in RELATIVISTIC:
        fake_logits, real_logits, weight = _promote(
            fake_logits, _opponents(fake_logits, real_logits, kind, weight, reduction), weight
        )
        loss, _, d_fake, _ = _discriminator_and_grad(
            fake_logits, real_logits, weight, kind, 0.0, 0.0, reduction
        )
    else:
        loss, d_fake = _generator_and_grad(fake_logits, _wide(weight, fake_logits), kind, reduction)
    return loss, d_fake


def _discriminator_loss(
    real: Tensor, fake: Tensor, weight: Tensor | None, options: tuple[str, float, float, str]
) -> tuple[Tensor, Tensor]:
    check_options(*options)
    real, fake, weight = _promote(real, fake, weight)
    if decomposed():
        kind, label_smoothing, l2_weight, reduction = options
        loss = discriminator_loss_ref(real, fake, kind, label_smoothing, l2_weight, weight, reduction)
        return loss, _stats_ref(real, fake, kind)
    if torch.compiler.is_compiling():
        loss, stats = _discriminator(real, fake, weight, *options)
    else:  # without the dispatcher, which would only lead to the same autograd kernel
        loss, stats = _record_discriminator(real, fake, weight, options)
    return loss, stats


# ---- plain PyTorch ----------------------------------------------------------------------------------------


def discriminator_loss_ref(
    real_logits: Tensor,
    fake_logits: Tensor,
    kind: str = "logistic",
    label_smoothing: float = 0.0,
    l2_weight: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """:func:`discriminator_loss` in plain PyTorch."""
    check_options(kind, label_smoothing, l2_weight, reduction)
    dtype = promoted_dtype("discriminator_loss", real_logits=real_logits, fake_logits=fake_logits)
    r, f = _widen(real_logits.to(dtype)), _widen(fake_logits.to(dtype))
    if kind == "relativistic" or reduction == "none":
        _check_same_shape("discriminator_loss", r, f, kind, reduction)
    if kind in _WITH_LABELS:
        real, fake = _softplus(-r) + label_smoothing * r, _softplus(f)
    elif kind == "hinge":
        real, fake = F.relu(1 - r), F.relu(1 + f)
    elif kind == "lsgan":
        real, fake = (r - 1).square() / 2, f.square() / 2
    elif kind == "wgan":
        real, fake = -r, f
    elif kind == "relativistic":
        real, fake = _softplus(f - r), torch.zeros_like(f)
    else:
        real, fake = _softplus(f.mean() - r), _softplus(f - r.mean())
    if l2_weight != 0:
        real, fake = real + l2_weight / 2 * r.square(), fake + l2_weight / 2 * f.square()
    real, fake = _weighted(real, weight, "real_logits"), _weighted(fake, weight, "fake_logits")
    return _reduce(real, reduction) + _reduce(fake, reduction)


def discriminator_loss_and_stats_ref(
    real_logits: Tensor,
    fake_logits: Tensor,
    kind: str = "logistic",
    label_smoothing: float = 0.0,
    l2_weight: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, LossStats]:
    """:func:`discriminator_loss_and_stats` in plain PyTorch."""
    loss = discriminator_loss_ref(
        real_logits, fake_logits, kind, label_smoothing, l2_weight, weight, reduction
    )
    return loss, LossStats(*_stats_ref(real_logits, fake_logits, kind).unbind())


def generator_loss_ref(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    kind: str = "logistic",
    l2_weight: float = 0.0,
    images: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """:func:`generator_loss` in plain PyTorch."""
    check_options(kind, 0.0, l2_weight, reduction)
    if kind in RELATIVISTIC:
        opponents = _opponents(fake_logits, real_logits, kind, weight, reduction)
        loss = discriminator_loss_ref(fake_logits, opponents, kind, weight=weight, reduction=reduction)
    else:
        f = _widen(fake_logits.to(promoted_dtype("generator_loss", fake_logits=fake_logits)))
        if kind == "logistic":
            losses = _softplus(-f)
        elif kind == "minimax":
            losses = -_softplus(f)
        elif kind == "lsgan":
            losses = (f - 1).square() / 2
        else:
            losses = -f
        loss = _reduce(_weighted(losses, weight, "fake_logits"), reduction)
    if l2_weight != 0:
        loss = loss + images_term(fake_logits, images, l2_weight, weight, reduction, sqnorm=sample_sqnorm_ref)
    return loss


def _discriminator_loss_and_grad_ref(
    real: Tensor, fake: Tensor, weight: Tensor | None, *options: Any
) -> tuple[Tensor, LossStats, Tensor, Tensor]:
    kind, label_smoothing, l2_weight, reduction = options
    with torch.enable_grad():
        real, fake = (_widen(t.detach()).requires_grad_() for t in (real, fake))
        loss, stats = discriminator_loss_and_stats_ref(
            real, fake, kind, label_smoothing, l2_weight, weight, reduction
        )
        d_real, d_fake = torch.autograd.grad(loss.sum(), (real, fake))
    return loss.detach(), stats, d_real, d_fake


def _generator_loss_and_grad_ref(
    fake: Tensor, real: Tensor | None, weight: Tensor | None, kind: str, reduction: str
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        fake = _widen(fake.detach()).requires_grad_()
        loss = generator_loss_ref(fake, real, kind, weight=weight, reduction=reduction)
        (d_fake,) = torch.autograd.grad(loss.sum(), fake)
    return loss.detach(), d_fake


def _stats_ref(real_logits: Tensor, fake_logits: Tensor, kind: str) -> Tensor:
    r, f = _widen(real_logits.detach()), _widen(fake_logits.detach())
    if kind == "relativistic":
        right_real, right_fake = r > f, f < r
    elif kind in ("wgan", "relativistic_avg"):
        right_real, right_fake = r > f.mean(), f < r.mean()
    else:
        threshold = 0.5 if kind == "lsgan" else 0.0
        right_real, right_fake = r > threshold, f < threshold
    if kind in _WITH_LABELS:
        r, f = r.sigmoid(), f.sigmoid()
    return torch.stack([t.to(r.dtype).mean().float() for t in (r, f, right_real, right_fake)])


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40.0)  # PyTorch's 20 is not exact in float64


def _weighted(losses: Tensor, weight: Tensor | None, name: str) -> Tensor:
    if weight is None:
        return losses
    _check_weight(weight, losses, name)
    return losses * _per_sample(weight.to(losses.dtype), losses)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


# ---- shared -----------------------------------------------------------------------------------------------


def check_options(kind: str, label_smoothing: float, l2_weight: float, reduction: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, but must be one of {', '.join(KINDS)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, but must be one of {', '.join(REDUCTIONS)}")
    # A tensor of one element would do as a number too, silently without its gradient.
    if not isinstance(label_smoothing, (float, int)):
        kind_of = type(label_smoothing).__name__
        raise TypeError(f"label_smoothing is {label_smoothing!r} ({kind_of}), but must be a float or an int")
    if not isinstance(l2_weight, (float, int)):
        kind_of = type(l2_weight).__name__
        raise TypeError(f"l2_weight is {l2_weight!r} ({kind_of}), but must be a float or an int")
    if label_smoothing != 0:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, but must be at least 0 and below 1")
        if kind not in _WITH_LABELS:
            raise ValueError(
                f"label_smoothing is {label_smoothing}, but must be 0 for kind {kind}, which has no labels"
            )
    if not 0 <= l2_weight < math.inf:
        raise ValueError(f"l2_weight is {l2_weight}, but must be finite and at least 0")


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _widen(x: Tensor) -> Tensor:
    return x.to(_wide_dtype(x))


def _wide(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(_wide_dtype(logits))


def _promote(real: Tensor, fake: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if not (
        isinstance(real, Tensor)
        and isinstance(fake, Tensor)
        and (weight is None or isinstance(weight, Tensor))
    ):
        raise no_tensor(
            "discriminator_loss", optional=("weight",), real_logits=real, fake_logits=fake, weight=weight
        )
    if real.dtype != fake.dtype:
        dtype = promoted_dtype("discriminator_loss", real_logits=real, fake_logits=fake)
        real, fake = real.to(dtype), fake.to(dtype)
    return real, fake, weight if weight is None else _wide(weight, real)


def _check_generator_tensors(
    fake_logits: Tensor, real_logits: Tensor | None, images: Tensor | None, weight: Tensor | None
) -> None:
    if not isinstance(fake_logits, Tensor) or not all(
        t is None or isinstance(t, Tensor) for t in (real_logits, images, weight)
    ):
        raise no_tensor(
            "generator_loss",
            optional=("real_logits", "images", "weight"),
            fake_logits=fake_logits,
            real_logits=real_logits,
            images=images,
            weight=weight,
        )


def _check_weight(weight: Tensor, logits: Tensor, name: str) -> None:
    if logits.dim() == 0 or weight.shape != logits.shape[:1]:
        raise RuntimeError(
            f"weight has shape {shape_of(weight)}, but must have one number for each sample of {name}, "
            f"whose shape is {shape_of(logits)}"
        )


def _opponents(
    fake_logits: Tensor, real_logits: Tensor | None, kind: str, weight: Tensor | None, reduction: str
) -> Tensor:
    """The real logits that a relativistic generator's loss needs, checked, since the discriminator's loss,
    which computes it with the roles swapped, would name the arguments the wrong way round."""
    if real_logits is None:
        raise ValueError(f"real_logits is None, but kind {kind} compares fake_logits with them")
    promoted_dtype("generator_loss", fake_logits=fake_logits, real_logits=real_logits)
    if kind == "relativistic" or reduction == "none":
        _check_same_shape("generator_loss", real_logits, fake_logits, kind, reduction)
    if weight is not None:
        _check_weight(weight, fake_logits, "fake_logits")
        _check_weight(weight, real_logits, "real_logits")
    return real_logits


def _check_same_shape(op: str, real: Tensor, fake: Tensor, kind: str, reduction: str) -> None:
    if real.shape != fake.shape:
        raise RuntimeError(
            f"{op}: real_logits has shape {shape_of(real)} and fake_logits {shape_of(fake)}, "
            f"but for kind {kind} and reduction {reduction} the shapes must be equal"
        )


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def images_term(
    fake_logits: Tensor,
    images: Tensor | None,
    l2_weight: float,
    weight: Tensor | None,
    reduction: str,
    sqnorm: Callable[[Tensor], Tensor] = sample_sqnorm,
) -> Tensor:
    """``l2_weight / 2 * ||G(z)||^2``, as a part of the loss of each of a sample's logits."""
    if images is None:
        raise ValueError(f"images is None, but l2_weight is {l2_weight}, which needs G(z)")
    if images.dim() == 0 or images.shape[:1] != fake_logits.shape[:1]:
        raise RuntimeError(
            f"images has shape {shape_of(images)}, but must have one image for each sample of fake_logits, "
            f"whose shape is {shape_of(fake_logits)}"
        )
    terms = l2_weight / 2 * sqnorm(images)
    if weight is not None:
        terms = terms * weight.to(terms.dtype)
    if reduction != "mean":
        terms = _per_sample(terms, fake_logits).expand_as(fake_logits)
    return _reduce(terms, reduction).to(_wide_dtype(fake_logits))


# ---- registration -----------------------------------------------------------------------------------------
#
# Each loss is two ops around one kernel. `*_and_grad` has no derivative, and autograd passes it by. The other
# one has: its autograd kernel below does what torch.library.register_autograd would, for less than half of
# the overhead, which at the size of a batch of logits decides whether it is faster than plain PyTorch.


class _DiscriminatorLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, real: Tensor, fake: Tensor, weight: Tensor | None, options: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        loss, stats, *ctx.slopes = _discriminator_and_grad(real, fake, weight, *options)
        ctx.options = options
        ctx.save_for_backward(real, fake, weight)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return loss, stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        kind, label_smoothing, l2_weight, reduction = ctx.options
        # The slopes are constants, and sums: of no use for a second derivative, for the gradient of weight,
        # nor where several losses depend on one logit.
        coupled = kind == "relativistic_avg" and reduction == "none"
        if torch.is_grad_enabled() or ctx.needs_input_grad[2] or coupled:
            gradients = reference_gradients(
                lambda real, fake, weight: discriminator_loss_ref(
                    real, fake, kind, label_smoothing, l2_weight, weight, reduction
                ),
                ctx.saved_tensors,
                ctx.needs_input_grad[:3],
                (grad,),
            )
            return (*gradients, None)
        d_real, d_fake = ctx.slopes
        return grad * d_real, grad * d_fake, None, None


class _GeneratorLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fake: Tensor, weight: Tensor | None, options: tuple[str, str]) -> Tensor:
        loss: Tensor
        loss, ctx.slopes = _generator_and_grad(fake, weight, *options)
        ctx.options = options
        ctx.save_for_backward(fake, weight)
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        kind, reduction = ctx.options
        if torch.is_grad_enabled() or ctx.needs_input_grad[1]:
            gradients = reference_gradients(
                lambda fake, weight: generator_loss_ref(fake, None, kind, weight=weight, reduction=reduction),
                ctx.saved_tensors,
                ctx.needs_input_grad[:2],
                (grad,),
            )
            return (*gradients, None)
        return grad * ctx.slopes, None, None


def _record_discriminator(
    real: Tensor, fake: Tensor, weight: Tensor | None, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and (
        real.requires_grad or fake.requires_grad or (weight is not None and weight.requires_grad)
    ):
        loss, stats = _DiscriminatorLoss.apply(real, fake, weight, options)
    else:
        loss, stats, _, _ = _discriminator_and_grad(real, fake, weight, *options)
    return loss, stats


def _record_generator(fake: Tensor, weight: Tensor | None, options: tuple[Any, ...]) -> Tensor:
    loss: Tensor
    if torch.is_grad_enabled() and (fake.requires_grad or (weight is not None and weight.requires_grad)):
        loss = _GeneratorLoss.apply(fake, weight, options)
    else:
        loss, _ = _generator_and_grad(fake, weight, *options)
    return loss


_library = torch.library.Library("aigc", "FRAGMENT")
_library.impl(
    "discriminator_loss", lambda r, f, weight, *o: _record_discriminator(r, f, weight, o), "Autograd"
)
_library.impl("generator_loss", lambda f, weight, *o: _record_generator(f, weight, o), "Autograd")
_library.impl("discriminator_loss_and_grad", torch.library.fallthrough_kernel, "Autograd")
_library.impl("generator_loss_and_grad", torch.library.fallthrough_kernel, "Autograd")


@torch.library.register_fake("aigc::discriminator_loss_and_grad")
def _fake_discriminator(  # type: ignore[no-untyped-def]
    real, fake, weight, kind, label_smoothing, l2_weight, reduction
):
    check_fake("discriminator_loss", real_logits=real, fake_logits=fake)
    real, fake = empty_dense_like(real), empty_dense_like(fake)
    if kind == "relativistic" or reduction == "none":
        _check_same_shape("discriminator_loss", real, fake, kind, reduction)
        if is_channels_last(real) != is_channels_last(fake):
            real, fake = real.contiguous(), fake.contiguous()
    d_real, d_fake = (torch.empty_like(t, dtype=_wide_dtype(t)) for t in (real, fake))
    _check_fake_weight("discriminator_loss", weight, real_logits=d_real, fake_logits=d_fake)
    loss = torch.empty_like(d_real) if reduction == "none" else d_real.new_empty(())
    return loss, real.new_empty(4, dtype=torch.float32), d_real, d_fake


@torch.library.register_fake("aigc::generator_loss_and_grad")
def _fake_generator(fake, weight, kind, reduction):  # type: ignore[no-untyped-def]
    check_fake("generator_loss", fake_logits=fake)
    fake = empty_dense_like(fake)
    d_fake = torch.empty_like(fake, dtype=_wide_dtype(fake))
    _check_fake_weight("generator_loss", weight, fake_logits=d_fake)
    return torch.empty_like(d_fake) if reduction == "none" else d_fake.new_empty(()), d_fake


def _check_fake_weight(op: str, weight: Tensor | None, **gradients: Tensor) -> None:
    if weight is not None:
        for name, gradient in gradients.items():
            check_fake(op, **{name: gradient, "weight": weight})
            _check_weight(weight, gradient, name)


@torch.library.register_fake("aigc::discriminator_loss")
def _(*args):  # type: ignore[no-untyped-def]
    return _fake_discriminator(*args)[:2]


@torch.library.register_fake("aigc::generator_loss")
def _(*args):  # type: ignore[no-untyped-def]
    return _fake_generator(*args)[0]
