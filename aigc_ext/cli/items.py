"""The part of `aigc-ext sample` for models that are no generators of images from latents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_ext import _files
from aigc_ext.cli.errors import InputError
from aigc_ext.sampling import readable_scale, save_grid, save_png
from aigc_ext.sampling.png import aigc_label
from aigc_ext.sampling.pretrained import takes_option
from aigc_ext.sampling.wav import save_wav
from aigc_ext.version import __version__

_AT_ONCE = 16
UNITS = {"image": "img", "audio": "recording", "text": "text"}


class Item(NamedTuple):
    """Something that a model made."""

    name: str  # of its file
    content: Any  # an image (H, W, C) of uint8, int16 samples (T,), a text, or its tokens
    origin: Mapping[str, Any]  # its seed and what else it came from


def from_seeds(
    network: Any,
    seeds: Sequence[int],
    class_: int | None,
    prompts: Sequence[str],
    options: Mapping[str, Any],
) -> Iterator[Item]:
    """An item for each seed. The arguments are checked before this returns.

    Args:
        prompts: one for all seeds, or one for each; or none.
        options: of `network.sample`, those that were given.

    Raises:
        ValueError: an option is not one of this network's.
    """
    for name in [*options, *(["prompts"] if prompts else [])]:
        if not takes_option(network, name):
            option = "--" + name.removesuffix("s" if name == "prompts" else "").replace("_", "-")
            raise InputError(f"{option!r} is not for this {type(network).__name__}")
    if prompts and len(prompts) not in (1, len(seeds)):
        raise InputError(
            f"there are {len(prompts)} prompts, but must be 1, or one for each of the {len(seeds)} seeds"
        )
    each = list(prompts) * len(seeds) if len(prompts) == 1 else list(prompts)

    chosen = {} if class_ is None else {"class": class_}

    def make() -> Iterator[Item]:
        for start in range(0, len(seeds), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            own = {"prompts": each[rows]} if each else {}
            classes = None if class_ is None else [class_] * len(seeds[rows])
            made = network.sample(seeds[rows], classes, **own, **options)
            for index, content in enumerate(made, start):
                origin = {"seed": seeds[index], **chosen, **options}
                if each:
                    origin["prompt"] = each[index]
                yield Item(f"seed{seeds[index]:04d}", content, origin)

    return make()


def from_items(network: Any, data: Any, count: int) -> Iterator[Item]:
    """What an autoencoder or a vocoder makes of the first items of a dataset, of recordings as a whole."""
    names = data.identity().names
    if hasattr(data, "recording"):
        for number in range(min(count, len(data.recordings))):
            wave = data.recording(number)
            yield Item(
                f"item{number:04d}",
                network.reconstructions(wave[None])[0],
                {"of": data.recordings[number].name},
            )
        return
    for start in range(0, min(count, len(data)), _AT_ONCE):
        given, labels = data.read(range(start, min(start + _AT_ONCE, count, len(data))))
        told = (labels,) if network.num_classes else ()
        for number, made in enumerate(network.reconstructions(given, *told), start):
            yield Item(f"item{number:04d}", made, {"of": names[number]})


def write(
    item: Item, network: Any, directory: Path, source: Mapping[str, Any], *, label: bool, producer: str
) -> None:
    """Writes an item with its provenance and, if `label`, the mark that it is AI-generated: as PNG, WAV, or
    text with a JSON file beside it, which comes first, since a text has no place for marks."""
    path, record = directory / item.name, {**source, **item.origin}
    options: dict[str, Any] = {"provenance": record, "label": label, "producer": producer}
    if network.media == "image":
        save_png(np.asarray(item.content), path.with_suffix(".png"), **options)
    elif network.media == "audio":
        save_wav(np.asarray(item.content), path.with_suffix(".wav"), network.sample_rate, **options)
    else:
        text = item.content if isinstance(item.content, str) else " ".join(map(str, item.content.tolist()))
        about: dict[str, Any] = {"aigc_ext": {"version": __version__, **record}}
        if label:
            identity = _files.sha256(json.dumps(about, sort_keys=True).encode() + text.encode())
            about |= {"AIGC": aigc_label(identity, producer), "DigitalSourceType": "trainedAlgorithmicMedia"}
        data = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        _files.replace_file(path.with_suffix(".json"), data.encode(), durable=False)
        _files.replace_file(path.with_suffix(".txt"), (text + "\n").encode(), durable=False)


def write_grid(
    items: Sequence[Item], columns: int, path: Path, source: Mapping[str, Any], *, label: bool, producer: str
) -> None:
    images = np.stack([np.asarray(item.content) for item in items])
    provenance = {**source, "items": [dict(item.origin) for item in items]}
    scale = readable_scale(*images.shape[1:3])
    save_grid(
        images, path, columns=columns, scale=scale, provenance=provenance, label=label, producer=producer
    )
