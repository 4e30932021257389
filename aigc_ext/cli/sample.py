"""`aigc-ext sample`."""

from __future__ import annotations

import re
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
    open_sampler,
    style_options,
    style_record,
)

if TYPE_CHECKING:
    import numpy as np

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
    """Make images from seeds: seed0000.png and so on, or grid.png.

    A seed means the same image whatever else is made with it. Each file says in its metadata which model,
    seed, class and truncation it came from.
    """
    from aigc_ext.sampling import Latents, readable_scale, save_grid, save_png

    directory = Path(outdir)
    latents = None
    with input_errors():
        if (seeds is None) == (projected is None):
            raise InputError(
                "Missing option '--seeds', or '--projected' instead"
                if seeds is None
                else "'--seeds' and '--projected' exclude each other: an image comes from one of them"
            )
        if projected is not None and (class_ is not None or trunc != 1 or trunc_cutoff is not None):
            raise InputError("'--class' and '--trunc' are for seeds: projected latents are what they are")
        sampler = open_sampler(network, allow_download, device, threads)
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
