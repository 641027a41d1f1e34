"""How long a step takes, as a formula fitted on this machine; virtual time runs on it.

.. math:: t = c_0 + c_1 n + c_2 \\sum_{prompts} n_r\\,\\bar c_r + c_3 R + c_4 \\sum_{decoding} c_r

with n prompt tokens in the step, n_r those of a request at a mean context of c_r tokens, and R decoding requests. All
coefficients are at least 0, so that a shorter step never takes longer.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.request import StepPlan

__all__ = ["MEDIAN_ERROR_LIMIT", "BadFit", "CostModel", "StepShape", "measured_shapes"]

MEDIAN_ERROR_LIMIT = 0.2


class BadFit(HeliographError):
    """The formula misses the measured times by too much to be simulated with."""

    exit_code = 1


@dataclass(frozen=True)
class StepShape:
    """What a step's time depends on.

    Attributes:
        prompts: (tokens, context before them) of each prompt chunk.
        decodes: context of each decoding request.
    """

    prompts: tuple[tuple[int, int], ...] = ()
    decodes: tuple[int, ...] = ()

    @classmethod
    def of(cls, plan: StepPlan) -> StepShape:
        """Of a plan."""
        prompts = tuple((row.count, row.start) for row in plan.rows if row.count > 1)
        return cls(prompts, tuple(row.start for row in plan.rows if row.count == 1))

    @property
    def features(self) -> tuple[float, float, float, float, float]:
        """The five numbers that the coefficients multiply."""
        return (
            1.0,
            float(sum(n for n, _ in self.prompts)),
            float(sum(n * (start + n / 2) for n, start in self.prompts)),
            float(len(self.decodes)),
            float(sum(self.decodes)),
        )


@dataclass(frozen=True)
class CostModel:
    """Coefficients in seconds, and how well they fit.

    Attributes:
        step, prompt_token, prompt_attention, decode, decode_context: c_0 to c_4.
        median_error: of the fit, relative.
        machine: where it was measured.
        kv_bytes_per_token: of a transfer.
    """

    step: float
    prompt_token: float
    prompt_attention: float
    decode: float
    decode_context: float
    median_error: float = 0.0
    machine: str = ""
    kv_bytes_per_token: int = 0

    def __post_init__(self) -> None:
        """Refuses times that run backwards."""
        if min(self.coefficients) < 0 or sum(self.coefficients) <= 0:
            raise BadInput(f"times cannot be negative or all 0: {self.coefficients}")

    @property
    def coefficients(self) -> tuple[float, float, float, float, float]:
        """c_0 to c_4."""
        return (self.step, self.prompt_token, self.prompt_attention, self.decode, self.decode_context)

    def seconds(self, shape: StepShape) -> float:
        """Of a step; 0 where it computes nothing."""
        if not shape.prompts and not shape.decodes:
            return 0.0
        return sum(c * f for c, f in zip(self.coefficients, shape.features, strict=True))

    def prefill_seconds(self, tokens: int, cached: int = 0) -> float:
        """Of a prompt in one step alone."""
        return self.seconds(StepShape(prompts=((max(1, tokens - cached), cached),)))

    def decode_seconds(self, batch: int, contexts: float) -> float:
        """Of one step of ``batch`` requests with ``contexts`` tokens of context in all."""
        return self.step + self.decode * batch + self.decode_context * contexts if batch else 0.0

    @classmethod
    def fit(
        cls, measured: Iterable[tuple[StepShape, float]], *, machine: str = "", kv_bytes_per_token: int = 0
    ) -> CostModel:
        """Least squares of relative errors, coefficients at least 0.

        Raises:
            BadInput: fewer than eight measurements, or times that are not above 0.
            BadFit: half of the measurements are missed by more than 20 %.
        """
        rows = list(measured)
        if len(rows) < 8 or any(not seconds > 0 for _, seconds in rows):
            raise BadInput(f"a fit takes at least 8 steps of more than 0 s; got {len(rows)}")
        features = np.array([shape.features for shape, _ in rows])
        seconds = np.array([time for _, time in rows])
        scale = np.maximum(features.max(axis=0), 1e-12)
        found, _ = nnls(features / scale / seconds[:, None], np.ones(len(rows)))
        coefficients = found / scale
        errors = np.abs(features @ coefficients / seconds - 1)
        median = float(np.median(errors))
        if median > MEDIAN_ERROR_LIMIT:
            raise BadFit(
                f"the cost model misses half of {len(rows)} measured steps by more than {median:.0%}; at most "
                f"{MEDIAN_ERROR_LIMIT:.0%} can be simulated with. Measure again on a quiet machine"
            )
        step, token, attention, decode, context = (float(c) for c in coefficients)
        return cls(step, token, attention, decode, context, median, machine, kv_bytes_per_token)

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CostModel:
        """From :meth:`save`.

        Raises:
            BadInput: no such file.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(f"{path} holds no cost model: {error}") from None


def measured_shapes(
    run: Callable[[StepShape], float],
    *,
    prompts: Sequence[int] = (16, 64, 192, 448),
    batches: Sequence[int] = (1, 4, 12, 32),
    contexts: Sequence[int] = (32, 256, 768),
    repeats: int = 3,
) -> list[tuple[StepShape, float]]:
    """Times of a grid of steps: prompts alone, behind a context, decoding batches, and both mixed.

    Args:
        run: executes a step of that shape and gives its seconds.
        prompts, batches, contexts: of the grid.
        repeats: of each; the median counts, and the first run of each does not.
    """
    shapes = [StepShape(prompts=((n, 0),)) for n in prompts]
    shapes += [StepShape(prompts=((n, contexts[-1]),)) for n in prompts[1:3]]
    shapes += [StepShape(decodes=(c,) * b) for b in batches for c in contexts]
    shapes += [StepShape(prompts=((prompts[1], 0),), decodes=(contexts[1],) * b) for b in batches[1:3]]
    measured = []
    for shape in shapes:
        times = [run(shape) for _ in range(repeats + 1)][1:]
        measured.append((shape, statistics.median(times)))
    return measured
