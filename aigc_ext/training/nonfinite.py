"""Steps without finite gradients: when they stop a run, and the dump they leave.

    runs/00000-mlp-mnist5k/nonfinite-000050-320/
        (a checkpoint, see `training.checkpoint`, of the networks after the failing step)
        inputs.safetensors      the inputs of that step, or of its part that failed

A step whose gradients are not finite changes no weight of its network, so the networks in the dump are the
ones that failed.
"""

from __future__ import annotations

from pathlib import Path

from aigc_ext.training.state import State

_STEPS_PER_CUDA_CHECK = 50


class NonFiniteError(RuntimeError):
    """Training stopped because steps no longer had finite gradients; the last one is in `dump`."""

    def __init__(self, dump: Path, streak: int, step: int, replayed_by: str | None = None) -> None:
        hint = f" ({replayed_by} runs it again)" if replayed_by else ""
        super().__init__(
            f"stopped at step {step}: {streak} steps in a row had a loss or gradient that is not finite; "
            f"the last one is in {dump}{hint}"
        )
        self.dump = dump


class Watch:
    """Counts, for each learner, the consecutive steps that its optimizer skipped: `state.streaks`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._seen = state.skipped
        self._steps = 0
        self._own_steps = [0] * len(self._seen)

    def longest_streak(self) -> int:
        """To be called after each step. On CUDA it checks only now and then, because that waits for the
        device, and otherwise returns 0."""
        state, task = self._state, self._state.task
        self._steps += 1
        for i, learner in enumerate(task.learners):
            self._own_steps[i] += state.step % learner.every == 0
        if task.device.type == "cuda" and self._steps < _STEPS_PER_CUDA_CHECK:
            return 0
        skipped = state.skipped
        for i, steps in enumerate(self._own_steps):
            state.streaks[i] = 0 if skipped[i] - self._seen[i] < steps else state.streaks[i] + steps
        self._seen, self._steps, self._own_steps = skipped, 0, [0] * len(skipped)
        return max(state.streaks)
