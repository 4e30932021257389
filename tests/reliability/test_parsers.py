"""Every parser reads or refuses what it is given: inputs that were once read wrongly, and some new ones."""

from __future__ import annotations

import pytest

from tests.reliability import fuzz

NAMES = [
    *("config", "overrides", "stats.jsonl", "a run's config.json", "state.json", "state.json and manifest"),
    *("data.json", "model/config.json", "model/sha256.json", "trained_classes.json", "safetensors header"),
    *("safetensors to convert", "latents", "dataset.json", "zip listing", "tar listing", "image header"),
    *("npy and npz", "wav", "cached images"),
]
NEVER_REFUSED = ("data.json", "cached images")  # without them nothing is lost but words, or time
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module")
def targets():
    return {target.name: target for target in fuzz.targets()}


def test_all_parsers_are_here(targets):
    assert list(targets) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_valid_file_is_read(targets, name):
    """What refuses everything is no parser."""
    with fuzz.workplace() as folder:
        if name == "safetensors to convert":  # also as a DCGAN, which it is not
            with pytest.raises(ValueError, match="is no dcgan"):
                targets[name].read(folder, targets[name].valid)
            assert (folder / "made" / "model.safetensors").exists()
        else:
            targets[name].read(folder, targets[name].valid)


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus(targets, name):
    for path in fuzz.corpus(targets[name]):
        with fuzz.workplace() as folder:
            assert fuzz.problem_of(targets[name], folder, path.read_bytes()) is None, path.name


@pytest.mark.parametrize("name", NAMES)
def test_changed_files(targets, name):
    found = fuzz.fuzz(targets[name], seconds=60, examples=100)
    assert found.problems == {}
    assert found.calls > 0
    if name not in NEVER_REFUSED:
        assert found.refused > 0


def test_each_input_of_the_corpus_belongs_to_a_parser(targets):
    known = {fuzz.folder_of(target) for target in targets.values()}
    assert {path.name for path in fuzz.CORPUS.iterdir()} <= known


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda folder, data: {"b": 1}["a"], "KeyError at "),
        (lambda folder, data: int("x"), "names nothing: ValueError at "),
        (lambda folder, data: data.decode("ascii"), "a raw or endless message: UnicodeDecodeError at "),
    ],
)
def test_what_is_wrong_is_found(tmp_path, read, problem):
    words = ("ascii", "a.json")
    target = fuzz.Target("try", b"", fuzz.st.just(b"\xff"), read, words)
    found = fuzz.problem_of(target, tmp_path, b"\xff")
    assert found is not None
    assert found.startswith(problem)
