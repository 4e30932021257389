from __future__ import annotations

import torch

from aigc_ext.training.progress import ProgressLine, RunningMeans

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


def test_no_progress_line(capsys):
    with ProgressLine(0, 10, torch.device("cpu"), SHOWN, enabled=False) as line:
        assert not line.due()
        line.show(5, dict.fromkeys(NAMES))
    assert capsys.readouterr().err == ""
