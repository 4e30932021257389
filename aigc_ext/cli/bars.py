"""Progress bars, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from aigc_ext.data.dataset import Report

_DELAY = 1.0  # seconds before a bar appears


@contextmanager
def data_bar() -> Iterator[Report]:
    """A bar for each pass over the images of a dataset that takes long."""
    bar: tqdm | None = None
    shown, over = "", False

    def show(what: str, done: int, total: int) -> None:
        nonlocal bar, shown
        if over:  # the dataset outlives its bar
            return
        if bar is None or shown != what:
            if bar is not None:
                bar.close()
            shown = what
            bar = tqdm(
                desc=f"{what} images", total=total, unit="img", leave=False, disable=None, delay=_DELAY
            )
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        over = True
        if bar is not None:
            bar.close()
