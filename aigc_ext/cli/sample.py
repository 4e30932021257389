"""`aigc-ext sample`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from aigc_ext.cli.errors import RunFailure, input_errors
from aigc_ext.sampling import Sampler, readable_scale, save_grid, save_png
from aigc_ext.sampling.png import DEFAULT_PRODUCER
from aigc_ext.sampling.sampler import CHUNK, MAX_SEED
from aigc_ext.training.runtime import resolve_device

_MAX_IMAGES = 1_000_000
_IMAGES_AT_ONCE = 16 * CHUNK


class SeedsType(click.ParamType):
    """`0-15`, `3`, or `1,2,8-11`."""

    name = "seeds"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
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
@click.option("--network", required=True, metavar="DIR", help="A run, a checkpoint, or a model directory.")
@click.option(
    "--seeds", type=SeedsType(), required=True, metavar="LIST", help="Seeds, such as 0-15 or 1,2,8-11."
)
@click.option(
    "--trunc",
    type=float,
    default=1.0,
    metavar="PSI",
    help="Truncation psi: less varied, often cleaner; for mlp, which has no mapping network, z times psi."
    "  [default: 1]",
)
@click.option(
    "--class", "class_", type=int, metavar="INT", help="Class of all images.  [default: by the seed]"
)
@click.option(
    "--grid",
    type=GridType(),
    metavar="CxR",
    help="One sheet of C columns and R rows instead of single files.",
)
@click.option("--outdir", default="out", metavar="DIR", help="Where to write.  [default: out]")
@click.option(
    "--label/--no-label", default=True, help="Mark the files as AI-generated, for machines.  [default: label]"
)
@click.option(
    "--producer", default=DEFAULT_PRODUCER, metavar="TEXT", help="Who the label names as the producer."
)
@click.option(
    "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.  [default: auto]"
)
@click.option("--threads", type=click.IntRange(min=1), metavar="INT", help="CPU threads of PyTorch.")
def sample(
    network: str,
    seeds: list[int],
    trunc: float,
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
    directory = Path(outdir)
    if threads is not None:
        torch.set_num_threads(threads)
    with input_errors():
        sampler = Sampler.from_pretrained(network, device=resolve_device(device))
        if grid is not None and len(seeds) > grid[0] * grid[1]:
            raise ValueError(
                f"grid is {grid[0]}x{grid[1]}, but must have a cell for each of the {len(seeds)} seeds"
            )
        classes = sampler.resolve_classes(seeds, class_)
        first = sampler.sample(seeds[:1], class_, trunc)  # tries all arguments before anything is written
        directory.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"label": label, "producer": producer}
    source = {"model_sha256": sampler.model_sha256, "truncation": trunc}
    try:
        if grid is not None:
            images = sampler.sample(seeds, class_, trunc)
            provenance = {**source, "seeds": seeds, "classes": classes}
            scale = readable_scale(*first.shape[1:3])
            path = directory / "grid.png"
            save_grid(images, path, columns=grid[0], scale=scale, provenance=provenance, **options)
            click.echo(path)
            return
        with tqdm(total=len(seeds), unit="img") as bar:
            for start in range(0, len(seeds), _IMAGES_AT_ONCE):
                block = slice(start, start + _IMAGES_AT_ONCE)
                images = sampler.sample(seeds[block], classes and classes[block], trunc)
                for i, image in enumerate(images, start):
                    provenance = {**source, "seed": seeds[i], "class": classes and classes[i]}
                    save_png(image, directory / f"seed{seeds[i]:04d}.png", provenance=provenance, **options)
                bar.update(len(images))
    except OSError as error:
        raise RunFailure(f"{error.strerror}: {error.filename}") from error
    click.echo(f"{len(seeds)} images in {directory}")
