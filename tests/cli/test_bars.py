from __future__ import annotations

import io
import sys

from aigc_ext.cli import bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_each_pass_over_the_data_has_its_bar(monkeypatch):
    monkeypatch.setattr(bars, "_DELAY", 0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with bars.data_bar() as report:
        for what in ("indexing", "reading"):
            for done in (1, 3):
                report(what, done, 3)
    report("reading", 3, 3)  # the dataset outlives the bar
    shown = terminal.getvalue()
    for what in ("indexing", "reading"):
        assert shown.count(f"{what} images:   0%") == 1
        assert "3/3" not in shown  # a finished bar goes away
