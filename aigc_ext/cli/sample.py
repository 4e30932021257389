"""`aigc-ext sample`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from aigc_ext import _files
from aigc_ext.cli.errors import InputError, input_errors
from aigc_ext.cli.network import (
    class_option,
    device_options,
    label_options,
    network_options,
    open_network,
    style_options,
    style_record,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

_MAX_IMAGES = 1_000_000
_IMAGES_AT_ONCE = 256  # a multiple of the sampler's CHUNK


class SeedsType(click.ParamType):
    """`0-15`, `3`, or `1,2,8-11`."""

    name = "seeds"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        from aigc_ext.sampling.sampler import MAX_SEED

        seeds: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if match is None:
                self.fail(f"{value!r} is no list of seeds such as 0-15 or 1,2,8-11", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f"{part.strip()!r} runs backwards; write {last}-{first}", param, ctx)
            if last > MAX_SEED:
                self.fail(f"seed {last} is too large, the largest is {MAX_SEED}", param, ctx)
            if len(seeds) + last - first + 1 > _MAX_IMAGES:
                self.fail(f"{value!r} has more than {_MAX_IMAGES} seeds", param, ctx)
            seeds += range(first, last + 1)
        return seeds


class GridType(click.ParamType):
    """`4x4`: columns x rows."""

    name = "grid"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", value)
        if match is None:
            self.fail(f"{value!r} is no grid of COLUMNSxROWS such as 4x4", param, ctx)
        return int(match[1]), int(match[2])


@click.command()
@network_options
@click.option("--seeds", type=SeedsType(), metavar="LIST", help="Seeds, such as 0-15 or 1,2,8-11.")
@click.option(
    "--projected", metavar="FILE", help="Latents from aigc-ext project, to render instead of seeds."
)
@click.option(
    "--input",
    "given",
    metavar="NAME|PATH",
    help="For an autoencoder or a vocoder: images or recordings, as for train --data, to make anew.",
)
@click.option(
    "--num", type=click.IntRange(min=1), default=16, metavar="INT", help="How many of --input.  [default: 16]"
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="For a model of texts or of captioned images: the source or caption; once for all seeds, or once for"
    " each.",
)
@click.option(
    "--temperature", type=float, metavar="FLOAT", help="Of a model of sequences; 0 takes the likeliest."
)
@click.option(
    "--top-k", type=int, metavar="INT", help="Of a model of codes or texts: only so many likeliest tokens."
)
@click.option(
    "--top-p", type=float, metavar="FLOAT", help="Likewise: only the likeliest with this probability."
)
@click.option("--guidance", type=float, metavar="FLOAT", help="Likewise: how much a class or caption counts.")
@click.option("--seconds", type=float, metavar="FLOAT", help="Length of a model of sound's recordings.")
@style_options
@class_option
@click.option(
    "--grid",
    type=GridType(),
    metavar="CxR",
    help="Write one grid of C columns and R rows instead of single files.",
)
@click.option("--outdir", default="out", metavar="DIR", help="Where to write.  [default: out]")
@label_options
@device_options
def sample(
    network: str,
    allow_download: bool,
    seeds: list[int] | None,
    projected: str | None,
    given: str | None,
    num: int,
    prompts: tuple[str, ...],
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    guidance: float | None,
    seconds: float | None,
    trunc: float,
    trunc_cutoff: int | None,
    noise_mode: str | None,
    class_: int | None,
    grid: tuple[int, int] | None,
    outdir: str,
    label: bool,
    producer: str,
    device: str,
    threads: int | None,
) -> None:
    """Make images from seeds: seed0000.png and so on, or grid.png; with other models recordings or texts.

    A seed means the same image whatever else is made with it. Each file says in its metadata which model,
    seed, class and truncation it came from; a text has a JSON file beside it.
    """
    from aigc_ext.sampling.pretrained import generator_of

    options = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "guidance": guidance,
        "seconds": seconds,
    }
    options = {name: value for name, value in options.items() if value is not None}
    with input_errors():
        if [seeds, projected, given].count(None) != 2:
            raise InputError(
                "Missing option '--seeds', or '--projected' instead"
                if seeds is None and projected is None
                else "'--seeds', '--projected' and '--input' exclude each other: it comes from one of them"
            )
        model, digest = open_network(network, allow_download, device, threads)
        generator = None if given is not None else generator_of(model)
        if generator is not None:
            if options or prompts:
                names = ["--" + name.replace("_", "-") for name in options] + ["--prompt"] * bool(prompts)
                raise InputError(f"{names[0]!r} is not for this {type(model).__name__}")
        elif projected is not None or trunc != 1 or trunc_cutoff is not None or noise_mode is not None:
            raise InputError(f"this {type(model).__name__} has no latents to project or truncate")
    if generator is not None:
        _sample_images(
            *(generator, digest, seeds, projected, trunc, trunc_cutoff, noise_mode, class_, grid),
            *(Path(outdir), label, producer),
        )
    else:
        _sample_items(
            *(model, digest, seeds, given, num, class_, prompts, options, grid, Path(outdir), label, producer)
        )


def _sample_items(
    network: nn.Module,
    digest: str,
    seeds: list[int] | None,
    given: str | None,
    num: int,
    class_: int | None,
    prompts: Sequence[str],
    options: Mapping[str, Any],
    grid: tuple[int, int] | None,
    directory: Path,
    label: bool,
    producer: str,
) -> None:
    from aigc_ext.cli import items

    model: Any = network
    with input_errors():
        if given is None:
            if not hasattr(model, "sample"):
                raise InputError(
                    f"this {type(model).__name__} makes nothing from seeds: '--input' gives it what to make "
                    "anew"
                )
            count = len(seeds or [])
            made = items.from_seeds(model, seeds or [], class_, prompts, options)
        else:
            if not hasattr(model, "reconstructions"):
                raise InputError(f"'--input' is not for this {type(model).__name__}: give '--seeds'")
            if options or prompts or class_ is not None:
                raise InputError("'--input' says all: there is nothing to choose by other options")
            data = _open_input(model, given)
            count = min(num, len(data))
            made = items.from_items(model, data, num)
        if grid is not None and model.media != "image":
            raise InputError(f"'--grid' is for images, but this {type(model).__name__} makes none")
        if grid is not None and count > grid[0] * grid[1]:
            raise ValueError(f"grid is {grid[0]}x{grid[1]}, but must have a cell for each of {count}")
        first = next(made)  # tries all arguments before anything is written
        directory.mkdir(parents=True, exist_ok=True)
    source: dict[str, Any] = {"model_sha256": digest}
    if grid is not None:
        path = directory / "grid.png"
        items.write_grid([first, *made], grid[0], path, source, label=label, producer=producer)
        click.echo(path)
        return
    written = 0
    with tqdm(total=count, unit=items.UNITS[model.media]) as bar:
        for item in chain([first], made):
            items.write(item, model, directory, source, label=label, producer=producer)
            written += 1
            bar.update()
    kind = {"image": "images", "audio": "recordings", "text": "texts"}[model.media]
    click.echo(f"{written} {kind} in {directory}")


def _open_input(model: Any, source: str) -> Any:
    """The items that a reconstructor is to make anew."""
    if model.media == "audio":
        from aigc_ext.data.audio import open_audio

        return open_audio(source, rate=model.sample_rate)
    from aigc_ext.data import open_dataset

    channels, height, width = model.image_shape
    data = open_dataset(source, resolution=(width, height), transform="center-crop")
    if data.image_shape[0] != channels:
        raise ValueError(
            f"the images of {source} have {data.image_shape[0]} channels, but must have {channels}"
        )
    return data


def _sample_images(
    generator: nn.Module,
    digest: str,
    seeds: list[int] | None,
    projected: str | None,
    trunc: float,
    trunc_cutoff: int | None,
    noise_mode: str | None,
    class_: int | None,
    grid: tuple[int, int] | None,
    directory: Path,
    label: bool,
    producer: str,
) -> None:
    from aigc_ext.sampling import Latents, Sampler, readable_scale, save_grid, save_png

    latents = None
    with input_errors():
        if projected is not None and (class_ is not None or trunc != 1 or trunc_cutoff is not None):
            raise InputError("'--class' and '--trunc' are for seeds: projected latents are what they are")
        sampler = Sampler(generator, model_sha256=digest)
        if projected is not None:
            latents = Latents.load(projected)
        count = len(latents.values) if latents is not None else len(seeds or [])
        if grid is not None and count > grid[0] * grid[1]:
            what = "seeds" if latents is None else "latents"
            raise ValueError(
                f"grid is {grid[0]}x{grid[1]}, but must have a cell for each of the {count} {what}"
            )
        classes = latents.classes if latents is not None else sampler.resolve_classes(seeds or [], class_)

        def render(block: slice) -> np.ndarray:
            own = classes and classes[block]
            if latents is not None:
                return sampler.render(latents.values[block], own, noise_mode=noise_mode)
            return sampler.sample(
                (seeds or [])[block], own, trunc, truncation_cutoff=trunc_cutoff, noise_mode=noise_mode
            )

        first = render(slice(1))  # tries all arguments before anything is written
        directory.mkdir(parents=True, exist_ok=True)
    source = {"model_sha256": sampler.model_sha256, **style_record(trunc, trunc_cutoff, noise_mode)}
    if latents is not None:
        del source["truncation"]
        source["latents_sha256"] = _files.sha256_file(Path(str(projected)))
        belongs_to = (latents.metadata or {}).get("model_sha256")
        if belongs_to not in (None, sampler.model_sha256):
            click.echo("Warning: these latents were found with another network", err=True)
    options: dict[str, Any] = {"label": label, "producer": producer}
    if grid is not None:
        path = directory / "grid.png"
        provenance = {**source, "classes": classes, **({"seeds": seeds} if latents is None else {})}
        scale = readable_scale(*first.shape[1:3])
        images = render(slice(None))
        save_grid(images, path, columns=grid[0], scale=scale, provenance=provenance, **options)
        click.echo(path)
        return
    with tqdm(total=count, unit="img") as bar:
        for start in range(0, count, _IMAGES_AT_ONCE):
            images = render(slice(start, start + _IMAGES_AT_ONCE))
            for i, image in enumerate(images, start):
                if seeds is not None:
                    number, name = {"seed": seeds[i]}, f"seed{seeds[i]:04d}.png"
                else:
                    number, name = {"index": i}, f"projected{i:04d}.png"
                provenance = {**source, **number, "class": classes and classes[i]}
                save_png(image, directory / name, provenance=provenance, **options)
            bar.update(len(images))
    click.echo(f"{count} images in {directory}")
