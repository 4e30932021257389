"""Benchmarks that are not of one op: they run, cover what they are about, and report what they measure."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import aigc_ext
from aigc_ext import nn as own
from aigc_ext.bench.timing import peak_mb
from aigc_ext.cli import main
from aigc_ext.ops._op import records
from benchmarks import fuse, harness, overhead, report, scaling, zoo
from benchmarks.harness import Setting, run_module


def test_the_peak_is_what_is_allocated_at_once() -> None:
    def run() -> None:
        for _ in range(3):  # 4 MB and 2 MB at a time
            a = torch.zeros(1000, 1000)
            b = torch.zeros(500, 1000)
            del a, b

    before = torch.zeros(1000, 1000)
    assert peak_mb(run) == pytest.approx(6, abs=0.01)
    assert peak_mb(lambda: before.add_(1)) == pytest.approx(0, abs=0.01)


def test_overhead_has_every_op_and_module(monkeypatch: pytest.MonkeyPatch) -> None:
    public = [getattr(own, name) for name in own.__all__]
    modules = {each for each in public if isinstance(each, type) and issubclass(each, nn.Module)}
    assert {type(module) for module, *_ in overhead.modules()} == modules
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    measured = list(overhead.cases(Setting(quick=True)))
    assert {case.op for case in measured} == {
        *(op.name for op in records()),
        *(f"nn.{module.__name__}" for module in modules),
    }
    for case in measured:
        assert list(case.contenders) == ["plain PyTorch", "aigc_ext"]
        ours, plain = (run() for run in case.contenders.values())
        if case.outputs is not None:
            torch.testing.assert_close(list(ours), list(plain), rtol=case.rtol, atol=case.atol)


def test_scaling_measures_memory_too() -> None:
    rows = list(run_module(scaling.cases, Setting(quick=True), [torch.get_num_threads()]))
    assert {row["contender"] for row in rows} == set(scaling.CONTENDERS)
    assert all(float(row["peak_mb"]) > 0 for row in rows)
    table = report.table([{key: str(value) for key, value in row.items()} for row in rows])
    assert "| peak MB |" in table
    assert f"| {rows[0]['peak_mb']} |" in table
    full = [size for preset in ("dcgan", "stylegan2") for size in scaling.sizes(preset, quick=False)]
    assert all(len({getattr(size, name) for size in full}) == 3 for name in ("side", "batch"))
    for size in full:
        assert size.config().batch == size.batch


def test_fuse_measures_networks_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "NETWORKS", {name: zoo.NETWORKS[name] for name in ("SNGAN D", "DCGAN G")})
    setting = Setting(quick=True)
    cases = list(fuse.cases(setting))
    assert [case.case.split(" of ")[0][:-3] for case in cases] == [
        "SNGAN D",
        "SNGAN D, channels last",
        "DCGAN G",
    ]
    for case in cases:
        theirs, ours = (run() for run in case.contenders.values())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_bench_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        arguments = ["--quick", "--preset", "mlp", "--preset", "dcgan", "--seconds", "0.05", "--threads", "1"]
        assert main(["bench", *arguments]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert "1 thread, torch" in lines[0]
    assert [line for line in lines if not line.startswith(" ")][1:] == [
        "mlp 8x8, batch 4, R1",
        "dcgan 8x8, batch 4",
    ]
    assert sum(line.split()[0] == "aigc_ext" for line in lines) == 2
    for line in lines:
        if line.startswith("  eager  "):
            assert line.endswith("1.00x")
    assert main(["bench", "--preset", "vqgan"]) == 2


def test_bench_needs_the_package_only() -> None:
    package = Path(str(aigc_ext.__file__)).parent
    sources = list(package.rglob("*.py"))
    assert package / "bench" / "step.py" in sources
    for source in sources:
        assert not re.search(r"^\s*(from|import) benchmarks", source.read_text(), re.MULTILINE), source


def test_a_measurement_replaces_its_own_rows_only(tmp_path):
    path = tmp_path / "figures.csv"

    def rows(device, *figures):
        return [{"device": device, "median_us": figure, "peak_mb": "1"} for figure in figures]

    harness.write_csv(path, [*rows("A; 1 thread", "1", "2"), *rows("A; 2 threads", "3")])
    harness.write_csv(path, rows("B; 1 thread", "4"))
    harness.write_csv(path, rows("A; 2 threads", "5", "6"))
    harness.write_csv(path, [])
    with path.open(newline="") as file:
        found = [(row["device"], row["median_us"]) for row in csv.DictReader(file)]
    assert found == [
        ("A; 1 thread", "1"),
        ("A; 1 thread", "2"),
        ("B; 1 thread", "4"),
        ("A; 2 threads", "5"),
        ("A; 2 threads", "6"),
    ]
