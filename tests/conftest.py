"""Hypothesis draws the same examples in every run, so that everybody sees the same failures.
``HYPOTHESIS_PROFILE=explore make test`` looks for new ones."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from tests.ops.suite import OpCase

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None)
# for runs whose every call is slow: tests/sanitize
settings.register_profile("brief", derandomize=True, deadline=None, database=None, max_examples=10)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# AIGC_EXT_BACKEND=simt runs the tests on the CUDA kernels, on fibers of the CPU (tests/simt). It is set here,
# because the library is chosen when aigc_ext is imported.
_backend = os.environ.get("AIGC_EXT_BACKEND", "cpu")
if _backend == "simt" and "AIGC_EXT_LIBRARY" not in os.environ:
    _library = Path(__file__).parents[1] / "build" / "simt" / "libaigc_ops_simt.so"
    if not _library.exists():
        raise pytest.UsageError(
            f"{_library} is not built: `make {_library.relative_to(_library.parents[2])}`"
        )
    os.environ["AIGC_EXT_LIBRARY"] = str(_library)
elif _backend not in ("cpu", "simt"):
    raise pytest.UsageError(f"AIGC_EXT_BACKEND is '{_backend}', but must be cpu or simt")


# ---- tests on a card ---------------------------------------------------------------------------------------
# A test that is marked `card` runs on the CPU, and again on a card, marked `cuda`. Without a card, what is
# marked `cuda` is deselected, not skipped one by one; `pytest -m cuda` is then an error.


def _why_no_cuda() -> str | None:
    """Why tests for a card cannot run here; None if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if _backend != "cpu":
        return f"AIGC_EXT_BACKEND={_backend} has no CUDA kernels"
    library = Path(__file__).parents[1] / "aigc_ext" / "lib" / "libaigc_ops_cuda.so"
    return None if library.exists() else f"{library} is not built: `make gpu-check` builds it for this card"


def pytest_configure(config: pytest.Config) -> None:
    asked = re.sub(r"\bnot\s+cuda\b", "", config.getoption("markexpr", "") or "")
    if re.search(r"\bcuda\b", asked) and (reason := _why_no_cuda()):
        raise pytest.UsageError(f"-m cuda: {reason}")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for_a_card = [item for item in items if item.get_closest_marker("cuda")]
    if for_a_card and _why_no_cuda():
        config.hook.pytest_deselected(items=for_a_card)
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]
    elif for_a_card:  # a card is there for minutes: what tells most comes first
        items.sort(key=lambda item: "budget" not in item.name)


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test draws the same numbers whatever ran before it in its process."""
    torch.manual_seed(0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("card"):
        devices = [torch.device("cpu"), pytest.param(torch.device("cuda", 0), marks=pytest.mark.cuda)]
        metafunc.parametrize("device", devices, indirect=True, ids=["cpu", "cuda"])


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test runs."""
    on_a_card = request.node.get_closest_marker("cuda") is not None
    return getattr(request, "param", torch.device("cuda", 0) if on_a_card else torch.device("cpu"))


@pytest.fixture(autouse=True)
def default_device(request: pytest.FixtureRequest, device: torch.device) -> Iterator[None]:
    """Tests of single ops make their tensors on PyTorch's default device, which is set here. A case of the
    property suite has a device of its own, and the tests in tests/cuda name theirs."""
    if request.node.get_closest_marker("card") and "case" not in request.fixturenames:
        with device:
            yield
    else:
        yield


@pytest.fixture
def case(request: pytest.FixtureRequest, device: torch.device) -> "OpCase":
    """The op that a test of the property suite is about."""
    if request.param.cpu_only and device.type != "cpu":
        pytest.skip(f"{request.param.name} is PyTorch's own on {device.type}")
    return dataclasses.replace(request.param, device=device)
