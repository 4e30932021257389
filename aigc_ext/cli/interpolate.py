"""`aigc-ext interpolate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from aigc_ext import _names
from aigc_ext.cli.errors import InputError, RunFailure, input_errors
from aigc_ext.cli.network import (
    class_option,
    device_options,
    label_options,
    network_options,
    open_sampler,
    style_options,
    style_record,
)
from aigc_ext.cli.sample import GridType, SeedsType

if TYPE_CHECKING:
    import numpy as np


@click.command()
@network_options
@click.option(
    "--seeds", type=SeedsType(), required=True, metavar="LIST", help="Seeds along the walk, such as 0,3,7."
)
@click.option(
    "--frames",
    type=click.IntRange(min=2),
    default=60,
    metavar="INT",
    help="Total number of frames.  [default: 60]",
)
@click.option("--fps", type=float, default=30.0, metavar="FLOAT", help="Frames per second.  [default: 30]")
@click.option("--output", required=True, metavar="FILE", help="A .gif, or an .mp4 (needs aigc_ext[video]).")
@style_options
@class_option
@click.option("--loop/--no-loop", default=True, help="Return to the first seed at the end.  [default: loop]")
@click.option(
    "--space",
    type=click.Choice(["z", "w"]),
    help="Where to walk: before the mapping network or after it.  [default: w if there is one]",
)
@click.option(
    "--curve",
    type=click.Choice(_names.CURVES),
    help="The curve through w; in z it is a great circle.  [default: cubic]",
)
@click.option(
    "--grid",
    type=GridType(),
    metavar="CxR",
    help="C columns and R rows of walks, among which the seeds are divided.",
)
@label_options
@device_options
def interpolate(
    network: str,
    allow_download: bool,
    seeds: list[int],
    frames: int,
    fps: float,
    output: str,
    trunc: float,
    trunc_cutoff: int | None,
    noise_mode: str | None,
    class_: int | None,
    loop: bool,
    space: str | None,
    curve: str | None,
    grid: tuple[int, int] | None,
    label: bool,
    producer: str,
    device: str,
    threads: int | None,
) -> None:
    """Make an animation of a walk through latent space, from seed to seed.

    Small images are enlarged. The file's metadata records the model and the seeds.
    """
    import numpy as np

    from aigc_ext.sampling import image_grid, readable_scale, save_video
    from aigc_ext.sampling.video import check_video

    with input_errors():
        try:
            check_video(output, fps)
        except ModuleNotFoundError as error:
            raise InputError(str(error)) from error
        if not Path(output).parent.is_dir():
            raise ValueError(f"output is {output!r}, but there is no directory {Path(output).parent}")
        sampler = open_sampler(network, allow_download, device, threads)
        cells = grid[0] * grid[1] if grid is not None else 1
        if len(seeds) % cells or len(seeds) < 2 * cells:
            raise ValueError(
                f"there are {len(seeds)} seeds, but each of the {cells} walks needs as many as the others, "
                "and at least 2"
            )
        each = len(seeds) // cells
        walks = [
            sampler.interpolate(
                seeds[start : start + each],
                class_,
                trunc,
                frames=frames,
                loop=loop,
                space=space,
                curve=curve,
                truncation_cutoff=trunc_cutoff,
                noise_mode=noise_mode,
            )
            for start in range(0, len(seeds), each)
        ]
    space = sampler.resolve_space(space)
    provenance = {
        "model_sha256": sampler.model_sha256,
        "seeds": seeds,
        "classes": sampler.resolve_classes(seeds, class_),
        **style_record(trunc, trunc_cutoff, noise_mode),
        "space": space,
        "curve": (curve or _names.CURVES[0]) if space == "w" else "slerp",
        "loop": loop,
        "frames": frames,
        "grid": grid,
    }

    def sheets() -> Iterator[np.ndarray]:
        for images in tqdm(zip(*walks, strict=True), total=frames, unit="frame"):
            sheet = np.stack(images)
            yield image_grid(
                sheet, columns=grid[0] if grid is not None else 1, scale=readable_scale(*sheet.shape[1:3])
            )

    try:
        save_video(sheets(), output, fps=fps, provenance=provenance, label=label, producer=producer)
    except OSError as error:
        raise RunFailure(f"{error.strerror or error}: {output}") from error
    click.echo(output)
