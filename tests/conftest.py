"""Hypothesis draws the same examples in every run, so that a failure is one for everybody. To look for new
ones:
``HYPOTHESIS_PROFILE=explore make test``."""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
