"""Training on a folder of photos as people have them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from aigc_ext.cli import main
from aigc_ext.tasks.gan import TrainConfig
from tests.data.helpers import encoded, pixels, write
from tests.tasks.gan.test_data_identity import TINY
from tests.training.helpers import files_of


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "photos", {f"{i:02d}.png": encoded(pixels(i, (9 + i, 20, 3))) for i in range(30)})


def test_they_train_with_a_resolution_and_go_on(photos):
    arguments = ["--data", "photos", "--resolution", "8", "--transform", "center-crop", *TINY]
    assert main(["train", *arguments, "--outdir", "whole", "--kimg", "0.04"]) == 0
    assert main(["train", *arguments]) == 0
    run = Path("runs/00000-mlp-photos")
    config = TrainConfig.from_json(run / "config.json")
    assert (config.data.resolution, config.data.transform) == ((8, 8), "center-crop")
    state = json.loads((run / "checkpoints" / "000000-020" / "state.json").read_text())
    assert (state["data"]["images"], state["data"]["shape"]) == (30, [3, 8, 8])
    photos.rename("moved")
    assert main(["train", "--resume", "latest", "--kimg", "0.04", "--data", "moved"]) == 0
    name = "checkpoints/000000-040"
    assert files_of(run / name) == files_of(Path("whole") / run.name / name)


def test_a_resolution_is_enough(photos, capsys):
    """The ends of photos of another shape are cut off, unless another transform is named."""
    assert main(["train", "--data", "photos", "--resolution", "8", *TINY]) == 0
    config = TrainConfig.from_json(Path("runs/00000-mlp-photos/config.json"))
    assert (config.data.resolution, config.data.transform) == ((8, 8), "center-crop")
    said = "photos: images of another shape than 8x8 lose their ends; --transform letterbox adds bars instead"
    assert capsys.readouterr().err.count(said) == 1
    measured = ["--metrics", "kid", "--num", "16", "--extractor", "random"]
    arguments = ["--data", "photos", "--resolution", "8", *measured]
    assert main(["metrics", "--network", "runs/00000-mlp-photos", *arguments]) == 0
    letterbox = ["--resolution", "8", "--transform", "letterbox"]
    assert main(["train", "--data", "photos", *letterbox, *TINY]) == 0
    config = TrainConfig.from_json(Path("runs/00001-mlp-photos/config.json"))
    assert config.data.transform == "letterbox"


def test_a_stranger_types_what_each_step_printed(photos, capsys):
    """Trains, moves the folder, goes on, samples, exports, and looks at the report."""

    def type_in(command: str) -> tuple[int, str, str]:
        name, *arguments = shlex.split(command)
        assert name == "aigc-ext"
        code = main(arguments)
        return (code, *capsys.readouterr())

    def printed(out: str) -> dict[str, str]:
        return {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in out.splitlines())}

    code, out, _ = type_in(shlex.join(["aigc-ext", "train", "--data", "photos", "--resolution", "8", *TINY]))
    assert code == 0
    photos.rename("elsewhere")
    code, _, err = type_in(printed(out)["to go on"])
    assert code == 2
    assert err == (
        "Error: the run's data are no longer at 'photos': if they have moved, --data PATH goes on with them, "
        "since it knows them by their content\n"
    )
    code, out, _ = type_in(printed(out)["to go on"] + " --data elsewhere")
    assert code == 0
    assert printed(out)["images seen"] == "40"  # twice as many
    code, *_ = type_in(printed(out)["to go on"])
    assert code == 0
    for key, found in (
        ("more images", "out/seed0000.png"),
        ("one file", "runs/00000-mlp-photos/model.pt2"),
        ("on one page", "runs/00000-mlp-photos/report.html"),
    ):
        code, *_ = type_in(printed(out)[key])
        assert code == 0
        assert Path(found).is_file(), sorted(Path().glob("out/*"))


def test_what_is_left_out_is_named(photos):
    (photos / "torn.png").write_bytes(encoded(pixels(0, (9, 9, 3)))[:-60])
    assert main(["train", "--data", "photos", "--resolution", "8", "--transform", "letterbox", *TINY]) == 0
    assert "torn.png: image file is truncated" in Path("runs/00000-mlp-photos/bad_files.txt").read_text()


def test_without_one_the_way_out_is_named(photos, capsys):
    assert main(["train", "--data", "photos", *TINY]) == 2
    shown = capsys.readouterr().err
    assert "29 of 30 images would be left out" in shown
    assert "--resolution 64 crops and scales all to 64x64" in shown
    uncropped = ["--set", "data.resolution=[8,8]"]
    assert main(["train", "--data", "photos", *TINY, *uncropped]) == 2
    assert "--transform center-crop cuts off what is too long" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main(["train", "--data", "photos", *TINY, "--set", "data.max_left_out=1"]) == 0


def test_an_older_run_goes_on_with_what_it_had(photos):
    assert main(["train", "--data", "photos", *TINY, "--set", "data.max_left_out=1"]) == 0
    old = {"data": {"source": "photos"}}
    config = TrainConfig.from_dict(old, base=TrainConfig.from_dict(TrainConfig.before))
    assert config.data.max_left_out == 1
    assert main(["train", "--resume", "latest", "--kimg", "0.04", "--set", "data.max_left_out=0.99"]) == 0


def test_metrics_can_fit_their_data_too(photos, capsys):
    arguments = ["--data", "photos", "--resolution", "8", "--transform", "center-crop"]
    assert main(["train", *arguments, *TINY]) == 0
    capsys.readouterr()
    measured = ["--metrics", "kid", "--num", "16", "--extractor", "random"]
    assert main(["metrics", "--network", "runs/00000-mlp-photos", *arguments, *measured]) == 0
    assert capsys.readouterr().out.startswith("kid ")


def test_metrics_read_their_data_as_the_run_does(photos, capsys):
    """Or as the network needs them: a folder of any photos is enough."""
    (photos / "broken.jpg").write_bytes(b"no photo")
    fit = ["--resolution", "8x12", "--transform", "letterbox", *TINY]
    assert main(["train", "--data", "photos", *fit]) == 0
    measured = ["--data", "photos", "--metrics", "kid", "--num", "16", "--extractor", "random", "--json"]

    def figures(network: str, *more: str) -> tuple[str, str]:
        capsys.readouterr()
        assert main(["metrics", "--network", network, *measured, *more]) == 0
        said = capsys.readouterr()
        return said.out, said.err

    run = "runs/00000-mlp-photos"
    expected, said = figures(run, "--resolution", "8x12", "--transform", "letterbox")
    assert "1 files of photos are left out" in said
    assert "broken.jpg: " in said
    for network in (run, f"{run}/model", f"{run}/checkpoints/000000-020"):
        assert figures(network)[0] == expected
    Path(run, "model").rename("model")
    assert main(["metrics", "--network", "model", *measured]) == 2
    assert "3 are too small: --enlarge uses them too" in capsys.readouterr().err
    got, said = figures("model", "--enlarge")
    assert "photos: cropped and scaled to 8x12, the network's size" in said
    assert got == figures("model", "--enlarge", "--resolution", "8x12")[0] != expected


def test_metrics_know_the_classes_of_the_run(photos, capsys):
    for number, photo in enumerate(sorted(photos.iterdir())):
        folder = photos / ("cats", "dogs", "eels")[number % 3]
        folder.mkdir(exist_ok=True)
        photo.rename(folder / photo.name)
    fit = ["--resolution", "8", "--class-folders", "--cond", *TINY]
    assert main(["train", "--data", "photos", *fit]) == 0
    measured = ["--data", "photos", "--metrics", "coverage", "--num", "16"]
    assert main(["metrics", "--network", "runs/00000-mlp-photos", *measured]) == 0
    assert "classes" in capsys.readouterr().out
