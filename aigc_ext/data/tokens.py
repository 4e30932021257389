"""Images as rows of tokens, the codes of an autoencoder, with the tokens of a caption in front or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext.data.dataset import Dataset, DatasetError, ImageDataset

KIND = "tokens"
_AT_ONCE = 64  # images


class TokenSource(NamedTuple):
    """`tokens:RUN:IMAGES`: an autoencoder's run or model directory, and any source of images."""

    network: str
    images: str


def token_source(source: str) -> TokenSource | None:
    """The parts of a source of tokens; None for another source.

    Raises:
        DatasetError: a part is missing.
    """
    kind, colon, rest = source.partition(":")
    if kind != KIND or not colon:
        return None
    network, _, images = rest.partition(":")
    if not network or not images:
        raise DatasetError(
            f"dataset {source!r} must be of the form {KIND}:RUN:IMAGES: the run of an autoencoder, and the "
            "images that it turns into tokens, such as tokens:runs/00003-vqgan-emoji:emoji"
        )
    return TokenSource(network, images)


class TokenRows(Dataset):
    """Images as rows of tokens, int64 (K, length): `captions`, if there are any, then the codes from left to
    right and from top to bottom. Labels, classes, names and licence are those of the images.

    It is known by the content of the images and by the autoencoder; codes may differ by rounding between
    machines.

    Args:
        codes: integers (N, rows, columns).
        codec_sha256: of the autoencoder's weights.
        captions: integers (N, length), numbered after all codes.
    """

    kind: Literal["text"] = "text"
    item = "image"

    def __init__(
        self, images: ImageDataset, codes: Tensor, codec_sha256: str, captions: Tensor | None = None
    ) -> None:
        rows = codes.flatten(1)
        if captions is not None:
            rows = torch.cat([captions, rows], 1)
        labels = images.labels if images.num_classes else None
        super().__init__(images.name, len(codes), (rows.shape[1],), labels)
        self.num_classes = images.num_classes  # some of them may have no image
        self.class_names, self.licence, self.remarks = images.class_names, images.licence, images.remarks
        self.why_unlabelled = images.why_unlabelled
        self.images = images
        self._rows = rows.to(torch.int32)
        self._codec_sha256 = codec_sha256
        self._captions = captions

    def _read_items(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._rows.index_select(0, index).to(torch.int64), index

    def _item_names(self) -> list[str]:
        return self.images.identity().names

    def _content(self) -> Iterator[bytes]:
        digests = self.images.identity().digests
        captions: Sequence[object] = [()] * len(self) if self._captions is None else self._captions.tolist()
        for row, (digest, caption) in enumerate(zip(digests or [""] * len(self), captions, strict=True)):
            # Where the images are not told apart, their codes are.
            codes = "" if digest else str(self._rows[row].tolist())
            yield f"{self._codec_sha256} {digest}{codes} {caption}".encode()


def encode_images(
    images: ImageDataset, codes: Callable[[Tensor], Tensor], normalize: Callable[[Tensor], Tensor]
) -> Tensor:
    """The codes of all images, int32 (N, rows, columns).

    Args:
        codes: gives those of a batch, int64 (K, rows, columns).
        normalize: turns uint8 images into the batch.
    """
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), _AT_ONCE):
            batch, _ = images.read(range(start, min(start + _AT_ONCE, len(images))))
            parts.append(codes(normalize(batch)).to("cpu", torch.int32))
            images._tell("encoding", start + len(batch))
    return torch.cat(parts)


def captions_of(source: str | os.PathLike[str], names: Sequence[str]) -> list[str]:
    """The caption of each image, from the JSON object of captions by image names beside its zip
    (`emoji.captions.json` beside `emoji.zip`), or in a folder, as `captions.json`.

    Raises:
        DatasetError: it is missing or damaged, or has no caption for an image.
    """
    path = Path(source)
    path = path / "captions.json" if path.is_dir() else path.with_suffix(".captions.json")
    try:
        found = _files.parse_json(path.read_bytes())
    except OSError as error:
        raise DatasetError(
            f"dataset {os.fspath(source)!r} has no captions: {path} can't be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DatasetError(
            f"{path} holds {str(found)[:40]}, but must hold an object: captions by image names"
        )
    missing = [name for name in names if not isinstance(found.get(name), str) or not found[name].strip()]
    if missing:
        raise DatasetError(f"{path} has no caption for {len(missing)} images, such as {missing[0]}")
    return [found[name] for name in names]
