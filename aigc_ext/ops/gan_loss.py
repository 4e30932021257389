"""Adversarial losses: one pass over the logits gives the loss, its gradient and the statistics to log.

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

Arithmetic is in float32, or in float64 for float64 logits, so half-precision logits give a float32 loss, and
autocast needs no casts. The logistic kinds are stable for logits of any magnitude.

One kernel computes the loss and its gradient. A backward with ``create_graph=True`` (unrolled GANs), and the
gradient of ``weight``, are plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.ops._arguments import check_same_kind, dtype_name, no_tensor, promoted_dtype, shape_of
from aigc_ext.ops._gradients import reference_gradients
from aigc_ext.ops._layout import empty_dense_like, is_channels_last, wide_dtype
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native
from aigc_ext.ops.sample_sqnorm import sample_sqnorm, sample_sqnorm_ref

KINDS = ("logistic", "minimax", "hinge", "lsgan", "wgan", "relativistic", "relativistic_avg")
REDUCTIONS = ("mean", "sum", "none")
_WITH_LABELS = ("logistic", "minimax")
RELATIVISTIC = ("relativistic", "relativistic_avg")


class LossStats(NamedTuple):
    """Statistics of a discriminator step for logging: 0-d float32 tensors without a gradient, on the device.

    ``d_real`` and ``d_fake`` are the means of D(x) and D(G(z)): of the probability sigmoid(logit) for
    logistic and minimax, of the raw score for the other kinds. ``acc_real`` and ``acc_fake`` are the
    fractions of logits on the correct side of a threshold: 0 for logistic, minimax and hinge; 1/2 for lsgan;
    the other batch's mean for wgan and relativistic_avg, whose scores have no origin; the paired logit for
    relativistic. A NaN is never correct.
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
            float32, float16 or bfloat16, promoted to the wider dtype. The shapes must be equal for kind
            relativistic and for reduction none; otherwise they are independent, and each batch has its own
            mean.
        kind: logistic, minimax, hinge, lsgan, wgan, relativistic or relativistic_avg.
        label_smoothing: e in [0, 1) makes 1 - e the target of real samples (Salimans et al. 2016); for
            logistic and minimax only.
        l2_weight: at least 0; adds ``l2_weight / 2`` times its square to the loss of each real and fake
            logit.
        weight: ``[N]`` of any real dtype, multiplies all losses of a sample, real and fake. Means still
            divide by the number of logits, not by the sum of weights; the means inside relativistic_avg are
            not weighted.
        reduction: mean; sum; or none, which adds the losses of the real and the fake logit elementwise. The
            mean of an empty batch is NaN, as in PyTorch.

    Returns:
        The loss: float64 for float64 logits, else float32; 0-d, or of the logits' shape for reduction none.
        Differentiable to every order in the logits and ``weight``.

    Raises:
        ValueError: unknown ``kind`` or ``reduction``; ``label_smoothing`` or ``l2_weight`` out of range.
        TypeError: an argument is not a tensor, or not a Python number, where one is required.
        RuntimeError: shapes don't match; dtype or device not supported.
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
    """:func:`discriminator_loss`, and statistics from the same pass over the logits."""
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
    """:func:`discriminator_loss`, its statistics, and its gradients ``d_real`` and ``d_fake``.

    The fastest form of a training step, since autograd records nothing here; the results have no gradient
    themselves. Continue with ``torch.autograd.backward([real_logits, fake_logits], [d_real, d_fake])``.

    The gradients (for reduction none, those of the sum) are float32 for half-precision logits too: in
    float16, the gradient of a mean over many patches would underflow. Autograd casts them.
    """
    options = (kind, label_smoothing, l2_weight, reduction)
    check_options(*options)
    real_logits, fake_logits, weight = _promote(real_logits, fake_logits, weight)
    if decomposed():
        return discriminator_loss_and_grad_ref(
            real_logits, fake_logits, kind, label_smoothing, l2_weight, weight, reduction
        )
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
        real_logits: D(x), for the relativistic kinds; not needed for the others.
        kind: as for :func:`discriminator_loss`.
        l2_weight: at least 0; adds ``l2_weight / 2 * ||G(z)||^2`` to the loss of each of a sample's logits.
        images: G(z), ``[N, ...]``, needed if ``l2_weight`` is not 0.
        weight: ``[N]``, multiplies all losses of a sample.
        reduction: mean, sum or none.

    Result and errors are as for :func:`discriminator_loss`; differentiable in ``images`` too. There is no
    label smoothing: it is one-sided and concerns only D's real samples.
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
        loss = _generator(fake_logits, weight, kind, reduction)
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
        return generator_loss_and_grad_ref(fake_logits, real_logits, kind, weight, reduction)
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
    loss, stats = _discriminator(real, fake, weight, *options)
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
    op = "discriminator_loss"
    real, fake = _weighted(op, real, weight, "real_logits"), _weighted(op, fake, weight, "fake_logits")
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
        loss = _reduce(_weighted("generator_loss", losses, weight, "fake_logits"), reduction)
    if l2_weight != 0:
        loss = loss + images_term(fake_logits, images, l2_weight, weight, reduction, sqnorm=sample_sqnorm_ref)
    return loss


def discriminator_loss_and_grad_ref(
    real_logits: Tensor,
    fake_logits: Tensor,
    kind: str = "logistic",
    label_smoothing: float = 0.0,
    l2_weight: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, LossStats, Tensor, Tensor]:
    """:func:`discriminator_loss_and_grad` in plain PyTorch."""
    with torch.enable_grad():
        real, fake = (_widen(t.detach()).requires_grad_() for t in (real_logits, fake_logits))
        loss, stats = discriminator_loss_and_stats_ref(
            real, fake, kind, label_smoothing, l2_weight, weight, reduction
        )
        d_real, d_fake = torch.autograd.grad(loss.sum(), (real, fake))
    return loss.detach(), stats, d_real, d_fake


def generator_loss_and_grad_ref(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    kind: str = "logistic",
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """:func:`generator_loss_and_grad` in plain PyTorch."""
    with torch.enable_grad():
        fake = _widen(fake_logits.detach()).requires_grad_()
        loss = generator_loss_ref(fake, real_logits, kind, weight=weight, reduction=reduction)
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
    return F.softplus(x, threshold=40.0)  # PyTorch's default of 20 is not exact in float64


def _weighted(op: str, losses: Tensor, weight: Tensor | None, name: str) -> Tensor:
    if weight is None:
        return losses
    _check_weight(op, weight, losses, name)
    return losses * _per_sample(weight.to(losses.dtype), losses)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses


# ---- shared -----------------------------------------------------------------------------------------------


def check_options(
    kind: str, label_smoothing: float, l2_weight: float, reduction: str, native: str | None = None
) -> None:
    """Raises ValueError or TypeError; for a native op, RuntimeError with its name."""

    def error(message: str) -> Exception:
        return ValueError(message) if native is None else RuntimeError(f"{native}: {message}")

    if kind not in KINDS:
        raise error(f"kind is {kind!r}, but must be one of {', '.join(KINDS)}")
    if reduction not in REDUCTIONS:
        raise error(f"reduction is {reduction!r}, but must be one of {', '.join(REDUCTIONS)}")
    # A one-element tensor would pass as a number too, but silently lose its gradient.
    if not isinstance(label_smoothing, (float, int)):
        kind_of = type(label_smoothing).__name__
        raise TypeError(f"label_smoothing is {label_smoothing!r} ({kind_of}), but must be a float or an int")
    if not isinstance(l2_weight, (float, int)):
        kind_of = type(l2_weight).__name__
        raise TypeError(f"l2_weight is {l2_weight!r} ({kind_of}), but must be a float or an int")
    if label_smoothing != 0:
        if not 0 <= label_smoothing < 1:
            raise error(f"label_smoothing is {label_smoothing:g}, but must be at least 0 and below 1")
        if kind not in _WITH_LABELS:
            raise error(
                f"label_smoothing is {label_smoothing:g}, but must be 0 for kind {kind}, which has no labels"
            )
    if not 0 <= l2_weight < math.inf:
        raise error(f"l2_weight is {l2_weight:g}, but must be finite and at least 0")


def _widen(x: Tensor) -> Tensor:
    return x.to(wide_dtype(x))


def _wide(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(wide_dtype(logits))


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


def _check_weight(op: str, weight: Tensor, logits: Tensor, name: str) -> None:
    if logits.dim() == 0 or weight.shape != logits.shape[:1]:
        raise RuntimeError(
            f"{op}: weight has shape {shape_of(weight)}, but must have one number for each sample of {name}, "
            f"whose shape is {shape_of(logits)}"
        )


def _opponents(
    fake_logits: Tensor, real_logits: Tensor | None, kind: str, weight: Tensor | None, reduction: str
) -> Tensor:
    """Checks and returns the real logits, which only relativistic losses use. The discriminator's loss
    computes these with the roles swapped, so its own errors would name the wrong arguments."""
    if real_logits is None:
        raise ValueError(f"real_logits is None, but kind {kind} compares fake_logits with them")
    promoted_dtype("generator_loss", fake_logits=fake_logits, real_logits=real_logits)
    if kind == "relativistic" or reduction == "none":
        _check_same_shape("generator_loss", real_logits, fake_logits, kind, reduction)
    if weight is not None:
        _check_weight("generator_loss", weight, fake_logits, "fake_logits")
        _check_weight("generator_loss", weight, real_logits, "real_logits")
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
    """``l2_weight / 2 * ||G(z)||^2``, added to the loss of each of a sample's logits."""
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
    return _reduce(terms, reduction).to(wide_dtype(fake_logits))


# ---- native ops --------------------------------------------------------------------------------------------
#
# Each loss is two ops around one kernel. `*_and_grad` has no derivative; the other op runs it when a gradient
# may be needed, and its backward scales the gradients that `*_and_grad` returned.


def _discriminator_gradients(a: Any, needs: Any, grad: Tensor) -> Sequence[Tensor | None]:
    # The saved gradients are constants, and summed over the losses. They cannot serve for a second
    # derivative, for the gradient of weight, or where several losses depend on one logit.
    coupled = a.kind == "relativistic_avg" and a.reduction == "none"
    if torch.is_grad_enabled() or needs.weight or coupled:
        return reference_gradients(
            lambda real, fake, weight: discriminator_loss_ref(
                real, fake, a.kind, a.label_smoothing, a.l2_weight, weight, a.reduction
            ),
            *((a.real_logits, a.fake_logits, a.weight), needs, (grad,)),
        )
    return grad * a.d_real, grad * a.d_fake, None


def _generator_gradients(a: Any, needs: Any, grad: Tensor) -> Sequence[Tensor | None]:
    if torch.is_grad_enabled() or needs.weight:
        return reference_gradients(
            lambda fake, weight: generator_loss_ref(fake, None, a.kind, weight=weight, reduction=a.reduction),
            *((a.fake_logits, a.weight), needs, (grad,)),
        )
    return grad * a.d_fake, None


def _fake_discriminator(
    real: Tensor,
    fake: Tensor,
    weight: Tensor | None,
    kind: str,
    label_smoothing: float,
    l2_weight: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_same_kind("discriminator_loss", real_logits=real, fake_logits=fake)
    check_options(kind, label_smoothing, l2_weight, reduction, native="discriminator_loss")
    real, fake = empty_dense_like(real), empty_dense_like(fake)
    if kind == "relativistic" or reduction == "none":
        _check_same_shape("discriminator_loss", real, fake, kind, reduction)
        if is_channels_last(real) != is_channels_last(fake):
            real, fake = real.contiguous(), fake.contiguous()
    d_real, d_fake = (torch.empty_like(t, dtype=wide_dtype(t)) for t in (real, fake))
    _check_fake_weight("discriminator_loss", weight, real_logits=real, fake_logits=fake)
    loss = torch.empty_like(d_real) if reduction == "none" else d_real.new_empty(())
    return loss, real.new_empty(4, dtype=torch.float32), d_real, d_fake


def _fake_generator(fake: Tensor, weight: Tensor | None, kind: str, reduction: str) -> tuple[Tensor, Tensor]:
    check_same_kind("generator_loss", fake_logits=fake)
    if kind in RELATIVISTIC:
        raise RuntimeError(
            f"generator_loss: kind is '{kind}', which compares two batches: its loss is discriminator_loss "
            "with real and fake swapped"
        )
    check_options(kind, 0.0, 0.0, reduction, native="generator_loss")
    fake = empty_dense_like(fake)
    d_fake = torch.empty_like(fake, dtype=wide_dtype(fake))
    _check_fake_weight("generator_loss", weight, fake_logits=fake)
    return torch.empty_like(d_fake) if reduction == "none" else d_fake.new_empty(()), d_fake


def _check_fake_weight(op: str, weight: Tensor | None, **logits: Tensor) -> None:
    for name, x in logits.items() if weight is not None else ():
        assert weight is not None
        if weight.dtype != wide_dtype(x):
            raise RuntimeError(
                f"{op}: weight is {dtype_name(weight.dtype)}, but must be {dtype_name(wide_dtype(x))} for "
                f"{name} of {dtype_name(x.dtype)}"
            )
        _check_weight(op, weight, x, name)


_discriminator_and_grad = native("discriminator_loss_and_grad", fake=_fake_discriminator)
_discriminator = native(
    "discriminator_loss",
    fake=lambda *arguments: _fake_discriminator(*arguments)[:2],
    gradients=_discriminator_gradients,
    recorded="discriminator_loss_and_grad",
    save=("real_logits", "fake_logits", "weight", "d_real", "d_fake"),
    constants=("stats",),
)
_generator_and_grad = native("generator_loss_and_grad", fake=_fake_generator)
_generator = native(
    "generator_loss",
    fake=lambda *arguments: _fake_generator(*arguments)[0],
    gradients=_generator_gradients,
    recorded="generator_loss_and_grad",
    save=("fake_logits", "weight", "d_fake"),
)

_LOGITS = {"real_logits": (8, 1), "fake_logits": (8, 1)}
OPS = [
    Op(discriminator_loss, discriminator_loss_ref, _LOGITS),
    Op(discriminator_loss_and_stats, discriminator_loss_and_stats_ref, _LOGITS),
    Op(discriminator_loss_and_grad, discriminator_loss_and_grad_ref, _LOGITS),
    Op(generator_loss, generator_loss_ref, {"fake_logits": (8, 1)}),
    Op(generator_loss_and_grad, generator_loss_and_grad_ref, {"fake_logits": (8, 1)}),
]
ALSO = (LossStats,)
