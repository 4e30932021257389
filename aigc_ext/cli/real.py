"""The real images that a network is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aigc_ext.cli.dataset import usual_transform

if TYPE_CHECKING:
    from aigc_ext.data import ImageDataset
    from aigc_ext.metrics import FeatureExtractor, ReconstructionDistance

_LEFT_OUT = 0.1  # of the images at most, as in a run
_OF_RUN = ("resolution", "transform", "enlarge", "white", "class_folders", "renumber_classes", "follow_links")


def open_real(
    data: str, network: str | None, image_shape: tuple[int, ...] | None, **options: Any
) -> ImageDataset:
    """The images of `data`, in the form in which the network knows them: what was not asked for is as in the
    run that it comes from; without a run, images of many sizes are cropped and scaled to its own. Files that
    cannot be used are left out, and named.

    Args:
        network: as the commands take it; None if there is none.
        image_shape: of what it makes, if that is known.
        options: those of `fit_options`; None for one that was not given.

    Raises DatasetError.
    """
    from aigc_ext.data import DatasetError, describe_bad_files, open_dataset

    given = {name: value for name, value in options.items() if value is not None}
    how = {**_of_run(network), **given}
    fit = {name: how.pop(name, None) for name in ("resolution", "transform", "enlarge")}

    def opened(resolution: tuple[int, int] | None) -> ImageDataset:
        options = {**how, "on_bad": "skip", "max_left_out": _LEFT_OUT}
        if resolution is not None:
            transform = usual_transform(resolution, fit["transform"])
            options |= {"resolution": resolution, "transform": transform, "enlarge": bool(fit["enlarge"])}
        return open_dataset(data, **options)

    own = (image_shape[2], image_shape[1]) if image_shape is not None else None
    if fit["resolution"] or own is None:
        images = opened(tuple(fit["resolution"]) if fit["resolution"] else None)
    else:
        try:
            images = opened(None)
        except DatasetError:
            images = opened(own)
            click.echo(f"{data}: cropped and scaled to {own[0]}x{own[1]}, the network's size", err=True)
    for remark in images.remarks:
        click.echo(f"Warning: {remark}", err=True)
    if images.bad_files:
        left = f"Warning: {len(images.bad_files)} files of {data} are left out:"
        click.echo(describe_bad_files(left, images.bad_files), err=True)
    return images


def _of_run(network: str | None) -> dict[str, Any]:
    """How the run that a network is from, if it is, reads its images."""
    from aigc_ext.config import read_config
    from aigc_ext.training.run import CONFIG_FILE

    run = None if network is None else _run_of(network)
    settings = None if run is None else read_config(run / CONFIG_FILE).get("data")
    known = settings if isinstance(settings, dict) else {}
    return {name: known[name] for name in _OF_RUN if known.get(name)}


def _run_of(network: str) -> Path | None:
    """The run that a network is from, if it is."""
    from aigc_ext._runs import find_run
    from aigc_ext.training.run import CONFIG_FILE, STATS_FILE

    found = Path(find_run(network))
    folders = (found, *list(found.parents)[:2])
    return next((f for f in folders if (f / CONFIG_FILE).is_file() and (f / STATS_FILE).is_file()), None)


def learned_and_held_out(network: str, images: ImageDataset) -> tuple[ImageDataset, ImageDataset] | None:
    """The images that a network has learned and those that its run has held out, if these images are its
    run's, by their content."""
    from aigc_ext import _files
    from aigc_ext.config import read_config
    from aigc_ext.data import split
    from aigc_ext.tasks import config_class
    from aigc_ext.training.identity import DATA_FILE
    from aigc_ext.training.run import CONFIG_FILE
    from aigc_ext.training.runtime import derive_seed

    run = _run_of(network)
    if run is None or not (run / DATA_FILE).is_file() or len(images) < 2:
        return None
    values = read_config(run / CONFIG_FILE)
    config: Any = config_class(values).from_dict(values)
    if not getattr(config, "held_out", 0):
        return None
    parts: Any = split(images, config.held_out, derive_seed(config.seed, "held out"))
    recorded = _files.parse_json((run / DATA_FILE).read_bytes())
    return parts if recorded.get("sha256") == parts[0].content_hash() else None


def reconstruction_distance(
    network: str,
    images: ImageDataset,
    extractor: Callable[[ImageDataset], FeatureExtractor],
    **options: Any,
) -> ReconstructionDistance:
    """Of the images that the network's run has held out, if these are its images and the held-out ones are as
    many as the features; otherwise of all. It says of which.

    Args:
        extractor: makes one for the images that were learned.
        options: of `ReconstructionDistance`.
    """
    from aigc_ext.metrics import ReconstructionDistance

    parts = learned_and_held_out(network, images)
    chosen = extractor(images if parts is None else parts[0])
    remark = ""
    if parts is not None:
        held, features = parts[1], chosen(images.read([0])[0]).shape[1]
        if len(held) >= features:
            images = held
        else:
            remark = f", learned ones too: the {len(held)} held out are fewer than the {features} features"
    distance = ReconstructionDistance(images, chosen, **options)
    click.echo(f"rfd: {distance.count} images of {images.name}{remark}", err=True)
    return distance
