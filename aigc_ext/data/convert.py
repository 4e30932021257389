"""Inspection of a source of images, and its conversion to a folder or zip of PNGs of one shape."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from aigc_ext import _files
from aigc_ext.data import image_file
from aigc_ext.data.dataset import BadFile, DatasetError, number_ranges, renumber
from aigc_ext.data.files import (
    LABELS_FILE,
    ImageFiles,
    Progress,
    describe_passed_over,
    map_files,
    probe,
)
from aigc_ext.data.fit import TRANSFORMS as TRANSFORMS
from aigc_ext.data.fit import ArrayFiles, as_image, check_fit, fit, fitted_size, png, with_channels
from aigc_ext.data.open import find_files, open_dataset
from aigc_ext.data.tree import Tree

_PER_FOLDER = 1000


class Inspection(NamedTuple):
    """The contents of a source.

    Attributes:
        images: number of good images, of any shape.
        shapes: number of images by (channels, height, width), as `open_dataset` would decode them.
        stored_as: number of images by format and colour mode, or in an array.
        classes: number of images by class; empty without labels.
        class_names: names of the classes, if they come from folders.
        bad_files: files that can't be decoded, or have a bad label.
        remarks: what else one should know of it, a sentence each.
    """

    images: int
    shapes: Counter[tuple[int, int, int]]
    stored_as: Counter[str]
    classes: Counter[int]
    class_names: list[str]
    bad_files: list[BadFile]
    remarks: list[str]


class Conversion(NamedTuple):
    """The result of a conversion.

    Attributes:
        dest: the new folder or zip.
        report: a JSON file next to it, with the bad files and the reasons.
        images: number of images in it.
        image_shape: (channels, height, width) of all images.
        classes: number of images by class; empty without labels.
        bad_files: files that were left out.
        passed_over: number of other files, by suffix.
    """

    dest: Path
    report: Path
    images: int
    image_shape: tuple[int, int, int]
    classes: Counter[int]
    bad_files: list[BadFile]
    passed_over: Counter[str]


class _Source(NamedTuple):
    files: ImageFiles
    images: list[str]  # those that are not known to be bad
    labels: dict[str, int] | None
    class_names: list[str]
    bad: list[BadFile]


def inspect_dataset(
    source: str | os.PathLike[str],
    *,
    class_folders: bool = False,
    renumber_classes: bool = False,
    follow_links: bool = False,
    white: int | None = None,
    max_images: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Inspection:
    """Decodes every image of a source, so that no damage is missed. Arguments are as for
    `convert_dataset`."""
    files, images, labels, class_names, bad = _open(source, class_folders, renumber_classes, follow_links)
    peaks: list[image_file.Peak] = []

    def look(name: str) -> tuple[str, tuple[int, int, int]]:
        data = files.read(name)
        height, width, channels = image_file.decode(io.BytesIO(data), white).shape
        stored_as = "array" if isinstance(files, ArrayFiles) else image_file.stored_as(io.BytesIO(data))
        if peak := image_file.peak(io.BytesIO(data)):
            peaks.append(peak)
        return stored_as, (channels, height, width)

    shapes, stored, classes = Counter[tuple[int, int, int]](), Counter[str](), Counter[int]()
    for name, seen in map_files(look, images[:max_images], bad, workers, progress):
        stored[seen[0]] += 1
        shapes[seen[1]] += 1
        if labels is not None:
            classes[labels[name]] += 1
    found = describe_passed_over(files.passed_over), image_file.describe_peaks(peaks, white)
    remarks = [remark for remark in found if remark]
    if empty := sorted(set(range(max(classes, default=-1) + 1)) - classes.keys()):
        remarks.append(f"these classes have no image: {number_ranges(empty)}")
    return Inspection(sum(shapes.values()), shapes, stored, classes, class_names, bad, remarks)


def convert_dataset(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    resolution: tuple[int, int] | None = None,
    transform: str | None = None,
    enlarge: bool = False,
    class_folders: bool = False,
    renumber_classes: bool = False,
    follow_links: bool = False,
    white: int | None = None,
    max_images: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Conversion:
    """Writes the good images of a source as PNGs of one size and colour mode, with a `dataset.json`.

    The result is grey if all images are grey, and has an alpha channel if all have one; otherwise it is RGB,
    with grey images converted and transparent ones put on white. The images are named `00000/img00000000.png`
    and so on, in the order of the source. `dest` is written atomically; the same source gives the same bytes.
    Bad files are left out and listed in `<dest>.report.json`, which replaces an earlier one.

    Args:
        source: as for `open_dataset`, but the images may differ in shape.
        dest: a zip if its suffix is `.zip`, uncompressed since PNGs already are compressed; otherwise a
            folder.
        resolution: (width, height) of the result; by default the most frequent size, which all images must
            then have.
        transform: how to treat images of another aspect ratio, which are bad files without it: "center-crop"
            crops both ends equally; "center-crop-wide" also adds black bars above and below, to a square of
            the width; "letterbox" keeps the whole image and adds black bars on two sides. In images with an
            alpha channel the bars are transparent.
        enlarge: accept images smaller than the resolution, which are bad files without it.
        class_folders: take the classes from the source's top-level folders, in the order of their names,
            instead of from its `dataset.json`.
        renumber_classes: number the classes that have images 0, 1, 2, ..., in their order.
        follow_links: also use what symbolic links out of a folder lead to; they are bad files otherwise.
        white: the value of 16-bit grey that becomes white, such as 4095 for values of 12 bits; None: 65535.
        max_images: use only the first ones with good headers.
        workers: threads that decode and encode.

    Raises:
        DatasetError: the source can't be read or has no good image, or `dest` exists or is not possible.
        ValueError: another argument is wrong.
        OSError: `dest` can't be written, for example because the disk is full. It is then removed.
    """
    dest = Path(dest)
    _check(dest, resolution, transform)
    report = dest.with_name(f"{dest.name}.report.json")
    files, images, labels, class_names, bad = _open(source, class_folders, renumber_classes, follow_links)
    if isinstance(files, Tree) and dest.resolve().is_relative_to(files.path.resolve()):
        raise DatasetError(f"{dest}: it would be in its own source, {files.source}")
    headers, bad_headers = probe(files, images, max_images)
    bad += bad_headers
    if not headers:
        raise DatasetError(f"{files.source}: none of its images is good:", bad)
    found = {shape[0] for shape in headers.values()}
    channels = found.pop() if len(found) == 1 else 3
    ((height, width), _), *_ = Counter(shape[1:] for shape in headers.values()).most_common(1)

    def make(name: str) -> bytes:
        image = with_channels(as_image(image_file.decode(io.BytesIO(files.read(name)), white)), channels)
        if resolution is not None:
            return png(fit(image, resolution, transform, enlarge))
        if image.size != (width, height):
            raise ValueError(
                f"it is {image.width}x{image.height}, but must be {width}x{height} as most are;"
                " with a resolution, images of any size can be used"
            )
        return png(image)

    classes = Counter[int]()
    pairs: list[tuple[str, int]] = []
    count = 0
    dest.parent.mkdir(parents=True, exist_ok=True)
    with _new(dest) as write:
        for name, content in map_files(make, list(headers), bad, workers, progress):
            output = f"{count // _PER_FOLDER:05d}/img{count:08d}.png"
            write(output, content)
            count += 1
            if labels is not None:
                pairs.append((output, labels[name]))
                classes[labels[name]] += 1
        if resolution is not None:
            width, height = fitted_size(resolution, transform)
        write(LABELS_FILE, _json({"labels": pairs if labels is not None else None}))
        summary = {
            "source": files.source,
            "images": count,
            "image_shape": [channels, height, width],
            "class_names": class_names or None,
            "bad_files": [file._asdict() for file in bad],
            "passed_over": dict(files.passed_over),
        }
        _files.replace_file(report, _json(summary, indent=1))
        if count == 0:
            raise DatasetError(f"{files.source}: none of its images is good (see {report}):", bad)
    return Conversion(dest, report, count, (channels, height, width), classes, bad, files.passed_over)


def _open(
    source: str | os.PathLike[str], class_folders: bool, renumber_classes: bool, follow_links: bool
) -> _Source:
    files = find_files(source, follow_links) or ArrayFiles(str(source), open_dataset(source))
    labels, bad_labels, class_names = files.class_folders() if class_folders else (*files.labels(), [])
    bad = [*files.bad, *bad_labels]
    left_out = {file.name for file in bad}
    images = [name for name in files.images if name not in left_out]
    if renumber_classes and labels is not None:
        numbers = renumber([labels[name] for name in images])
        labels = {name: numbers[labels[name]] for name in images}
        class_names = [class_names[old] for old in numbers] if class_names else []
    return _Source(files, images, labels, class_names, bad)


@contextmanager
def _new(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a file to the folder or zip `dest`, which is written atomically."""
    temporary = _files.temporary_path(dest)

    def add_to_folder(name: str, data: bytes) -> None:
        (temporary / name).parent.mkdir(exist_ok=True)
        (temporary / name).write_bytes(data)

    with _files.removed_if_it_fails(temporary):
        if dest.suffix.lower() == ".zip":
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                # A new ZipInfo has a constant date.
                yield lambda name, data: archive.writestr(zipfile.ZipInfo(name), data)
        else:
            temporary.mkdir()
            yield add_to_folder
        _refuse_existing(dest)
        os.rename(temporary, dest)
        _files.fsync_directory(dest.parent)


def _check(dest: Path, resolution: tuple[int, int] | None, transform: str | None) -> None:
    if dest.suffix.lower() in (".npy", ".npz", ".tar", ".tgz", ".gz"):
        raise DatasetError(f"{dest}: what is written must be a folder or a .zip")
    _refuse_existing(dest)
    check_fit(resolution, transform)


def _refuse_existing(dest: Path) -> None:
    if os.path.lexists(dest):
        raise DatasetError(f"{dest}: it exists already, and is not overwritten")


def _json(content: object, indent: int | None = None) -> bytes:
    # Names that are not valid text are preserved: a lone surrogate becomes its JSON escape.
    return json.dumps(content, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace") + b"\n"
