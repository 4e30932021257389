"""Hypothesis draws the same examples in every run, so that a failure is one for everybody. To look for new
ones:
``HYPOTHESIS_PROFILE=explore make test``."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# AIGC_EXT_BACKEND=simt runs the tests on the CUDA kernels, on fibers of the CPU (tests/simt). It is set here,
# because the library is chosen when aigc_ext is imported.
_backend = os.environ.get("AIGC_EXT_BACKEND", "cpu")
if _backend == "simt":
    _library = Path(__file__).parents[1] / "build" / "simt" / "libaigc_ops_simt.so"
    if not _library.exists():
        raise pytest.UsageError(
            f"{_library} is not built: `make {_library.relative_to(_library.parents[2])}`"
        )
    os.environ["AIGC_EXT_LIBRARY"] = str(_library)
elif _backend != "cpu":
    raise pytest.UsageError(f"AIGC_EXT_BACKEND is '{_backend}', but must be cpu or simt")
