"""The short form of `python -m tests.training.long_run`, and what it must notice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.training.long_run import KEEP, Look, faults, watch

FLAT = [Look(i / 100, 300 << 20, 20, 4, KEEP, 100_000, 50_000 + 100 * i) for i in range(101)]


def test_a_short_run_is_flat() -> None:
    seen, _ = watch("mlp", 400, interval=0.02)
    assert faults(seen) == []
    assert seen[-1].checkpoints == KEEP


def test_a_flat_run_has_no_faults() -> None:
    assert faults(FLAT) == []
    ups_and_downs = [
        replace(s, files=20 + i % 3, resident=s.resident + i % 5 * 1000) for i, s in enumerate(FLAT)
    ]
    assert faults(ups_and_downs) == []


@pytest.mark.parametrize(
    ("grown", "message"),
    [
        (lambda i, s: replace(s, resident=s.resident + i * (1 << 18)), "resident memory grew by"),
        (lambda i, s: replace(s, files=20 + i // 20), "files grew from"),
        (lambda i, s: replace(s, threads=4 + i // 20), "threads grew from"),
        (lambda i, s: replace(s, checkpoints=i // 10), "there were 10 checkpoints"),
        (lambda i, s: replace(s, checkpoint_bytes=i * 10_000), "the checkpoints grew"),
        (lambda i, s: replace(s, other_bytes=i * 100_000), "beside the checkpoints"),
    ],
)
def test_what_grows_is_a_fault(grown, message) -> None:
    (found,) = faults([grown(i, s) for i, s in enumerate(FLAT)])
    assert message in found


def test_a_run_that_was_hardly_seen_is_not_judged() -> None:
    assert "too few to judge" in faults(FLAT[:36])[0]
