"""Who carries out a step: a model in torch, or a formula in virtual time. Scheduler and policies cannot tell which."""

from __future__ import annotations

from typing import Protocol

from heliograph.clock import Clock
from heliograph.serving.core.cost_model import CostModel, StepShape
from heliograph.serving.core.request import Row, Sample, StepPlan, StepResult

__all__ = ["Executor", "Launched", "ModelledExecutor"]


class Launched(Protocol):
    """A step under way."""

    def wait(self) -> StepResult:
        """Its result, once it has ended.

        Raises:
            Exception: whatever the step failed with.
        """
        ...


class Executor(Protocol):
    """Carries out steps in the order in which they are launched."""

    def launch(self, plan: StepPlan) -> Launched:
        """Starts a step behind those that are under way."""
        ...

    def close(self) -> None:
        """Ends what was started."""
        ...


class ModelledExecutor:
    """Steps that take as long as a formula says; every token is number 1, the last of an answer the end token.

    Args:
        model: of the step times.
        clock: slept on for each step; None where the caller advances time itself.
        end_token: given once a request's ``expected_tokens`` are reached; None for requests that end by their limit.
    """

    def __init__(self, model: CostModel, clock: Clock | None = None, end_token: int | None = None) -> None:
        self.model, self.clock, self.end_token = model, clock, end_token
        self.busy_s = 0.0

    def seconds(self, plan: StepPlan) -> float:
        """Of a step."""
        return self.model.seconds(StepShape.of(plan))

    def launch(self, plan: StepPlan) -> _Modelled:
        """Takes the step's time, where there is a clock."""
        seconds = self.seconds(plan)
        self.busy_s += seconds
        return _Modelled(StepResult(tuple(self._sample(row) for row in plan.rows), seconds), self.clock)

    def close(self) -> None:
        """Nothing to end."""

    def _sample(self, row: Row) -> Sample | None:
        if not row.sample:
            return None
        drawn = row.start + row.count - row.request.num_prompt  # answer tokens before this one
        expected = row.request.expected_tokens
        ends = self.end_token is not None and expected is not None and drawn + 1 >= expected
        return Sample(self.end_token if ends and self.end_token is not None else 1)


class _Modelled:
    def __init__(self, result: StepResult, clock: Clock | None) -> None:
        self._result, self._clock = result, clock

    def wait(self) -> StepResult:
        if self._clock is not None:
            self._clock.sleep(self._result.seconds)
        return self._result
