"""Faults on purpose: a schedule, by time or by the name of a phase, that is the same for the same seed.

Each family brings the actuators: a function a kind of fault that does to a target what the kind says.

>>> plan = FaultPlan((Fault("kill", "worker 1", at=2.0), Fault("hang", "worker 0", phase="transfer")))
>>> done = []
>>> from heliograph.sim.engine import Sim
>>> sim = Sim()
>>> run = plan.install(sim, {"kill": lambda f: done.append(("kill", sim.now)), "hang": lambda f: done.append("hang")})
>>> sim.run()
>>> run.reach("transfer")
>>> done
[('kill', 2.0), 'hang']
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from heliograph.errors import BadInput
from heliograph.sim.engine import Sim

__all__ = ["Fault", "FaultPlan", "FaultRun"]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: what is done, by the name of an actuator.
        target: to whom.
        at: seconds from the start; or
        phase: the name of a phase; the fault strikes the ``visit``-th time that it is reached.
        visit: counted from 1.
        duration: seconds, for kinds that end.
    """

    kind: str
    target: str
    at: float | None = None
    phase: str = ""
    visit: int = 1
    duration: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a fault without, or with two, moments."""
        if (self.at is None) == (not self.phase):
            raise BadInput(f"a fault strikes at a time or in a phase, one of them; got {self.at} and {self.phase!r}")
        if (self.at is not None and not (self.at >= 0 and math.isfinite(self.at))) or self.visit < 1:
            raise BadInput(
                f"a fault's time must be finite and 0 or more, its visit 1 or more; got {self.at}, {self.visit}"
            )
        if not self.duration >= 0:
            raise BadInput(f"a duration is in seconds and cannot be negative; got {self.duration}")


@dataclass(frozen=True)
class FaultPlan:
    """Faults in the order given."""

    faults: tuple[Fault, ...]

    @classmethod
    def random(
        cls,
        seed: int,
        targets: Sequence[str],
        kinds: Sequence[str],
        *,
        rate: float,
        horizon: float,
        duration: float = 0.0,
    ) -> FaultPlan:
        """Faults at random times: a Poisson process a target.

        Args:
            seed: of times and kinds; a target's faults do not depend on who else is there.
            targets, kinds: to draw from.
            rate: faults a second and target.
            horizon: seconds.
            duration: mean of exponential durations; 0 for none.
        """
        if not targets or not kinds or not rate >= 0 or not horizon >= 0 or not duration >= 0:
            raise BadInput("a random plan needs targets and kinds, and rate, horizon and duration of 0 or more")
        faults = []
        for target in targets:
            draws = np.random.default_rng([seed, *target.encode()])
            at = float(draws.exponential(1 / rate)) if rate else math.inf
            while at < horizon:
                lasts = float(draws.exponential(duration)) if duration else 0.0
                faults.append(Fault(kinds[int(draws.integers(len(kinds)))], target, at=at, duration=lasts))
                at += float(draws.exponential(1 / rate))
        return cls(tuple(sorted(faults, key=lambda fault: (fault.at or 0.0, fault.target))))

    def install(self, sim: Sim, actuators: Mapping[str, Callable[[Fault], object]]) -> FaultRun:
        """Schedules the plan.

        Raises:
            BadInput: a kind without an actuator, before anything is scheduled.
        """
        absent = sorted({fault.kind for fault in self.faults} - set(actuators))
        if absent:
            raise BadInput(f"no actuator for {', '.join(absent)}; there are {', '.join(sorted(actuators)) or 'none'}")
        return FaultRun(self, sim, actuators)

    def to_json(self) -> str:
        """As text, which :meth:`from_json` reads."""
        return json.dumps([asdict(fault) for fault in self.faults])

    @classmethod
    def from_json(cls, text: str) -> FaultPlan:
        """From text.

        Raises:
            BadInput: no list of faults.
        """
        try:
            data: Any = json.loads(text)
            return cls(tuple(Fault(**item) for item in data))
        except (TypeError, ValueError) as error:
            raise BadInput(f"no plan of faults: {error}") from None


class FaultRun:
    """An installed plan; ``struck`` lists (time, fault) of what has happened."""

    def __init__(self, plan: FaultPlan, sim: Sim, actuators: Mapping[str, Callable[[Fault], object]]) -> None:
        self.struck: list[tuple[float, Fault]] = []
        self._sim, self._actuators = sim, actuators
        self._visits: dict[str, int] = {}
        self._phased = [fault for fault in plan.faults if fault.phase]
        for fault in plan.faults:
            if fault.at is not None:
                sim.at(sim.now + fault.at, lambda fault=fault: self._strike(fault))  # type: ignore[misc]

    def reach(self, phase: str) -> None:
        """A program says that it has come to a phase."""
        visit = self._visits[phase] = self._visits.get(phase, 0) + 1
        for fault in self._phased:
            if fault.phase == phase and fault.visit == visit:
                self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        self.struck.append((self._sim.now, fault))
        self._actuators[fault.kind](fault)
