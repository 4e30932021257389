"""`aigc-ext robust`."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import click

from aigc_ext._progress import bars
from aigc_ext.cli.dataset import fit_options
from aigc_ext.cli.errors import InputError, input_errors
from aigc_ext.cli.real import open_real


class EpsilonsType(click.ParamType):
    """`0.02,0.1` as a tuple of floats."""

    name = "epsilons"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 0.02,0.1", param, ctx)


@click.command()
@click.option(
    "--data", required=True, metavar="NAME|PATH", help="The real images; a name or path as for train."
)
@fit_options
@click.option(
    "--network",
    metavar="WHAT",
    help="Also attack the discriminator of this run: latest (the newest in runs), a run or the beginning of"
    " its name, or a checkpoint.",
)
@click.option(
    "--epsilons",
    type=EpsilonsType(),
    default="0.02,0.05,0.1",
    metavar="LIST",
    help="The largest change of a pixel, of 1 between black and white.  [default: 0.02,0.05,0.1]",
)
@click.option(
    "--adversarial",
    type=float,
    default=0.0,
    metavar="EPSILON",
    help="Train the classifier on images that are attacked with this epsilon.  [default: 0, off]",
)
@click.option(
    "--num", type=click.IntRange(min=1), default=500, metavar="INT", help="Images for D.  [default: 500]"
)
@click.option("--seed", type=int, default=0, metavar="INT", help="Seed of all random numbers.  [default: 0]")
@click.option("--cache", metavar="DIR", help="Cache for the classifier.  [default: the user's cache]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--threads", type=click.IntRange(min=1), metavar="INT", help="CPU threads of PyTorch.")
def robust(
    data: str,
    resolution: tuple[int, int] | None,
    transform: str | None,
    enlarge: bool | None,
    white: int | None,
    follow_links: bool | None,
    network: str | None,
    epsilons: tuple[float, ...],
    adversarial: float,
    num: int,
    seed: int,
    cache: str | None,
    as_json: bool,
    threads: int | None,
) -> None:
    """Attack networks by small changes of real images.

    A small classifier of the data, and with --network the run's discriminator, are shown real images that are
    changed by at most epsilon in each pixel: at random, by one step along the gradient (fgsm), and by 20
    (pgd). Shown is the share that they still get right: the class; for the discriminator, more real than its
    median answer to generated images. The figures of a run are kept in it, for its report, and the images are
    read as it read its own: their size, transform and class folders.
    """
    import torch

    from aigc_ext import _files
    from aigc_ext._cache import Cache
    from aigc_ext._runs import find_run
    from aigc_ext.metrics import MetricError, SampleClassifier
    from aigc_ext.metrics.robustness import Robustness
    from aigc_ext.reporting import ROBUSTNESS_FILE
    from aigc_ext.tasks.gan.robust import attack_discriminator, networks_of
    from aigc_ext.training.checkpoint import CheckpointError
    from aigc_ext.training.run import CONFIG_FILE, STATS_FILE, RunError

    if threads is not None:
        torch.set_num_threads(threads)
    shown: dict[str, dict[str, Any]] = {}
    try:
        with input_errors(), bars():
            images = open_real(
                data,
                network,
                None if network is None else networks_of(network)[0].image_shape,
                resolution=resolution,
                transform=transform,
                enlarge=enlarge,
                white=white,
                follow_links=follow_links,
            )
            if network is not None:
                attacked = attack_discriminator(network, images, epsilons, num_images=num, seed=seed)
                shown["discriminator"] = {
                    **dataclasses.asdict(attacked.robustness),
                    # JSON has no infinity
                    "median_epsilon": attacked.median_epsilon if attacked.median_epsilon < math.inf else None,
                }
            if images.num_classes or network is None:
                classifier = SampleClassifier.for_dataset(images, seed, Cache(cache), epsilon=adversarial)
                shown["classifier"] = dataclasses.asdict(classifier.robustness(epsilons, seed=seed))
    except (MetricError, RunError, CheckpointError) as error:
        raise InputError(str(error)) from error
    run = None if network is None else find_run(network)
    if run is not None and (run / CONFIG_FILE).is_file() and (run / STATS_FILE).is_file():
        _files.replace_file(run / ROBUSTNESS_FILE, (json.dumps(shown) + "\n").encode())
    if as_json:
        click.echo(json.dumps(shown))
        return
    for name, figures in shown.items():
        click.echo(f"{name}: {figures['clean']:.1%} right; after changes of each pixel by at most")
        click.echo(f"{'epsilon':>10} {'random':>8} {'fgsm':>8} {'pgd':>8}")
        for row in zip(
            figures["epsilons"], *(figures[key] for key in ("random", "fgsm", "pgd")), strict=True
        ):
            click.echo(f"{row[0]:>10g} " + " ".join(f"{share:>8.1%}" for share in row[1:]))
        shares = {key: value for key, value in figures.items() if key != "median_epsilon"}
        if not Robustness(**shares).in_order:
            click.echo(
                "Warning: pgd fools it less than fgsm, or fgsm less than random changes: its gradient hides "
                "what it is sensitive to, and the figures are too good",
                err=True,
            )
        if "median_epsilon" in figures:
            least = figures["median_epsilon"]
            share, epsilon = ("half", f"{least:.3g}") if least is not None else ("fewer than half", "0.5")
            click.echo(f"{share} of its real images are fakes to it with epsilon {epsilon}")
