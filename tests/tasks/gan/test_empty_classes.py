"""Labels with gaps: classes that have no image are said, not sampled, and not built by the thousand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from aigc_ext.cli import main
from aigc_ext.config import ConfigError
from aigc_ext.data import TensorImages, convert_dataset, open_dataset
from aigc_ext.models import MLPGenerator
from aigc_ext.sampling import PretrainedError, Sampler
from aigc_ext.tasks.gan import TrainConfig, Trainer
from tests.data.helpers import encoded, labelled, pixels, write
from tests.tasks.gan.helpers import config


def gapped(root: Path, *labels: int) -> Path:
    files = {f"{i:02d}.png": encoded(pixels(i, (8, 8))) for i in range(12)}
    names = [[name, labels[i % len(labels)]] for i, name in enumerate(files)]
    return write(root, {**files, "dataset.json": labelled(*names)})


def settings(source: Path, **more: object) -> TrainConfig:
    return config(data__source=str(source), data__cond=True, kimg=0.05, batch=5, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gaps")
    return Trainer.from_config(settings(gapped(root / "set", 1, 2)), outdir=root / "runs").fit().run_dir


def test_empty_classes_are_named(run, capsys):
    log = (run / "log.txt").read_text()
    assert "WARNING set: 1 of 3 classes have no image: 0; they are not sampled unless asked for" in log
    assert main(["dataset", "--source", str(run.parents[1] / "set")]) == 0
    shown = capsys.readouterr().out
    assert "classes:    2: 1 (6), 2 (6)\n" in shown
    assert "These classes have no image: 0.\n" in shown


def test_seeds_choose_among_the_others(run):
    assert Sampler.from_pretrained(run).trained_classes == [1, 2]
    for network in (run, run / "model", run / "checkpoints" / "000000-050"):
        sampler = Sampler.from_pretrained(network)
        assert sampler.num_classes == 3
        assert set(sampler.resolve_classes(range(50)) or []) == {1, 2}
    state = json.loads((run / "checkpoints" / "000000-050" / "state.json").read_text())
    assert state["trained_classes"] == [1, 2]
    assert json.loads((run / "model" / "trained_classes.json").read_text()) == [1, 2]


def test_grids_show_the_others(run):
    from PIL import Image

    with Image.open(run / "fakes000000-050.png") as image:
        classes = json.loads(image.text["aigc_ext"])["classes"]
    assert classes == [1, 2] * 4


def test_an_empty_class_can_be_asked_for_and_is_warned_of(run, tmp_path, caplog):
    arguments = ["sample", "--network", str(run), "--seeds", "0", "--outdir", str(tmp_path)]
    assert main([*arguments, "--class", "0"]) == 0
    assert "no image had the class 0, so that nothing is known of it" in caplog.text


def test_without_gaps_nothing_changes(tmp_path):
    result = Trainer.from_config(settings(gapped(tmp_path / "set", 0, 1)), outdir=tmp_path).fit()
    assert not (result.run_dir / "model" / "trained_classes.json").exists()
    assert "trained_classes" not in json.loads((result.checkpoint / "state.json").read_text())
    generator = MLPGenerator((1, 4, 4), 8, (8,), 3)
    drawn = Sampler(generator).resolve_classes(range(20))
    rng = [torch.Generator().manual_seed(seed) for seed in range(20)]
    for one in rng:
        torch.randn(8, generator=one)
    assert drawn == [int(torch.randint(3, (), generator=one)) for one in rng]


@pytest.mark.parametrize("text", ["[", "{}", "[]", '["a"]', "[-1]", "[1.5]", "3"])
def test_a_damaged_list_is_refused(run, tmp_path, text):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / "model" / name).read_bytes())
    (tmp_path / "trained_classes.json").write_text(text)
    with pytest.raises(
        PretrainedError, match=r"trained_classes.json is damaged: it must be a list of classes"
    ):
        Sampler.from_pretrained(tmp_path)


def test_absurd_gaps_are_refused_before_anything_is_built(tmp_path, capsys):
    source = gapped(tmp_path / "set", 5, 100_000)
    assert main(["train", "--data", str(source), "--cond", "--outdir", str(tmp_path / "runs")]) == 2
    shown = capsys.readouterr().err
    assert "the largest label of set is 100000, but 99999 of the classes up to it have no image" in shown
    assert "--renumber-classes numbers the others from 0 on" in shown
    with pytest.raises(ConfigError, match="99999 of the classes"):
        Trainer.from_config(settings(source))
    # Without labels they don't matter.
    assert Trainer.from_config(settings(source).override("data.cond", False)).data.num_classes == 100_001


@pytest.mark.parametrize(("labels", "refused"), [((0, 101), False), ((0, 102), True), ((99,), False)])
def test_the_limit(tmp_path, labels, refused):
    source = gapped(tmp_path / "set", *labels)
    if refused:
        with pytest.raises(ConfigError, match="have no image"):
            Trainer.from_config(settings(source))
        Trainer.from_config(settings(source, data__many_empty_classes=True))
    else:
        Trainer.from_config(settings(source))


def test_an_older_run_goes_on_whatever_its_gaps(tmp_path):
    config = TrainConfig.from_dict({"data": {"source": "x"}}, base=TrainConfig.from_dict(TrainConfig.before))
    assert config.data.many_empty_classes
    assert config.data.follow_links


@pytest.mark.parametrize("kind", ["folder", "npz"])
@pytest.mark.parametrize("resolution", [None, (4, 4)])
def test_they_can_be_numbered_anew(tmp_path, kind, resolution):
    source = gapped(tmp_path / "set", 5, 100_000)
    if kind == "npz":
        source = tmp_path / "set.npz"
        np.savez(source, images=pixels(0, (12, 8, 8)), labels=[5, 100_000] * 6)
    plain = open_dataset(source, resolution=resolution)
    dataset = open_dataset(source, renumber_classes=True, resolution=resolution)
    assert (dataset.num_classes, dataset.labels.tolist()) == (2, [0, 1] * 6)
    assert "its classes are numbered anew: 0 is 5, 1 is 100000" in "".join(dataset.remarks)
    assert dataset.content_hash() != plain.content_hash()
    assert dataset.read([1])[1].tolist() == [1]


def test_in_runs_and_converted_sets(tmp_path, capsys):
    source = gapped(tmp_path / "set", 5, 100_000)
    result = Trainer.from_config(settings(source, data__renumber_classes=True), outdir=tmp_path).fit()
    assert "numbered anew: 0 is 5, 1 is 100000" in (result.run_dir / "log.txt").read_text()
    convert_dataset(source, tmp_path / "made", renumber_classes=True)
    assert open_dataset(tmp_path / "made").labels.tolist() == [0, 1] * 6
    capsys.readouterr()
    assert main(["dataset", "--source", str(source), "--renumber-classes"]) == 0
    assert "classes:    2: 0 (6), 1 (6)\n" in capsys.readouterr().out


def test_descriptions():
    def dataset(*labels: int) -> TensorImages:
        images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
        return TensorImages("x", images, torch.tensor(labels))

    assert dataset(0, 1, 2).describe_empty_classes() is None
    assert dataset(2, 9).describe_empty_classes() == "8 of 10 classes have no image: 0 to 1, 3 to 8"
    many = dataset(*range(1, 60, 2)).describe_empty_classes()
    assert many == "30 of 60 classes have no image: 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, ..."
