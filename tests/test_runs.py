"""Runs by `latest`, by the beginning of a name, and what is said of those that do not exist."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aigc_ext._runs import find_run, known_runs
from aigc_ext.cli import main
from aigc_ext.reporting import write_report
from aigc_ext.sampling import PretrainedError, load_pretrained
from aigc_ext.tasks.gan import find_resume_point
from aigc_ext.training import RunError
from tests.cli.test_cli import TINY

NAMES = ("00000-mlp-mnist5k", "00001-mlp-mnist5k-demo", "00002-dcgan-photos", "00010-mlp-digits")


@pytest.fixture
def outdir(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (*NAMES, "notes", ".tmp-00011-mlp-digits"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "elsewhere" / "00099-mlp-x").mkdir(parents=True)
    return Path("runs")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("latest", "runs/00010-mlp-digits"),
        ("runs/latest", "runs/00010-mlp-digits"),
        ("elsewhere/latest", "elsewhere/00099-mlp-x"),
        ("00002", "runs/00002-dcgan-photos"),
        ("runs/00002-dc", "runs/00002-dcgan-photos"),
        ("00000-mlp-mnist5k", "runs/00000-mlp-mnist5k"),
        ("elsewhere/00099", "elsewhere/00099-mlp-x"),
        ("runs/00000-mlp-mnist5k", "runs/00000-mlp-mnist5k"),
        ("runs/notes", "runs/notes"),
        ("00003", "00003"),
        ("owner/name", "owner/name"),
        ("nowhere/latest", "nowhere/latest"),
        ("", "."),
    ],
)
def test_what_a_name_means(outdir, name, found) -> None:
    assert find_run(name) == Path(found)
    assert find_run(Path(name)) == Path(found)


def test_a_path_that_exists_comes_first(outdir) -> None:
    Path("latest").mkdir()
    Path("00002").mkdir()
    assert find_run("latest") == Path("latest")
    assert find_run("00002") == Path("00002")


def test_a_beginning_of_several_runs(outdir) -> None:
    with pytest.raises(ValueError, match="0000 is the start of 3 runs: runs/00000-mlp-mnist5k, runs/00001"):
        find_run("0000")


def test_suggestions(outdir) -> None:
    assert known_runs("runs/00000-mlp-mnist").startswith("; there is runs/00000-mlp-mnist5k, runs/00001-mlp")
    assert known_runs("x") == (
        "; there is runs/00010-mlp-digits, runs/00002-dcgan-photos, runs/00001-mlp-mnist5k-demo, "
        "runs/00000-mlp-mnist5k"
    )
    assert known_runs("elsewhere/x").startswith("; there is elsewhere/00099-mlp-x")
    assert known_runs("x", Path("nowhere")) == ""


def test_every_command_that_takes_a_run(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for desc in ("a", "b"):
        assert main(["train", *TINY, "--desc", desc]) == 0
    newest = load_pretrained("runs/00001-mlp-digits-b")[1]
    assert load_pretrained("latest")[1] == load_pretrained("00001")[1] == newest
    assert load_pretrained("runs/00000")[1] == load_pretrained("runs/00000-mlp-digits-a")[1]
    assert find_resume_point("00000", Path("runs")).run_dir == Path("runs/00000-mlp-digits-a")
    assert write_report("latest") == Path("runs/00001-mlp-digits-b/report.html")
    there = "; there is runs/00000-mlp-digits-a, runs/00001-mlp-digits-b"
    with pytest.raises(PretrainedError) as network:
        load_pretrained("runs/00000-mlp-mnist5k")
    assert str(network.value).endswith(there)
    with pytest.raises(
        RunError, match=r"resume is 'runs/7', but that is neither .* checkpoint directory; there is"
    ):
        find_resume_point("runs/7", Path("runs"))
    with pytest.raises(RunError, match=r"is no run: it has no config.json; there is runs/00001-mlp-digits-b"):
        write_report("runs/7")
    with pytest.raises(RunError, match="resume: 0000 is the start of 2 runs"):
        find_resume_point("0000", Path("runs"))
    capsys.readouterr()
    assert main(["sample", "--network", "runs/0000", "--seeds", "1"]) == 2
    assert (
        "Error: network runs/0000 is the start of 2 runs: runs/00000-mlp-digits-a" in capsys.readouterr().err
    )


def test_the_next_command_is_one_that_the_shell_finds(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "my env" / "bin" / "aigc-ext")])
    assert main(["train", *TINY]) == 0
    assert (
        "more images: 'my env/bin/aigc-ext' sample --network runs/00000-mlp-digits" in capsys.readouterr().out
    )
