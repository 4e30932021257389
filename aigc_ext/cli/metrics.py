"""`aigc-ext metrics`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

import click

from aigc_ext import _names
from aigc_ext._progress import bars
from aigc_ext.cli.dataset import fit_options
from aigc_ext.cli.errors import InputError, input_errors
from aigc_ext.cli.network import (
    image_source,
    makes_images_anew,
    network_options,
    open_network,
    shape_of,
)
from aigc_ext.cli.real import open_real, reconstruction_distance


@click.command()
@network_options
@click.option(
    "--data", required=True, metavar="NAME|PATH", help="The real images; a name or path as for train."
)
@fit_options
@click.option(
    "--metrics",
    "names",
    default="fd,kid,pr",
    metavar="LIST",
    help=f"Some of {','.join(_names.METRICS + _names.RECONSTRUCTION_METRICS)}.  [default: fd,kid,pr]",
)
@click.option(
    "--num",
    type=int,
    default=5000,
    metavar="INT",
    help="How many images to generate, or at most to reconstruct.  [default: 5000]",
)
@click.option("--seed", type=int, default=0, metavar="INT", help="Seed of all random numbers.  [default: 0]")
@click.option(
    "--extractor",
    type=click.Choice(["classifier", "random"]),
    default="classifier",
    help="Features for fd, kid, pr and rfd: of a small classifier, trained on the labels, or of random"
    " weights, which are less informative but need no labels.  [default: classifier]",
)
@click.option(
    "--fid-weights", metavar="FILE", help="Inception's weights in torch-fidelity's form, for the metric fid."
)
@click.option(
    "--pairs",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="With the metric memorised: write the 16 generated images that are nearest to real ones, each beside"
    " that real one, as a PNG.",
)
@click.option("--cache", metavar="DIR", help="Cache for results on real data.  [default: the user's cache]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.  [default: auto]"
)
@click.option("--threads", type=click.IntRange(min=1), metavar="INT", help="CPU threads of PyTorch.")
def metrics(
    network: str,
    allow_download: bool,
    data: str,
    resolution: tuple[int, int] | None,
    transform: str | None,
    enlarge: bool | None,
    white: int | None,
    follow_links: bool | None,
    names: str,
    num: int,
    seed: int,
    extractor: Literal["classifier", "random"],
    fid_weights: str | None,
    pairs: str | None,
    cache: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Measure generated images against real ones.

    fd (Fréchet distance), kid (kernel distance) and pr (precision and recall) use the features of a network
    that needs no download, fid those of Inception; coverage is the classes that the images show; memorised
    is the share of the images that are nearer to a real one than real ones are to each other. rfd is the
    Fréchet distance between real images and what an autoencoder makes of them: those that its run has held
    out, if they are enough.

    The real images are read as the network's run read its own: their size, transform and class folders.
    """
    from aigc_ext.metrics import MetricError, MetricSet, named_extractor
    from aigc_ext.sampling import PretrainedError
    from aigc_ext.training.runtime import resolve_device

    chosen = [name.strip() for name in names.split(",")]
    of_samples = [name for name in chosen if name not in _names.RECONSTRUCTION_METRICS]
    if pairs is not None and "memorised" not in chosen:
        raise InputError(f"--pairs {pairs} needs the metric memorised: --metrics {names},memorised")
    with input_errors(), bars():
        if pairs is not None and not Path(pairs).parent.is_dir():
            raise ValueError(f"pairs is {pairs!r}, but there is no directory {Path(pairs).parent}")
        opened: tuple[Any, str] = open_network(network, allow_download, device, threads)
        model, digest = opened
        source = image_source(network, model, digest) if of_samples else None
        if of_samples != chosen and not makes_images_anew(model):
            name = type(model).__name__
            raise PretrainedError(f"network {network} is a {name}, but rfd is of images of an autoencoder")
        images = open_real(
            data,
            network,
            shape_of(source or model),
            resolution=resolution,
            transform=transform,
            enlarge=enlarge,
            white=white,
            follow_links=follow_links,
        )
        features = functools.partial(
            named_extractor, extractor, seed=seed, cache_dir=cache, device=resolve_device(device)
        )
        measure, distance = None, None
        if source is not None:
            measure = MetricSet(
                of_samples,
                images,
                num_images=num,
                seed=seed,
                extractor=extractor,
                fid_weights=fid_weights,
                cache_dir=cache,
                device=resolve_device(device),
            )
        if of_samples != chosen:
            distance = reconstruction_distance(network, images, features, num_images=num, seed=seed)
    try:
        with bars():
            figures = {} if measure is None or source is None else measure(source)
            if distance is not None:
                figures |= {"rfd": distance(model), "rfd_images": distance.count}
    except MetricError as error:
        raise InputError(str(error)) from error
    if pairs is not None and measure is not None and source is not None:
        from aigc_ext.sampling import readable_scale, save_grid

        pictures = measure.nearest_pairs(source)
        with input_errors():
            save_grid(pictures, pairs, columns=8, scale=readable_scale(*pictures.shape[1:3]))
    if as_json:
        click.echo(json.dumps(figures))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        click.echo(f"{name:{width}}  {value:.6g}")
