"""The command group, and the handling of errors."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence

import click
import click.utils

from aigc_ext import _files, _output
from aigc_ext._output import UnreadOutput, discard_output, unread_output
from aigc_ext.cli.bench import bench
from aigc_ext.cli.convert import convert
from aigc_ext.cli.dataset import dataset
from aigc_ext.cli.errors import lack_of_memory
from aigc_ext.cli.export import export
from aigc_ext.cli.interpolate import interpolate
from aigc_ext.cli.metrics import metrics
from aigc_ext.cli.project import project
from aigc_ext.cli.report import report
from aigc_ext.cli.robust import robust
from aigc_ext.cli.sample import sample
from aigc_ext.cli.train import train
from aigc_ext.version import __version__

# Where standard output is written; such an error has no name of a file.
_PRINTERS = (click.utils.__file__, _output.__file__)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="aigc-ext")
def cli() -> None:
    """Train GANs and other generative models, and sample from them, with fused kernels."""


@cli.command()
def info() -> None:
    """Show versions, build flags, and which kernels are active and why."""
    from aigc_ext import _info

    _info.main()


cli.add_command(train)
cli.add_command(sample)
cli.add_command(dataset)
cli.add_command(interpolate)
cli.add_command(project)
cli.add_command(export)
cli.add_command(convert)
cli.add_command(metrics)
cli.add_command(report)
cli.add_command(robust)
cli.add_command(bench)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the process's) and returns its exit code.

    0 is success, 2 a wrong argument or input, 1 a failure while working, 128 + n a run stopped by signal n.
    An error is printed as one line on stderr. If whoever reads the output has enough, as `head` has, the
    command ends without a word, like a program that SIGPIPE ends.
    """
    try:
        with unread_output():
            code = cli.main(args, prog_name="aigc-ext", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        return error.exit_code
    except click.Abort:
        click.echo("Aborted", err=True)
        return 130
    except UnreadOutput:
        return 128 + signal.SIGPIPE
    except OSError as error:  # a disk that is full, or of which a part cannot be read
        to_output = traceback.extract_tb(error.__traceback__)[-1].filename in _PRINTERS
        if to_output:
            error.filename = "standard output"
        click.echo(f"Error: {_files.describe_os_error(error)}", err=True)
        if to_output:
            discard_output()
        return 1
    except (MemoryError, RuntimeError) as error:
        reason = lack_of_memory(error)
        if reason is None:
            raise
        click.echo(f"Error: {reason}", err=True)
        return 1
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
