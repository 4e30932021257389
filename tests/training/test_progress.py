from __future__ import annotations

import torch

from aigc_ext._progress import listening, tracked
from aigc_ext.training.progress import ProgressLine, RunningMeans, fitting

NAMES = ("loss_d", "loss_g", "d_real", "d_fake", "acc_real", "acc_fake", "r1")
SHOWN = {"D": "loss_d", "G": "loss_g", "D(x)": "d_real", "D(G(z))": "d_fake"}


def test_running_means_leave_out_what_is_not_finite():
    means = RunningMeans(NAMES, torch.device("cpu"))
    row = torch.arange(len(NAMES), dtype=torch.float32)
    means.add(row)
    means.add(torch.where(row == 2, torch.nan, row + 2))
    means.add(torch.where(row == 3, torch.inf, torch.nan))
    read = means.read()
    assert list(read) == list(NAMES)
    assert list(read.values()) == [1.0, 2.0, 2.0, *(i + 1.0 for i in range(3, len(NAMES)))]
    means.reset()
    assert set(means.read().values()) == {None}


def test_the_progress_line(capsys):
    means = dict.fromkeys(NAMES) | {"loss_d": 1.25, "loss_g": 0.5, "d_real": 2.0, "d_fake": None}
    with ProgressLine(20_000, 50_000, torch.device("cpu"), SHOWN, enabled=True) as line:
        line.show(30_064, means)
        line.show(50_048, means)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "30.1/50 kimg" in shown.err
    assert " img/s, D 1.250, G 0.500, D(x) 2.000, D(G(z)) -, " in shown.err
    assert " GB]" in shown.err
    assert "100%|" in shown.err


def test_what_fits_into_a_line():
    parts = ["3401 img/s", "D 1.395", "G 0.570", "D(x) 0.584", "D(G(z)) 0.576", "0.35 GB"]
    assert fitting(parts, 200) == (parts, 20)
    assert fitting(parts, 75) == (parts, 9)
    assert fitting(parts, 65) == ([*parts[:4], parts[5]], 14)
    assert fitting(parts, 43) == ([*parts[:3], parts[5]], 4)
    assert fitting(parts, 42) == (parts[:3], 12)
    assert fitting(parts, 16) == (parts[:1], 4)
    assert fitting(parts, 10) == ([], 10)
    assert fitting(parts, 3) == ([], 0)
    for room in range(90):
        kept, width = fitting(parts, room)
        assert width + sum(len(part) + 2 for part in kept) <= max(room, 0)


def test_long_work_reports_itself():
    heard = []
    with listening(lambda *report: heard.append(report)):
        assert [len(part) for part in tracked("work", torch.zeros(5).split(2), 5)] == [2, 2, 1]
    assert heard == [("work", done, 5) for done in (0, 2, 4, 5)]
    assert list(tracked("work", [[1]], 1)) == [[1]]
    assert len(heard) == 4


def test_no_progress_line(capsys):
    with ProgressLine(0, 10, torch.device("cpu"), SHOWN, enabled=False) as line:
        assert not line.due()
        line.show(5, dict.fromkeys(NAMES))
    assert capsys.readouterr().err == ""
