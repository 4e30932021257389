"""Opens the dataset named by `--data`."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from aigc_ext.data import image_file
from aigc_ext.data.arrays import open_arrays
from aigc_ext.data.dataset import BadFile, DatasetError, ImageDataset, Report, describe_numbers
from aigc_ext.data.embedded import NAMES as EMBEDDED_NAMES
from aigc_ext.data.embedded import open_embedded
from aigc_ext.data.fetched import NAMES as FETCHED
from aigc_ext.data.fetched import licence_of, names_of, path_of
from aigc_ext.data.files import (
    WRONG_SHAPE,
    ImageFiles,
    OnBad,
    Selection,
    collect,
    describe_passed_over,
    select_images,
)
from aigc_ext.data.fit import NEEDS_ENLARGING, NEEDS_TRANSFORM, ArrayFiles, check_fit
from aigc_ext.data.huggingface import open_rows
from aigc_ext.data.prepare import Preparation, open_images, open_prepared
from aigc_ext.data.shards import open_shards
from aigc_ext.data.tokens import KIND as TOKENS
from aigc_ext.data.tokens import token_source
from aigc_ext.data.tree import open_tree

DEFAULT_MEMORY_LIMIT = 2 << 30
FETCHED_NAMES = names_of("images")
NAMED = (*EMBEDDED_NAMES, *FETCHED_NAMES)
"""The sources that are names, not paths."""
_LOOKED_AT = 16  # images of which the values are looked at
_log = logging.getLogger(__name__)


def open_dataset(
    source: str | os.PathLike[str],
    *,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    on_bad: OnBad = "raise",
    resolution: tuple[int, int] | None = None,
    transform: str | None = None,
    enlarge: bool = False,
    white: int | None = None,
    class_folders: bool = False,
    renumber_classes: bool = False,
    follow_links: bool = False,
    max_left_out: float = 1.0,
    report: Report | None = None,
) -> ImageDataset:
    """Opens and checks a dataset, so that bad files are found now and not after a night of training.

    Args:
        source: one of
            - `digits` (1,797 images 1x8x8) or `mnist5k` (5,000 images 1x28x28), both with 10 classes, from
              the packages of `pip install aigc_ext[data]`; a folder of that name is `./digits`;
            - `emoji` (3,781 images 3x64x64, with 9 categories as classes), once `python -m
              aigc_ext.data.fetched emoji` has been run;
            - a folder, searched recursively, or a `.zip`: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM and (if Pillow
              reads them) AVIF images of one shape, in the order of their names, with an optional
              `dataset.json` in the root: `{"labels": [["sub/a.png", 3], ...]}` with a class for each image.
              PNG, JPEG, WebP, GIF and AVIF are found by their content, whatever their suffix. Hidden files
              are ignored, and a remark counts the others. See `image_file.decode` for colour modes;
            - a `.npy` or `.npz` of uint8 images N,H,W or N,H,W,C, in a `.npz` as the array `images` (or its
              first array) with an optional array `labels` (N,);
            - `wds:shards/train-{0000..0003}.tar`: uncompressed WebDataset shards on this machine, see
              `shards.open_shards` (braces need `pip install aigc_ext[webdataset]`);
            - `hf:folder`: a data set of Hugging Face `datasets` on this machine, see `huggingface.open_rows`
              (`pip install aigc_ext[datasets]`). Nothing is downloaded.
        memory_limit: bytes of pixels that may be held in memory; larger sources, except `.npz`, are read on
            demand, image by image.
        on_bad: "raise" rejects a source with bad files; "skip" leaves them out and lists them in the
            dataset's `bad_files`. Images must have the most frequent shape. Damage after the headers is found
            when an image is decoded. If the source is held in memory that is now, and these images are left
            out too; if it is read on demand, `read` later replaces the image, with one logged warning per
            file. A `dataset.json` that can't be read at all is a bad file, and the dataset has no labels. An
            array (`.npy`, `.npz`, embedded) is accepted or rejected as a whole. "raise" also logs the
            dataset's `remarks`.
        resolution: (width, height) to which all images are cropped and scaled; without it they must have one
            shape. They are decoded once, into the user's cache directory, and again only where the content of
            a file has changed; so are, without it, 10,000 files and more that fit into memory.
        transform, enlarge: how, as for `convert_dataset`.
        white: the value of 16-bit grey that is white, such as 4095 for values of 12 bits; None: 65535.
        class_folders: take the classes from the top-level folders, in the order of their names, instead of
            from `dataset.json`.
        renumber_classes: number the classes that have images 0, 1, 2, ..., in their order. Otherwise a label
            is the number of its class, and numbers without images are empty classes.
        follow_links: also read what symbolic links out of a folder lead to; they are bad files otherwise.
        max_left_out: the largest fraction of the images that "skip" may leave out.
        report: called with "indexing", "reading", "preparing" or "identifying" (see `ImageDataset.identity`),
            the number of finished images and the total, while files are looked at. Their shapes and hashes
            are kept in the user's cache directory, until they change.

    Raises:
        DatasetError: the source is missing, of an unknown kind, has no good image or, with on_bad="raise",
            has bad files, listed in `bad_files`, or too many of them.
        ValueError: another argument is wrong.
    """
    if memory_limit < 0:
        raise ValueError(f"memory_limit is {memory_limit}, but must be at least 0")
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad is {on_bad!r}, but must be 'raise' or 'skip'")
    check_fit(resolution, transform)
    if enlarge and resolution is None:
        raise ValueError("enlarge is true, but needs a resolution")
    if not 0 <= max_left_out <= 1:
        raise ValueError(f"max_left_out is {max_left_out}, but must be from 0 to 1")
    files = find_files(source, follow_links)
    if files is None:
        dataset = _open_arrays(source, memory_limit)
        dataset.report = report
        if resolution is None and not class_folders:
            if renumber_classes and dataset.num_classes:
                numbers = dataset.renumber_classes()
                dataset.remarks = (f"{os.fspath(source)}: {describe_numbers(numbers)}",)
            return _remarked(dataset, on_bad)
        files = ArrayFiles(os.fspath(source), dataset)
    files.white = white
    if source in FETCHED_NAMES:
        class_folders = True
    selection = select_images(
        files,
        on_bad,
        one_shape=resolution is None,
        class_folders=class_folders,
        renumber_classes=renumber_classes,
        report=report,
    )
    _check_left_out(files, selection.bad, max_left_out)
    if resolution is None:
        dataset = open_images(selection, memory_limit, on_bad, report)
    else:
        preparation = Preparation(resolution, transform, enlarge)
        dataset = open_prepared(selection, preparation, memory_limit, on_bad, report)
    _check_left_out(files, dataset.bad_files, max_left_out)
    dataset.why_unlabelled, dataset.class_names = files.why_unlabelled, tuple(selection.class_names)
    if source in FETCHED_NAMES:
        dataset.licence = licence_of(os.fspath(source))
    dataset.remarks = tuple(f"{files.source}: {remark}" for remark in _remarks(files, selection))
    return _remarked(dataset, on_bad)


def _remarked(dataset: ImageDataset, on_bad: OnBad) -> ImageDataset:
    """The dataset, after its remarks have been logged if nobody else would report them."""
    if on_bad == "raise":
        for remark in dataset.remarks:
            _log.warning("%s", remark)
    return dataset


def _remarks(files: ImageFiles, selection: Selection) -> Iterator[str]:
    if remark := describe_passed_over(files.passed_over):
        yield remark
    names, peaks = list(selection.shapes), []
    for name in names[:: max(1, len(names) // _LOOKED_AT)]:
        with collect([], name):  # damage is reported elsewhere
            if peak := image_file.peak(io.BytesIO(files.read(name))):
                peaks.append(peak)
    if remark := image_file.describe_peaks(peaks, files.white):
        yield remark
    yield from selection.remarks


def _check_left_out(files: ImageFiles, bad: Sequence[BadFile], most: float) -> None:
    """Raises DatasetError if more than this fraction of the images is left out, and says how not to."""
    images = set(files.images)
    lost = {file.name: file for file in bad if file.name in images}
    if len(lost) <= most * len(images):
        return
    reasons = [file.reason for file in lost.values()]
    ways = [
        f"{count} {what}"
        for recognise, what in (
            (
                lambda reason: reason.startswith(WRONG_SHAPE),
                "have another shape than most: --resolution 64 crops and scales all to 64x64",
            ),
            (
                lambda reason: reason.endswith(NEEDS_TRANSFORM),
                "have another aspect ratio: --transform center-crop cuts off what is too long, "
                "--transform letterbox adds bars",
            ),
            (lambda reason: reason.endswith(NEEDS_ENLARGING), "are too small: --enlarge uses them too"),
        )
        if (count := sum(map(recognise, reasons)))
    ]
    raise DatasetError(
        f"{files.source}: {len(lost)} of {len(images)} images would be left out, more than the fraction "
        f"{most:g} that data.max_left_out allows{': ' if ways else ''}{'; '.join(ways)}; aigc-ext dataset "
        "--source says what is in it:",
        list(lost.values()),
    )


def _open_arrays(source: str | os.PathLike[str], memory_limit: int) -> ImageDataset:
    if isinstance(source, str) and source in EMBEDDED_NAMES:
        return open_embedded(source)
    return open_arrays(Path(source), memory_limit)


def find_files(source: str | os.PathLike[str], follow_links: bool = False) -> ImageFiles | None:
    """The image files of a source for `open_dataset`, not decoded; None if it is an array.

    Raises:
        DatasetError: the source is missing or of an unknown kind.
    """
    if isinstance(source, str):
        kind, colon, rest = source.partition(":")
        if colon and kind == "wds":
            return open_shards(rest)
        if colon and kind == "hf":
            return open_rows(rest)
        if source in EMBEDDED_NAMES:
            return None
        if source in FETCHED_NAMES:
            return open_tree(path_of(source), follow_links=False)
        if source in FETCHED:
            raise DatasetError(f"data set {source!r} is no set of images; those are {', '.join(NAMED)}")
    text = os.fspath(source)
    path = Path(text)
    if not text or not path.exists():
        raise DatasetError(
            f"dataset {text!r}: there is no such file or folder, nor is it one of {', '.join(NAMED)}"
        )
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".zip":
        return open_tree(path, follow_links)
    if suffix in (".npy", ".npz"):
        return None
    hint = f"; shards are opened as wds:{text}" if suffix == ".tar" else ""
    raise DatasetError(f"{path}: it is a file, but must be a folder, .zip, .npy or .npz{hint}")


def absolute_source(source: str) -> str:
    """The source with an absolute path, whose meaning doesn't depend on the working directory."""
    if source in NAMED or source in FETCHED:
        return source
    if tokens := token_source(source):
        return f"{TOKENS}:{os.path.abspath(tokens.network)}:{absolute_source(tokens.images)}"
    kind, path = _kind_and_path(source)
    return kind + os.path.abspath(path)


def is_there(source: str) -> bool:
    """Does the path of a source exist, as far as that can be told without opening it?"""
    if tokens := token_source(source):
        images = tokens.images
        return os.path.exists(tokens.network) and (images in FETCHED or images in NAMED or is_there(images))
    kind, path = _kind_and_path(source)
    if kind == "wds:":  # a pattern
        path = os.path.dirname(path.partition("{")[0].partition("*")[0])
    return os.path.exists(path) or (kind == "hf:" and os.path.exists(path.rpartition("#")[0]))


def _kind_and_path(source: str) -> tuple[str, str]:
    kind, colon, path = source.partition(":")
    return (kind + colon, path) if kind + colon in ("wds:", "hf:") else ("", source)
