"""`aigc-ext export`."""

from __future__ import annotations

from pathlib import Path

import click

from aigc_ext import _names
from aigc_ext.cli.errors import InputError, RunFailure, input_errors
from aigc_ext.cli.network import network_options, open_sampler


class BatchType(click.ParamType):
    """A number of images, or `dynamic`."""

    name = "batch"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "dynamic":
            return 0
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            self.fail(f"{value!r} is neither a number of images nor dynamic", param, ctx)
        return int(value)


@click.command()
@network_options
@click.option("--output", required=True, metavar="FILE", help="Such as g.pt2 or g.onnx.")
@click.option(
    "--format", type=click.Choice(_names.EXPORT_FORMATS), help="[default: by the suffix of --output]"
)
@click.option(
    "--decompose/--no-decompose",
    default=None,
    help="Use plain PyTorch ops, which run without this package.  [default: only for onnx]",
)
@click.option(
    "--batch", type=BatchType(), default="dynamic", metavar="INT|dynamic", help="[default: dynamic]"
)
def export(
    network: str, allow_download: bool, output: str, format: str | None, decompose: bool | None, batch: int
) -> None:
    """Write a generator as a program for other runtimes: torch.export's .pt2, or ONNX.

    Before it is written, the program's results are compared to the generator's.
    """
    from aigc_ext.sampling.export import ExportError, export_generator

    with input_errors():
        if not Path(output).parent.is_dir():
            raise ValueError(f"output is {output!r}, but there is no directory {Path(output).parent}")
        sampler = open_sampler(network, allow_download, "cpu", None)
        try:
            exported = export_generator(
                sampler.generator,
                output,
                format=format,
                decompose=decompose,
                batch=batch or None,
                provenance={"model_sha256": sampler.model_sha256},
            )
        except ModuleNotFoundError as error:
            raise InputError(str(error)) from error
        except ExportError as error:
            raise RunFailure(str(error)) from error
    needs = f"needs import aigc_ext ({', '.join(exported.ops)})" if exported.ops else "needs no aigc_ext"
    click.echo(
        f"{output}: {needs}; run by {exported.checked_by}, it differs from the generator by "
        f"{exported.difference:.1g} of its largest value"
    )
