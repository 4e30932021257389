from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from aigc_ext.models import MLPGenerator
from aigc_ext.sampling import PretrainedError, Sampler, load_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub():
    return pytest.importorskip("huggingface_hub")


def generator():
    torch.manual_seed(4)
    return MLPGenerator((1, 4, 4), z_dim=5, hidden=(8, 6)).eval()


def same_images(one, other):
    return np.array_equal(Sampler(one).sample([1, 2]), Sampler(other).sample([1, 2]))


def test_save_and_load(hub, tmp_path):
    from aigc_ext.sampling.hub import HubGenerator

    HubGenerator(generator()).save_pretrained(tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "sha256.json"]
    assert "library_name: aigc_ext" in (tmp_path / "model" / "README.md").read_text()
    assert same_images(HubGenerator.from_pretrained(tmp_path / "model").generator, generator())
    assert same_images(load_pretrained(tmp_path / "model")[0], generator())
    with pytest.raises(ValueError, match="Linear has no dict `config`"):
        HubGenerator(nn.Linear(1, 1))


def test_push(hub, monkeypatch):
    from aigc_ext.sampling.hub import HubGenerator

    pushed = {}

    class FakeApi:
        def __init__(self, **options):
            pass

        def create_repo(self, repo_id, **options):
            return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path, **options):
            pushed[repo_id] = {path.name: path.read_bytes() for path in folder_path.iterdir()}
            return "done"

    monkeypatch.setattr(sys.modules[hub.ModelHubMixin.__module__], "HfApi", FakeApi)
    assert HubGenerator(generator()).push_to_hub("owner/name") == "done"
    assert json.loads(pushed["owner/name"]["config.json"]) == generator().config
    assert pushed["owner/name"].keys() == {"README.md", "config.json", "model.safetensors", "sha256.json"}


def test_a_model_in_the_cache_is_used_without_the_network(hub, tmp_path, monkeypatch):
    from aigc_ext.sampling.hub import HubGenerator

    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    HubGenerator(generator()).save_pretrained(repository / "snapshots" / COMMIT)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert same_images(Sampler.from_pretrained("owner/name").generator, generator())
    assert same_images(HubGenerator.from_pretrained("owner/name").generator, generator())
    with pytest.raises(PretrainedError, match="fetched with --allow-download"):
        load_pretrained("owner/other")
    with pytest.raises(PretrainedError, match="fetched with --allow-download"):
        load_pretrained("owner/name", revision="v2")


def test_nothing_is_fetched_unless_asked(hub, tmp_path, monkeypatch):
    calls = []

    def fetch(name, **options):
        calls.append((name, options))
        raise hub.errors.LocalEntryNotFoundError("no\nnetwork")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    with pytest.raises(PretrainedError, match="is no directory, nor in the local cache"):
        load_pretrained("owner/name")
    with pytest.raises(PretrainedError, match="owner/name cannot be fetched from the hub: no network"):
        load_pretrained("owner/name", allow_download=True, revision="v2")
    assert [options["local_files_only"] for _, options in calls] == [True, False]
    assert calls[1][1]["revision"] == "v2"
    assert set(calls[1][1]["allow_patterns"]) == {
        *("config.json", "model.safetensors", "sha256.json", "trained_classes.json", "data_licence.txt"),
    }
    # What is not a valid model name on the hub is refused, and a directory is never looked up there.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for path in ("name", "./owner/name", "/owner/name", "a/b/c", "../name", "a/b"):
        with pytest.raises(PretrainedError, match=r"is no directory, but must be|is no model"):
            load_pretrained(path)
    assert len(calls) == 2


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "aigc_ext.sampling.hub", raising=False)
    with pytest.raises(PretrainedError, match=r"pip install aigc_ext\[hub\]"):
        load_pretrained("owner/name")
    with pytest.raises(ModuleNotFoundError, match=r"pip install aigc_ext\[hub\]"):
        import aigc_ext.sampling.hub  # noqa: F401
