"""Local data sets of Hugging Face's `datasets`."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from aigc_ext.data.dataset import MAX_CLASSES, BadFile, DatasetError
from aigc_ext.data.files import ImageFiles
from aigc_ext.data.index import Stamp, file_stamp

_log = logging.getLogger(__name__)


class _Rows(ImageFiles):
    """The encoded images of one column, named by their rows."""

    def __init__(self, source: str, name: str, rows: Any, labels: list[int | None] | None) -> None:
        super().__init__(source, name, source)
        self._rows = rows
        self._labels = labels
        self._outside: set[str] = set()  # rows whose images are in files of their own
        self._stamp: int | None = None
        stamps = [file_stamp(os.stat(file["filename"])) for file in rows.cache_files]
        if stamps and None not in stamps:
            digest = hashlib.sha256(f"{rows._fingerprint} {stamps}".encode()).digest()
            self._stamp = int.from_bytes(digest[:8], "big")
        self.images = [f"row {i:08d}" for i in range(len(rows))]

    def _bytes(self, name: str) -> bytes:
        (value,) = self._rows[int(name[4:])].values()
        if value is None:
            raise ValueError("the row has no image")
        if value["bytes"] is not None:
            return value["bytes"]
        self._outside.add(name)
        path = Path(value["path"])
        if not path.is_file():
            raise ValueError(f"its image is not in the data set, but at {path}, and nothing is downloaded")
        return path.read_bytes()

    def stamp(self, name: str) -> Stamp | None:
        return None if self._stamp is None or name in self._outside else (self._stamp,)

    def size(self, name: str) -> int:
        return len(self._bytes(name))

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self._bytes(name))

    def labels(self) -> tuple[dict[str, int] | None, list[BadFile]]:
        if self._labels is None:
            self.why_unlabelled = "it has no integer column label, nor one of type ClassLabel"
            return None, []
        classes: dict[str, int] = {}
        bad: list[BadFile] = []
        for name, label in zip(self.images, self._labels, strict=True):
            if label is None or not 0 <= label < MAX_CLASSES:
                bad.append(
                    BadFile(name, f"its label is {label}, but must be an integer from 0 to {MAX_CLASSES - 1}")
                )
            else:
                classes[name] = label
        return classes, bad


def open_rows(text: str) -> ImageFiles:
    """The rows of a data set in a local folder, read by the package `datasets` with network access disabled.

    The images come from the only column of type Image (of several, the one named `image` or `img`), the
    classes from the integer column `label`, or else from the only column of type ClassLabel.

    Args:
        text: a folder written by `save_to_disk`, or one that `load_dataset` understands, such as a copy of a
            repository with parquet files (of which `datasets` keeps an Arrow copy in its cache). A suffix
            such as `#test` chooses the split; the default is `train`, or the only one.

    Raises:
        DatasetError: there is no such folder, `datasets` is not installed or can't read it, or there is no
            such split or column.
    """
    source = f"hf:{text}"
    folder, split = text, ""
    if not Path(text).exists():
        folder, _, split = text.rpartition("#") if "#" in text else (text, "", "")
    if not folder or not Path(folder).is_dir():
        raise DatasetError(
            f"{source}: there is no folder {folder!r}; only data sets on this machine are read, nothing is"
            " downloaded (`Dataset.save_to_disk` writes such a folder)"
        )
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"{source}: the package datasets is needed: run `pip install aigc_ext[datasets]`"
        ) from error
    try:
        with _offline(datasets):
            data = _load(datasets, Path(folder))
    except Exception as error:  # from datasets, pyarrow and fsspec
        raise DatasetError(
            f"{source}: datasets {datasets.__version__} can't read it: {type(error).__name__}: {error}"
        ) from error
    if isinstance(data, dict):
        split = split or ("train" if "train" in data or len(data) != 1 else next(iter(data)))
        if split not in data:
            raise DatasetError(
                f"{source}: its splits are {', '.join(data)}; choose one as hf:{folder}#{next(iter(data))}"
            )
        data = data[split]
    elif split:
        raise DatasetError(f"{source}: it has no splits; write hf:{folder}")
    data = data.with_format(None)
    image = _image_column(source, data.features, datasets.Image)
    label = _label_column(source, data.features, datasets.ClassLabel)
    labels = (
        None if label is None else data.select_columns([label]).with_format("arrow")[:][label].to_pylist()
    )
    rows = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return _Rows(source, Path(folder).resolve().name, rows, labels)


def _load(datasets: Any, folder: Path) -> Any:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return datasets.load_from_disk(str(folder))
    return datasets.load_dataset(str(folder))


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keeps `datasets` from accessing the network, whatever the folder refers to, and from printing."""
    from huggingface_hub import constants

    quiet = datasets.are_progress_bars_disabled()
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        if not quiet:
            datasets.enable_progress_bars()


def _image_column(source: str, features: Any, kind: type) -> str:
    columns = [name for name, feature in features.items() if isinstance(feature, kind)]
    chosen = columns if len(columns) == 1 else [name for name in columns if name in ("image", "img")]
    if len(chosen) != 1:
        raise DatasetError(
            f"{source}: its columns are {', '.join(features)}, but one of them must be of the type Image, or"
            f" one of several ({len(columns)} are) be called image"
        )
    return chosen[0]


def _label_column(source: str, features: Any, kind: type) -> str | None:
    if "label" in features and (
        isinstance(features["label"], kind) or "int" in getattr(features["label"], "dtype", "")
    ):
        return "label"
    if "label" in features:
        _log.warning(
            "%s: its column label is not used, since it is %s, but must be integers or a ClassLabel",
            source,
            getattr(features["label"], "dtype", type(features["label"]).__name__),
        )
    columns = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(columns) > 1:
        _log.warning(
            "%s: none of its label columns is used, since none is called label: %s",
            source,
            ", ".join(columns),
        )
    return columns[0] if len(columns) == 1 else None
