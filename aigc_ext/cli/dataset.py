"""`aigc-ext dataset`."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click
from tqdm import tqdm

from aigc_ext import _names
from aigc_ext.cli.decorator import decorator
from aigc_ext.cli.errors import InputError, RunFailure, input_errors

if TYPE_CHECKING:
    from aigc_ext.data.convert import Conversion, Inspection
    from aigc_ext.data.files import Progress

_SHOWN_CLASSES = 20
_SHOWN_FILES = 5
_SHOWN_SHAPES = 6
_BAR = 40
_RATIOS = (
    (2.0, "2 and more"),
    (1.1, "1.1 to 2"),
    (0.9, "0.9 to 1.1"),
    (0.5, "0.5 to 0.9"),
    (0.0, "below 0.5"),
)
_T = TypeVar("_T")


class SizeType(click.ParamType):
    """`256x128`: width x height; `64` is 64x64."""

    name = "size"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"([1-9]\d{0,9})(?:x([1-9]\d{0,9}))?", value)
        if match is None:
            self.fail(f"{value!r} is no size such as 64 (64x64) or 256x128, WIDTHxHEIGHT", param, ctx)
        return int(match[1]), int(match[2] or match[1])


white_option = click.option(
    "--white",
    type=click.IntRange(1, _names.WHITE),
    metavar="INT",
    help=f"The value of 16-bit grey that is white, such as 4095 for 12 bits.  [default: {_names.WHITE}]",
)
renumber_option = click.option(
    "--renumber-classes",
    is_flag=True,
    default=None,
    help="Number the classes that have images 0, 1, 2, ...  [default: labels are their numbers]",
)
fit_options = decorator(
    click.option(
        "--resolution",
        type=SizeType(),
        metavar="WxH",
        help="Crop and scale all images to this size; 64 is 64x64.  [default: the most frequent; others are"
        " left out]",
    ),
    click.option(
        "--transform",
        type=click.Choice(_names.TRANSFORMS),
        help="How to treat other aspect ratios: center-crop crops the ends; center-crop-wide also adds black"
        " bars, to a square; letterbox crops nothing and adds bars.  [default: center-crop; the command"
        " dataset leaves them out]",
    ),
    click.option(
        "--enlarge", is_flag=True, default=None, help="Also use images that are smaller than --resolution."
    ),
    white_option,
    click.option(
        "--follow-links",
        is_flag=True,
        default=None,
        help="Also read what symbolic links out of a folder lead to.",
    ),
)


def usual_transform(resolution: tuple[int, int] | None, transform: str | None) -> str | None:
    """What photos of any shape need, unless something else was asked for."""
    return transform or ("center-crop" if resolution else None)


@click.command()
@click.option(
    "--source",
    required=True,
    metavar="NAME|PATH",
    help="A folder or zip of images, .npy, .npz, wds:SHARDS, hf:FOLDER, digits, mnist5k or emoji.",
)
@click.option(
    "--dest",
    metavar="PATH",
    help="The folder or .zip to write; it must not exist yet.  [default: only inspect the source]",
)
@fit_options
@click.option(
    "--class-folders",
    is_flag=True,
    help="Use the source's top-level folders as classes.  [default: its dataset.json]",
)
@renumber_option
@click.option("--max-images", type=click.IntRange(min=1), metavar="INT", help="Use only the first images.")
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=256),
    default=min(8, os.cpu_count() or 1),
    metavar="INT",
    help="Threads that decode and encode.  [default: one per CPU, at most 8]",
)
def dataset(
    source: str,
    dest: str | None,
    resolution: tuple[int, int] | None,
    transform: str | None,
    enlarge: bool | None,
    white: int | None,
    follow_links: bool | None,
    class_folders: bool,
    renumber_classes: bool | None,
    max_images: int | None,
    workers: int,
) -> None:
    """Inspect a set of images, or convert it for training.

    Without --dest, decodes everything and reports the contents, with every bad file and the reason. With
    --dest, writes PNGs of one shape with a dataset.json; bad files are left out and listed in
    DEST.report.json. The result is grey if all images are, has an alpha channel if all have one, and is RGB
    otherwise, with transparent images on white.
    """
    from aigc_ext.data.convert import convert_dataset, inspect_dataset

    if dest is None:
        with input_errors():
            for option, given in (("resolution", resolution), ("transform", transform), ("enlarge", enlarge)):
                if given:
                    raise ValueError(f"--{option} needs --dest: without it nothing is written")
            with _bar() as progress:
                seen = inspect_dataset(
                    source,
                    class_folders=class_folders,
                    renumber_classes=bool(renumber_classes),
                    white=white,
                    follow_links=bool(follow_links),
                    max_images=max_images,
                    workers=workers,
                    progress=progress,
                )
        _show_inspection(source, seen)
        return
    try:
        with _bar() as progress:
            made = convert_dataset(
                source,
                dest,
                resolution=resolution,
                transform=transform,
                enlarge=bool(enlarge),
                class_folders=class_folders,
                renumber_classes=bool(renumber_classes),
                white=white,
                follow_links=bool(follow_links),
                max_images=max_images,
                workers=workers,
                progress=progress,
            )
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error
    except OSError as error:  # not from bad files, which are only reported
        left = "it is whole" if os.path.lexists(dest) else "nothing of it is left"
        place = f" ({error.filename})" if error.strerror and error.filename else ""
        raise RunFailure(f"{dest}: {error.strerror or error}{place}; {left}") from error
    _show_conversion(made)


@contextmanager
def _bar() -> Iterator[Progress]:
    with tqdm(unit="img", leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _show_inspection(source: str, seen: Inspection) -> None:
    from aigc_ext.data.dataset import format_shape

    click.echo(f"source:     {source}")
    click.echo(f"images:     {seen.images}")
    for line in _shapes(seen.shapes):
        click.echo(line)
    click.echo(f"stored as:  {_counts(seen.stored_as, str)}")
    click.echo(f"classes:    {_classes(seen.classes, seen.class_names)}")
    click.echo(f"bad files:  {len(seen.bad_files)}")
    for bad in seen.bad_files:
        click.echo(f"  {bad}")
    for remark in seen.remarks:
        click.echo(f"{remark[0].upper()}{remark[1:]}.")
    if len(seen.shapes) > 1:
        (shape, count), *_ = seen.shapes.most_common(1)
        click.echo(
            f"To train on it as it is would take {count} images of {format_shape(shape)} and leave out"
            f" {seen.images - count} of other shapes; train --resolution 64 --transform center-crop makes all"
            " 64x64, and --dest writes a set of one shape."
        )


def _show_conversion(made: Conversion) -> None:
    from aigc_ext.data.dataset import format_shape
    from aigc_ext.data.files import describe_passed_over

    click.echo(f"dataset:    {made.dest}")
    click.echo(f"images:     {made.images} of {format_shape(made.image_shape)}")
    click.echo(f"classes:    {_classes(made.classes, [])}")
    click.echo(f"left out:   {len(made.bad_files)}, listed in {made.report}")
    if remark := describe_passed_over(made.passed_over):
        click.echo(f"beside it:  {remark}")
    for bad in made.bad_files[:_SHOWN_FILES]:
        click.echo(f"  {bad}")
    if len(made.bad_files) > _SHOWN_FILES:
        click.echo(f"  ... and {len(made.bad_files) - _SHOWN_FILES} more")


def _shapes(shapes: Counter[tuple[int, int, int]]) -> list[str]:
    """A line, or for many shapes histograms of the shorter side and the aspect ratio."""
    from aigc_ext.data.dataset import format_shape

    if len(shapes) <= _SHOWN_SHAPES:
        return [f"shapes:     {_counts(shapes, format_shape)}"]
    channels, sides, ratios = Counter[str](), Counter[int](), Counter[str]()
    for (depth, height, width), count in shapes.items():
        channels[f"{depth} channel{'s' * (depth > 1)}"] += count
        sides[min(height, width).bit_length()] += count
        ratios[next(name for least, name in _RATIOS if width / height >= least)] += count
    lines = [f"shapes:     {len(shapes)} different ones, of {_counts(channels, str)}"]
    octaves = {
        f"{1 << (bits - 1)} to {(1 << bits) - 1}": sides[bits] for bits in range(min(sides), max(sides) + 1)
    }
    lines += ["  shorter side, in pixels:", *_histogram(octaves)]
    return [*lines, "  width / height:", *_histogram({name: ratios[name] for _, name in _RATIOS})]


def _histogram(counts: Mapping[str, int]) -> list[str]:
    width, most = max(map(len, counts)), max(counts.values())
    longest = len(str(most))
    return [
        f"    {name:>{width}}  {count:>{longest}}  {'#' * math.ceil(_BAR * count / most)}".rstrip()
        for name, count in counts.items()
    ]


def _counts(counts: Counter[_T], text: Callable[[_T], str]) -> str:
    return ", ".join(f"{count} of {text(value)}" for value, count in counts.most_common()) or "none"


def _classes(counts: Counter[int], names: Sequence[str]) -> str:
    if not counts:
        return "none"
    if len(counts) > _SHOWN_CLASSES:
        return f"{len(counts)}, of {min(counts.values())} to {max(counts.values())} images"
    shown = (f"{names[i] if names else i} ({counts[i]})" for i in sorted(counts))
    return f"{len(counts)}: {', '.join(shown)}"
