"""`aigc-ext bench`."""

from __future__ import annotations

import statistics

import click

from aigc_ext import _names

_FAST = (
    *("eager", "eager, channels_last", "eager, channels_last bf16"),
    *("aigc_ext", "aigc_ext, channels_last bf16"),
)
_COMPILED = ("compile", "aigc_ext, compiled")
_MEASURED = [
    name for name in _names.TASKS["gan"] if name != "stylegan3-r"
]  # whose step is like stylegan3-t's


@click.command()
@click.option(
    "--preset",
    "presets",
    multiple=True,
    type=click.Choice(_MEASURED),
    help="Only this one; may be given several times.  [default: all]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: PyTorch's choice]")
@click.option("--compiled", is_flag=True, help="Also what PyTorch compiles, which takes minutes.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3.5,
    help="Time to measure a kind of step, beside what prepares it.  [default: 3.5]",
)
@click.option("--quick", is_flag=True, hidden=True, help="Tiny sizes, to test the command.")
def bench(
    presets: tuple[str, ...],
    threads: int | None,
    compiled: bool,
    seconds: float,
    quick: bool,
) -> None:
    """Time whole training steps on this machine's CPU against plain PyTorch.

    The networks are the presets', with fewer channels. "eager" is a well-written step of the same networks in
    plain PyTorch; "x" is how many times as fast as it a row is. The first steps of all are compared.
    """
    import torch

    from aigc_ext.bench.step import case_of, sizes
    from aigc_ext.bench.timing import Setting, device_name, time_case
    from aigc_ext.training.malloc import keep_freed_memory

    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()  # for all alike: glibc's defaults slow eager PyTorch down
    where = device_name(torch.get_num_threads())
    click.echo(f"{where}, torch {torch.__version__}; median milliseconds of a step")
    chosen = {size.preset: size for size in reversed(list(sizes(quick)))}  # the first of each preset
    for preset in presets or _MEASURED:
        size = chosen[preset]
        for penalize in size.penalties:
            case = case_of(size, penalize, Setting(quick=quick), _FAST + (_COMPILED if compiled else ()))
            click.echo(case.case)
            samples = time_case(case, seconds / len(case.contenders), min_rounds=3)
            medians = {name: statistics.median(times) / 1000 for name, times in samples.items()}
            for name, median in medians.items():
                click.echo(f"  {name:32}{median:10.2f}{medians['eager'] / median:8.2f}x")
