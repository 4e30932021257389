from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from torch.autograd import gradcheck

from aigc_ext import losses
from aigc_ext.losses import reconstruction

A = torch.tensor([[0.2, -0.4, 1.0], [0.0, 0.6, -1.0]], dtype=torch.float64)
B = torch.tensor([[0.0, 0.1, 0.5], [0.25, 0.5, 1.0]], dtype=torch.float64)


def values(function, item, target):
    return [function(a, b) for a, b in zip(item.flatten().tolist(), target.flatten().tolist(), strict=True)]


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        (losses.l1, lambda a, b: abs(a - b)),
        (losses.l2, lambda a, b: (a - b) ** 2),
        (losses.charbonnier, lambda a, b: math.sqrt((a - b) ** 2 + 1e-6)),
        (
            losses.bernoulli_nll,
            lambda a, b: -b * math.log(1 / (1 + math.exp(-a))) - (1 - b) * math.log(1 / (1 + math.exp(a))),
        ),
        (losses.gaussian_kl, lambda a, b: (a * a + math.exp(b) - b - 1) / 2),
    ],
    ids=["l1", "l2", "charbonnier", "bernoulli_nll", "gaussian_kl"],
)
def test_losses_are_their_formulas(loss, formula):
    expected = values(formula, A, B)
    assert loss(A, B, reduction="mean").item() == pytest.approx(sum(expected) / 6)
    assert loss(A, B, reduction="sum").item() == pytest.approx(sum(expected) / 2), "the mean over two items"
    assert loss(A.bfloat16(), B.bfloat16()).dtype == torch.float32
    assert gradcheck(lambda a: loss(a, B), A.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"the shapes are \[2, 3\] and \[3, 2\], but must be equal"):
        loss(A, B.T)
    with pytest.raises(ValueError, match="reduction is 'none', but must be one of 'mean', 'sum'"):
        loss(A, B, reduction="none")


def test_the_usual_reductions():
    """Likelihoods add up over an item's values, distances are per value."""
    assert losses.l1(A, B) == losses.l1(A, B, reduction="mean")
    assert losses.bernoulli_nll(A, B) == losses.bernoulli_nll(A, B, "sum")
    assert losses.gaussian_kl(A, B) == losses.gaussian_kl(A, B, "sum")


def test_the_divergence_is_the_integral():
    mean, log_variance = 0.7, -0.9
    sigma = math.exp(log_variance / 2)

    def log_density(x, m, s):
        return -((x - m) ** 2) / (2 * s * s) - math.log(s * math.sqrt(2 * math.pi))

    def integrand(x):
        own = log_density(x, mean, sigma)
        return math.exp(own) * (own - log_density(x, 0, 1))

    expected, _ = integrate.quad(integrand, -10, 10)
    given = torch.tensor([[mean]]), torch.tensor([[log_variance]])
    assert losses.gaussian_kl(*given).item() == pytest.approx(expected, rel=1e-5)


def test_grey_targets_are_the_expectation_over_binarised_ones():
    logits, grey = torch.randn(1, 5), torch.rand(1, 5)
    drawn = (torch.rand(20000, 5) < grey).float()
    expected = losses.bernoulli_nll(logits.expand(20000, 5), drawn)
    torch.testing.assert_close(losses.bernoulli_nll(logits, grey), expected, rtol=0.02, atol=0)


def test_perceptual_is_the_mean_over_layers():
    layer = torch.nn.Linear(3, 4).double()

    def features(x):
        assert x is A or not torch.is_grad_enabled(), "the target's need no graph"
        return [layer(x), 2 * x]

    expected = (losses.l1(layer(A), layer(B)) + losses.l1(2 * A, 2 * B)) / 2
    torch.testing.assert_close(losses.perceptual(A, B, features), expected)
    torch.testing.assert_close(losses.perceptual(A, B, lambda x: 2 * x), losses.l1(2 * A, 2 * B))


def test_charbonnier_needs_a_bottom():
    with pytest.raises(ValueError, match="eps is 0, but must be greater than 0"):
        reconstruction.charbonnier(A, B, eps=0)
