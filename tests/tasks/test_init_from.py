"""A new run with the weights of another, for every preset that is no GAN."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aigc_ext.cli.main import main
from aigc_ext.config import ConfigError
from aigc_ext.data import wav_file
from aigc_ext.data.text import Vocabulary
from aigc_ext.sampling import PretrainedError, load_pretrained, save_pretrained
from aigc_ext.tasks import find_resume_point, task_of
from aigc_ext.tasks.initial import initial_config, read_initial_weights
from aigc_ext.training import RunError, TrainResult, read_checkpoint
from aigc_ext.training.checkpoint import serialize
from tests.tasks.adversarial.helpers import config as adversarial
from tests.tasks.likelihood.helpers import Blocks, write_data
from tests.tasks.likelihood.helpers import config as likelihood
from tests.training.helpers import files_of

pytest.importorskip("tokenizers")
ADVERSARIAL = ("vae", "vae-gan", "vqgan", "fsq", "vocoder")
LIKELIHOOD = ("prior", "captions", "textgen", "wavenet")
SHORT = {
    "adversarial": {"kimg": 0.05, "tick": 0.025},
    "likelihood": {"kimg": 0.024, "tick": 0.012, "snap": 1},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_data(tmp_path_factory.mktemp("data"))


def config(case: str, sources: dict[str, str], **overrides: Any) -> Any:
    """Of a run of two steps."""
    if case in ADVERSARIAL:
        return adversarial(case, **(SHORT["adversarial"] | overrides))
    return likelihood(case, sources[case], **(SHORT["likelihood"] | overrides))


def trainer_of(settings: Any, outdir: Path) -> Any:
    return task_of(settings.preset).Trainer.from_config(settings, outdir=outdir)


@pytest.fixture(scope="module", params=ADVERSARIAL + LIKELIHOOD)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(case: str, sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    result: TrainResult = trainer_of(config(case, sources, seed=3), tmp_path_factory.mktemp("runs")).fit()
    return result


def settings_of(source: Path, like: Any) -> Any:
    """Of a new run, as short as another."""
    found = initial_config(read_initial_weights(source))
    names = ("batch", "kimg", "tick", "snap", "keep", "grid", "device", "threads")
    return replace(found, **{name: getattr(like, name) for name in names})


def same(network: torch.nn.Module, tensors: dict[str, Tensor]) -> bool:
    state = network.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


def test_a_new_run_begins_with_all_networks(case, run, sources, tmp_path):
    checkpoint, old = read_checkpoint(run.checkpoint), config(case, sources, seed=3)
    settings = settings_of(run.run_dir, old)
    networks = ("generator", "discriminator") if case in ADVERSARIAL else ("network",)
    names = ("preset", "seed", "data", "held_out", *networks, *(() if case in ADVERSARIAL else ("text",)))
    if case in ("vae", "fsq"):  # nothing is known of the discriminator that there was not
        names = tuple(name for name in names if name != "discriminator")
    for name in names:
        assert getattr(settings, name) == getattr(old, name), name
    trainer = trainer_of(replace(settings, loss=old.loss) if case in ADVERSARIAL else settings, tmp_path)
    assert not same(trainer.state.ema, checkpoint.tensors["ema"])
    done = trainer.init_from(run.run_dir)
    assert list(done) == [name for name in (*networks, "ema") if name in checkpoint.tensors]
    for role, transfer in done.items():
        assert same(getattr(trainer.state, role), checkpoint.tensors[role]), role
        assert not transfer.new
        assert not transfer.rows
    result = trainer.fit()
    log = (result.run_dir / "log.txt").read_text()
    assert f"it begins with weights of {run.checkpoint} (all tensors: init_from.txt)" in log
    assert f"averaged {networks[0]}: " in log
    assert "has learned items that are held out now" not in log
    listed = (result.run_dir / "init_from.txt").read_text().splitlines()
    assert listed[0] == f"weights of {run.checkpoint}"
    assert all(line.endswith(": taken") for line in listed[1:])
    with pytest.raises(ValueError, match="init_from is for a new run, but this one is at step"):
        trainer.init_from(run.run_dir)


def test_it_resumes_with_the_same_bits_and_without_its_source(case, run, sources, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(run.run_dir, source)
    settings = settings_of(source, config(case, sources))

    def begun(kimg: float, outdir: str) -> TrainResult:
        trainer = trainer_of(settings.override("kimg", kimg), tmp_path / outdir)
        trainer.init_from(source)
        result: TrainResult = trainer.fit()
        return result

    whole, half = begun(settings.kimg, "whole"), begun(settings.kimg / 2, "half")
    shutil.rmtree(source)
    point = find_resume_point(str(half.run_dir), tmp_path)
    again = trainer_of(point.config.override("kimg", settings.kimg), tmp_path)
    again.restore(point)
    end = again.fit()
    assert (half.step, end.step, whole.step) == (1, 2, 2)
    assert files_of(end.checkpoint) == files_of(whole.checkpoint)
    assert (end.run_dir / "log.txt").read_text().count("it begins with weights") == 1


def test_a_run_that_lost_its_beginning_is_not_resumed(case, run, sources, tmp_path):
    """Killed before its first checkpoint: it would begin with random weights."""
    trainer = trainer_of(settings_of(run.run_dir, config(case, sources)), tmp_path)
    trainer.init_from(run.run_dir)
    killed = trainer.fit().run_dir
    shutil.rmtree(killed / "checkpoints")
    with pytest.raises(RunError, match=rf"no checkpoint yet, and it began with weights of {run.checkpoint}"):
        find_resume_point(str(killed), tmp_path)


def test_a_model_is_its_own_average_and_has_no_discriminator(case, run, sources, tmp_path):
    model, old = run.run_dir / "model", config(case, sources)
    settings = settings_of(model, old)
    assert settings.preset == old.preset
    assert settings.data.cond == old.data.cond
    if case in LIKELIHOOD:
        assert settings.caption == old.caption
        if case == "textgen":
            assert settings.text.source == old.text.source
            assert settings.text.target == old.text.target
        settings = replace(settings, text=old.text)
    # The seed chooses what is held out, and so what a vocabulary is learned from.
    settings = replace(settings, data=old.data, seed=3)
    if case in ADVERSARIAL:
        settings = replace(settings, loss=old.loss, discriminator=old.discriminator)
    trainer = trainer_of(settings, tmp_path)
    done = trainer.init_from(model)
    network = "generator" if case in ADVERSARIAL else "network"
    assert done.keys() == {network, "ema"}
    weights = load_pretrained(model)[0].state_dict()
    assert same(getattr(trainer.state, network), weights)
    assert same(trainer.state.ema, weights)
    lines = trainer.task.initial.lines()
    assert ("discriminator: new (a model has none)" in lines) == (case in ("vae-gan", "vqgan", "vocoder"))


def test_a_discriminator_that_only_one_of_them_has(tmp_path):
    runs = {
        name: trainer_of(adversarial(name, **SHORT["adversarial"]), tmp_path).fit()
        for name in ADVERSARIAL[:2]
    }
    plain = trainer_of(adversarial("vae", data__cond=True), tmp_path)
    assert plain.init_from(runs["vae-gan"].run_dir).keys() == {"generator", "ema"}
    assert plain.task.initial.remarks == ["discriminator: not used (this run has none)"]
    both = trainer_of(adversarial("vae-gan", data__cond=False), tmp_path)
    assert both.init_from(runs["vae"].run_dir).keys() == {"generator", "ema"}
    assert both.task.initial.remarks == ["discriminator: new (that run has none)"]


def test_other_held_out_items_than_the_sources_are_remarked_on(sources, tmp_path):
    for case in ("vae", "textgen"):
        run = trainer_of(config(case, sources), tmp_path).fit().run_dir
        for change, remarks in ({"seed": 1}, 1), ({"held_out": 0.2}, 1), ({"held_out": 0.0}, 0), ({}, 0):
            trainer = trainer_of(config(case, sources, **change), tmp_path)
            trainer.init_from(run)
            found = [text for text in trainer.task.initial.lines() if "are held out now" in text]
            assert len(found) == remarks, change


def test_with_classes_only_what_knows_them_is_new(run, case, sources, tmp_path):
    settings = config(case, sources)
    if case in ("vocoder", "textgen"):
        pytest.skip("the data have no classes")
    trainer = trainer_of(settings.override("data.cond", not settings.data.cond), tmp_path)
    done = trainer.init_from(run.run_dir)
    network = done["generator" if case in ADVERSARIAL else "network"]
    if case in ("prior", "captions"):
        assert (network.new, network.unused) == ({}, [])
        count = 1 if settings.data.cond else 3
        assert network.rows.get("start.weight") == (None if settings.data.cond else f"1 of {count} rows")
        return
    assert all(any(word in name for word in ("embedding", "by_class", "places")) for name in network.new)
    assert network.taken


def test_codes_mean_the_same_only_with_the_same_autoencoder(sources, tmp_path):
    """It belongs to the data, and stays what it is."""
    run = trainer_of(config("captions", sources), tmp_path).fit()
    other = Blocks()
    with torch.no_grad():
        other.levels.add_(0.01)
    save_pretrained(tmp_path / "other", other.config, serialize(other.state_dict()))
    _, _, images = sources["captions"].split(":")
    trainer = trainer_of(
        config("captions", sources, data__source=f"tokens:{tmp_path / 'other'}:{images}"), tmp_path
    )
    before = trainer.state.network.embedding.weight.detach().clone()
    done = trainer.init_from(run.run_dir)["network"]
    now, given = trainer.state.network.embedding.weight, read_checkpoint(run.checkpoint).tensors["network"]
    assert torch.equal(now[:5], before[:5])
    assert torch.equal(now[5:], given["embedding.weight"][5:])
    assert done.rows == {"embedding.weight": f"{len(now) - 5} of {len(now)} rows"}
    assert not done.new
    assert torch.equal(trainer.state.network.codec.levels, other.levels)


def test_tokens_of_the_same_text_are_taken_wherever_they_are(sources, tmp_path):
    run = trainer_of(config("textgen", sources), tmp_path).fit()
    lines = [{"source": f"The library of tools {i}", "target": f"many words {i}"} for i in range(40)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = config("textgen", sources, data__source=str(tmp_path / "other.jsonl"), text__vocabulary=290)
    trainer = trainer_of(settings, tmp_path)
    before = trainer.state.network.embedding.weight.detach().clone()
    done = trainer.init_from(run.run_dir)["network"]
    given = read_checkpoint(run.checkpoint)
    rows, now = given.tensors["network"]["embedding.weight"], trainer.state.network.embedding.weight.clone()
    tokens, known = (
        Vocabulary.from_json(settings["tokenizer"]).tokens()
        for settings in (trainer.state.network.config, given.state["network"])
    )
    common = set(tokens) & set(known)
    assert 259 < len(common) < min(len(tokens), len(known))
    assert done.rows == {"embedding.weight": f"{len(common)} of {len(tokens)} rows"}
    for number, token in enumerate(tokens):
        expected = rows[known.index(token)] if token in common else before[number]
        assert torch.equal(now[number], expected), token
    text = (trainer.fit().run_dir / "init_from.txt").read_text()
    assert f"network.embedding.weight: {len(common)} of {len(tokens)} rows taken\n" in text


def test_frames_of_longer_recordings(sources, tmp_path):
    """A WaveNet knows the frames of a class by its recordings' beginning."""
    run = trainer_of(config("wavenet", sources), tmp_path).fit()
    for number in range(8):
        path = tmp_path / "waves" / str(number % 2) / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = np.sin(np.arange(140) * 0.3) * 8000
        path.write_bytes(wav_file.encode(wave.astype(np.int16), 800))
    trainer = trainer_of(config("wavenet", sources, data__source=str(tmp_path / "waves")), tmp_path)
    done = trainer.init_from(run.run_dir)["network"]
    old, new = read_checkpoint(run.checkpoint).tensors["network"]["places.weight"], trainer.state.network
    frames, longer = len(old) // 2, len(new.places.weight) // 2
    assert frames < longer
    assert done.rows == {"places.weight": f"{2 * frames} of {2 * longer} rows"}
    for label in range(2):
        assert torch.equal(
            new.places.weight[label * longer : label * longer + frames],
            old[label * frames : (label + 1) * frames],
        )


def test_recordings_of_another_rate_are_remarked_on(sources, tmp_path):
    run = trainer_of(config("vocoder", sources), tmp_path).fit()
    trainer = trainer_of(config("vocoder", sources, data__sample_rate=16000), tmp_path)
    trainer.init_from(run.run_dir)
    (remark,) = trainer.task.initial.remarks
    assert remark == "the source was made for 8000 samples a second, and this run has 16000"


def test_a_recipe_of_its_own_is_kept(tmp_path):
    """Preset vae with another bottleneck has losses that the preset has not."""
    settings = adversarial(
        "vae",
        **SHORT["adversarial"],
        generator__bottleneck="vq",
        generator__single_code=False,
        loss__judged="reconstructions",
    )
    run = trainer_of(settings, tmp_path).fit().run_dir
    assert initial_config(read_initial_weights(run)) == settings_of(run, settings)
    with pytest.raises(ConfigError, match=r"whose bottleneck is 'kl', but that of .* is 'vq'"):
        initial_config(read_initial_weights(run), "vae")
    assert initial_config(read_initial_weights(run / "model")).preset == "vqgan"


def test_other_tasks_are_refused_by_name(case, run, sources, tmp_path, capsys):
    other = "prior" if case in ADVERSARIAL else "vqgan"
    wanted = "that of a model of likelihood" if case in ADVERSARIAL else "an autoencoder's or a vocoder's"
    for preset, words in ((other, wanted), ("mlp", "a GAN's")):
        assert main(["train", "--preset", preset, "--init-from", str(run.run_dir), "--data", "digits"]) == 2
        name = config(case, sources).preset
        assert f"is of preset {name}, but must be {words}\n" in capsys.readouterr().err
    weights = read_initial_weights(run.run_dir / "model")
    with pytest.raises(PretrainedError, match=r"network .*model is \w+, but must be a GAN's generator"):
        weights.check_task("gan")


def test_from_the_command_line(sources, tmp_path, capsys):
    """The preset is that of the source, and its settings and data too."""
    images, outdir = sources["prior"].rpartition(":")[2], str(tmp_path / "runs")
    small = tmp_path / "small.json"
    small.write_text(json.dumps({"generator": {"channels": [6, 8], "num_codes": 8, "stem": 1}, "threads": 1}))
    short = ["--batch", "8", "--kimg", "0.016", "--set", "grid=[2, 2]", "--outdir", outdir]
    first = ["--preset", "vqgan", "--data", images, "--config", str(small), "--resolution", "4"]
    assert main(["train", *first, *short]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    assert main(["train", "--init-from", str(run), *short, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "\naveraged generator: " in shown.err
    assert json.loads(shown.out)["generator"]["num_codes"] == 8
    assert main(["train", "--init-from", "latest", "--data", "digits", "--resolution", "8", *short]) == 0
    made = max((tmp_path / "runs").iterdir())
    assert made.name == "00001-vqgan-digits"
    assert "weights of " in (made / "init_from.txt").read_text()
