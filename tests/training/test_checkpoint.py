from __future__ import annotations

import json
import os
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aigc_ext import _files
from aigc_ext.optim import AdamEMA
from aigc_ext.training.checkpoint import (
    CheckpointError,
    checkpoint_name,
    list_checkpoints,
    load_optimizer,
    load_weights,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    read_checkpoint,
    serialize,
    set_aside,
    write_checkpoint,
)

TENSORS = {
    "double": torch.randn(3, dtype=torch.float64),
    "half": torch.randn(2, 2).to(torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "transposed": torch.randn(3, 5).T,
}


def write(path, value=0, files=("generator", "ema")):
    write_checkpoint(
        path, {stem: serialize({"w": torch.full((8,), float(value))}) for stem in files}, {"step": value}
    )
    return path


@pytest.fixture
def run_dir(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path / "checkpoints" / f"{step:06d}", step)
    return tmp_path


def test_round_trip(tmp_path):
    path = tmp_path / "checkpoints" / "000001"
    state = {"step": 3, "rate": 0.1, "list": [1, None, "x"], "nested": {"a": True}}
    write_checkpoint(path, {"generator": serialize(TENSORS)}, state)
    checkpoint = read_checkpoint(path)
    assert checkpoint.path == path
    assert {key: checkpoint.state[key] for key in state} == state
    read = checkpoint.tensors["generator"]
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert [p.name for p in path.parent.iterdir()] == ["000001"]


def test_equal_tensors_give_equal_bytes():
    assert serialize(TENSORS) == serialize(dict(reversed(TENSORS.items())))


def test_tied_weights_are_written_and_read(tmp_path):
    def tied():
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        module[1].weight = module[0].weight
        return module

    path = tmp_path / "000001"
    original, other = tied(), tied()
    write_checkpoint(path, {"generator": serialize(original.state_dict())}, {})
    load_weights(read_checkpoint(path), "generator", other)
    assert torch.equal(other[0].weight, original[0].weight)
    assert other[1].weight is other[0].weight


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    path = tmp_path / "000001"
    write_checkpoint(path, {"generator": serialize(nn.Linear(2, 3).state_dict())}, {})
    with pytest.raises(
        CheckpointError, match=r"000001 is refused: generator.safetensors does not fit .* weight"
    ):
        load_weights(read_checkpoint(path), "generator", nn.Linear(2, 4))
    with pytest.raises(CheckpointError, match=r"000001 is refused: it has no discriminator.safetensors"):
        load_weights(read_checkpoint(path), "discriminator", nn.Linear(2, 3))


@pytest.mark.parametrize("keep", [0, 1, 50, -1])
@pytest.mark.parametrize("name", ["generator.safetensors", "ema.safetensors", "state.json"])
def test_a_truncated_file_is_refused(run_dir, name, keep):
    path = run_dir / "checkpoints" / "000003"
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:keep])
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert name in str(error.value)
    checkpoint, refused = newest_checkpoint(run_dir)
    assert checkpoint is not None
    assert checkpoint.path.name == "000002"
    assert checkpoint.tensors["ema"]["w"][0] == 2
    assert [e.path.name for e in refused] == ["000003"]


def test_a_single_flipped_bit_is_refused_wherever_it_is(run_dir):
    path = run_dir / "checkpoints" / "000003"
    rng = random.Random(0)
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for _ in range(40):
            at = rng.randrange(len(data))
            broken = bytearray(data)
            broken[at] ^= 1 << rng.randrange(8)
            file.write_bytes(broken)
            with pytest.raises(CheckpointError, match=file.name):
                read_checkpoint(path)
        file.write_bytes(data)
    read_checkpoint(path)


@pytest.mark.parametrize("name", ["generator.safetensors", "ema.safetensors", "state.json"])
def test_a_missing_file_is_refused(run_dir, name):
    (run_dir / "checkpoints" / "000003" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        read_checkpoint(run_dir / "checkpoints" / "000003")


def test_an_edited_state_is_refused_even_if_it_is_json(run_dir):
    path = run_dir / "checkpoints" / "000003" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "step": 4}))
    with pytest.raises(CheckpointError, match=r"state.json was altered"):
        read_checkpoint(path.parent)
    # Its layout is not its content.
    path.write_text(json.dumps(state, indent=8))
    assert read_checkpoint(path.parent).state["step"] == 3


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format": "aigc_ext checkpoint 2"}', '{"format": 1}'])
def test_what_is_not_our_format_is_refused(run_dir, text):
    path = run_dir / "checkpoints" / "000003"
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="this version reads 'aigc_ext checkpoint 1'"):
        read_checkpoint(path)


def test_no_pickle_is_ever_read(run_dir):
    path = run_dir / "checkpoints" / "000003"
    torch.save({"w": torch.ones(8)}, path / "generator.safetensors")
    with pytest.raises(CheckpointError, match=r"generator.safetensors"):
        read_checkpoint(path)


def test_if_all_are_damaged_each_is_named(run_dir):
    for path in list_checkpoints(run_dir):
        (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError) as error:
        newest_checkpoint(run_dir)
    assert all(f"00000{i}: ema.safetensors cannot be read" in str(error.value) for i in (1, 2, 3))


def test_a_run_without_checkpoints(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    (tmp_path / "checkpoints").mkdir()
    assert newest_checkpoint(tmp_path) == (None, [])


def test_what_is_half_written_or_set_aside_is_no_checkpoint(run_dir):
    folder = run_dir / "checkpoints"
    write(folder / ".tmp-000009-1", 9)
    aside = set_aside(folder / "000003")
    assert aside.name == "refused-000003"
    assert [path.name for path in list_checkpoints(run_dir)] == ["000002", "000001"]
    write(folder / "000003", 3)
    set_aside(folder / "000003")
    assert _files.remove_temporaries(folder) == [folder / ".tmp-000009-1"]
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "000002", "refused-000003"]


def test_pruning_keeps_the_newest(run_dir):
    write(run_dir / "checkpoints" / "000002-500", 4)
    prune_checkpoints(run_dir, 2)
    assert [path.name for path in list_checkpoints(run_dir)] == ["000003", "000002-500"]
    assert len(list((run_dir / "checkpoints").iterdir())) == 2


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 200)), min_size=1, max_size=20),
    st.integers(0, 5_000_000),
)
@settings(deadline=None, max_examples=200)
def test_names_sort_by_age_and_never_repeat(phases, nimg):
    names = [checkpoint_name(nimg, phases[0][0])]
    steps = 0
    for batch, count in phases:  # the batch may change on resume
        for _ in range(count):
            nimg += batch
            steps += 1
            names.append(checkpoint_name(nimg, batch))
    names = names[1:]
    keys = [tuple(int(part) for part in name.split("-")) for name in names]
    assert keys == sorted(keys)
    assert len(set(names)) == steps


def test_names():
    assert checkpoint_name(0, 64) == "000000"
    assert checkpoint_name(50_048, 64) == "000050"
    assert checkpoint_name(50_112, 64) == "000050-112"
    assert checkpoint_name(1_234_567_000, 1) == "1234567"


def test_a_write_that_fails_leaves_the_old_state(run_dir, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(run_dir / "checkpoints" / "000004", 4)
    newest, _ = newest_checkpoint(run_dir)
    assert newest is not None
    assert newest.path.name == "000003"


def test_optimizer_round_trip():
    def make():
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        average = nn.Linear(3, 2)
        average.load_state_dict(module.state_dict())
        return module, AdamEMA(module.parameters(), lr=0.1, ema_params=list(average.parameters())), average

    def step(module, optimizer, value):
        optimizer.zero_grad()
        (module(torch.full((4, 3), value)).square().mean()).backward()
        optimizer.step()

    module, optimizer, average = make()
    for value in (0.1, torch.nan, 0.3):
        step(module, optimizer, value)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}

    module2, optimizer2, average2 = make()
    module2.load_state_dict(module.state_dict())
    average2.load_state_dict(average.state_dict())
    load_optimizer(optimizer2, saved)
    for value in (0.4, torch.nan, 0.5):
        step(module, optimizer, value)
        step(module2, optimizer2, value)
    for one, other in zip(
        [*module.parameters(), *average.parameters(), *optimizer_tensors(optimizer).values()],
        [*module2.parameters(), *average2.parameters(), *optimizer_tensors(optimizer2).values()],
        strict=True,
    ):
        assert torch.equal(one, other)
