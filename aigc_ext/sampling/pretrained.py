"""A generator on disk: `config.json`, the input of `models.build_generator`, and `model.safetensors`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from aigc_ext import _files
from aigc_ext.models import build_generator

MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
_HUB_ID = r"\w[\w.-]*/\w[\w.-]*"


class PretrainedError(ValueError):
    """A path from which no generator can be loaded; the message names it and says why."""


def save_pretrained(directory: Path, config: dict[str, Any], weights: bytes) -> None:
    """Writes a generator's config and its serialised weights, each atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    _files.replace_file(directory / MODEL_CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    _files.replace_file(directory / MODEL_WEIGHTS, weights)


def load_pretrained(path: str | Path, *, allow_download: bool = False, **hub: Any) -> tuple[nn.Module, str]:
    """Loads the averaged generator of a run or checkpoint, or of a directory written by `save_pretrained`.

    If `path` is not a directory but has the form `owner/name`, it is a model on the Hugging Face Hub
    (`pip install aigc_ext[hub]`), read from that package's cache on this machine.

    Args:
        allow_download: download such a model if it is not in the cache.
        hub: other options of `huggingface_hub.snapshot_download`, such as `revision`.

    Returns the generator on the CPU, in eval mode, and the SHA-256 of its weights file.

    Raises PretrainedError, naming the path, if it is none of these, damaged, or has an architecture that is
    not ours.
    """
    directory = Path(path)
    if not directory.exists() and re.fullmatch(_HUB_ID, str(path)):
        directory = _from_hub(str(path), allow_download, hub)
    directory, config, weights, expected_hash = _locate(directory)
    try:
        data = (directory / weights).read_bytes()
    except OSError as error:
        raise PretrainedError(f"network {path}: {weights} cannot be read ({error.strerror})") from error
    digest = _files.sha256(data)
    if expected_hash is not None and digest != expected_hash:
        raise PretrainedError(
            f"network {path}: {weights} was altered (its SHA-256 does not match state.json)"
        )
    try:
        generator = build_generator(config)
        generator.load_state_dict(safetensors.torch.load(data))
    except (ValueError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise PretrainedError(f"network {path} cannot be loaded: {reason}") from error
    return generator.eval().requires_grad_(False), digest


def _from_hub(name: str, allow_download: bool, options: dict[str, Any]) -> Path:
    """The local cache's directory of a model on the hub."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise PretrainedError(
            f"network {name} is no directory; if it is a model of the Hugging Face Hub: "
            "pip install aigc_ext[hub]"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=[MODEL_CONFIG, MODEL_WEIGHTS],
                local_files_only=not allow_download,
                **options,
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        if allow_download:
            reason = " ".join(str(error).split())
            raise PretrainedError(f"network {name} cannot be fetched from the hub: {reason}") from error
        raise PretrainedError(
            f"network {name} is no directory, nor in the local cache of the Hugging Face Hub, from which it "
            "is fetched with --allow-download (allow_download=True) only"
        ) from error


def _locate(path: Path) -> tuple[Path, dict[str, Any], str, str | None]:
    """The directory, config, weights file and, from a checkpoint, hash of the generator at `path`."""
    if not path.is_dir():
        raise PretrainedError(
            f"network {path} is no directory, but must be a run, a checkpoint or a model directory"
        )
    if (path / MODEL_WEIGHTS).is_file():
        return path, _read_json(path / MODEL_CONFIG), MODEL_WEIGHTS, None
    if (path / "model" / MODEL_WEIGHTS).is_file():
        return _locate(path / "model")
    if (path / "state.json").is_file():
        state, weights = _read_json(path / "state.json"), "ema.safetensors"
        try:
            config, expected_hash = state["generator"], state["files"][weights]["sha256"]
        except (KeyError, TypeError) as error:
            raise PretrainedError(f"network {path}: state.json is not that of a checkpoint") from error
        if state.get("sha256") != _files.json_digest(state):
            raise PretrainedError(f"network {path}: state.json was altered (its SHA-256 does not match)")
        if config is None:
            raise PretrainedError(
                f"network {path} is a checkpoint of a generator that has no `config` to build it from; "
                "build it yourself, load ema.safetensors into it and use Sampler(generator)"
            )
        return path, config, weights, expected_hash
    if (path / "stats.jsonl").is_file():
        raise PretrainedError(f"network {path} is a run that has not written its first model yet")
    raise PretrainedError(
        f"network {path} is no model ({MODEL_WEIGHTS}), no checkpoint (state.json) and no run (model/)"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PretrainedError(
            f"network {path.parent}: {path.name} cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise PretrainedError(f"network {path.parent}: {path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise PretrainedError(f"network {path.parent}: {path.name} must hold a JSON object")
    return content
