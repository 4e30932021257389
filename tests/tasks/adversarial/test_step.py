"""The step and its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from aigc_ext.losses import AdversarialLoss, bernoulli_nll, l1, l2, r1_penalty
from aigc_ext.models import Autoencoder, PatchDiscriminator
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.adversarial import Compared, Critic, Made, ReconstructionStep, Term, Weighted
from aigc_ext.tasks.adversarial.balance import Balance, item_norm
from aigc_ext.tasks.adversarial.objective import SeveralLosses
from aigc_ext.tasks.adversarial.terms import Adversarial, Bernoulli

KL = {"bottleneck": "kl", "single_code": True, "output_act": "sigmoid", "code_dim": 3}
VQ = {"bottleneck": "vq", "num_codes": 8, "code_dim": 3, "revive_below": 0.2}
LOSS = AdversarialLoss("hinge")
LIKENESS = [Weighted(Compared("l1", l1), 1.0)]


class FeatureMatching(Term):
    """As a vocoder has: the mean of L1 over all features of the discriminator."""

    name = "features"
    judges = True

    def __call__(self, made: Made) -> torch.Tensor:
        ours, theirs = made.judgement.features, made.judgement_of_target.features
        assert not theirs[0].requires_grad
        return torch.stack([l1(a, b) for a, b in zip(ours, theirs, strict=True)]).mean()


def step_of(settings, terms, *, judged="reconstructions", balance=None, part_size=None, discriminator=None):
    torch.manual_seed(0)
    network = Autoencoder(image_shape=(1, 8, 8), channels=(4, 6), **settings).double()
    critic = d_optimizer = None
    if any(term.judges for term, _ in terms):
        discriminator = discriminator or PatchDiscriminator(image_shape=(1, 8, 8), channels=4, layers=1)
        discriminator.double()
        critic = Critic(discriminator, SeveralLosses("hinge"), gamma=0.1)
        d_optimizer = AdamEMA(discriminator.parameters(), lr=1e-3)
    penalties = {"kl": 0.3} if settings is KL else {"commitment": 0.25}
    return ReconstructionStep(
        *(network, AdamEMA(network.parameters(), lr=1e-3), terms, penalties),
        critic=critic,
        d_optimizer=d_optimizer,
        judged=judged,
        balance=balance,
        part_size=part_size,
    )


def items(count=6):
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def plain_sum(step, x, seed, losses):
    """The gradients of the sum of the losses by autograd alone, as without this step, after D's."""
    network = copy.deepcopy(step.generator)
    network.zero_grad()
    torch.manual_seed(seed)  # as GENERATE
    given = network.reconstruct(x)
    made = network.activate(given.output)
    total = sum(weight * given.penalties[name] for name, weight in step.penalties.items())
    for loss in losses:
        total = total + loss(given.output, made)
    total.backward()
    return gradients(network)


@pytest.mark.parametrize("settings", [KL, VQ], ids=["kl", "vq"])
def test_one_backward_is_that_of_the_plain_sum(settings):
    terms = [
        Weighted(Compared("l1", l1), 0.7),
        Weighted(Compared("l2", l2), 2.0),
        Weighted(Adversarial(LOSS), 0.4),
        Weighted(FeatureMatching(), 1.5),
    ]
    step, x = step_of(settings, terms), items()
    before = copy.deepcopy(step)
    # The backward of D's half leaves nothing in the generator; only its own one counts.
    runs = []
    step.generator.decoder.last.weight.register_hook(lambda gradient: runs.append(gradient))
    statistics = dict(zip(step.statistics, step(x, seed=5).tolist(), strict=True))
    assert len(runs) == 1
    discriminator = step.critic.discriminator

    def adversarial(output, made):
        logits, ours = discriminator.judge(made)
        theirs = discriminator.judge(x)[1]
        matched = sum(l1(a, b.detach()) for a, b in zip(ours, theirs, strict=True)) / len(ours)
        return 0.4 * LOSS.generator(logits) + 1.5 * matched

    expected = plain_sum(
        *(before, x, 5),
        [lambda output, made: 0.7 * l1(made, x), lambda output, made: 2 * l2(made, x), adversarial],
    )
    found = gradients(step.generator)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    parts = 0.7 * statistics["l1"] + 2 * statistics["l2"] + 0.4 * statistics["adversarial"]
    parts += 1.5 * statistics["features"] + sum(w * statistics[n] for n, w in step.penalties.items())
    assert statistics["loss"] == pytest.approx(parts, rel=1e-5)


def test_gradients_of_a_likelihood_are_taken_at_the_logits():
    terms = [Weighted(Bernoulli(), 1.0), Weighted(Compared("l2", l2), 3.0)]
    step, x = step_of(KL, terms), items()
    before = copy.deepcopy(step)
    step(x, seed=5)
    expected = plain_sum(
        before,
        x,
        5,
        [lambda output, made: bernoulli_nll(output, x), lambda output, made: 3 * l2(made, x)],
    )
    for name, gradient in gradients(step.generator).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("judged", ["samples", "both"])
def test_the_discriminator_is_shown_samples(judged):
    terms = [Weighted(Bernoulli(), 1.0), Weighted(Adversarial(LOSS), 2.0)]
    step, x = step_of(KL, terms, judged=judged), items()
    before = copy.deepcopy(step)
    step(x, seed=5)
    fake, network = step.inputs.fake, before.generator
    torch.manual_seed(5)
    made = network.activate(network.reconstruct(x).output)
    imagined = network.activate(network.imagine(6))
    expected = imagined if judged == "samples" else torch.stack((made[::2], imagined[1::2]), 1).flatten(0, 1)
    torch.testing.assert_close(fake, expected)

    def both(output, items_made):
        shown = network_of_the_sum(output, items_made)
        return bernoulli_nll(output, x) + 2 * LOSS.generator(step.critic.discriminator(shown))

    def network_of_the_sum(output, items_made):
        samples = sums.activate(sums.imagine(6))  # drawn next, as in the step
        if judged == "samples":
            return samples
        return torch.stack((items_made[::2], samples[1::2]), 1).flatten(0, 1)

    sums = copy.deepcopy(network)
    torch.manual_seed(5)
    given = sums.reconstruct(x)
    (both(given.output, sums.activate(given.output)) + 0.3 * given.penalties["kl"]).backward()
    for name, gradient in gradients(step.generator).items():
        torch.testing.assert_close(gradient, gradients(sums)[name], rtol=1e-9, atol=1e-12, msg=name)


# ---- the balance -------------------------------------------------------------------------------------------


def norms_of(gradient):
    """As the formula has them: of each item's own loss."""
    return torch.stack([(len(gradient) * g).norm() for g in gradient]).mean()


def test_a_balanced_term_has_its_share_of_the_norm():
    """Whatever the scale of its loss."""
    weights = {"l1": 1.0, "l2": 3.0}
    found = []
    for scale in (1.0, 1000.0):

        def scaled_l2(a, b, scale=scale):
            return scale * l2(a, b)

        terms = [
            Weighted(Compared("l1", l1), weights["l1"]),
            Weighted(Compared("l2", scaled_l2), weights["l2"]),
        ]
        balance = Balance(["l1", "l2"], norm=2.0, decay=0.9)
        step, x = step_of(VQ, terms, balance=balance), items()
        before = copy.deepcopy(step.generator)
        statistics = dict(zip(step.statistics, step(x, seed=1).tolist(), strict=True))
        output = before.reconstruct(x).output.detach().requires_grad_()
        own = {
            "l1": torch.autograd.grad(l1(output, x), output)[0],
            "l2": torch.autograd.grad(scale * l2(output, x), output)[0],
        }
        for name, gradient in own.items():
            assert statistics[f"norm_{name}"] == pytest.approx(norms_of(gradient).item(), rel=1e-5)
        share = {name: 2.0 * w / 4.0 for name, w in weights.items()}
        scaled = sum(share[name] * gradient / norms_of(gradient) for name, gradient in own.items())
        given = before.reconstruct(x)
        commitment = 0.25 * given.penalties["commitment"]
        torch.autograd.backward([given.output, commitment], [scaled, torch.ones(())])
        for name, gradient in gradients(step.generator).items():
            torch.testing.assert_close(gradient, gradients(before)[name], rtol=1e-5, atol=1e-9, msg=name)
        found.append(gradients(step.generator))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-8, msg=name)


def test_the_running_mean_forgets_its_start():
    balance = Balance(["a", "b"], norm=1.0, decay=0.5)
    assert balance.unknown(["a", "b"]) == ["a", "b"]
    balance.observe(torch.tensor([4.0, torch.nan]))
    assert balance.unknown(["a", "b"]) == ["b"]
    assert balance.factors({"a": 3.0})["a"].item() == pytest.approx(1 / 4)
    balance.observe(torch.tensor([1.0, 2.0]))
    mean = (0.5 * 4 + 1) / 1.5
    factors = balance.factors({"a": 3.0, "b": 1.0})
    assert factors["a"].item() == pytest.approx(0.75 / mean)
    assert factors["b"].item() == pytest.approx(0.25 / 2)
    balance.observe(torch.tensor([torch.inf, 2.0]))
    assert balance.factors({"a": 1.0})["a"].item() == pytest.approx(1 / mean), "not finite: left out"


def test_the_norms_of_parts_are_those_of_the_whole():
    gradient = torch.randn(6, 2, 3)
    parts = [item_norm(2 * part) for part in gradient.split(3)]  # of mean losses over half of the items
    assert torch.stack(parts).mean().item() == pytest.approx(item_norm(gradient).item())


# ---- the discriminator -------------------------------------------------------------------------------------


class Several(nn.Module):
    """Two discriminators of different patches, as a vocoder has."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            PatchDiscriminator(image_shape=(1, 8, 8), channels=4, layers=layers) for layers in (1, 2)
        )

    def forward(self, x):
        return [each(x) for each in self.each]

    def judge(self, x):
        judgements = [each.judge(x) for each in self.each]  # type: ignore[operator]
        return [logits for logits, _ in judgements], [f for _, features in judgements for f in features]


def test_several_logits_are_several_losses():
    terms = [*LIKENESS, Weighted(Adversarial(LOSS), 0.5), Weighted(FeatureMatching(), 1.0)]
    step, x = step_of(VQ, terms, discriminator=Several()), items()
    before = copy.deepcopy(step)
    statistics = dict(zip(step.statistics, step(x, seed=1).tolist(), strict=True))
    network, critics = before.generator, before.critic.discriminator
    fake = network.activate(network.reconstruct(x).output).detach()
    loss = torch.stack([LOSS.discriminator(each(x), each(fake))[0] for each in critics.each]).sum()
    assert statistics["loss_d"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(gradients(step.critic.discriminator), gradients(critics))
    assert statistics["adversarial"] == pytest.approx(
        sum(LOSS.generator(each(fake)).item() for each in step.critic.discriminator.each), rel=1e-5
    )


def test_the_slope_of_several_is_that_of_their_sum():
    terms = [*LIKENESS, Weighted(Adversarial(LOSS), 0.5)]
    step, x = step_of(VQ, terms, discriminator=Several()), items()
    critics = copy.deepcopy(step.critic.discriminator)
    statistics = dict(zip(step.statistics, step(x, seed=1, penalize=True).tolist(), strict=True))
    expected = r1_penalty(lambda images: sum(each(images).sum(1) for each in critics.each), x)
    assert statistics["r1"] == pytest.approx(expected.item(), rel=1e-5)


def test_before_the_start_only_the_discriminator_learns_of_it():
    terms = [Weighted(Compared("l1", l1), 1.0), Weighted(Adversarial(LOSS), 5.0)]
    step, alone, x = step_of(VQ, terms), step_of(VQ, terms[:1]), items()
    discriminator = copy.deepcopy(step.critic.discriminator)
    statistics = dict(zip(step.statistics, step(x, seed=1, adversarial=False).tolist(), strict=True))
    alone(x, seed=1)
    torch.testing.assert_close(gradients(step.generator), gradients(alone.generator), rtol=0, atol=0)
    assert statistics["adversarial"] != statistics["adversarial"]
    assert statistics["loss_d"] > 0
    changed = zip(step.critic.discriminator.parameters(), discriminator.parameters(), strict=True)
    assert any(not torch.equal(now, before) for now, before in changed)


@pytest.mark.parametrize("what", ["items", "weights"])
def test_a_step_that_is_not_finite_changes_nothing(what):
    terms = [Weighted(Compared("l1", l1), 1.0), Weighted(Adversarial(LOSS), 5.0)]
    step, x = step_of(VQ, terms, balance=Balance(["l1", "adversarial"], 1.0, 0.9)), items()
    step(x, seed=1)
    if what == "items":
        x[0, 0, 0, 0] = torch.nan
    else:
        with torch.no_grad():
            step.generator.decoder.last.weight[0] = torch.inf
    networks = nn.ModuleList([step.generator, step.critic.discriminator])
    before = copy.deepcopy(networks.state_dict())
    totals = step.balance.totals.clone()
    step(x, seed=2)
    for name, value in networks.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(step.balance.totals, totals)
    assert (step.optimizer.skipped, step.d_optimizer.skipped) == (1, 1)


def test_a_judgement_is_computed_once_for_all_terms():
    calls = []

    class Counting(PatchDiscriminator):
        def judge(self, images, c=None):
            calls.append(images.requires_grad)
            return super().judge(images, c)

    terms = [*LIKENESS, Weighted(Adversarial(LOSS), 0.5), Weighted(FeatureMatching(), 1.0)]
    step = step_of(VQ, terms, discriminator=Counting(image_shape=(1, 8, 8), channels=4, layers=1))
    step(items(), seed=1)
    assert sorted(calls[2:]) == [False, True], "after D's two: the output, and the target without a graph"


def test_a_term_that_hides_its_need_is_told():
    class Sly(FeatureMatching):
        judges = False

    step = step_of(VQ, [Weighted(Compared("l1", l1), 1.0), Weighted(Sly(), 1.0)])
    with pytest.raises(AssertionError, match="must say so: `judges = True`"):
        step(items(), seed=1)
