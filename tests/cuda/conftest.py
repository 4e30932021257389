"""What holds on a card: `pytest -m cuda`. Where there is none, all of it is deselected (tests/conftest.py).

test_properties.py   the property suite of tests/ops, and calls that are larger
test_op_facts.py     those facts of tests/ops that a device can change
test_execution.py    streams, devices, graphs, synchronisation, the same bits
test_memory.py       64-bit indexing, misaligned views, leaks
test_errors.py       tensors on the wrong device
sanitize.py          no test: the short program that `make gpu-check` runs under compute-sanitizer
"""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)
