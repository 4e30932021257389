from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan import STATISTICS, AdversarialStep, Objective, StepInputs


def make_pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4), nn.Unflatten(1, (1, 2, 2)))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 1))
    return generator, discriminator


def make_step(generator, discriminator, kind="logistic", optimizer=torch.optim.Adam, **penalty):
    objective = Objective(discriminator, AdversarialLoss(kind), **penalty)
    g_optimizer = optimizer(generator.parameters(), lr=0.01)
    d_optimizer = optimizer(discriminator.parameters(), lr=0.01)
    return AdversarialStep(generator, discriminator, objective, g_optimizer, d_optimizer)


def batch(n=5):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 2, 2, generator=rng), torch.randn(n, 3, generator=rng)


def weights(*modules):
    return [p.detach().clone() for module in modules for p in module.parameters()]


def test_the_discriminator_alone():
    generator, discriminator = make_pair()
    others = copy.deepcopy((generator, discriminator))
    before = weights(generator)
    real, z = batch()
    statistics = make_step(generator, discriminator)(real, z, train_generator=False)
    both = make_step(*others)(real, z)
    torch.testing.assert_close(weights(generator), before, rtol=0, atol=0)
    assert all(p.grad is None for p in generator.parameters())
    torch.testing.assert_close(weights(discriminator), weights(others[1]), rtol=0, atol=0)
    assert statistics[1].isnan()
    torch.testing.assert_close(statistics[[0, 2, 3, 4, 5]], both[[0, 2, 3, 4, 5]], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["logistic", "relativistic"])
@pytest.mark.parametrize("penalize", [False, True])
def test_it_is_the_textbook_step(kind, penalize):
    generator, discriminator = make_pair()
    own_g, own_d = copy.deepcopy((generator, discriminator))
    step = make_step(generator, discriminator, kind, gamma=0.5, r1_interval=4)
    g_adam = torch.optim.Adam(own_g.parameters(), lr=0.01)
    d_adam = torch.optim.Adam(own_d.parameters(), lr=0.01)
    real, z = batch()
    for _ in range(3):
        statistics = step(real, z, penalize=penalize)

        fake = own_g(z)
        x = real.clone().requires_grad_(True)
        r, f = own_d(x), own_d(fake.detach())
        if kind == "logistic":
            loss_d = F.softplus(-r).mean() + F.softplus(f).mean()
        else:
            loss_d = F.softplus(-(r - f)).mean()
        p, q = (r.sigmoid(), f.sigmoid()) if kind == "logistic" else (r, f)
        means = [p.mean(), q.mean(), (r > 0).float().mean(), (f < 0).float().mean()]
        r1 = torch.tensor(torch.nan)
        if penalize:
            (gradient,) = torch.autograd.grad(r.sum(), x, create_graph=True)
            r1 = gradient.square().flatten(1).sum(1).mean()
            loss_d = loss_d + 0.5 / 2 * 4 * r1
        d_adam.zero_grad()
        loss_d.backward()
        d_adam.step()
        f = own_d(fake)
        loss_g = F.softplus(-f).mean() if kind == "logistic" else F.softplus(-(f - own_d(real))).mean()
        g_adam.zero_grad()
        loss_g.backward()
        g_adam.step()

        nan = torch.tensor(torch.nan)
        expected = torch.stack([loss_d, loss_g, *means, r1, nan, nan]).detach()
        if kind != "logistic":  # accuracies of paired losses are another matter
            statistics, expected = statistics[[0, 1, 2, 3, 6]], expected[[0, 1, 2, 3, 6]]
        torch.testing.assert_close(statistics, expected, equal_nan=True)
    for ours, theirs in zip(weights(generator, discriminator), weights(own_g, own_d), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_generators_half_leaves_no_gradient_in_the_discriminator():
    generator, discriminator = make_pair()
    # A rate of 0 leaves the weights, so that the gradients can be compared.
    step = make_step(generator, discriminator, optimizer=lambda p, lr: torch.optim.SGD(p, lr=0.0))
    step(*batch())
    left = [p.grad for p in discriminator.parameters()]
    discriminator.zero_grad()
    Objective(discriminator, AdversarialLoss()).discriminator_backward(step.inputs)
    for one, other in zip(left, discriminator.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)
    assert all(p.requires_grad for p in discriminator.parameters())


def test_a_frozen_layer_of_the_discriminator_stays_frozen():
    generator, discriminator = make_pair()
    frozen = discriminator.get_submodule("1").requires_grad_(False)
    before = weights(frozen)
    step = make_step(generator, discriminator)
    step(*batch())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(frozen), strict=True))


def test_an_error_in_the_generators_half_leaves_the_discriminator_trainable():
    generator, discriminator = make_pair()
    step = make_step(generator, discriminator)
    step.objective.generator_backward = None
    with pytest.raises(TypeError):
        step(*batch())
    assert all(p.requires_grad for p in discriminator.parameters())


def test_labels_reach_both_networks():
    class Labelled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.seen = inner, []

        def forward(self, x, c):
            self.seen.append(c)
            return self.inner(x)

    generator, discriminator = map(Labelled, make_pair())
    labels = torch.arange(5)
    make_step(generator, discriminator, gamma=1.0)(*batch(), labels, penalize=True)
    assert len(generator.seen) == 1
    assert len(discriminator.seen) == 3  # real (for the penalty too), fake, and the generator's half
    assert all(torch.equal(c, labels) for c in generator.seen + discriminator.seen)


@pytest.mark.parametrize(
    ("generator", "critic"),
    [
        ({"family": "dcgan", "channels": 6}, "dcgan"),
        ({"family": "stylegan2", "w_dim": 8, "mapping_layers": 1, "channel_max": 6}, "stylegan2"),
        ({"family": "stylegan3", "w_dim": 8, "channel_max": 4, "num_layers": 4}, "stylegan2"),
    ],
)
@pytest.mark.parametrize("part", [None, 2])
def test_a_step_that_is_not_finite_leaves_the_running_means(generator, critic, part):
    shape = {"image_shape": (1, 8, 8), "num_classes": 0}
    torch.manual_seed(0)
    pair = (
        build_generator({**generator, "z_dim": 8, **shape}).train(),
        build_discriminator({"family": critic, **({} if critic == "dcgan" else {"channel_max": 6}), **shape}),
    )
    optimizers = (AdamEMA(network.parameters()) for network in pair)
    step = AdversarialStep(*pair, Objective(pair[1], AdversarialLoss()), *optimizers, part_size=part)
    real, z = torch.randn(4, 1, 8, 8), torch.randn(4, 8)
    step(real, z, seed=0)
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in pair]
    bad = z.clone()
    bad[0] = torch.inf
    for train_generator in (True, False):
        assert not step(real, bad, seed=1, train_generator=train_generator)[0].isfinite()
        for network, old in zip(pair, before, strict=True):
            for name, value in network.state_dict().items():
                assert torch.equal(value, old[name]) or name.endswith("num_batches_tracked"), name
    assert step(real, z, seed=2)[:2].isfinite().all()
    assert not all(torch.equal(v, before[0][k]) for k, v in pair[0].named_buffers())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_step_that_is_not_finite_changes_nothing(value):
    generator, discriminator = make_pair()
    step = make_step(generator, discriminator, optimizer=AdamEMA)
    real, z = batch()
    step(real, z)
    before = weights(generator, discriminator)
    statistics = step(real, torch.full_like(z, value))
    assert not statistics[0].isfinite()
    assert not statistics[1].isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(generator, discriminator), strict=True))
    assert (int(step.d_optimizer.skipped), int(step.g_optimizer.skipped)) == (1, 1)
    assert step(real, z)[:2].isfinite().all()
    assert (int(step.d_optimizer.skipped), int(step.g_optimizer.skipped)) == (1, 1)


def test_a_bad_real_batch_stops_only_the_discriminator():
    generator, discriminator = make_pair()
    step = make_step(generator, discriminator, optimizer=AdamEMA)
    real, z = batch()
    real[0, 0, 0, 0] = torch.nan
    before_g, before_d = weights(generator), weights(discriminator)
    step(real, z)
    assert all(torch.equal(a, b) for a, b in zip(before_d, weights(discriminator), strict=True))
    assert not torch.equal(before_g[0], weights(generator)[0])
    assert (int(step.d_optimizer.skipped), int(step.g_optimizer.skipped)) == (1, 0)


def test_an_infinite_loss_with_finite_gradients_is_refused_too():
    last = nn.Linear(4, 1)
    discriminator = nn.Sequential(nn.Flatten(), last)
    generator = make_pair()[0]
    with torch.no_grad():
        last.bias.fill_(torch.finfo(torch.float32).max)
        last.weight.fill_(1e38)
    real, z = batch()
    real = real.abs() + 10
    objective = Objective(discriminator, AdversarialLoss())
    inputs = StepInputs(real, real, z, None, False)
    loss, *_ = objective.discriminator_backward(inputs)
    assert loss.isinf()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.parameters())

    step = make_step(generator, discriminator, optimizer=AdamEMA)
    with torch.no_grad():  # images of the generator that overflow in the same way
        generator.get_parameter("2.weight").zero_()
        generator.get_parameter("2.bias").fill_(10.0)
    before = weights(discriminator)
    statistics = step(real, z)
    assert statistics[0].isinf()
    assert int(step.d_optimizer.skipped) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights(discriminator), strict=True))


def test_the_statistics_have_names():
    generator, discriminator = make_pair()
    statistics = make_step(generator, discriminator)(*batch())
    assert statistics.shape == (len(STATISTICS),)
    assert statistics.dtype == torch.float32
    assert not statistics.requires_grad
    assert statistics[STATISTICS.index("r1")].isnan()


def test_the_random_numbers_of_the_latents_card_are_seeded_not_of_the_current_one(monkeypatch):
    cards = tuple(torch.Generator().manual_seed(9) for _ in range(2))
    monkeypatch.setattr(torch.cuda, "default_generators", cards)
    z: Any = SimpleNamespace(device=torch.device("cuda:1"))
    inputs = StepInputs(z, z, z, None, False, seed=5, total=4)
    with inputs.random(2):
        assert [card.initial_seed() for card in cards] == [9, 7]
