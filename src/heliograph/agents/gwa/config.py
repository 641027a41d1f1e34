"""Settings of a workspace agent; the defaults are those of the official code (arXiv:2604.08206)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from heliograph.errors import BadInput

__all__ = ["ESTIMATORS", "Estimator", "GWAConfig"]

Estimator = Literal["assignment", "window", "novelty"]
ESTIMATORS: tuple[Estimator, ...] = ("assignment", "window", "novelty")


@dataclass(frozen=True)
class GWAConfig:
    """How an agent thinks.

    Attributes:
        candidates: thoughts that the generator offers a tick, N.
        clusters: centres of the drive, K.
        base_temperature, alpha, beta: of the temperature's law ``T = T_base + alpha exp(-beta H)``.
        tau: how sharply a thought is assigned to centres.
        ema: share of a centre that stays when a thought moves it.
        max_temperature: what the model's provider allows at most.
        entropy: estimator of H; "assignment" is the published one, the others are ours.
        entropy_window: thoughts that "window" and "novelty" look back on.
        same_topic: cosine distance below which "window" counts two thoughts as one topic.
        theta: tokens of the stage above which it is condensed.
        max_ticks: thoughts for one message.
        top_k: memories for one query.
        distance_cut: cosine distance below which a memory is relevant.
        idle_every_s: seconds between idle ticks.
        max_idle_ticks: idle ticks without a message after which the agent rests; 0 for no limit.
        calls_per_hour: calls of models that idle ticks may make; 0 for no limit.
        deadline_s: for one node; a node that misses it is left out of the tick.
        attempts: of one call, where the model cannot be reached or is too busy.
        max_tokens: of an answer, by role.
        temperatures: by role; the generator's comes from the drive.
        seed: of everything that is drawn.
        persona: put before every node's instructions; never changed by a tick.

    Raises:
        BadInput: a setting outside its range.
    """

    candidates: int = 3
    clusters: int = 5
    base_temperature: float = 0.7
    alpha: float = 1.3
    beta: float = 2.0
    tau: float = 0.5
    ema: float = 0.5
    max_temperature: float = 2.0
    entropy: Estimator = "assignment"
    entropy_window: int = 10
    same_topic: float = 0.3
    theta: int = 3000
    max_ticks: int = 8
    top_k: int = 3
    distance_cut: float = 0.35
    idle_every_s: float = 30.0
    max_idle_ticks: int = 0
    calls_per_hour: int = 0
    deadline_s: float = 60.0
    attempts: int = 3
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    persona: str = "You are one mind that thinks in small steps about concrete things."

    def __post_init__(self) -> None:
        """Fills in the published values by role, and refuses what cannot be."""
        object.__setattr__(self, "max_tokens", {**_MAX_TOKENS, **self.max_tokens})
        object.__setattr__(self, "temperatures", {**_TEMPERATURES, **self.temperatures})
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise BadInput(f"{name} is a whole number of {low} or more; got {value!r}")
        for name, above in _FLOATS.items():
            value = getattr(self, name)
            ok = isinstance(value, int | float) and math.isfinite(value) and (value > 0 if above else value >= 0)
            if not ok:
                bound = "above 0" if above else "of 0 or more"
                raise BadInput(f"{name} is a finite number {bound}; got {value!r}")
        if not 0 <= self.ema < 1:
            raise BadInput(f"ema is the share of a centre that stays, in [0, 1); got {self.ema!r}")
        if self.base_temperature > self.max_temperature:
            raise BadInput(
                f"base_temperature {self.base_temperature:g} exceeds max_temperature {self.max_temperature:g}"
            )
        if self.entropy not in ESTIMATORS:
            raise BadInput(f"entropy is one of {', '.join(ESTIMATORS)}; got {self.entropy!r}")
        for table, known in ((self.max_tokens, _MAX_TOKENS), (self.temperatures, _TEMPERATURES)):
            odd = [key for key, value in table.items() if key not in known or not value >= 0]
            if odd:
                raise BadInput(f"no such role, or a value below 0: {', '.join(odd)}; roles are {', '.join(known)}")
        if self.seed >= 2**53:
            raise BadInput(f"seed lies in [0, 2**53); got {self.seed!r}")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> GWAConfig:
        """From JSON values.

        Raises:
            BadInput: an unknown name, or a value outside its range.
        """
        known = {one.name for one in fields(cls)}
        odd = sorted(set(options) - known)
        if odd:
            raise BadInput(f"no such setting: {', '.join(odd)}; settings are {', '.join(sorted(known))}")
        try:
            return cls(**options)
        except TypeError as error:
            raise BadInput(f"a setting has the wrong type: {error}") from None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


_MAX_TOKENS = {
    "attention": 256,
    "generator": 1024,
    "critic": 1024,
    "meta": 1024,
    "response": 512,
    "summary": 800,
    "knowledge": 600,
    "query": 64,
    "synthesis": 256,
}
_TEMPERATURES = {
    "attention": 0.3,
    "critic": 0.1,
    "meta": 0.3,
    "response": 0.4,
    "summary": 0.3,
    "knowledge": 0.2,
    "query": 0.2,
    "synthesis": 0.3,
}
_AT_LEAST = {
    "candidates": 1,
    "clusters": 1,
    "entropy_window": 1,
    "theta": 16,
    "max_ticks": 1,
    "top_k": 0,
    "max_idle_ticks": 0,
    "calls_per_hour": 0,
    "attempts": 1,
    "seed": 0,
}
_FLOATS = {
    "base_temperature": False,
    "alpha": False,
    "beta": False,
    "tau": True,
    "max_temperature": True,
    "same_topic": False,
    "distance_cut": False,
    "idle_every_s": True,
    "deadline_s": True,
}
