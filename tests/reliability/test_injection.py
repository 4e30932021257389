"""Some of the faults of `make trust`, in every command."""

from __future__ import annotations

import json
import sys

import pytest

from tests.reliability import inject

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")


@pytest.mark.parametrize("half", [0, 1])  # for two workers
def test_a_failed_call_stops_with_a_clear_error_or_is_carried_on_from(half):
    scenarios = inject.scenarios()[half::2]
    names = [scenario.name for scenario in scenarios]
    done = inject.start(["--every", "40", *(word for name in names for word in ("--only", name))])
    assert done.stdout, "the driver has ended without a report"
    report = json.loads(done.stdout)
    assert report["problems"] == []
    outcomes = report["outcomes"]
    assert list(outcomes) == names
    for scenario, (name, by_fault) in zip(scenarios, outcomes.items(), strict=True):
        assert "stopped" in {outcome for counts in by_fault.values() for outcome in counts}, name
        kinds = {kind for kind, calls in report["calls"][name].items() if calls}
        assert kinds - {*scenario.without} <= {fault.split()[0] for fault in by_fault}, name


def test_a_command_that_says_nothing_is_found(tmp_path, monkeypatch):
    """The verdict, of a command that leaves half a file and says that all is well."""
    base, expected, folder = (tmp_path / name for name in ("base", "expected", "here"))
    for path in (base, expected):
        path.mkdir()
        (path / "stats").write_text("whole")

    def run(folder, arguments, fault=None):
        (folder / "said.txt").write_text("")
        (folder / "stats").write_text("ha")
        return inject.Ended(code, stderr, 9, 1, f"write {folder}/stats")

    monkeypatch.setattr(inject, "run", run)
    scenario = inject.Scenario("try", [], lambda folder: None)
    fault = inject.Fault(("write",), 28, 1)

    code, stderr = 0, ""
    outcome, wrong = inject.judge(scenario, fault, base, expected, folder)
    assert outcome == "carried on"
    assert [line.partition(" (")[0] for line in wrong] == ["stats differs", "nothing is said of it"]
    code, stderr = 1, "Traceback (most recent call last):\nOSError: something\n"
    outcome, wrong = inject.judge(scenario, fault, base, expected, folder)
    assert outcome == "stopped"
    text = "\n".join(wrong)
    for words in ("a traceback", "no line of what is wrong", "stats is half written", "it does not go on"):
        assert words in text
    stderr = "Error: No space left on device"
    assert "the error does not name the file" in "\n".join(
        inject.judge(scenario, fault, base, expected, folder)[1]
    )
