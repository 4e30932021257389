"""Checkpoints: directories of safetensors and JSON files, read only if complete and undamaged.

    checkpoints/000050/
        NAME.safetensors ...         the state_dict of each network
        training_state.safetensors   optimisers, random number generators, running sums
        state.json                   counters, config, SHA-256 of every file

A checkpoint is written under a temporary name, every file and the directory are fsynced, and only then is it
renamed: if the process or the machine crashes, either the old state or the new one remains. Reading verifies
every byte against state.json, and state.json against its own digest. The digests detect damage; they are not
a signature.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aigc_ext import _files

FORMAT = "aigc_ext checkpoint 1"
STATE_FILE = "state.json"
_NAME = re.compile(r"\d{6,}(-\d{3})?")
_FILE = re.compile(r"[^/]+\.safetensors")  # in the folder of the checkpoint


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it and says what is wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"checkpoint {path} is refused: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory, on the CPU."""

    path: Path  # where it was read from
    state: dict[str, Any] = field(repr=False)  # the content of state.json
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)  # by file stem and name


def checkpoint_name(nimg: int, batch: int) -> str:
    """`000050` for the first step that ends within kimg 50, `000050-320` for a later one that ends at 50,320
    images.

    Names sort by age, and no two steps of a run share one, even if the batch size changes in between.
    """
    kimg, rest = divmod(nimg, 1000)
    return f"{kimg:06d}" if rest < batch else f"{kimg:06d}-{rest:03d}"


def serialize(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors, on any device, as a safetensors file; tied weights are written once per name."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})


def write_checkpoint(path: Path, files: Mapping[str, bytes], state: Mapping[str, Any]) -> None:
    """Writes `files` (serialised tensors by stem) and `state` as the checkpoint `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _files.temporary_path(path)
    with _files.removed_if_it_fails(temporary):
        temporary.mkdir()
        manifest = {}
        for stem, data in files.items():
            _files.write_durable(temporary / f"{stem}.safetensors", data)
            manifest[f"{stem}.safetensors"] = {"bytes": len(data), "sha256": _files.sha256(data)}
        content = {"format": FORMAT, **state, "files": manifest}
        content["sha256"] = _files.json_digest(content)
        _files.write_durable(temporary / STATE_FILE, json.dumps(content, indent=2).encode())
        _files.fsync_directory(temporary)
        os.rename(temporary, path)
    _files.fsync_directory(path.parent)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises CheckpointError if a file is missing, truncated or altered, or the format is not ours.
    """
    text = _read(path, STATE_FILE)
    try:
        content = _files.parse_json(text)
    except ValueError as error:
        raise CheckpointError(path, f"{STATE_FILE} is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(path, f"{STATE_FILE} has format {found!r}, but this version reads {FORMAT!r}")
    digest = content.pop("sha256", None)
    if digest != _files.json_digest(content):
        raise CheckpointError(path, f"{STATE_FILE} was altered (its SHA-256 does not match)")
    tensors = {}
    for name, expected in _manifest(path, content.pop("files", None)).items():
        data = _read(path, name)
        if len(data) != expected["bytes"]:
            raise CheckpointError(path, f"{name} has {len(data)} bytes instead of {expected['bytes']}")
        if _files.sha256(data) != expected["sha256"]:
            raise CheckpointError(path, f"{name} was altered (its SHA-256 does not match)")
        try:
            tensors[Path(name).stem] = safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise CheckpointError(path, f"{name} is no safetensors file ({error})") from error
    return Checkpoint(path, content, tensors)


def _manifest(path: Path, files: Any) -> dict[str, dict[str, Any]]:
    """The names of a checkpoint's files, each with "bytes" and "sha256"."""
    if not isinstance(files, dict) or not all(
        _FILE.fullmatch(name) and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
        for name, entry in files.items()
    ):
        raise CheckpointError(path, f"{STATE_FILE} has no list of its safetensors files")
    return files


def load_weights(checkpoint: Checkpoint, stem: str, module: nn.Module) -> None:
    """Loads a network's state_dict from a checkpoint; raises CheckpointError if it does not match."""
    if stem not in checkpoint.tensors:
        raise CheckpointError(checkpoint.path, f"it has no {stem}.safetensors")
    try:
        module.load_state_dict(checkpoint.tensors[stem])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            checkpoint.path, f"{stem}.safetensors does not fit the network ({reason})"
        ) from error


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The moments and counters of an optimiser, whose hyperparameters come from the config."""
    content = optimizer.state_dict()
    return {
        f"{i}.{name}": tensor for i, entries in content["state"].items() for name, tensor in entries.items()
    } | {
        f"group{i}.{name}": value
        for i, group in enumerate(content["param_groups"])
        for name, value in group.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimiser of the same parameters."""
    content = optimizer.state_dict()
    for name, tensor in tensors.items():
        place, field = name.split(".")
        if place.startswith("group"):
            content["param_groups"][int(place.removeprefix("group"))][field] = tensor
        else:
            content["state"].setdefault(int(place), {})[field] = tensor
    optimizer.load_state_dict(content)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, newest first by name, not verified."""
    directory = run_dir / "checkpoints"
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split("-")], reverse=True)


def newest_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest usable checkpoint of a run, and the errors of newer ones; None if the run has no
    checkpoints.

    Raises CheckpointError if the run has checkpoints, but none is usable.
    """
    refused: list[CheckpointError] = []
    for path in list_checkpoints(run_dir):
        try:
            return read_checkpoint(path), refused
        except CheckpointError as error:
            refused.append(error)
    if refused:
        reasons = "; ".join(f"{error.path.name}: {error.reason}" for error in refused)
        raise CheckpointError(run_dir / "checkpoints", f"none of {len(refused)} is whole ({reasons})")
    return None, refused


def set_aside(path: Path) -> Path:
    """Renames an unusable checkpoint, so that it is ignored but can still be inspected."""
    aside = path.with_name(f"refused-{path.name}")
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(path, aside)
    return aside


def best_checkpoint(metrics: Sequence[Mapping[str, Any]], ranked_by: Sequence[str]) -> str | None:
    """The name of the checkpoint with the lowest value of the first of these metrics that was measured; None
    if none was."""
    for name in ranked_by:
        measured = [row for row in metrics if isinstance(row.get(name), (int, float)) and "checkpoint" in row]
        if measured:
            return str(min(measured, key=lambda row: row[name])["checkpoint"])
    return None


def prune_checkpoints(run_dir: Path, keep: int, spare: str | None = None) -> None:
    """Deletes all but the newest `keep` checkpoints and the one named `spare`."""
    for path in list_checkpoints(run_dir)[keep:]:
        if path.name == spare:
            continue
        # Rename first, so that a process killed during the deletion leaves no partial checkpoint under its
        # name.
        doomed = _files.temporary_path(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"{name} cannot be read ({error.strerror})") from error
