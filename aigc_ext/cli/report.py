"""`aigc-ext report`."""

from __future__ import annotations

import click

from aigc_ext.cli.errors import input_errors


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--output", metavar="FILE", help="Where to write it.  [default: report.html in RUN]")
def report(run: str, output: str | None) -> None:
    """Write one HTML page about a run: samples over time, metrics, curves, config.

    RUN is a run directory, the beginning of its name, or latest for the newest in runs. The page needs no
    other files and no network access.
    """
    from aigc_ext.reporting import write_report

    with input_errors():
        path = write_report(run, output)
    click.echo(path)
