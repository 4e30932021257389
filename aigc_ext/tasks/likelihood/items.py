"""What a run learns: the items to train on and those held out, and what a network is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.data import Dataset, DatasetError, normalize, split
from aigc_ext.data.dataset import Report
from aigc_ext.data.fetched import NAMES as FETCHED
from aigc_ext.data.fetched import licence_of, names_of, path_of
from aigc_ext.data.text import PAD, TextPairs, Vocabulary, open_pairs
from aigc_ext.data.tokens import TokenRows, TokenSource, captions_of, encode_images, token_source
from aigc_ext.models.settings import ReconstructorConfig
from aigc_ext.sampling.pretrained import load_pretrained
from aigc_ext.tasks.likelihood.config import TrainConfig
from aigc_ext.tasks.networks import open_images, open_recordings
from aigc_ext.training.runtime import derive_seed

PAIRS_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Items:
    """The items of a run.

    Attributes:
        training, held_out: disjoint; None if nothing is held out.
        facts: the settings of a network that come from the data; it takes those that it has.
        codec: the autoencoder of tokens, if it is part of the network.
        prompts: of each item of the whole data, what stands in front of it, for people.
        references: of each item of the whole data, what is to be written, for people.
    """

    training: Dataset
    held_out: Dataset | None
    facts: Mapping[str, Any]
    codec: nn.Module | None = None
    prompts: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)


def open_items(config: TrainConfig, report: Report | None = None) -> Items:
    """The items that a config describes: `tokens:RUN:IMAGES`, pairs of texts (`*.jsonl`), or for a network of
    sound recordings.

    Raises:
        DatasetError: the source can't be used.
        ConfigError: it does not fit the other settings.
    """
    source, network = config.data.source, config.network.network
    hears = getattr(network, "media", None) == "audio"
    if hears and (token_source(source) or _is_of_pairs(source)):
        raise ConfigError(
            f"data.source is {source!r}, but a {config.network.family} learns recordings: it must be one of "
            f"{', '.join(names_of('audio'))}, or a folder or zip of WAV files"
        )
    if (tokens := token_source(source)) is not None:
        items = _open_tokens(config, tokens, report)
    elif config.caption:
        raise ConfigError(
            f"caption is true, but data.source is {source!r}: only tokens of images have captions"
        )
    elif _is_of_pairs(source):
        items = _open_text(config)
    elif hears:
        data = open_recordings(config.data, report)
        training, held = _split(config, data)
        items = Items(training, held, {"sample_rate": data.sample_rate, "length": data.item_shape[0]})
    else:
        raise DatasetError(
            f"dataset {source!r} has nothing for a {config.network.family} to learn: it must be of the "
            f"form tokens:RUN:IMAGES, a {PAIRS_SUFFIX} file of pairs of texts, or one of "
            f"{', '.join(names_of('text'))}"
        )
    _check_classes(config, items.training)
    num_classes = items.training.num_classes if config.data.cond else 0
    return Items(**{**vars(items), "facts": {**items.facts, "num_classes": num_classes}})


def _is_of_pairs(source: str) -> bool:
    return source in names_of("text") or source.endswith(PAIRS_SUFFIX)


def _split(config: TrainConfig, data: Dataset) -> tuple[Dataset, Dataset | None]:
    if config.held_out == 0:
        return data, None
    training, held = split(data, config.held_out, derive_seed(config.seed, "held out"))
    return training, held


def _indices(data: Dataset, training: Dataset) -> list[int]:
    """Of the training part, those in the whole data."""
    return list(range(len(data))) if training is data else training.index.tolist()  # type: ignore[attr-defined]


def _open_text(config: TrainConfig) -> Items:
    source, settings = config.data.source, config.text
    path = path_of(source) if source in FETCHED else source
    pairs: TextPairs = open_pairs(
        path,
        lengths=(settings.source, settings.target),
        on_bad="skip",
        max_left_out=config.data.max_left_out,
    )
    if source in FETCHED:
        pairs.name, pairs.licence = source, licence_of(source)
    training, held = _split(config, pairs)
    vocabulary = Vocabulary.learn(pairs.texts(_indices(pairs, training)), settings.vocabulary)
    pairs.tokenize(vocabulary)
    for part in (training, held):
        if part is not None:
            part.remarks = pairs.remarks
    size = len(vocabulary)
    facts = {
        "vocabulary": size,
        "outputs": size,
        "length": pairs.item_shape[0],
        "source": settings.source,
        "tokenizer": vocabulary.to_json(),
    }
    sources, targets = (list(side) for side in zip(*pairs.pairs, strict=True))
    return Items(training, held, facts, None, sources, targets)


def _open_tokens(config: TrainConfig, source: TokenSource, report: Report | None) -> Items:
    codec, digest = load_pretrained(source.network)
    settings = getattr(codec, "settings", None)
    network: Any = codec
    if not isinstance(settings, ReconstructorConfig) or not hasattr(codec, "codes") or network.num_classes:
        classes = " with classes" if getattr(codec, "num_classes", 0) else ""
        found = f"{source.network} is a {type(codec).__name__}{classes}"
        raise DatasetError(
            f"dataset {config.data.source!r}: {found}, but must be an autoencoder with codes and without "
            "classes, as of preset vqgan"
        )
    _, height, width = network.image_shape
    images = open_images(
        replace(config.data, source=source.images),
        report,
        resolution=(width, height),
        transform=config.data.transform or "center-crop",
    )
    codes = encode_images(images, network.codes, partial(normalize, value_range=network.value_range))
    count = int(network.num_codes)
    facts = {
        "vocabulary": count,
        "outputs": count,
        "codec": settings,
        "code_shape": tuple(codes.shape[1:]),
        "length": codes[0].numel(),
    }
    if not config.caption:
        rows = TokenRows(images, codes, digest)
        return Items(*_split(config, rows), facts, codec)
    captions = captions_of(
        path_of(source.images) if source.images in FETCHED else source.images, images.identity().names
    )
    return _with_captions(config, TokenRows(images, codes, digest), codes, digest, captions, facts, codec)


def _with_captions(
    config: TrainConfig,
    rows: TokenRows,
    codes: Tensor,
    digest: str,
    captions: list[str],
    facts: dict[str, Any],
    codec: nn.Module,
) -> Items:
    training, _ = _split(config, rows)
    known = [captions[index] for index in _indices(rows, training)]
    vocabulary = Vocabulary.learn(known, config.text.vocabulary)
    tokens = vocabulary.encode(captions)
    length = min(config.text.source, max(map(len, tokens)))
    first = facts["outputs"]
    padded = torch.tensor([(ids + [PAD] * length)[:length] for ids in tokens], dtype=torch.int32) + first
    training, held = _split(config, TokenRows(rows.images, codes, digest, padded))
    facts |= {
        "vocabulary": first + len(vocabulary),
        "length": length + facts["length"],
        "prefix": length,
        "tokenizer": vocabulary.to_json(),
    }
    return Items(training, held, facts, codec, captions)


def _check_classes(config: TrainConfig, data: Dataset) -> None:
    if config.data.cond and not data.num_classes:
        raise ConfigError(f"data.cond is true, but {data.describe_unlabelled()}")
