"""How long a prompt and a decoding step take on an instance, from a few profiled points (arXiv:2510.14686).

.. math:: TTFT(n) = a_0 + a_1 n + a_2 n^2, \\qquad TPOT(b, c) = b_0 + b_1 b + b_2 c

with n prompt tokens, b requests in the batch and c tokens of context in all. Below the shortest profiled length the
quadratic is not trusted: it may turn negative, so the value there is that of the shortest length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heliograph.errors import BadInput
from heliograph.serving.core.cost_model import CostModel

__all__ = ["ProfilePoint", "TimePredictor"]

LENGTHS = (16, 64, 128, 256, 512, 1024)
BATCHES = (1, 4, 8, 16, 32, 64)
MEAN_CONTEXTS = (32, 128, 512)


@dataclass(frozen=True)
class ProfilePoint:
    """A measured time: of a prompt of ``tokens`` where ``batch`` is 0, else of a decoding step over ``tokens``."""

    tokens: float
    seconds: float
    batch: int = 0


@dataclass(frozen=True)
class TimePredictor:
    """Coefficients in seconds, and the range they were fitted on.

    Attributes:
        prompt: a_0, a_1, a_2. step: b_0, b_1, b_2.
        shortest, longest: profiled prompt lengths.
        least_step_s: the shortest profiled step; no step is predicted below it.
    """

    prompt: tuple[float, float, float]
    step: tuple[float, float, float]
    shortest: float
    longest: float
    least_step_s: float = 0.0

    def ttft_s(self, tokens: float) -> float:
        """Of a prompt alone on an instance; 0 for no tokens, and never less for more tokens."""
        if tokens <= 0:
            return 0.0
        a0, a1, a2 = self.prompt
        low, high = self._value(self.shortest), self._value(self.longest)
        if tokens <= self.shortest:
            return max(0.0, low)
        if tokens > self.longest:  # beyond the profile: the slope of its end goes on
            return max(0.0, low, high) + max(0.0, a1 + 2 * a2 * self.longest) * (tokens - self.longest)
        return max(0.0, low, a0 + a1 * tokens + a2 * tokens**2)

    def tpot_s(self, batch: float, contexts: float) -> float:
        """Of a decoding step; 0 for an empty batch."""
        b0, b1, b2 = self.step
        return max(self.least_step_s, b0 + b1 * batch + b2 * contexts) if batch > 0 else 0.0

    def outstanding_s(self, requests: int, tokens: float) -> float:
        """Of prompts of known number and total length; their mean stands for each."""
        return requests * self.ttft_s(tokens / requests) if requests > 0 and tokens > 0 else 0.0

    def _value(self, tokens: float) -> float:
        a0, a1, a2 = self.prompt
        return a0 + a1 * tokens + a2 * tokens**2

    @classmethod
    def fit(cls, points: Sequence[ProfilePoint]) -> TimePredictor:
        """Least squares.

        Raises:
            BadInput: fewer than three different prompt lengths or three decoding points, or times of 0.
        """
        prompts = [p for p in points if p.batch == 0]
        steps = [p for p in points if p.batch > 0]
        if len({p.tokens for p in prompts}) < 3 or len({(p.batch, p.tokens) for p in steps}) < 3:
            raise BadInput(
                f"a profile has at least 3 prompt lengths and 3 decoding batches; got {len(prompts)} and {len(steps)} "
                "points"
            )
        if any(not p.seconds > 0 for p in points):
            raise BadInput("every profiled time must be above 0")
        n = np.array([p.tokens for p in prompts])
        a = _solve(np.stack([np.ones_like(n), n, n**2], 1), [p.seconds for p in prompts])
        rows = np.array([(1.0, p.batch, p.tokens) for p in steps])
        b = _solve(rows, [p.seconds for p in steps])
        return cls(a, b, float(n.min()), float(n.max()), min(p.seconds for p in steps))

    @classmethod
    def from_cost_model(cls, cost: CostModel) -> TimePredictor:
        """Profiled on a cost model, as an instance profiles itself when it registers."""
        prompts = [ProfilePoint(n, cost.prefill_seconds(n)) for n in LENGTHS]
        steps = [ProfilePoint(b * c, cost.decode_seconds(b, b * c), b) for b in BATCHES for c in MEAN_CONTEXTS]
        return cls.fit(prompts + steps)


def _solve(rows: np.ndarray, seconds: Sequence[float]) -> tuple[float, float, float]:
    scale = np.abs(rows).max(axis=0)
    found = np.linalg.lstsq(rows / scale, np.array(seconds), rcond=None)[0] / scale
    return float(found[0]), float(found[1]), float(found[2])
