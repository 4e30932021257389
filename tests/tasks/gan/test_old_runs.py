"""Runs that an older version began go on as they did there: old_runs/make.py made them."""

from __future__ import annotations

import json
import tarfile

import pytest

from tests.tasks.gan.old_runs import make

NEWER = ("variety",)  # columns of stats.jsonl that older versions did not have
BEGUN = "000000-040"  # the checkpoint from which they go on
EXPECTED = json.loads((make.HERE / "expected.json").read_text())


@pytest.mark.parametrize("name", make.RUNS)
def test_a_run_of_an_older_version_goes_on(name, tmp_path):
    with tarfile.open(make.HERE / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    make.resume(tmp_path / name)
    got, expected = json.loads(json.dumps(make.record(tmp_path / name))), EXPECTED[name]
    begun = {name: digest for name, digest in expected["digests"].items() if BEGUN in name}
    assert begun
    assert begun.items() <= got["digests"].items()
    # From there on another processor, or the same source compiled otherwise, rounds sums otherwise.
    for key in ("digests", "states", "tensors"):
        assert list(got[key]) == list(expected[key])
    assert got["log"] == expected["log"]
    for checkpoint, state in got["states"].items():
        assert state == expected["states"][checkpoint]
    for row, other in zip(got["rows"], expected["rows"], strict=True):
        row = [(key, value) for key, value in row if key not in NEWER]
        assert [key for key, _ in row] == [key for key, _ in other]
        for (key, value), (_, wanted) in zip(row, other, strict=True):
            assert value == (wanted and pytest.approx(wanted, rel=1e-3, abs=1e-5)), key
    for tensor, sums in got["tensors"].items():
        assert sums == pytest.approx(expected["tensors"][tensor], rel=1e-3, abs=1e-4), tensor
