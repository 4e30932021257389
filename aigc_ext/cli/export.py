"""`aigc-ext export`."""

from __future__ import annotations

from pathlib import Path

import click

from aigc_ext import _names
from aigc_ext.cli.errors import InputError, RunFailure, input_errors
from aigc_ext.cli.network import network_options, open_network


class BatchType(click.ParamType):
    """A number of images or waves, or `dynamic`."""

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
    """Write a generator, or a vocoder, as a program for other runtimes: torch.export's .pt2, or ONNX.

    A generator's program makes images of latents, a vocoder's waves of mel spectrograms of any length. Before
    it is written, its results are compared to the network's.
    """
    from aigc_ext.models import Vocoder
    from aigc_ext.sampling import PretrainedError
    from aigc_ext.sampling.export import ExportError, export_generator
    from aigc_ext.sampling.pretrained import generator_of

    with input_errors():
        if not Path(output).parent.is_dir():
            raise ValueError(f"output is {output!r}, but there is no directory {Path(output).parent}")
        model, digest = open_network(network, allow_download, "cpu", None)
        exportable = model if isinstance(model, Vocoder) else generator_of(model)
        if exportable is None:
            raise PretrainedError(
                f"network {network} is a {type(model).__name__}, but must be one that makes images of "
                "latents, or a vocoder"
            )
        try:
            exported = export_generator(
                exportable,
                output,
                format=format,
                decompose=decompose,
                batch=batch or None,
                provenance={"model_sha256": digest},
            )
        except ModuleNotFoundError as error:
            raise InputError(str(error)) from error
        except ExportError as error:
            raise RunFailure(str(error)) from error
    needs = f"needs import aigc_ext ({', '.join(exported.ops)})" if exported.ops else "needs no aigc_ext"
    click.echo(
        f"{output}: {needs}; run by {exported.checked_by}, it differs from the network by "
        f"{exported.difference:.1g} of its largest value"
    )
