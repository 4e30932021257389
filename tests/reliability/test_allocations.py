"""The nth allocation of a kernel fails: the call raises an error, and the next one is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.reliability import faults, inject


@pytest.mark.parametrize(("threads", "every"), [(1, 1), (2, 5)])
def test_a_kernel_without_memory(tmp_path, threads, every):
    environment = os.environ | {
        "LD_PRELOAD": str(faults.build(tmp_path)),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(inject.ROOT), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.allocations", str(every)],
        env=environment,
        cwd=inject.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    report = json.loads(done.stdout)
    assert {name: each["wrong"] for name, each in report.items() if each["wrong"]} == {}
    assert min(each["allocations"] for each in report.values()) >= 5
