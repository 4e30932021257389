"""``python -m aigc_ext.compat script.py args``: runs somebody's script, unchanged, on our ops."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from aigc_ext import compat


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m aigc_ext.compat",
        description="Runs a Python program with the StyleGAN ops in it, or in what it imports, replaced by "
        "aigc_ext's. At the end it says on stderr what was replaced and how often it was called. Processes "
        "that the program starts anew (torchrun, multiprocessing's spawn) run its own ops.",
        usage="%(prog)s [--package NAME --family FAMILY] (script.py | -m module) [arguments ...]",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    parser.add_argument("--family", choices=sorted(compat.FAMILIES), help="only this family's ops")
    parser.add_argument("--package", help="replace the ops of this package, whatever they define")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.module and not Path(options.program).is_file():
        parser.error(f"{options.program} is not a file")
    families = [options.family] if options.family else []
    try:
        compat.install(*families, package=options.package)
    except ValueError as error:
        parser.error(str(error))
    sys.argv = [options.program, *options.arguments]
    try:
        if options.module:
            sys.path[0] = ""
            runpy.run_module(options.program, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(options.program).resolve().parent)
            runpy.run_path(options.program, run_name="__main__")
    finally:
        print(compat.report(), file=sys.stderr)


if __name__ == "__main__":
    main()
