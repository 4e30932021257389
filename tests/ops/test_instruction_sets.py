"""AIGC_EXT_ISA: every op is within the error budget on each of this CPU's sets; other values are refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

CHECK_ALL = """
from tests.ops.suite import all_cases, check_call
import torch
for case in all_cases():
    for dtype in case.dtypes:
        check_call(case, case.large_call(), dtype, "contiguous", seed=3)
print(torch.ops.aigc.instruction_set(), len(all_cases()))
"""


def python(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AIGC_EXT_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def supported() -> list[str]:
    """As the error message lists them."""
    result = python("import aigc_ext", "sse9")
    assert result.returncode == 1
    pattern = r"ImportError: aigc_ext: AIGC_EXT_ISA is 'sse9', but on this CPU must be one of (.*), or unset"
    found = re.search(pattern, result.stderr)
    assert found is not None, result.stderr
    return found[1].split(", ")


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_op_on_this_instruction_set(isa: str, supported: list[str]) -> None:
    assert "baseline" in supported
    result = python(CHECK_ALL, isa)
    if isa in supported:
        assert result.returncode == 0, result.stderr
        name, cases = result.stdout.split()
        assert name == isa
        assert int(cases) > 9
    else:
        assert result.returncode == 1
        assert (
            f"AIGC_EXT_ISA is '{isa}', but on this CPU must be one of {', '.join(supported)}" in result.stderr
        )


def test_the_widest_is_the_default(supported: list[str]) -> None:
    result = python(
        "import aigc_ext; i = aigc_ext.info(); print(i.instruction_set, i.instruction_set_forced)", ""
    )
    assert result.stdout.split() == [supported[0], "False"]
