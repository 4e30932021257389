"""`aigc-ext convert`."""

from __future__ import annotations

import click

from aigc_ext.cli.errors import input_errors


@click.command()
@click.argument("source", metavar="SRC")
@click.option("--dest", required=True, metavar="DIR", help="The model directory to create; must not exist.")
@click.option(
    "--family", metavar="NAME", help="The generator's family; for dcgan the rest follows from the weights."
)
@click.option(
    "--config",
    metavar="FILE",
    help="JSON of the generator's architecture: \"family\" and its arguments, as in a model's config.json.",
)
@click.option(
    "--key",
    metavar="PATH",
    help="Where in SRC the generator is, such as state_dict.netG.  [default: g_ema, generator, netG, ...]",
)
def convert(source: str, dest: str, family: str | None, config: str | None, key: str | None) -> None:
    """Convert another project's PyTorch checkpoint SRC (.pt, .pth, .safetensors) to a model directory.

    The file is read without running pickle, and rejected if it needs that or does not match the architecture
    exactly. The weights of a dcgan may have the names of PyTorch's DCGAN tutorial.
    """
    from aigc_ext.config import read_config
    from aigc_ext.sampling.convert import convert_checkpoint

    with input_errors():
        architecture = None if config is None else read_config(config)
        made = convert_checkpoint(source, dest, config=architecture, family=family, key=key)
    for note in made.notes:
        click.echo(f"Note: {note}", err=True)
    under = f" under {made.key}" if made.key else ""
    arguments = ", ".join(f"{name} {value}" for name, value in made.config.items() if name != "family")
    click.echo(f"{made.directory}: {made.config['family']} generator{under} ({arguments})")
