"""`aigc-ext train`."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from aigc_ext import _names
from aigc_ext._output import discard_output
from aigc_ext.cli.bars import data_bar
from aigc_ext.cli.dataset import fit_options, renumber_option, usual_transform
from aigc_ext.cli.errors import InputError, RunFailure, input_errors
from aigc_ext.config import ConfigError, UnknownKeyError, parse_setting

if TYPE_CHECKING:
    from aigc_ext.training import ResumePoint, Task, TrainResult

# Option -> key of the run's config. If an option is not given, the value of the preset, file or run applies.
_KEYS = {
    "data": "data.source",
    "cond": "data.cond",
    "caption": "caption",
    "class_folders": "data.class_folders",
    "renumber_classes": "data.renumber_classes",
    "mirror": "data.mirror",
    "resolution": "data.resolution",
    "transform": "data.transform",
    "enlarge": "data.enlarge",
    "white": "data.white",
    "follow_links": "data.follow_links",
    "batch": "batch",
    "batch_gpu": "batch_gpu",
    "aug": "augment.kind",
    "p": "augment.p",
    "target": "augment.target",
    "precision": "precision",
    "channels_last": "channels_last",
    "gamma": "loss.gamma",
    "glr": "g_optim.lr",
    "dlr": "d_optim.lr",
    "seed": "seed",
    "kimg": "kimg",
    "tick": "tick",
    "snap": "snap",
    "workers": "workers",
    "threads": "threads",
    "device": "device",
    "deterministic": "deterministic",
    "malloc": "malloc",
}


@click.command()
@click.option(
    "--outdir", default="runs", metavar="DIR", help="Where to make the run directory.  [default: runs]"
)
@click.option(
    "--data",
    metavar="NAME|PATH",
    help="digits, mnist5k, emoji, a folder, zip, npy or npz of images, wds:SHARDS or hf:FOLDER; by preset"
    " also speech, spoken-digits, a folder or zip of WAV files, text, pairs.jsonl, or tokens:RUN:IMAGES.",
)
@fit_options
@click.option(
    "--preset",
    type=click.Choice(_names.PRESETS),
    help="Networks and recipe.  [default: what --config names, or mlp]",
)
@click.option("--config", metavar="FILE", help="JSON in the form of a run's config.json; may be partial.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any config key, e.g. g_optim.beta1=0.5.",
)
@click.option(
    "--resume",
    metavar="WHAT",
    help="latest, a run or the beginning of its name, or a checkpoint (which starts a new run).",
)
@click.option(
    "--init-from",
    metavar="WHAT",
    help="Begin a new run with the weights of a run, checkpoint or model, on any data; what fits is taken.",
)
@click.option(
    "--data-changed",
    is_flag=True,
    help="With --resume: go on although images were added, removed or changed since. The result is then not"
    " that of an uninterrupted run.",
)
@click.option("--cond/--no-cond", default=None, help="Train conditionally, on the data's labels.")
@click.option(
    "--caption/--no-caption",
    default=None,
    help="For tokens of images: learn them with their captions in front.",
)
@click.option(
    "--class-folders",
    is_flag=True,
    default=None,
    help="With --cond: use the data's top-level folders as classes.  [default: its dataset.json]",
)
@renumber_option
@click.option("--mirror/--no-mirror", default=None, help="Flip each image horizontally with probability 1/2.")
@click.option("--batch", type=int, metavar="INT", help="Images per step, over all processes.")
@click.option(
    "--batch-gpu",
    type=int,
    metavar="INT",
    help="Images that a process computes at once.  [default: its share]",
)
@click.option("--gamma", type=float, metavar="FLOAT", help="Weight of the R1 penalty; 0 turns it off.")
@click.option(
    "--aug", type=click.Choice(["noaug", "ada", "fixed", "diffaug"]), help="Augmentation of D's images."
)
@click.option("--p", type=float, metavar="FLOAT", help="Probability of --aug fixed.")
@click.option("--target", type=float, metavar="FLOAT", help="Mean sign of D(real) that --aug ada aims at.")
@click.option("--cbase", type=int, metavar="INT", help="Channels times resolution, in both networks.")
@click.option("--cmax", type=int, metavar="INT", help="Largest number of channels in both networks.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="The networks' arithmetic; auto measures what is faster.",
)
@click.option("--channels-last/--no-channels-last", default=None, help="Memory format of the images.")
@click.option(
    "--metrics",
    metavar="LIST",
    help="Metrics at each snapshot: fd,kid,pr,coverage, for an autoencoder of images also rfd, or none."
    "  [default: fd, and coverage of labelled data, where they should take less than a tenth of the run's"
    " time]",
)
@click.option("--log", metavar="LIST", help="Also log statistics and grids to: tensorboard,wandb, or none.")
@click.option("--glr", type=float, metavar="FLOAT", help="The generator's learning rate.")
@click.option("--dlr", type=float, metavar="FLOAT", help="The discriminator's learning rate.")
@click.option("--kimg", type=float, metavar="FLOAT", help="Length of the run in thousands of images.")
@click.option("--tick", type=float, metavar="FLOAT", help="Thousands of images between rows of statistics.")
@click.option(
    "--snap", type=int, metavar="INT", help="Ticks between snapshots: sample grid, model, checkpoint."
)
@click.option("--seed", type=int, metavar="INT", help="Seed of all random numbers.")
@click.option(
    "--workers", type=int, metavar="INT", help="Threads that prefetch images; 0 for data in memory."
)
@click.option("--threads", type=int, metavar="INT", help="CPU threads of PyTorch.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--deterministic",
    is_flag=True,
    default=None,
    help="Use deterministic algorithms on CUDA (the CPU's always are).",
)
@click.option(
    "--malloc",
    type=click.Choice(["default", "keep"]),
    help="keep: glibc reuses freed memory, which makes large tensors on the CPU faster.",
)
@click.option("--desc", default="", metavar="TEXT", help="Added to the run directory's name.")
@click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help="Print the resolved config as JSON and its estimated cost, and exit.",
)
def train(
    outdir: str,
    preset: str | None,
    config: str | None,
    settings: tuple[str, ...],
    resume: str | None,
    init_from: str | None,
    data_changed: bool,
    desc: str,
    dry_run: bool,
    metrics: str | None,
    log: str | None,
    cbase: int | None,
    cmax: int | None,
    **options: Any,
) -> int:
    """Train a GAN, or another generative model, on a set of images, recordings or texts.

    Later sources override earlier ones: the preset, --config, the options, --set. With --resume the run's own
    config replaces the preset; with --init-from the networks' settings and, unless --data is given, the data
    are those of the run or model.
    """
    from aigc_ext.config import read_config
    from aigc_ext.data import DatasetError
    from aigc_ext.metrics import MetricError
    from aigc_ext.tasks import find_resume_point, task_of
    from aigc_ext.tasks.dry_run import estimate_cost
    from aigc_ext.tasks.initial import initial_config, read_initial_weights
    from aigc_ext.training import NonFiniteError, RunError

    with input_errors():
        if resume and init_from:
            raise ValueError("--resume goes on with a run and --init-from begins a new one: give one of them")
        point = find_resume_point(resume, Path(outdir)) if resume else None
        weights = read_initial_weights(init_from, outdir) if init_from else None
        if point is not None:
            resolved = point.config
        elif weights is not None:
            resolved = initial_config(weights, preset)
        else:
            named = read_config(config).get("preset") if config is not None else None
            first = preset or (named if named in _names.PRESETS else "mlp")
            resolved = task_of(first).PRESETS[first]
        if preset is not None:
            resolved = resolved.override("preset", preset)  # another preset is an error in a resumed run
        if config is not None:
            resolved = type(resolved).from_json(config, base=resolved)
        if resolved.data.transform is None:
            options["transform"] = usual_transform(options["resolution"], options["transform"])
        for option, key in _KEYS.items():
            if options[option] is not None:
                resolved = _override(resolved, option, key, options[option])
        for key, names in (("metrics", metrics), ("log", log)):
            if names is not None:
                resolved = resolved.override(key, [] if names == "none" else names.split(","))
        for option, name, channels in (("cbase", "channel_base", cbase), ("cmax", "channel_max", cmax)):
            if channels is not None:
                resolved = _set_channels(resolved, option, name, channels)
        for setting in settings:
            resolved = resolved.override(*parse_setting(setting))
        task = task_of(resolved.preset)
        if not isinstance(resolved, task.TrainConfig):
            raise ConfigError(
                f"preset is {resolved.preset!r}, but the other settings are those of another kind of run"
            )
        _check_used(resolved, point, options["p"], options["target"], desc)
        if data_changed and point is None:
            raise ValueError("--data-changed is for a run that goes on, and needs --resume")
        if point is not None and options["data"] is None:
            _check_moved(resolved.data.source)
        with data_bar() as report:
            trainer = task.Trainer.from_config(resolved, outdir=outdir, desc=desc, report=report)
            if weights is not None:
                trainer.init_from(weights)
            if point is not None:
                trainer.restore(point, data_changed=data_changed)
            elif not dry_run and os.environ.get("RANK", "0") == "0":
                # The main process will need it. Of many images it takes a while, and here it has its bar.
                trainer.data.content_hash()
    if dry_run:
        completed, remarks, beginning = trainer.config, trainer.data.remarks, trainer.task.initial
        del trainer  # whose memory the steps may need
        click.echo(completed.to_json(), nl=False)
        for remark in remarks:
            click.echo(f"Warning: {remark}", err=True)
        for line in beginning.lines() if beginning is not None else ():
            click.echo(line, err=True)
        try:
            click.echo(f"estimated from a few steps: {estimate_cost(completed)}", err=True)
        except RuntimeError as error:
            raise RunFailure(str(error)) from error
        return 0
    handler = _AboveProgressLine()
    logging.getLogger("aigc_ext").addHandler(handler)
    try:
        result = trainer.fit(progress=True)
    except (RunError, ConfigError, MetricError) as error:
        raise InputError(str(error)) from error
    except (NonFiniteError, DatasetError) as error:
        raise RunFailure(str(error)) from error
    finally:
        logging.getLogger("aigc_ext").removeHandler(handler)
    try:
        _report(trainer.task, result)
    except OSError:
        if result.signal != signal.SIGHUP:
            raise
        discard_output()  # its terminal is closed
    return 0 if result.signal is None else 128 + result.signal


def _override(config: Any, option: str, key: str, value: Any) -> Any:
    try:
        return config.override(key, value)
    except UnknownKeyError as error:
        name = option.replace("_", "-")
        raise ConfigError(f"--{name} is not for the preset {config.preset}: it has no {key}") from error


def _set_channels(config: Any, option: str, name: str, channels: int) -> Any:
    from aigc_ext.tasks.gan import PRESETS

    if config.preset not in PRESETS:
        raise ValueError(f"{option} is {channels}, but the preset {config.preset} is no GAN; see --set")
    for network in ("generator", "discriminator"):
        family = getattr(config, network).family
        if not hasattr(getattr(config, network), name):
            networks = (preset.generator for preset in PRESETS.values())
            known = dict.fromkeys(each.family for each in networks if hasattr(each, name))
            raise ValueError(
                f"{option} is {channels}, but {family} has no {name}: only {', '.join(known)} have"
            )
        config = config.override(f"{network}.{name}", channels)
    return config


def _check_used(
    config: Any, point: ResumePoint | None, p: float | None, target: float | None, desc: str
) -> None:
    """Raises an error for options that would have no effect."""
    for name, value, kind in (("p", p, "fixed"), ("target", target, "ada")):
        if value is not None and config.augment.kind != kind:
            raise ValueError(
                f"{name} is {value}, but only --aug {kind} has one: --aug is {config.augment.kind}"
            )
    if desc and point is not None and point.run_dir is not None:
        raise ValueError(
            f"desc is {desc!r}, but a run that goes on keeps its name; one that starts from a checkpoint "
            "(--resume RUN/checkpoints/...) has a new one"
        )


def _check_moved(source: str) -> None:
    """Raises ValueError if a run's folder or file is no longer where it was."""
    from aigc_ext.data import NAMED
    from aigc_ext.data.fetched import NAMES

    if ":" not in source and source not in (*NAMED, *NAMES) and not os.path.exists(source):
        raise ValueError(
            f"the run's data are no longer at {source!r}: if they have moved, --data PATH goes on with them, "
            "since it knows them by their content"
        )


def _report(task: Task, result: TrainResult) -> None:
    click.echo(f"{task.data.item + 's seen:':12} {result.nimg:,}")
    click.echo(f"samples:     {result.grid}")
    click.echo(f"checkpoint:  {result.checkpoint}")
    click.echo(f"figures:     {result.stats}")
    run_dir, command = shlex.quote(str(result.run_dir)), _command()
    longer = "" if result.signal else f" --kimg {2 * result.nimg / 1000:g}"
    click.echo(f"to go on:    {command} train --resume {run_dir}{longer}")
    if result.model is not None:
        for what, arguments in task.commands.items():
            click.echo(f"{what + ':':12} {command} {arguments.replace('{run}', run_dir)}")
    click.echo(f"on one page: {command} report {run_dir}")


def _command() -> str:
    """As it was called, if the shell would not find it by its name."""
    path = sys.argv[0]
    if os.path.basename(path) != "aigc-ext" or shutil.which("aigc-ext"):
        return "aigc-ext"
    return shlex.quote(os.path.relpath(path))


class _AboveProgressLine(logging.Handler):
    """Prints log records on stderr without breaking the progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: "
        try:
            tqdm.write(prefix + record.getMessage(), file=sys.stderr)
        except OSError:  # the run goes on without its terminal; log.txt has the message too
            self.handleError(record)
