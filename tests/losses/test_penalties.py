from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aigc_ext import decompose, ops
from aigc_ext.losses import (
    AdversarialLoss,
    dragan,
    path_length,
    r1_of_logits,
    r1_penalty,
    r2_penalty,
    wgan_gp,
)

ACTIVATIONS = (("lrelu", "tanh"), ("swish", "softplus"))


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mlp_weights(features: int = 6, outputs: int = 1) -> list[Tensor]:
    shapes = ((5, features), (5,), (4, 5), (4,), (outputs, 4), (outputs,))
    return [(random(shape, seed) * 0.7).requires_grad_() for seed, shape in enumerate(shapes)]


def mlp(layer: Callable[..., Tensor], acts: tuple[str, str], x: Tensor, *w: Tensor) -> Tensor:
    h = layer(x.flatten(1), w[0], w[1], act=acts[0])
    h = layer(h, w[2], w[3], act=acts[1])
    return layer(h, w[4], w[5])


def plain_sqnorm(D: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """||grad D||^2 per sample, as one would write it."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return gradient.flatten(1).pow(2).sum(1)


X, FAKE = random((3, 1, 2, 3), 100), random((3, 1, 2, 3), 101)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def between() -> Tensor:
    return torch.lerp(X, FAKE, torch.rand((3, 1, 1, 1), dtype=torch.float64, generator=seeded()))


def around() -> Tensor:
    return X + 0.5 * X.std(correction=0) * torch.randn(X.shape, dtype=torch.float64, generator=seeded())


PENALTIES = {
    "r1": (lambda D: r1_penalty(D, X), lambda D: plain_sqnorm(D, X).mean()),
    "r2": (lambda D: r2_penalty(D, FAKE), lambda D: plain_sqnorm(D, FAKE).mean()),
    "wgan_gp": (
        lambda D: wgan_gp(D, X, FAKE, generator=seeded()),
        lambda D: (plain_sqnorm(D, between()).sqrt() - 1).pow(2).mean(),
    ),
    "dragan": (
        lambda D: dragan(D, X, generator=seeded()),
        lambda D: (plain_sqnorm(D, around()).sqrt() - 1).pow(2).mean(),
    ),
}
per_penalty = pytest.mark.parametrize("name", PENALTIES)


@per_penalty
@pytest.mark.parametrize("acts", ACTIVATIONS)
@pytest.mark.parametrize("outputs", [1, 3], ids=["one logit", "patches"])
def test_penalty_and_its_gradients_are_those_of_plain_pytorch(
    name: str, acts: tuple[str, str], outputs: int
) -> None:
    ours, plain = PENALTIES[name]
    weights = mlp_weights(outputs=outputs)
    value = ours(lambda x: mlp(ops.linear_act, acts, x, *weights))
    expected = plain(lambda x: mlp(ops.linear_act_ref, acts, x, *weights))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(value, weights, allow_unused=True)
    truth = torch.autograd.grad(expected, weights, allow_unused=True)
    assert gradients[0].abs().sum() > 0
    for gradient, true in zip(gradients[:-1], truth[:-1], strict=True):
        torch.testing.assert_close(gradient, true, rtol=1e-9, atol=1e-14)
    assert gradients[-1] is None or not gradients[-1].any()  # the slope does not depend on the last bias


@per_penalty
@pytest.mark.parametrize("acts", ACTIVATIONS)
def test_gradgradcheck_through_a_discriminator_of_our_ops(name: str, acts: tuple[str, str]) -> None:
    penalty = PENALTIES[name][0]

    def value(*weights: Tensor) -> Tensor:
        return penalty(lambda x: mlp(ops.linear_act, acts, x, *weights))

    weights = mlp_weights()[:-1]
    bias = torch.zeros(1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *w: value(*w, bias), weights)
    assert torch.autograd.gradgradcheck(lambda *w: value(*w, bias), weights)


def test_any_callable_and_any_shape_of_logits() -> None:
    w = random((6,), 1).requires_grad_()
    expected = w.square().sum()

    def logits(x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return (x.flatten(1) @ w).reshape(shape)

    for shape in ((3,), (3, 1), (3, 1, 1, 1)):
        value = r1_penalty(partial(logits, shape=shape), X)
        torch.testing.assert_close(value, expected)
    patches = r1_penalty(lambda x: torch.stack((x.flatten(1) @ w, x.flatten(1) @ w), 1), X)
    torch.testing.assert_close(patches, 4 * expected)  # the logits of a sample are summed


def test_conditional_discriminator_in_a_closure() -> None:
    table, labels = random((4, 6), 2).requires_grad_(), torch.tensor([3, 0, 0])
    value = r1_penalty(lambda x: (x.flatten(1) * table[labels]).sum(1), X)
    torch.testing.assert_close(value, table[labels].square().sum(1).mean())


def test_convolutions_and_normalisation_of_pytorch() -> None:
    torch.manual_seed(0)
    D = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.GroupNorm(1, 3), nn.SiLU(), nn.Flatten(), nn.Linear(6, 1)
    ).double()
    value = r1_penalty(D, X)
    expected = plain_sqnorm(D, X).mean()
    torch.testing.assert_close(value, expected)
    parameters = [p for name, p in D.named_parameters() if name != "4.bias"]
    torch.testing.assert_close(
        torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters)
    )


def test_images_are_constants() -> None:
    w = random((6,), 1).requires_grad_()
    x, fake = X.clone().requires_grad_(), FAKE.clone().requires_grad_()

    def D(t: Tensor) -> Tensor:
        return (t.flatten(1) @ w).square()

    value = (
        r1_penalty(D, x) + wgan_gp(D, x, fake) + dragan(D, x) + r2_penalty(D, fake, finite_difference=True)
    )
    value.backward()
    assert x.grad is None
    assert fake.grad is None
    assert w.grad is not None


def test_parameters_get_no_gradient_from_the_inner_backward() -> None:
    weights = mlp_weights()
    value = r1_penalty(lambda x: mlp(ops.linear_act, ACTIVATIONS[0], x, *weights), X)
    assert all(w.grad is None for w in weights)
    value.backward()
    before = [None if w.grad is None else w.grad.clone() for w in weights]
    real, fake = (mlp(ops.linear_act, ACTIVATIONS[0], t, *weights) for t in (X, FAKE))
    ops.discriminator_loss(real, fake).backward()
    assert weights[0].grad is not None
    assert before[0] is not None
    assert not torch.equal(weights[0].grad, before[0]), "weight gradients come back after the penalty"


@per_penalty
def test_without_grad_mode_the_value_is_the_same(name: str) -> None:
    penalty, weights = PENALTIES[name][0], mlp_weights()
    value = penalty(lambda x: mlp(ops.linear_act, ACTIVATIONS[0], x, *weights))
    with torch.no_grad():
        logged = penalty(lambda x: mlp(ops.linear_act, ACTIVATIONS[0], x, *weights))
    assert not logged.requires_grad
    assert torch.equal(logged, value.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_images_give_a_float32_penalty(dtype: torch.dtype) -> None:
    weights = [w.detach().to(dtype).requires_grad_() for w in mlp_weights()]
    value = r1_penalty(lambda x: mlp(ops.linear_act, ACTIVATIONS[0], x, *weights), X.to(dtype))
    assert value.dtype == torch.float32
    truth = r1_penalty(
        lambda x: mlp(ops.linear_act, ACTIVATIONS[0], x, *[w.detach().double() for w in weights]), X
    )
    assert value.item() == pytest.approx(truth.item(), rel=30 * torch.finfo(dtype).eps)
    value.backward()
    assert weights[0].grad is not None
    assert weights[0].grad.dtype == dtype


@pytest.mark.parametrize("penalty", [partial(wgan_gp, fake=FAKE), dragan], ids=["wgan_gp", "dragan"])
def test_a_flat_discriminator_has_a_finite_gradient(penalty: Callable[..., Tensor]) -> None:
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    value = penalty(lambda x: x.flatten(1) @ w, real=X)
    assert value == 1
    value.backward()
    assert w.grad is not None
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_nan_is_not_hidden() -> None:
    w = torch.full((6,), math.nan, dtype=torch.float64, requires_grad=True)
    for penalty in (partial(r1_penalty, x=X), partial(wgan_gp, real=X, fake=FAKE), partial(dragan, real=X)):
        for finite_difference in (False, True):
            assert penalty(lambda x: x.flatten(1) @ w, finite_difference=finite_difference).isnan()


def test_empty_batch() -> None:
    w = random((6,), 1).requires_grad_()
    for value in (
        r1_penalty(lambda x: x.flatten(1) @ w, X[:0]),
        wgan_gp(lambda x: x.flatten(1) @ w, X[:0], X[:0]),
    ):
        assert value.isnan()


# ---- finite differences -----------------------------------------------------------------------------------


def average(penalty: Callable[[torch.Generator], Tensor], n: int = 2000) -> tuple[float, float]:
    """Mean of n estimates, and its standard error."""
    generator = seeded()
    values = torch.stack([penalty(generator).detach() for _ in range(n)])
    return values.mean().item(), values.std().item() / math.sqrt(n)


def test_finite_differences_estimate_the_penalties_without_bias() -> None:
    weights = [w.detach() for w in mlp_weights()]

    def D(x: Tensor) -> Tensor:
        return mlp(ops.linear_act, ACTIVATIONS[1], x, *weights)

    tiny = 1e-4
    for exact, estimate in (
        (
            r1_penalty(D, X),
            lambda g: r1_penalty(D, X, finite_difference=True, sigma=tiny, generator=g),
        ),
        (
            wgan_gp(D, X, X),
            lambda g: wgan_gp(D, X, X, generator=g, finite_difference=True, sigma=tiny),
        ),
        (
            dragan(D, X, noise=0.0),
            lambda g: dragan(D, X, generator=g, noise=0.0, finite_difference=True, sigma=tiny),
        ),
    ):
        value, error = average(estimate)
        assert abs(value - exact.item()) < 4 * error
        assert 4 * error < 0.2 * abs(exact.item())  # or the line above would prove nothing


def test_finite_difference_formula_and_its_gradient() -> None:
    w = random((6,), 1).requires_grad_()
    sigma = 0.1

    def D(x: Tensor) -> Tensor:
        return (x.flatten(1) @ w).square()

    e = torch.randn(X.shape, dtype=torch.float64, generator=seeded())
    expected = ((D(X) - D(X + sigma * e)) / sigma).square().mean()
    value = r1_penalty(D, X, finite_difference=True, sigma=sigma, generator=seeded())
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, w), torch.autograd.grad(expected, w))


def test_random_numbers_come_from_the_generator() -> None:
    w = random((6,), 1)
    penalties = (
        lambda g: r1_penalty(lambda x: (x.flatten(1) @ w).square(), X, finite_difference=True, generator=g),
        lambda g: wgan_gp(lambda x: (x.flatten(1) @ w).square(), X, FAKE, generator=g),
        lambda g: dragan(lambda x: (x.flatten(1) @ w).square(), X, generator=g),
    )
    state = torch.get_rng_state()
    for penalty in penalties:
        assert torch.equal(penalty(seeded(1)), penalty(seeded(1)))
        assert not torch.equal(penalty(seeded(1)), penalty(seeded(2)))
    assert torch.equal(torch.get_rng_state(), state), "the default generator was used"


# ---- errors -----------------------------------------------------------------------------------------------


def good(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: r1_penalty(lambda x: torch.zeros(3, requires_grad=True) * 1, X), "does not depend on x"),
        (lambda: r1_penalty(lambda x: torch.zeros(3), X), "does not depend on x"),
        (lambda: r1_penalty(lambda x: good(x).detach(), X), "does not depend on x"),
        (lambda: r1_penalty(lambda x: good(x).sum(), X), r"D\(x\) has shape \[\], but must have 3 samples"),
        (lambda: r1_penalty(lambda x: good(x)[:2], X), r"D\(x\) has shape \[2\], but must have 3 samples"),
        (lambda: r1_penalty(lambda x: good(x)[:2], X, True), r"D\(x\) has shape \[2\]"),
        (lambda: r1_penalty(lambda x: good(x) > 0, X), r"D\(x\) is torch.bool, but must be floating point"),
        (
            lambda: r1_penalty(lambda x: (good(x), 1), X),  # type: ignore[arg-type, return-value]
            r"D\(x\) is a tuple, but must be a tensor",
        ),
        (lambda: r1_penalty(good, X.to(torch.uint8)), "x is torch.uint8, but must be floating point"),
        (lambda: r1_penalty(good, X.sum()), "x has no dimensions"),
        (lambda: r1_penalty(good, X, True, sigma=0.0), "sigma is 0.0, but must be finite and above 0"),
        (lambda: r1_penalty(good, X, True, sigma=math.nan), "sigma is nan"),
        (lambda: wgan_gp(good, X, FAKE[:2]), r"fake is \[2, 1, 2, 3\].*must be as real: \[3, 1, 2, 3\]"),
        (lambda: wgan_gp(good, X, FAKE.float()), "fake is .*torch.float32"),
        (lambda: wgan_gp(good, X.to(torch.uint8), FAKE), "real is torch.uint8"),
        (lambda: dragan(good, X.to(torch.uint8)), "real is torch.uint8"),
        (lambda: dragan(good, X, noise=-0.5), "noise is -0.5, but must be finite and at least 0"),
    ],
)
def test_bad_arguments(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_r1_of_logits_shares_the_forward_with_the_loss() -> None:
    torch.manual_seed(0)
    D = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 1)).double()
    real, fake = torch.randn(2, 5, 1, 2, 2, dtype=torch.float64)
    loss = AdversarialLoss("logistic")
    value, _ = loss.discriminator(D(real), D(fake))
    expected = value + 3 * r1_penalty(D, real)
    gradients = torch.autograd.grad(expected, list(D.parameters()))

    x = real.clone().requires_grad_()
    logits = D(x)
    got, _ = loss.discriminator_backward(
        logits, D(fake), penalty=3 * r1_of_logits(logits, x), inputs=list(D.parameters())
    )
    torch.testing.assert_close(got, expected.detach())
    assert x.grad is None
    for parameter, gradient in zip(D.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_r1_of_logits_refuses_images_that_need_no_gradient() -> None:
    D = nn.Linear(4, 1)
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match="does not depend on x"):
        r1_of_logits(D(x), x)


@pytest.mark.parametrize("layers", [None, 3])
def test_path_length_is_the_norm_of_the_jacobian_times_noise(layers: int | None) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 2 * 3 * 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, *([layers] if layers else []), 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(6, 2, 3, 5, dtype=torch.float64)

    def synthesis(w: Tensor) -> Tensor:
        return torch.sin((w if layers is None else w.sum(1)) @ weight).unflatten(1, (2, 3, 5))

    lengths = path_length(synthesis, w, y)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda v: synthesis(v[None])[0], w[i]).flatten(0, 2)
        product = (jacobian.flatten(1).T @ y[i].flatten()) / math.sqrt(15)
        expected = product.square().sum().div(layers or 1).sqrt()
        torch.testing.assert_close(lengths[i], expected)

    def penalty(weight_: Tensor, w_: Tensor) -> Tensor:
        def synthesis_(v: Tensor) -> Tensor:
            return torch.sin((v if layers is None else v.sum(1)) @ weight_).unflatten(1, (2, 3, 5))

        return (path_length(synthesis_, w_, y) - 0.3).square().mean()

    assert torch.autograd.gradcheck(penalty, (weight, w))


def test_path_length_of_our_layers_is_that_of_plain_pytorch() -> None:
    torch.manual_seed(0)
    linear = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    conv = torch.randn(3, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, dtype=torch.float64)
    y = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def penalty() -> list[Tensor]:
        def synthesis(w: Tensor) -> Tensor:
            x = ops.linear_act(w, linear, act="softplus")[:, :, None, None].expand(-1, -1, 4, 4)
            return ops.conv2d_act(x, conv, padding=1, act="tanh")

        loss = (path_length(synthesis, w, y) - 1).square().mean()
        return [loss, *torch.autograd.grad(loss, (linear, conv))]

    ours = penalty()
    with decompose():
        plain = penalty()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_path_length_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match=r"w is torch.float32 of shape \[3\]"):
        path_length(lambda w: w, torch.zeros(3))
    with pytest.raises(ValueError, match="the images do not depend on w"):
        path_length(lambda w: torch.zeros(2, 1, 4, 4), torch.zeros(2, 3))
    zero = path_length(lambda w: (0 * w).unflatten(1, (1, 2, 2)), torch.ones(2, 4))
    assert torch.equal(zero, torch.zeros(2)) or zero.abs().max() < 1e-18


def test_arguments_of_other_types():
    penalties: Any = (r1_penalty, r2_penalty, dragan)
    x: Any = torch.randn(2, 3)
    array: Any = x.numpy()
    for penalty in penalties:
        for options in ({}, {"finite_difference": True}):
            with pytest.raises(
                TypeError, match=r"(x|real) is a ndarray, but must be a tensor: torch.from_numpy"
            ):
                penalty(torch.sum, array, **options)
            with pytest.raises(TypeError, match="D is a Tensor, but must be a function of images"):
                penalty(x, x, **options)
    with pytest.raises(TypeError, match="fake is a ndarray, but must be a tensor"):
        wgan_gp(torch.sum, x, array)
    with pytest.raises(TypeError, match="w is a ndarray, but must be a tensor"):
        path_length(torch.sum, array)
