from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigc_ext import ops
from aigc_ext.losses import AdversarialLoss, LossStats
from aigc_ext.ops.gan_loss import KINDS

per_kind = pytest.mark.parametrize("kind", KINDS)


def logits(seed: int, requires_grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, generator=generator).requires_grad_(requires_grad)


@per_kind
@pytest.mark.parametrize("weighted", [False, True])
def test_both_players_losses_are_the_ops(kind: str, weighted: bool) -> None:
    smoothing = 0.1 if kind in ("logistic", "minimax") else 0.0
    loss = AdversarialLoss(kind, label_smoothing=smoothing, l2_weight=0.2)
    real, fake, images = logits(0), logits(1), torch.randn(6, 1, 4, 4)
    weight = torch.rand(6) if weighted else None
    value, stats = loss.discriminator(real, fake, weight)
    assert isinstance(stats, LossStats)
    assert torch.equal(value, ops.discriminator_loss(real, fake, kind, smoothing, 0.2, weight))
    assert torch.equal(
        loss.generator(fake, real, images, weight),
        ops.generator_loss(fake, real, kind, l2_weight=0.2, images=images, weight=weight),
    )
    assert loss.relativistic == kind.startswith("relativistic")


def gradients(parameters: Sequence[Tensor], run: Callable[[], None]) -> list[Tensor]:
    for p in parameters:
        p.grad = None
    run()
    return [p.grad for p in parameters if p.grad is not None]


@per_kind
@pytest.mark.parametrize("l2_weight", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_backward_methods_leave_the_gradients_of_the_loss(
    kind: str, l2_weight: float, weighted: bool
) -> None:
    loss = AdversarialLoss(kind, l2_weight=l2_weight)
    torch.manual_seed(0)
    D, G = nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), nn.Linear(5, 12)
    D_parameters, G_parameters = list(D.parameters()), list(G.parameters())
    x, z = torch.randn(6, 12), torch.randn(6, 5)
    weight = torch.rand(6) if weighted else None
    values: list[Tensor] = []

    def discriminator(direct: bool) -> None:
        real, fake = D(x), D(G(z).detach())
        if direct:
            value, stats = loss.discriminator_backward(real, fake, weight)
            assert not value.requires_grad
        else:
            value, stats = loss.discriminator(real, fake, weight)
            value.backward()
        values.append(torch.stack((value.detach(), *stats)))

    def generator(direct: bool) -> None:
        images = G(z)
        real, fake = D(x).detach(), D(images)
        if direct:
            value = loss.generator_backward(fake, real, images, weight)
            assert not value.requires_grad
        else:
            value = loss.generator(fake, real, images, weight)
            value.backward()
        values.append(value.detach())

    for parameters, run in ((D_parameters, discriminator), (G_parameters, generator)):
        expected = gradients(parameters, partial(run, False))
        ours = gradients(parameters, partial(run, True))
        assert len(ours) == len(parameters)
        torch.testing.assert_close(ours, expected)
        assert torch.equal(*values)
        values.clear()


def test_half_logits_train_through_the_backward_methods() -> None:
    layer = nn.Linear(4, 1).to(torch.bfloat16)
    x = torch.randn(6, 4, dtype=torch.bfloat16)
    loss, _ = AdversarialLoss().discriminator_backward(layer(x), layer(-x))
    assert loss.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.bfloat16


def test_is_a_value() -> None:
    assert AdversarialLoss("hinge") == AdversarialLoss("hinge")
    assert (
        repr(AdversarialLoss("hinge")) == "AdversarialLoss(kind='hinge', label_smoothing=0.0, l2_weight=0.0)"
    )
    with pytest.raises(AttributeError):
        AdversarialLoss().kind = "hinge"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "ns"}, "kind is 'ns', but must be one of logistic, minimax"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ({"kind": "hinge", "label_smoothing": 0.1}, "must be 0 for kind hinge"),
        ({"l2_weight": -1}, "l2_weight is -1"),
        ({"l2_weight": math.nan}, "l2_weight is nan"),
    ],
)
def test_bad_options(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialLoss(**arguments)


def test_what_the_generator_lacks_is_named() -> None:
    relativistic, regularised = AdversarialLoss("relativistic"), AdversarialLoss(l2_weight=0.1)
    for method in ("generator", "generator_backward"):
        with pytest.raises(ValueError, match="real_logits is None"):
            getattr(relativistic, method)(logits(0))
        with pytest.raises(ValueError, match="images is None"):
            getattr(regularised, method)(logits(0))


@pytest.mark.parametrize("kind", ["logistic", "wgan", "relativistic", "relativistic_avg"])
@pytest.mark.parametrize("shapes", [((4, 1), (5, 2)), ((4, 1), (4,)), ((4, 1, 3, 3), (4, 1, 2, 2))])
def test_logits_of_two_discriminators(kind, shapes):
    """Of one discriminator, they differ at most in the number of samples."""
    real, fake = (torch.randn(shape, requires_grad=True) for shape in shapes)
    loss = AdversarialLoss(kind)
    calls = [
        lambda: loss.discriminator(real, fake),
        lambda: loss.discriminator_backward(real, fake),
        lambda: loss.generator(fake, real),
        lambda: loss.generator_backward(fake, real),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"fake_logits have shape .* and real_logits .*, but"):
            call()
    AdversarialLoss("logistic").discriminator(torch.randn(4, 1), torch.randn(5, 1))


def test_logits_that_are_no_tensors():
    with pytest.raises(TypeError, match="fake_logits is a ndarray, but must be a tensor"):
        AdversarialLoss().discriminator(torch.zeros(2), np.zeros(2))  # type: ignore[arg-type]
