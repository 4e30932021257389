from __future__ import annotations

import os

import pytest

from aigc_ext.config import ConfigError
from aigc_ext.training import RunConfig
from aigc_ext.training.runtime import resolve_device, torch_settings


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "meta", "mps"])
def test_an_unknown_device(name):
    with pytest.raises(
        ConfigError, match=f"device is '{name}', but must be 'auto', 'cpu', 'cuda' or 'cuda:N'"
    ):
        resolve_device(name)


def test_a_cuda_device_that_is_not_there():
    with pytest.raises(ConfigError, match=r"device is 'cuda:99', but this PyTorch sees \d+ CUDA devices"):
        resolve_device("cuda:99")


@pytest.mark.parametrize("own", [None, ":16:8"])
def test_deterministic_runs_may_use_cublas(monkeypatch, own):
    """PyTorch asks for this variable; without it, deterministic mode refuses every matrix product on CUDA."""
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv(name, own)
    with torch_settings(RunConfig(deterministic=True)):
        assert os.environ[name] == (own or ":4096:8")
    assert os.environ.get(name) == own
    with torch_settings(RunConfig()):
        assert os.environ.get(name) == own
