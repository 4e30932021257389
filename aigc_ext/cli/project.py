"""`aigc-ext project`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
from tqdm import tqdm

from aigc_ext import _files
from aigc_ext.cli.dataset import white_option
from aigc_ext.cli.errors import input_errors
from aigc_ext.cli.network import device_options, label_options, network_options, open_sampler


@click.command()
@network_options
@click.option("--target", required=True, metavar="FILE", help="The image to find.")
@click.option("--steps", type=click.IntRange(min=1), default=500, metavar="INT", help="[default: 500]")
@click.option(
    "--fit",
    is_flag=True,
    help="Crop, scale and convert a target of another size or mode, which is an error otherwise.",
)
@white_option
@click.option("--class", "class_", type=int, metavar="INT", help="The image's class, if conditional.")
@click.option(
    "--space",
    type=click.Choice(["z", "w"]),
    help="Where to search: before the mapping network or after it.  [default: w if there is one]",
)
@click.option(
    "--lr", type=float, default=0.1, metavar="FLOAT", help="The largest learning rate.  [default: 0.1]"
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    metavar="INT",
    help="Seed of all random numbers.  [default: 0]",
)
@click.option("--outdir", default="out", metavar="DIR", help="Where to write.  [default: out]")
@label_options
@device_options
def project(
    network: str,
    allow_download: bool,
    target: str,
    steps: int,
    fit: bool,
    white: int | None,
    class_: int | None,
    space: str | None,
    lr: float,
    seed: int,
    outdir: str,
    label: bool,
    producer: str,
    device: str,
    threads: int | None,
) -> None:
    """Find the latents whose image is closest to a given one.

    Writes projected.png, the latents projected.safetensors, which `aigc-ext sample --projected` renders, and
    projection.json with the distance, the mean squared difference of the image at several sizes.
    """
    from aigc_ext.data.image_file import decode, describe_error, describe_peaks, peak
    from aigc_ext.sampling import fit_target, save_png
    from aigc_ext.sampling import project as project_image

    directory = Path(outdir)
    with input_errors():
        sampler = open_sampler(network, allow_download, device, threads)
        with open(target, "rb") as file:
            try:
                image = decode(file, white)
                file.seek(0)
                found_peak = peak(file)
            except Exception as error:  # Pillow may raise anything for damaged input
                raise ValueError(f"target {target}: {describe_error(error)}") from error
        if remark := describe_peaks([found_peak] if found_peak else [], white):
            click.echo(f"Warning: target {target}: {remark}", err=True)
        made = sampler.sample([0]).shape[1:]
        if fit:
            image = fit_target(image, made)
        elif image.shape != made:
            raise ValueError(
                f"target {target} is {image.shape[1]}x{image.shape[0]} pixels with {image.shape[2]} channels"
                f", but the network makes {made[1]}x{made[0]} with {made[2]}; --fit converts it"
            )
        # project() checks the remaining arguments.
        with tqdm(total=steps, unit="step", delay=0.5) as bar:

            def show(distance: float) -> None:
                bar.update()
                bar.set_postfix(distance=f"{distance:.3g}", refresh=False)

            found = project_image(
                sampler, image, steps=steps, space=space, class_=class_, lr=lr, seed=seed, on_step=show
            )
        directory.mkdir(parents=True, exist_ok=True)
    record = {
        "model_sha256": sampler.model_sha256,
        "target_sha256": _files.sha256_file(Path(target)),
        "space": found.latents.space,
        "class": class_,
        "steps": steps,
        "lr": lr,
        "seed": seed,
        "distance": found.distance,
    }
    metadata = {"model_sha256": str(sampler.model_sha256), **(found.latents.metadata or {})}
    replace(found.latents, metadata=metadata).save(directory / "projected.safetensors")
    save_png(found.image, directory / "projected.png", provenance=record, label=label, producer=producer)
    content = json.dumps({**record, "distances": found.distances}, indent=2) + "\n"
    _files.replace_file(directory / "projection.json", content.encode(), durable=False)
    click.echo(f"distance {found.distance:.6g}: projected.png and projected.safetensors in {directory}")
