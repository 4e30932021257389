"""The Fréchet distance of reconstructions, in Python, in a run and from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aigc_ext.cli.main import main
from aigc_ext.config import ConfigError
from aigc_ext.data import TensorImages, open_dataset
from aigc_ext.metrics import MetricError, MetricSet, RandomFeatures, ReconstructionDistance
from aigc_ext.reporting import write_report
from aigc_ext.sampling import save_png
from aigc_ext.tasks.adversarial import Trainer
from tests.tasks.adversarial.helpers import config

SHORT = {"kimg": 0.05, "tick": 0.05, "snap": 1}


class Blurred:
    """Mixes an image with its mean; with classes, remembers the labels."""

    image_shape = (1, 8, 8)

    def __init__(self, share: float, num_classes: int = 0) -> None:
        self.share, self.num_classes, self.told = share, num_classes, []  # type: ignore[var-annotated]

    def reconstructions(self, items: Tensor, c: Tensor | None = None) -> np.ndarray:
        self.told += [] if c is None else c.tolist()
        mean = items.float().mean((1, 2, 3), keepdim=True)
        made = torch.lerp(items.float(), mean.expand_as(items), self.share)
        return made.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def digits() -> Any:
    return open_dataset("digits")


def test_it_is_the_distance_of_the_two_sets(digits):
    distance = ReconstructionDistance(digits, RandomFeatures(1))
    assert distance.count == len(digits)
    assert distance(Blurred(0.0)) == pytest.approx(0, abs=1e-6)
    made = torch.from_numpy(Blurred(0.3).reconstructions(digits.read(range(len(digits)))[0])).permute(
        0, 3, 1, 2
    )
    other = MetricSet(["fd"], digits, num_images=len(digits), extractor="random")(made)
    assert distance(Blurred(0.3)) == pytest.approx(other["fd"], rel=1e-6)
    assert distance(Blurred(0.3)) < distance(Blurred(0.6)) < distance(Blurred(1.0))


def test_some_of_the_images_and_their_labels(digits):
    network = Blurred(0.0, num_classes=10)
    some = ReconstructionDistance(digits, RandomFeatures(1), num_images=100, seed=3)
    assert some.count == 100
    assert some(network) == pytest.approx(0, abs=1e-6)
    assert len(network.told) == 100
    assert set(network.told) == set(range(10))


def test_what_cannot_be_compared_is_named(digits):
    one = TensorImages("one", torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(MetricError, match="rfd needs at least 2 images, but has 1 of one"):
        ReconstructionDistance(one, RandomFeatures(1))
    with pytest.raises(MetricError, match="num_images is 1, but must be at least 2"):
        ReconstructionDistance(digits, RandomFeatures(1), num_images=1)
    distance = ReconstructionDistance(digits, RandomFeatures(1))
    with pytest.raises(MetricError, match="the network has 3 classes, but digits has 10"):
        distance(Blurred(0.0, num_classes=3))
    small = Blurred(0.0)
    small.image_shape = (1, 4, 4)
    with pytest.raises(MetricError, match=r"for images of shape \(1, 4, 4\), but those of digits have"):
        distance(small)


@pytest.fixture(scope="module", params=["vae", "vqgan"])
def run(request, tmp_path_factory) -> Path:
    """Whose metrics have it, of as many held-out images as there are features."""
    settings = config(request.param, **SHORT, held_out=0.3, metrics=["rfd"])
    result = Trainer.from_config(settings, outdir=tmp_path_factory.mktemp("runs")).fit()
    return result.run_dir


def measured(run: Path, *more: str, metrics: str = "rfd") -> list[str]:
    data = [] if "--data" in more else ["--data", "digits"]
    return ["metrics", "--network", str(run), *data, "--metrics", metrics, "--json", *more]


def test_the_command_and_the_run_agree(run, capsys, tmp_path):
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert "rfd is of 539 images that are held out" in (run / "log.txt").read_text()
    capsys.readouterr()
    assert main(measured(run)) == 0
    shown = capsys.readouterr()
    figures = json.loads(shown.out)
    assert figures == {"rfd": pytest.approx(row["rfd"], rel=1e-4), "rfd_images": 539}
    assert "rfd: 539 images of digits (held out)\n" in shown.err
    page = write_report(run, tmp_path / "page.html").read_text()
    assert "best rfd" in page
    assert 'aria-label="rfd' in page


def test_few_held_out_images_are_joined_by_the_others(run, capsys, tmp_path):
    """A run that holds out fewer than there are features; other data; a model without its run."""
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    assert main(measured(run, "--extractor", "random", "--num", "200")) == 0
    assert "rfd: 200 images of digits (held out)\n" in capsys.readouterr().err
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "held_out": 0.29}))
    assert main(measured(copy, "--extractor", "random")) == 0  # not the images that it has learned
    assert "rfd: 1797 images of digits\n" in capsys.readouterr().err
    assert main(measured(run / "model", "--extractor", "random")) == 0
    assert "(held out)" in capsys.readouterr().err
    shutil.copytree(run / "model", tmp_path / "alone")
    assert main(measured(tmp_path / "alone", "--extractor", "random")) == 0
    assert "rfd: 1797 images of digits\n" in capsys.readouterr().err
    rng = np.random.default_rng(0)
    for number in range(5):
        (tmp_path / "other").mkdir(exist_ok=True)
        save_png(rng.integers(0, 256, (8, 8, 1), dtype=np.uint8), tmp_path / "other" / f"{number}.png")
    assert main(measured(run, "--data", str(tmp_path / "other"), "--extractor", "random")) == 0
    assert json.loads(capsys.readouterr().out)["rfd_images"] == 5


def test_fewer_held_out_images_than_features(capsys, tmp_path):
    run = Trainer.from_config(config("fsq", **SHORT), outdir=tmp_path).fit().run_dir
    assert main(measured(run, "--extractor", "random")) == 0
    remark = "1797 images of digits, learned ones too: the 180 held out are fewer than the 256 features"
    assert remark in capsys.readouterr().err


def test_with_the_metrics_of_samples(run, capsys):
    code = main(measured(run, "--extractor", "random", "--num", "300", metrics="fd,rfd"))
    shown = capsys.readouterr()
    if "vqgan" in run.name:
        assert code == 2
        assert "which makes no images of seeds; --metrics rfd measures its reconstructions" in shown.err
    else:
        figures = json.loads(shown.out)
        assert list(figures) == ["fd", "rfd", "rfd_images"]


def test_what_has_no_reconstructions_of_images(tmp_path, capsys):
    for case, settings, message in (
        ("vae", {"held_out": 0.0}, "metrics has rfd, but that is of held-out images"),
        ("vocoder", {}, "metrics has rfd, but that is of held-out images"),
        ("vqgan", {"metrics": ["rfd", "fd"]}, "metrics are fd, but must be none"),
    ):
        with pytest.raises(ConfigError, match=message):
            Trainer.from_config(config(case, **({"metrics": ["rfd"]} | settings)), outdir=tmp_path)
    network = Trainer.from_config(config("vocoder", **SHORT), outdir=tmp_path).fit().run_dir
    assert main(measured(network)) == 2
    assert "is a Vocoder, but rfd is of images of an autoencoder" in capsys.readouterr().err
