from __future__ import annotations

import pytest
import torch
from torch import nn

from aigc_ext.config import ConfigError
from aigc_ext.training.distributed import _checksum, process_group
from tests.models.style_checks import channels_last


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_processes_wait_for_the_metrics_of_the_main_one(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    called: list[tuple[str, float]] = []
    monkeypatch.setattr(
        "torch.distributed.init_process_group",
        lambda backend, timeout: called.append((backend, timeout.total_seconds())),
    )
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in {**variables, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with process_group(torch.device(kind)):
        pass
    ((backend, seconds),) = called
    assert backend == {"cpu": "gloo", "cuda": "nccl"}[kind]
    assert seconds >= 3600  # PyTorch's own: 1800 and 600


def test_one_of_several_processes_does_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT is not set"
    with pytest.raises(ConfigError, match=message), process_group(torch.device("cpu")):
        pass


def test_the_bits_of_any_parameter_decide_a_checksum():
    def network(strength: float, weight: float) -> nn.Module:
        made = nn.Conv2d(2, 3, 1)
        nn.init.constant_(made.weight, weight)
        assert made.bias is not None
        nn.init.zeros_(made.bias)
        made.strength = nn.Parameter(torch.tensor(strength))  # 0-d, as StyleGAN2's strength of noise
        return made

    plain = _checksum(network(0.5, 1.0))
    assert _checksum(channels_last(network(0.5, 1.0))) == plain
    assert len({int(plain), int(_checksum(network(0.25, 1.0))), int(_checksum(network(0.5, 2.0)))}) == 3
