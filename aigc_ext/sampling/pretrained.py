"""A network on disk: `config.json`, the input of `models.build_network`, `model.safetensors`, and their
SHA-256 in `sha256.json`.

The digests detect damage; they are not a signature. A model without them, of another version or made by hand,
loads too.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from aigc_ext import _files
from aigc_ext._runs import find_run, known_runs, numbered_runs
from aigc_ext.models import build_network

MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
MODEL_DIGESTS = "sha256.json"
_SHOWN = 4
TRAINED_CLASSES = "trained_classes.json"
DATA_LICENCE = "data_licence.txt"
_HUB_ID = r"\w[\w.-]*/\w[\w.-]*"


class PretrainedError(ValueError):
    """A path from which no network can be loaded; the message names it and says why."""


def save_pretrained(
    directory: Path,
    config: dict[str, Any],
    weights: bytes,
    trained_classes: Sequence[int] | None = None,
    data_licence: str = "",
) -> None:
    """Writes a network's config and its serialised weights, each atomically, and their SHA-256; also the
    classes that had images, unless all had, and the licence of the data."""
    directory.mkdir(parents=True, exist_ok=True)
    if data_licence:
        _files.replace_file(directory / DATA_LICENCE, f"trained on data under: {data_licence}\n".encode())
    if trained_classes is None:
        (directory / TRAINED_CLASSES).unlink(missing_ok=True)
    else:
        _files.replace_file(directory / TRAINED_CLASSES, json.dumps(list(trained_classes)).encode())
    files = {MODEL_CONFIG: (json.dumps(config, indent=2) + "\n").encode(), MODEL_WEIGHTS: weights}
    # The digests come first, with those of the files that are still there: whatever a crash leaves, or
    # another process reads meanwhile, has one.
    digests = {
        name: [_files.sha256(data), *_digest_of_replaced(directory, name)] for name, data in files.items()
    }
    _files.replace_file(directory / MODEL_DIGESTS, (json.dumps(digests, indent=2) + "\n").encode())
    for name, data in files.items():
        _files.replace_file(directory / name, data)


def _digest_of_replaced(directory: Path, name: str) -> list[str]:
    """Of a file that is about to be replaced, if it is whole."""
    if not (directory / name).exists():
        return []
    digest = _files.sha256_file(directory / name)
    try:
        recorded = _recorded(directory).get(name, [digest])
    except PretrainedError:  # the record is damaged, and is replaced too
        recorded = []
    return [digest] if digest in recorded else []


def load_pretrained(path: str | Path, *, allow_download: bool = False, **hub: Any) -> tuple[nn.Module, str]:
    """Loads the model, with averaged weights, of a run, a checkpoint, or a directory written by
    `save_pretrained`.

    `latest` is the newest run in `runs`, and the beginning of a run's name, with or without `runs/`, is that
    run. If `path` is not a directory but has the form `owner/name`, it is a model on the Hugging Face Hub
    (`pip install aigc_ext[hub]`), read from that package's cache on this machine.

    Args:
        allow_download: download such a model if it is not in the cache.
        hub: other options of `huggingface_hub.snapshot_download`, such as `revision`.

    Returns the network on the CPU, in eval mode, and the SHA-256 of its weights file.

    Raises PretrainedError, naming the path, if it is none of these, damaged, has an architecture that is not
    ours, or weights that do not fit the config or are not finite. The network is made only if they fit, so
    that a config cannot ask for more memory than they have.
    """
    try:
        directory = find_run(path)
    except ValueError as error:
        raise PretrainedError(f"network {error}") from error
    among_runs = bool(numbered_runs(Path(path).parent))
    if not directory.exists() and not among_runs and re.fullmatch(_HUB_ID, str(path)):
        directory = _from_hub(str(path), allow_download, hub)
    config, weights, data, digests = _locate(directory)
    digest = _files.sha256(data)
    if digests is not None and digest not in digests:
        record = MODEL_DIGESTS if weights == MODEL_WEIGHTS else "state.json"
        raise PretrainedError(f"network {path}: {weights} was altered (its SHA-256 does not match {record})")
    try:
        tensors = safetensors.torch.load(data)
        network = build_to_fit(config, tensors)
        network.load_state_dict(tensors)
    except (ValueError, TypeError, RuntimeError, OverflowError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise PretrainedError(f"network {path} cannot be loaded: {reason}") from error
    trained = _trained_classes(directory)
    if trained is not None:
        network.trained_classes = trained  # type: ignore[assignment]
    return network.eval().requires_grad_(False), digest


def generator_of(network: nn.Module) -> nn.Module | None:
    """What makes images from latents: the network itself, or the decoder of an autoencoder with Gaussian
    codes. None if it has no such part."""
    for part in (network, getattr(network, "decoder", None)):
        if isinstance(part, nn.Module) and hasattr(part, "z_dim") and hasattr(part, "value_range"):
            return part
    return None


def takes_option(network: Any, name: str) -> bool:
    """Does a network's method `sample` take this keyword?"""
    parameters = inspect.signature(network.sample).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def meta_state(
    config: Mapping[str, Any], build: Callable[[Mapping[str, Any]], nn.Module] = build_network
) -> dict[str, Tensor]:
    """The tensors of a config's network on the device `meta`, where they take no memory, whatever the
    config claims. Errors are those of `build`."""
    with torch.device("meta"):
        return build(config).state_dict()


def build_to_fit(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a config, made only if these weights fit it, and so no larger than they.

    Raises ValueError if they do not, or are not finite, and what `build_network` raises.
    """
    faults = misfits(tensors, meta_state(config))
    if faults:
        raise ValueError(f"the weights do not fit the config: {faults}")
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")
    return build_network(config)


def misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What weights have that a network does not take, or the other way round; "" if they fit."""
    unknown = sorted(name for name in weights if name not in expected)  # a file has no order
    missing = [name for name in expected if name not in weights]
    both = [(name, weights[name], like) for name, like in expected.items() if name in weights]
    wrong = [
        f"{name} is {tuple(value.shape)}, but must be {tuple(like.shape)}"
        for name, value, like in both
        if value.shape != like.shape
    ]
    other = [
        f"{name} is {value.dtype}, but must be {like.dtype}"
        for name, value, like in both
        if value.is_floating_point() != like.is_floating_point() or value.is_complex()
    ]
    listed = (
        (unknown, "unknown"),
        (missing, "missing"),
        (wrong, "of another shape"),
        (other, "of another kind"),
    )
    return "; ".join(f"{len(names)} {what}: {shown_list(names)}" for names, what in listed if names)


def shown_list(names: Sequence[str], shown: int = _SHOWN) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _trained_classes(directory: Path) -> list[int] | None:
    """The classes that had images, of a run, a model directory or a checkpoint; None for all."""
    if not (directory / MODEL_WEIGHTS).is_file() and (directory / "model" / MODEL_WEIGHTS).is_file():
        directory = directory / "model"
    try:
        if (directory / TRAINED_CLASSES).is_file():
            found = _files.parse_json((directory / TRAINED_CLASSES).read_bytes())
        elif (directory / "state.json").is_file():
            found = _files.parse_json((directory / "state.json").read_bytes()).get("trained_classes")
        else:
            found = None
        if found is None or (found and all(type(number) is int and number >= 0 for number in found)):
            return found
    except (OSError, ValueError, TypeError):
        pass
    raise PretrainedError(f"network {directory}: {TRAINED_CLASSES} is damaged: it must be a list of classes")


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
                allow_patterns=[MODEL_CONFIG, MODEL_WEIGHTS, MODEL_DIGESTS, TRAINED_CLASSES, DATA_LICENCE],
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


def _locate(path: Path) -> tuple[dict[str, Any], str, bytes, list[str] | None]:
    """Of the network at `path`: the config, the name and content of the weights file and, if they were
    recorded, the digests that it may have."""
    if not path.is_dir():
        raise PretrainedError(
            f"network {path} is no directory, but must be a run, a checkpoint or a model directory"
            f"{known_runs(path)}"
        )
    if (path / MODEL_WEIGHTS).is_file():
        data, text = _read(path / MODEL_WEIGHTS), _read(path / MODEL_CONFIG)
        digests = _recorded(path)  # after the files, since they are written before them
        if MODEL_CONFIG in digests and _files.sha256(text) not in digests[MODEL_CONFIG]:
            raise PretrainedError(
                f"network {path}: {MODEL_CONFIG} was altered (its SHA-256 does not match {MODEL_DIGESTS}; if"
                f" it was changed on purpose, delete {MODEL_DIGESTS})"
            )
        return _object(path / MODEL_CONFIG, text), MODEL_WEIGHTS, data, digests.get(MODEL_WEIGHTS)
    if (path / "model" / MODEL_WEIGHTS).is_file():
        return _locate(path / "model")
    if (path / "state.json").is_file():
        state, weights = _object(path / "state.json", _read(path / "state.json")), "ema.safetensors"
        try:
            config = state["generator"] if "generator" in state else state["network"]
            expected_hash = state["files"][weights]["sha256"]
        except (KeyError, TypeError) as error:
            raise PretrainedError(f"network {path}: state.json is not that of a checkpoint") from error
        if state.get("sha256") != _files.json_digest(state):
            raise PretrainedError(f"network {path}: state.json was altered (its SHA-256 does not match)")
        if config is None:
            raise PretrainedError(
                f"network {path} is a checkpoint of a network that has no `config` to build it from; "
                "build it yourself, load ema.safetensors into it and use Sampler(generator)"
            )
        return config, weights, _read(path / weights), [expected_hash]
    if (path / "stats.jsonl").is_file():
        raise PretrainedError(f"network {path} is a run that has not written its first model yet")
    raise PretrainedError(
        f"network {path} is no model ({MODEL_WEIGHTS}), no checkpoint (state.json) and no run (model/)"
    )


def _recorded(directory: Path) -> dict[str, list[str]]:
    """The digests that each file may have: the new one's and, until it is replaced, the old one's."""
    path = directory / MODEL_DIGESTS
    if not path.exists():
        return {}
    digests = _object(path, _read(path))
    if not all(isinstance(each, list) for each in digests.values()):
        raise PretrainedError(f"network {directory}: {MODEL_DIGESTS} must hold lists of digests")
    return digests


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PretrainedError(
            f"network {path.parent}: {path.name} cannot be read ({error.strerror})"
        ) from error


def _object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = _files.parse_json(text)
    except ValueError as error:
        raise PretrainedError(f"network {path.parent}: {path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise PretrainedError(f"network {path.parent}: {path.name} must hold a JSON object")
    return content
