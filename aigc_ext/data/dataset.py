"""The interface of all data sources."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_CLASSES = 1_000_000
_SHOWN_FILES = 5
_SHOWN_CLASSES = 10
_HASH_CHUNK_BYTES = 1 << 26
_REPORTED_EVERY = 100  # images

Report = Callable[[str, int, int], object]
"""Called with what is being done, such as "reading", the number of finished images and the total."""


class BadFile(NamedTuple):
    """A file that can't be part of a dataset: its name relative to the source, and the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        # A name may contain invalid UTF-8 or line breaks; it is then shown escaped.
        name = self.name if self.name.isprintable() else ascii(self.name)
        return f"{name}: {self.reason}"


class UnreadFile(BadFile):
    """One that the system failed to read, which may be otherwise the next time."""


class DatasetError(ValueError):
    """A data source can't be used.

    The message names the source and the first few bad files; `bad_files` has all of them, for callers that
    report them or leave them out.
    """

    def __init__(self, message: str, bad_files: Sequence[BadFile] = ()) -> None:
        super().__init__(describe_bad_files(message, bad_files))
        self.bad_files = tuple(bad_files)


def describe_bad_files(message: str, bad_files: Sequence[BadFile]) -> str:
    """`message` and a line for each of the first few bad files, for a log or an error."""
    lines = [message, *(f"  {bad}" for bad in bad_files[:_SHOWN_FILES])]
    if len(bad_files) > _SHOWN_FILES:
        lines.append(f"  ... and {len(bad_files) - _SHOWN_FILES} more")
    return "\n".join(lines)


class Identity(NamedTuple):
    """By what a dataset is recognised, whatever its name and place.

    Attributes:
        sha256: the dataset's `content_hash`.
        names: of the images, in order; those of files relative to their source.
        digests: the start of a SHA-256 (hex) of each image's content; empty if the dataset does not tell its
            images apart.
    """

    sha256: str
    names: list[str]
    digests: list[str]


class Dataset(ABC):
    """Items of one shape, with class labels if the source has them.

    Attributes:
        kind: what the items are, which is also their field of a `Batch`.
        item: what one of them is called.
        name: short name for people and run directories.
        item_shape: (C, H, W) of images, (T,) of waves and texts.
        labels: int64 (N,), the class of each item; all 0 when `num_classes` is 0.
        num_classes: largest label + 1, or 0 for a dataset without labels.
        why_unlabelled: why there are no labels, if the source says so.
        licence: of the items, if it is known.
        class_names: names of the classes, if they come from folders.
        remarks: what a user should know of it, a sentence each.
        report: told of passes over all items that may take long; None for nobody.
        groups: int64 (N,): items of one number are of one whole, as the segments of a recording, and `split`
            keeps them together; None if each stands for itself.
    """

    kind: Literal["images", "audio", "text"]
    item: str
    why_unlabelled: str | None = None
    licence: str = ""
    class_names: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    report: Report | None = None
    groups: Tensor | None = None

    def __init__(self, name: str, count: int, item_shape: tuple[int, ...], labels: Tensor | None) -> None:
        if count < 1:
            raise ValueError(f"there are no {self.item}s in it")
        if labels is not None:
            _check_labels(labels, count, self.item)
        self.name = name
        self.item_shape = tuple(item_shape)
        self.labels = torch.zeros(count, dtype=torch.int64) if labels is None else labels.to(torch.int64)
        self.num_classes = 0 if labels is None else int(labels.max()) + 1
        self._identity: Identity | None = None
        self._bad_files: tuple[BadFile, ...] = ()

    @property
    def bad_files(self) -> tuple[BadFile, ...]:
        """The files left out of a dataset opened with `on_bad="skip"`; it may grow as files are read."""
        return self._bad_files

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        shape = format_shape(self.item_shape)
        return f"<{type(self).__name__} {self.name}: {len(self)} {self.item}s {shape}{classes}>"

    @property
    def present_classes(self) -> list[int]:
        """The classes that have items, in order."""
        return self.labels.unique().tolist() if self.num_classes else []

    def renumber_classes(self) -> dict[int, int]:
        """Numbers the classes that have items 0, 1, 2, ...; returns the new number by the old one."""
        numbers = renumber(self.present_classes)
        self.labels = torch.tensor([numbers[label] for label in self.labels.tolist()])
        self.num_classes, self._identity = len(numbers), None
        return numbers

    def describe_empty_classes(self) -> str | None:
        """A remark on classes without items; None if there are none."""
        present = self.present_classes
        if len(present) == self.num_classes:
            return None
        empty = sorted(set(range(self.num_classes)) - set(present))
        return f"{len(empty)} of {self.num_classes} classes have no {self.item}: {number_ranges(empty)}"

    def read(self, indices: Sequence[int] | np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Returns the items (K x `item_shape`, contiguous; images uint8, waves int16, texts int64) and labels
        (int64, K) at K indices.

        The tensors belong to the caller: writing to them doesn't change the dataset. Thread-safe.

        If files are read on demand and `on_bad` is "skip", the item and label of a file that can't be
        decoded are replaced by those of the next one in the dataset that can (the first follows the last). So
        batches depend only on the indices as long as the files don't change.

        Raises:
            IndexError: an index is below 0 or not below `len(self)`.
            DatasetError: a file that is read on demand has changed or can't be decoded or, if such files are
                replaced, 100 consecutive ones.
        """
        index = torch.as_tensor(indices, device="cpu")
        if index.numel() == 0:
            index = index.to(torch.int64)  # an empty list arrives as float32
        if index.dim() != 1 or index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise IndexError(
                f"indices have shape {tuple(index.shape)} and dtype {index.dtype}, but must be 1-D integers"
            )
        index = index.to(torch.int64)
        if len(index):
            lowest, highest = (int(bound) for bound in index.aminmax())
            if lowest < 0 or highest >= len(self):
                outside = lowest if lowest < 0 else highest
                raise IndexError(
                    f"index {outside} is outside {self.name}, which has {len(self)} {self.item}s"
                )
        items, index = self._read_items(index)
        return items, self.labels.index_select(0, index)

    def content_hash(self) -> str:
        """SHA-256 (hex) of shape, labels and content in order; computed once.

        It is equal for a folder and a zip of the same files, held in memory or not, and for a `.npy` and a
        `.npz` of the same arrays. Files are hashed as stored, so that nothing has to be decoded; a source
        that is not held in memory is read once.
        """
        return self.identity().sha256

    def identity(self) -> Identity:
        """The `content_hash` and what tells which items differ from those of another dataset; computed
        once."""
        if self._identity is None:
            self._identity = self._identify()
        return self._identity

    def _identify(self) -> Identity:
        digest = hashlib.sha256(f"aigc_ext dataset 1 {len(self)} {self.item_shape}\n".encode())
        # Little-endian on all machines; -1 distinguishes "no labels" from "all of class 0".
        labels = self.labels if self.num_classes else torch.full_like(self.labels, -1)
        digest.update(labels.numpy().astype("<i8").tobytes())
        digests: list[str] = []
        for content in self._content():
            digest.update(content)
            digests.append(hashlib.sha256(content).hexdigest()[:32])
            self._tell("identifying", len(digests))
        return Identity(digest.hexdigest(), self._item_names(), digests if len(digests) == len(self) else [])

    def _item_names(self) -> list[str]:
        return [f"{self.item} {i}" for i in range(len(self))]

    def _tell(self, what: str, done: int) -> None:
        if self.report is not None and (done % _REPORTED_EVERY == 0 or done == len(self)):
            self.report(what, done, len(self))

    def describe_unlabelled(self) -> str:
        """That there are no labels, and why, for an error."""
        return f"{self.name} has no labels" + (f": {self.why_unlabelled}" if self.why_unlabelled else "")

    def take(self, index: Tensor, name: str) -> Part:
        """The items at int64 indices as a dataset of their own, with all classes."""
        return Part(self, index, name)

    @abstractmethod
    def _read_items(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The items at the checked int64 indices, as a new contiguous tensor, and the indices actually
        read."""

    @abstractmethod
    def _content(self) -> Iterator[bytes]:
        """For each item, in order, bytes that change whenever it changes."""


class ImageDataset(Dataset):
    """Images of one shape: `image_shape`, (C, H, W), where C is 1, 3 or 4."""

    kind = "images"
    item = "image"

    def __init__(
        self, name: str, count: int, image_shape: tuple[int, int, int], labels: Tensor | None
    ) -> None:
        channels, height, width = image_shape
        if channels not in (1, 3, 4) or height < 1 or width < 1:
            raise ValueError(
                f"image shape is {format_shape(image_shape)}, but must be 1, 3 or 4 channels of at least 1x1"
            )
        super().__init__(name, count, image_shape, labels)
        self.image_shape = (channels, height, width)

    def take(self, index: Tensor, name: str) -> ImagePart:
        return ImagePart(self, index, name)


class Part(Dataset):
    """Some of the items of a dataset, in the given order, with all its classes."""

    def __init__(self, whole: Dataset, index: Tensor, name: str) -> None:
        self.kind, self.item = whole.kind, whole.item
        super().__init__(name, len(index), whole.item_shape, None)
        self.labels, self.num_classes = whole.labels[index], whole.num_classes
        self.class_names, self.licence, self.remarks = whole.class_names, whole.licence, whole.remarks
        self.why_unlabelled = whole.why_unlabelled
        self.groups = None if whole.groups is None else whole.groups[index]
        self.whole, self.index = whole, index

    @property
    def bad_files(self) -> tuple[BadFile, ...]:
        return self.whole.bad_files

    def _read_items(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.read(self.index[index])[0], index

    def _identify(self) -> Identity:
        whole, index = self.whole.identity(), self.index.tolist()
        digests = [whole.digests[i] for i in index] if whole.digests else []
        return super()._identify()._replace(names=[whole.names[i] for i in index], digests=digests)

    def _content(self) -> Iterator[bytes]:
        """Which items, and of what: the whole has been read once."""
        yield self.whole.content_hash().encode()
        yield self.index.numpy().astype("<i8").tobytes()


class ImagePart(Part, ImageDataset):
    """Some of the images of a dataset."""


class TensorImages(ImageDataset):
    """A dataset over one uint8 tensor N x C x H x W of any strides, which may be a memory-mapped file.

    Args:
        labels: integers (N,), or None.
        content_hash: a hash to use instead of that of the pixels.
        bad_files: the files that were left out.
        identity: for images decoded from files, that which `FileImages` computes for these files.

    Raises:
        ValueError: a wrong shape, dtype or label, with its value.
    """

    def __init__(
        self,
        name: str,
        images: Tensor,
        labels: Tensor | None = None,
        content_hash: str | None = None,
        bad_files: Sequence[BadFile] = (),
        identity: Identity | None = None,
    ) -> None:
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"images have shape {tuple(images.shape)} and dtype {images.dtype},"
                " but must be N,C,H,W of uint8"
            )
        count, channels, height, width = images.shape
        super().__init__(name, count, (channels, height, width), labels)
        self._images = images
        self._content_hash = content_hash
        self._identity = identity
        self._bad_files = tuple(bad_files)

    def _identify(self) -> Identity:
        found = super()._identify()
        return found if self._content_hash is None else found._replace(sha256=self._content_hash)

    def _read_items(self, index: Tensor) -> tuple[Tensor, Tensor]:
        # Not `self._images[index]`, which copies uint8 element by element: 6 to 12 times as slow.
        return self._images.index_select(0, index).contiguous(), index

    def _content(self) -> Iterator[bytes]:
        step = max(1, _HASH_CHUNK_BYTES // self._images[0].numel())
        for chunk in self._images.split(step):
            for image in chunk.contiguous().numpy():
                yield image.tobytes()


def split(data: Dataset, held_out: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits a dataset into one to train on and one that is held out, each with at least one item; the same
    items for the same number of them, whatever their order on disk or labels.

    Args:
        held_out: the fraction of the second, above 0 and below 1: of the items or, where the dataset has
            `groups`, of these.

    Raises:
        ValueError: there is only one item, or all are of one group.
    """
    groups = torch.arange(len(data)) if data.groups is None else data.groups.unique(return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count < 2:
        what = f"one {data.item}" if data.groups is None else f"{data.item}s of one whole"
        raise ValueError(f"{data.name} has {what}, but must have two, if one of them is held out")
    held = min(count - 1, max(1, round(count * held_out)))
    # PCG64's raw output is the same in all versions of NumPy.
    keys = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    order = torch.from_numpy(np.argsort(keys, kind="stable"))
    out = torch.isin(groups, order[:held])
    kept, taken = torch.nonzero(~out)[:, 0], torch.nonzero(out)[:, 0]
    return data.take(kept, data.name), data.take(taken, f"{data.name} (held out)")


def renumber(labels: Sequence[int]) -> dict[int, int]:
    """New numbers for the classes that occur, 0, 1, 2, ..., in their order."""
    return {old: new for new, old in enumerate(sorted(set(labels)))}


def describe_numbers(numbers: Mapping[int, int]) -> str:
    """A remark on the result of `renumber`."""
    shown = [f"{new} is {old}" for old, new in list(numbers.items())[:_SHOWN_CLASSES]]
    more = [f"{len(numbers) - _SHOWN_CLASSES} more"] if len(numbers) > _SHOWN_CLASSES else []
    return f"its classes are numbered anew: {', '.join([*shown, *more])}"


def number_ranges(numbers: Sequence[int]) -> str:
    """`0, 3 to 9, 12` for rising numbers; of many ranges the first few."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [str(a) if a == b else f"{a} to {b}" for a, b in ranges[:_SHOWN_CLASSES]]
    return ", ".join([*shown, "..."] if len(ranges) > _SHOWN_CLASSES else shown)


def format_shape(shape: Sequence[int]) -> str:
    """`1x28x28`, of images in the order channels, height, width."""
    return "x".join(str(size) for size in shape)


def _check_labels(labels: Tensor, count: int, item: str) -> None:
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}, but must be integers")
    if labels.shape != (count,):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but must have ({count},), one per {item}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"a label is {wrong}, but must be from 0 to {MAX_CLASSES - 1}")
