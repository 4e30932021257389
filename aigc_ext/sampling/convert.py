"""Converts other projects' PyTorch checkpoints to model directories.

Such files are read by `torch.load(weights_only=True)`, whose unpickler allows only tensors and plain
containers and never calls what a file names, or by safetensors. Weights that do not match the architecture
exactly are rejected.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext._safetensors import open_safetensors
from aigc_ext.models import build_generator
from aigc_ext.sampling.pretrained import meta_state, misfits, save_pretrained, shown_list

KEYS = (
    *("g_ema", "G_ema", "ema_generator", "generator_ema", "netG_ema", "params_ema", "ema"),
    *("generator", "netG", "G", "g", "params", "state_dict", "model_state_dict", "model"),
)
"""The keys under which a generator is searched if none is given; averaged generators, used for sampling,
first."""

_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and AveragedModel; torch.compile


class ConvertError(ValueError):
    """A checkpoint that cannot be converted; the message names the file, what was rejected, and why."""


@dataclass(frozen=True)
class Converted:
    """The result of `convert_checkpoint`.

    Attributes:
        config: the generator's config, as in config.json.
        key: where its weights were in the file; "" for the top level.
        notes: what was left out, filled in or changed, a sentence each.
    """

    directory: Path
    config: dict[str, Any]
    key: str
    notes: tuple[str, ...]


def convert_checkpoint(
    source: str | Path,
    directory: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    family: str | None = None,
    key: str | None = None,
) -> Converted:
    """Writes the generator of another project's checkpoint as a directory for `Sampler.from_pretrained`.

    The weights must have the names and shapes of our architecture. Prefixes that wrappers add to all names
    (`module.` of DataParallel and AveragedModel, `_orig_mod.` of torch.compile) are removed. For dcgan, the
    names of PyTorch's DCGAN tutorial (`main.0.weight`, ...) are also accepted. That its strides are 2, its
    hidden activations ReLU and its last one tanh is assumed, since files don't record it.

    Args:
        source: a file written by `torch.save`, or a .safetensors file.
        directory: where to write; must not exist. It is written atomically.
        config: a config for `models.build_generator`.
        family: the generator's family. Given without `config`, the rest follows from the weights, which works
            only for "dcgan". Given with `config`, it must agree with it, or supplies a missing family.
        key: where the state_dict is: keys, or prefixes of names, joined by dots, such as "state_dict.netG".
            By default the top level or, if that has other contents, the first of `KEYS` that exists.

    Raises:
        ConvertError: the file would need pickle to run code, is damaged, or has other contents; names or
            shapes do not match; `directory` exists.
    """
    source, directory = Path(source), Path(directory)
    if directory.exists() or directory.is_symlink():
        raise ConvertError(f"{directory} exists already; a conversion makes a new directory")
    config = _full_config(config, family)
    content = _read(source)
    state, key = _find_state(source, content, key)
    where = f"{source} (under {key})" if key else str(source)
    weights, notes = _plain_names(state)
    _check_dense(where, weights)
    if config["family"] == "dcgan":
        weights = _rename_tutorial(weights, notes)
        if len(config) == 1:
            config = _dcgan_config(where, weights)
    try:
        expected = meta_state(config, build_generator)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ConvertError(
            f"{where} does not fit: the generator's config {_short(config)} is wrong: {error}"
        ) from error
    _fill_in(weights, expected, config, notes)
    if faults := misfits(weights, expected):
        raise ConvertError(f"{where} does not fit the {config['family']} generator: {faults}")
    generator = build_generator(config)  # no larger than the weights
    generator.load_state_dict(
        {name: _as_stored(where, name, value, expected[name], notes) for name, value in weights.items()}
    )
    built: dict[str, Any] = generator.config  # type: ignore[assignment]
    _write(directory, built, generator.state_dict())
    return Converted(directory, built, key, tuple(dict.fromkeys(notes)))


def _full_config(config: Mapping[str, Any] | None, family: str | None) -> dict[str, Any]:
    full = dict(config or {})
    if family is not None and full.setdefault("family", family) != family:
        raise ConvertError(f"family is {family!r}, but the config says {full['family']!r}")
    if not full:
        raise ConvertError(
            "the generator's architecture is needed: a config, or family 'dcgan', whose weights say the rest"
        )
    if config is None and family != "dcgan":
        raise ConvertError(
            f"family is {family!r}, and a config is needed too: only the weights of 'dcgan' say the rest"
        )
    if "family" not in full:
        raise ConvertError('the config has no "family", and none was given beside it')
    return full


# Reading


def _read(source: Path) -> Any:
    if not source.is_file():
        raise ConvertError(f"{source} is no file, but must be one of torch.save or a .safetensors")
    if source.suffix == ".safetensors":
        try:
            with open_safetensors(source) as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise ConvertError(f"{source} is refused: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and TorchScript: then it also fails
            # Only the newer format, a zip, can be memory-mapped; unused networks and optimizers then cost
            # nothing.
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    # A damaged or hostile file can make the parser raise anything.
    except Exception as error:
        raise ConvertError(f"{source} is refused: {_refusal(error)}") from error


def _refusal(error: Exception) -> str:
    """The reason as one sentence, without torch.load's advice to disable the safe mode."""
    text = re.sub(r"\x1b\[\d*m|\[enforce fail at [^]]*\] \. ", "", str(error))
    if match := re.search(r"GLOBAL (\S+)", text):
        return (
            f"it needs pickle to import {match[1]}, which could run any code. Where you trust the file, save "
            "its state_dict alone and convert that"
        )
    reason = text.rpartition("WeightsUnpickler error:")[2].strip().split("\n\n")[0].split(". ")[0]
    return (
        f"torch.load(weights_only=True) cannot read it ({type(error).__name__}: {reason or 'it ends early'})"
    )


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _find_state(source: Path, content: Any, key: str | None) -> tuple[Mapping[str, Tensor], str]:
    """The state_dict in the content of a file, and its key."""
    if not isinstance(content, Mapping):
        raise ConvertError(
            f"{source} holds a value of type {type(content).__name__}, but must hold a dict of tensors"
        )
    found: Any
    if key is not None:
        found = _descend(source, content, key)
    elif _is_state(content):
        found, key = content, ""
    else:
        key = next((name for name in KEYS if _is_state(content.get(name))), None)
        if key is None:
            raise ConvertError(
                f"{source} holds no tensors under a known key, so the key is needed: it has "
                f"{shown_list([str(name) for name in content], 12)}"
            )
        found = content[key]
    if not _is_state(found):
        what = f"a value of type {type(found).__name__}"
        if isinstance(found, Mapping):
            others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
            what = f"more than tensors ({shown_list(others)})" if others else "nothing"
        raise ConvertError(f"{source} holds {what} under {key}, but a state_dict is tensors by name")
    unnamed = [repr(name) for name in found if not isinstance(name, str)]
    if unnamed:
        raise ConvertError(f"{source} has tensors whose names are no strings: {shown_list(unnamed)}")
    return found, key


def _descend(source: Path, content: Mapping[str, Any], key: str) -> Any:
    if key in content:
        return content[key]
    first, _, rest = key.partition(".")
    inner: Any = content.get(first)
    if inner is None:
        prefix = f"{first}."
        inner = {k.removeprefix(prefix): v for k, v in content.items() if str(k).startswith(prefix)}
    if not inner:
        known = shown_list([str(name) for name in content], 12)
        raise ConvertError(f"{source} has no key {first!r}, nor names that start so: it has {known}")
    if rest and not isinstance(inner, Mapping):
        raise ConvertError(
            f"{source} holds a value of type {type(inner).__name__} under {first}, where there is no {rest}"
        )
    return _descend(source, inner, rest) if rest else inner


# Names


def _plain_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights without the prefixes that wrappers add to their names, and notes on what was removed."""
    weights, notes = dict(state), []
    if any(name.startswith("module.") for name in weights) and weights.pop("n_averaged", None) is not None:
        notes.append("n_averaged of an AveragedModel is left out")
    while prefix := next((p for p in _WRAPPERS if weights and all(n.startswith(p) for n in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
        notes.append(f"the prefix {prefix} of all names is taken off")
    return weights, notes


def _rename_tutorial(weights: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Renames the tutorial's layers: its `main.` numbers convolution, batch norm and ReLU separately, our
    `layers.` the convolution and the other two together."""
    if not weights or not all(name.startswith("main.") for name in weights):
        return dict(weights)
    notes.append("the names main.* are read as those of the PyTorch tutorial's DCGAN")
    renamed = {}
    for name, value in weights.items():
        match = re.fullmatch(r"main\.(\d+)\.(.+)", name)
        if match and int(match[1]) % 3 < 2:
            block, place = divmod(int(match[1]), 3)
            name = f"layers.{2 * block + place}.{match[2]}"
        renamed[name] = value
    return renamed


def _dcgan_config(where: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config that follows from the shapes: the first filter has the size of the coarsest images, each
    further layer doubles it."""
    places = [int(m[1]) for name in weights if (m := re.fullmatch(r"layers\.(\d+)\.weight", name))]
    filters = [weights[f"layers.{i}.weight"] for i in sorted(places) if i % 2 == 0]
    if len(filters) < 2 or any(f.ndim != 4 for f in filters):
        raise ConvertError(
            f"{where} is no dcgan: its weights are not filters layers.0.weight, layers.2.weight, ..., but "
            f"{shown_list([f'{name} {tuple(value.shape)}' for name, value in weights.items()])}"
        )
    first, last, halvings = filters[0], filters[-1], len(filters) - 1
    embedding = weights.get("embedding.weight")
    classes = embedding.shape[0] if embedding is not None and embedding.ndim == 2 else 0
    return {
        "family": "dcgan",
        "image_shape": [last.shape[1], first.shape[2] << halvings, first.shape[3] << halvings],
        "z_dim": first.shape[0] // 2 if classes else first.shape[0],
        "channels": last.shape[0],
        "num_classes": classes,
    }


def _fill_in(
    weights: dict[str, Tensor], expected: Mapping[str, Tensor], config: Mapping[str, Any], notes: list[str]
) -> None:
    """Adds missing tensors that don't change the images."""
    missing = [name for name in expected if name not in weights]
    counters = [name for name in missing if name.endswith(".num_batches_tracked")]
    if counters:  # PyTorch has them since 0.4.1; batch norm with a momentum doesn't use them
        notes.append("num_batches_tracked is not in the file and is set to 0")
        weights |= {name: _zeros(expected[name]) for name in counters}
    if config["family"] == "dcgan":
        bias = [name for name in expected if re.fullmatch(r"layers\.\d+\.bias", name)][-1]
        if bias in missing:  # the tutorial's last convolution has none
            notes.append(f"{bias} is not in the file and is set to 0")
            weights[bias] = _zeros(expected[bias])


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype)


# Fit


def _check_dense(where: str, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ConvertError(f"{where}: {name} is no dense tensor of numbers")
        # A small file can claim to have a large tensor, for which a large generator would be built.
        if value.nbytes > value.untyped_storage().nbytes():
            raise ConvertError(f"{where}: {name} is {tuple(value.shape)}, which is more than its data")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _as_stored(where: str, name: str, value: Tensor, expected: Tensor, notes: list[str]) -> Tensor:
    value = value.detach()
    if value.is_floating_point() != expected.is_floating_point() or value.is_complex():
        raise ConvertError(f"{where}: {name} is {value.dtype}, but must be {expected.dtype}")
    if not value.isfinite().all():
        raise ConvertError(f"{where}: {name} has values that are not finite")
    if value.dtype != expected.dtype:
        notes.append(f"{value.dtype} is stored as {expected.dtype}")
        value = value.to(expected.dtype)
        if not value.isfinite().all():
            raise ConvertError(f"{where}: {name} has values too large for {expected.dtype}")
    return value


def _write(directory: Path, config: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes both files under a temporary name, so that the directory appears complete."""
    temporary = _files.temporary_path(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        data = safetensors.torch.save({name: value.contiguous().clone() for name, value in state.items()})
        with _files.removed_if_it_fails(temporary):
            save_pretrained(temporary, config, data)
            _files.fsync_directory(temporary)
            os.rename(temporary, directory)
        _files.fsync_directory(directory.parent)
    except OSError as error:
        raise ConvertError(f"{directory} cannot be written: {error.strerror}") from error
