"""Against a linear network, of which everything is known: its answer w.x changes by at most epsilon * |w|_1,
and that much by one step along the gradient's sign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aigc_ext.cli.main import main
from aigc_ext.metrics import (
    MetricError,
    Robustness,
    SampleClassifier,
    fgsm,
    pgd,
    robustness,
    smallest_epsilon,
)
from aigc_ext.metrics.robustness import of_classifier, of_discriminator, random_change
from aigc_ext.reporting import write_report
from aigc_ext.training import RunError
from tests.cli.test_cli import TINY
from tests.metrics.test_classifier import make_bars

SHAPE = (2, 5, 4)
WEIGHT = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
NORM = WEIGHT.abs().sum().item()


def answer(images: Tensor) -> Tensor:
    return (images * WEIGHT).sum(dim=(1, 2, 3))


def grey(count: int) -> Tensor:
    """Far enough from black and white for every attack here."""
    return 0.4 + 0.2 * torch.rand(count, *SHAPE)


LABELS = torch.zeros(300, dtype=torch.int64)


def test_both_attacks_find_the_worst_point_of_the_ball() -> None:
    images = grey(20)
    worst = answer(images) + 0.1 * NORM
    random = torch.Generator().manual_seed(0)
    torch.testing.assert_close(answer(fgsm(answer, images, 0.1)), worst)
    torch.testing.assert_close(answer(pgd(answer, images, 0.1, random)), worst)
    changed = random_change(images, 0.1, random)
    torch.testing.assert_close((changed - images).abs(), torch.full_like(images, 0.1))
    assert (answer(changed) < worst - 0.03 * NORM).all()


@pytest.mark.parametrize("epsilon", [0.03, 0.4])
def test_attacks_stay_in_the_ball_and_among_the_colours(epsilon: float) -> None:
    images = torch.rand(10, *SHAPE)
    images[0], images[1] = 0, 1
    random = torch.Generator().manual_seed(0)
    for changed in (
        fgsm(answer, images, epsilon),
        pgd(answer, images, epsilon, random),
        pgd(answer, images, epsilon, random, steps=3, step_size=9.0),
        random_change(images, epsilon, random),
    ):
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert (changed - images).abs().max() <= epsilon + 1e-6


def test_pgd_keeps_the_worst_point_that_it_met() -> None:
    """Steps too long for this loss lead away from its maximum, and the last point is not the best."""
    met: list[Tensor] = []

    def peak(images: Tensor) -> Tensor:
        losses = -(images - 0.52).abs().sum(dim=(1, 2, 3))
        met.append(losses.detach())
        return losses

    images = torch.full((4, *SHAPE), 0.5)
    changed = pgd(peak, images, 0.1, torch.Generator().manual_seed(0), steps=40, step_size=0.07)
    losses = torch.stack(met)
    assert len(losses) == 41  # the start's too
    assert torch.equal(peak(changed), losses.max(dim=0).values)
    assert (losses[-1] < losses.max(dim=0).values).any()


def test_shares_are_those_of_the_margins() -> None:
    images = grey(300)
    threshold = answer(images).quantile(0.2).item()
    margins = (answer(images) - threshold) / NORM
    judge = of_discriminator(lambda x, y: answer(x)[:, None], (0.0, 1.0), threshold)
    epsilons = [0.001, 0.01, 0.05]
    result = robustness(judge, images, LABELS, epsilons)
    expected = [(margins > epsilon).double().mean().item() for epsilon in epsilons]
    assert result.clean == pytest.approx(0.8)
    assert result.fgsm == pytest.approx(expected, abs=0.01)
    assert result.pgd == pytest.approx(expected, abs=0.01)
    assert min(result.random) > result.pgd[1]
    least = smallest_epsilon(judge, images, LABELS, largest=0.02)
    assert (least[margins <= 0] == 0).all()
    assert least[margins > 0.0201].isinf().all()
    between = (margins > 0) & (margins < 0.0199)
    assert between.sum() > 20
    assert ((least - margins)[between].abs() <= 0.02 / 64 + 1e-4).all()


def test_a_discriminator_gets_images_in_its_range_and_their_labels() -> None:
    def network(images: Tensor, labels: Tensor) -> Tensor:
        assert images.min() >= -1 - 1e-6
        assert images.max() > 0.9
        return answer(images) * 0 + labels

    judge = of_discriminator(network, (-1.0, 1.0), 0.5)
    images = torch.rand(10, *SHAPE)
    images[0, 0, 0, 0] = 1
    result = robustness(judge, images, torch.arange(10) % 2, [0.01])
    assert result == Robustness((0.01,), 0.5, (0.5,), (0.5,), (0.5,))


def test_a_gradient_that_hides_shows_in_the_order() -> None:
    """A staircase has no slope, although a random change climbs its steps: FGSM and PGD do worse."""
    images = grey(200)

    def logits(x: Tensor) -> Tensor:
        stairs = answer(x).mul(5).round() / 5 + 0 * answer(x)
        return torch.stack([stairs, torch.zeros_like(stairs)], dim=1)

    labels = (logits(images)[:, 0] <= 0).long()
    hidden = robustness(of_classifier(logits), images, labels, [0.1])
    assert not hidden.in_order
    assert Robustness((0.1, 0.2), 1.0, (0.9, 0.8), (0.9, 0.5), (0.7, 0.5)).in_order


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(0, *SHAPE), "labels": torch.zeros(0)}, "at least one image"),
        ({"epsilons": [0.1, 0.0]}, "epsilon is 0.0, but must be above 0 and at most 1"),
        ({"epsilons": []}, "epsilons is empty"),
        ({"steps": 0}, "steps is 0, but must be at least 1"),
    ],
)
def test_arguments_out_of_range(changes: dict, message: str) -> None:
    judge = of_discriminator(lambda x, y: answer(x), (0.0, 1.0), 0.0)
    with pytest.raises(MetricError, match=message):
        robustness(judge, **{"images": grey(3), "labels": LABELS[:3], **changes})


def test_adversarial_training_makes_a_classifier_robust() -> None:
    images, labels = make_bars(400, seed=1)
    images = (images.float() * 0.2 + 100).to(torch.uint8)  # bars of little contrast
    usual, robust = (
        SampleClassifier.train(images, labels, steps=100, epsilon=epsilon).robustness([0.06])
        for epsilon in (0.0, 0.06)
    )
    assert usual.clean >= 0.95
    assert robust.clean >= 0.9
    assert usual.in_order
    assert robust.pgd[0] >= usual.pgd[0] + 0.2
    with pytest.raises(ValueError, match="epsilon is -1, but must be from 0 to 1"):
        SampleClassifier.train(images, labels, epsilon=-1)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_command(conditional: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "--outdir", str(tmp_path), *TINY, *(["--cond"] if conditional else [])]
    assert main(run) == 0
    (made,) = tmp_path.glob("0*")
    capsys.readouterr()
    options = [
        "robust",
        "--data",
        "digits",
        "--num",
        "40",
        "--cache",
        str(tmp_path / "cache"),
        "--epsilons",
        "0.1",
    ]
    assert main([*options, "--network", str(made), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown) == {"discriminator", "classifier"}
    for figures in shown.values():
        assert figures["clean"] >= figures["fgsm"][0] >= figures["pgd"][0]
    least = shown["discriminator"]["median_epsilon"]
    assert least is None or 0 <= least <= 0.5
    assert json.loads((made / "robustness.json").read_text()) == shown
    page = write_report(made, tmp_path / "report.html").read_text()
    assert "The discriminator under attack" in page
    (made / "robustness.json").write_text('{"classifier": {"clean": "x"}}')
    with pytest.raises(RunError, match=r"robustness\.json is not what aigc-ext robust writes"):
        write_report(made)
    assert main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("classifier: ")
    assert lines[1].split() == ["epsilon", "random", "fgsm", "pgd"]
    assert lines[2].split()[0] == "0.1"
    for wrong, message in (
        ({"--network": str(tmp_path / "none")}, "none"),
        ({"--epsilons": "0.1,x"}, "'0.1,x' is no list of numbers such as 0.02,0.1"),
        ({"--epsilons": "2"}, "epsilon is 2.0, but must be above 0 and at most 1"),
        ({"--data": "mnist5k", "--network": str(made)}, "the generator's images have shape (1, 8, 8)"),
    ):
        assert main([*options, *(part for pair in wrong.items() for part in pair)]) == 2
        assert message in capsys.readouterr().err
